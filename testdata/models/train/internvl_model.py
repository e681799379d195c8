"""The small InternVL: its shape, its tokenizer, its tiles, its forward pass over packed rows, its export in the hub's
layout (InternVL3-*-hf)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AttentionInterface, AttentionMaskInterface, InternVLConfig, InternVLForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import byte_level_tokenizer
import chat_rows
import wide_scenes

TILE = wide_scenes.TILE
PATCH = 8
GRID = TILE // PATCH
TOKENS_PER_TILE = (GRID // 2) ** 2  # pixel shuffle halves both sides
MAX_TILES = 12
EXPORT_DTYPE = torch.bfloat16  # what InternVL3 is stored in
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
PLAIN = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
         "<|file_sep|>")  # fmt: skip
ADDED = (
    PAD, START, END, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
    "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", *PLAIN,
    IMAGE_START, IMAGE_END, IMAGE, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>", VIDEO,
)  # fmt: skip

VISION_SHAPE = {
    "architectures": ["InternVisionModel"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 96,
    "image_size": [TILE, TILE],
    "initializer_factor": 0.1,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "layer_norm_eps": 1e-06,
    "layer_scale_init_value": 1.0,
    "model_type": "internvl_vision",
    "norm_type": "layer_norm",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": [PATCH, PATCH],
    "projection_dropout": 0.0,
    "torch_dtype": "bfloat16",
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
    "use_qk_norm": False,
}
TEXT_SHAPE = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 352,
    "max_position_embeddings": 1024,
    "max_window_layers": 3,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}


# --- text --------------------------------------------------------------------------------------------------------


def build_tokenizer(scenes: int = 3000) -> Tokenizer:
    texts = [wide_scenes.CAPTION_PROMPT, "user", "assistant"] * 2
    for index in range(scenes):
        drawn = wide_scenes.scene(index)
        questions = drawn.questions(random.Random(index))
        texts += [drawn.caption(), *(question.text for question in questions), *(question.answer for question in questions)]
    return byte_level_tokenizer.with_added(byte_level_tokenizer.trained(texts), ADDED, PLAIN)


def prefix_text(tiles: int) -> str:
    return f"{START}user\n{IMAGE_START}{IMAGE * (TOKENS_PER_TILE * tiles)}{IMAGE_END}\n"


def prompt_text(prompt: str) -> str:
    return f"{prompt}{END}\n{START}assistant\n"


class Encoder:
    """Prefixes and branches as token ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.pad = tokenizer.token_to_id(PAD)
        self._cache: dict[str, tuple[int, ...]] = {}

    def ids(self, text: str) -> tuple[int, ...]:
        if text not in self._cache:
            self._cache[text] = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return self._cache[text]

    def prefix(self, tiles: int) -> list[int]:
        return list(self.ids(prefix_text(tiles)))

    def branch(self, kind: str, prompt: str, answer: str, weight: float = 1.0) -> chat_rows.Branch:
        return chat_rows.Branch(kind, self.ids(prompt_text(prompt)), self.ids(answer + END), weight)


# --- pictures ----------------------------------------------------------------------------------------------------


def grid_of(width: int, height: int) -> tuple[int, int]:
    """(columns, rows): the grid of at most MAX_TILES tiles whose aspect ratio is closest. Of two equally close ones it
    is the larger grid if the picture has more than half of that grid's pixels."""
    grids = sorted(
        {(columns, rows) for columns in range(1, MAX_TILES + 1) for rows in range(1, MAX_TILES + 1) if columns * rows <= MAX_TILES},
        key=lambda grid: grid[0] * grid[1],
    )
    best, least = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        if difference < least or (difference == least and width * height > 0.5 * TILE * TILE * columns * rows):
            best, least = (columns, rows), difference
    return best


def tiles_of(picture: Image.Image, tiling: bool = True) -> numpy.ndarray:
    """uint8 [tiles, TILE, TILE, 3]: row by row, the whole picture last; only the whole picture without tiling."""
    columns, rows = grid_of(*picture.size) if tiling else (1, 1)
    whole = numpy.array(picture.resize((TILE, TILE), Image.Resampling.BICUBIC))[None]
    if columns * rows == 1:
        return whole
    stretched = picture.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    cut = numpy.asarray(stretched).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    return numpy.concatenate([cut, whole])


def normalised(tiles: numpy.ndarray) -> torch.Tensor:
    """uint8 [tiles, TILE, TILE, 3] → float32 [tiles, 3, TILE, TILE]."""
    channels_first = torch.tensor(tiles).permute(0, 3, 1, 2).float() / 255
    return (channels_first - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


# --- model -------------------------------------------------------------------------------------------------------


def configuration(tokenizer: Tokenizer) -> dict:
    vocabulary = -(-tokenizer.get_vocab_size() // 16) * 16
    begin, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": TOKENS_PER_TILE,
        "image_token_id": tokenizer.token_to_id(IMAGE),
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {**TEXT_SHAPE, "vocab_size": vocabulary, "bos_token_id": begin, "eos_token_id": end},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0.dev0",
        "vision_config": VISION_SHAPE,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def float_attention(module, query, key, value, attention_mask, **kwargs):
    """transformers' SDPA in float32 also where the rest is not: its backward pass in bfloat16 is several times slower on
    a CPU."""
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def new_model(tokenizer: Tokenizer) -> InternVLForConditionalGeneration:
    AttentionInterface.register("float_sdpa", float_attention)
    AttentionMaskInterface.register("float_sdpa", sdpa_mask)
    config = InternVLConfig.from_dict(configuration(tokenizer))
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32
        part._attn_implementation = "float_sdpa"
    model = InternVLForConditionalGeneration(config).float()
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.02)
    return model


def vision_features(model: InternVLForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """[tiles, GRID * GRID, vision hidden]: the tower without its class token."""
    tower = model.model.vision_tower
    hidden = tower.embeddings(pixel_values)
    if isinstance(hidden, tuple):
        hidden = hidden[0]
    for layer in tower.encoder.layer:
        hidden = layer(hidden)
        if isinstance(hidden, tuple):
            hidden = hidden[0]
    return hidden[:, 1:]


def picture_tokens(model: InternVLForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """[tiles, TOKENS_PER_TILE, text hidden] of vision features."""
    squares = features.reshape(features.shape[0], GRID, GRID, -1)
    shuffled = model.model.pixel_shuffle(squares, scale_factor=0.5)
    return model.model.multi_modal_projector(shuffled.reshape(features.shape[0], TOKENS_PER_TILE, -1))


def answer_logits(model: InternVLForConditionalGeneration, pictures: torch.Tensor, rows: chat_rows.Rows) -> torch.Tensor:
    """Logits [learnt tokens, vocabulary]; the picture tokens of each row's tiles follow each other."""
    pictures = pictures.reshape(rows.input_ids.shape[0], -1, pictures.shape[-1])
    start = (rows.input_ids[0] == model.config.image_token_id).nonzero()[0, 0]
    decoder = model.model.language_model
    embeddings = decoder.embed_tokens(rows.input_ids)
    embeddings = torch.cat([embeddings[:, :start], pictures, embeddings[:, start + pictures.shape[1] :]], 1)
    hidden = decoder(
        inputs_embeds=embeddings, attention_mask=rows.may_attend, position_ids=rows.position_ids, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[rows.learnt])


# --- export ------------------------------------------------------------------------------------------------------


def hub_name(name: str) -> str:
    """The released checkpoint's name of a parameter of this transformers version's model."""
    for prefix, released in (("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")):
        if name.startswith(prefix):
            return released + name.removeprefix(prefix)
    if name.startswith(("model.vision_tower.", "model.multi_modal_projector.")):
        return name.removeprefix("model.")
    raise ValueError(f"no released name known for the parameter {name!r}")


CHAT_TEMPLATE = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '
'}}{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>
' }}{% elif content['type'] == 'video' %}{{ '<video>
' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>
'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant
' }}{% endif %}"""


def export(state: dict[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {hub_name(name): tensor.detach().to(EXPORT_DTYPE).contiguous().clone() for name, tensor in sorted(state.items())}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for name, content in _published_files(tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _published_files(tokenizer: Tokenizer) -> dict[str, dict]:
    named = {"context_image_token": IMAGE, "end_image_token": IMAGE_END, "start_image_token": IMAGE_START, "video_token": VIDEO}
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token not in PLAIN,
        }
        for token in ADDED
    }  # fmt: skip
    recipe = {
        "crop_size": None, "data_format": "channels_first", "default_to_square": True, "do_center_crop": None,
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": list(MEAN),
        "image_std": list(STD), "processor_class": "InternVLProcessor", "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"height": TILE, "width": TILE},
    }  # fmt: skip
    return {
        "config.json": configuration(tokenizer),
        "generation_config.json": {
            "_from_model_config": True, "eos_token_id": tokenizer.token_to_id(END), "transformers_version": "4.52.0.dev0",
        },
        "preprocessor_config.json": {
            **recipe, "crop_to_patches": False, "image_processor_type": "GotOcr2ImageProcessorFast",
            "max_patches": MAX_TILES, "min_patches": 1,
        },
        "video_preprocessor_config.json": {**recipe, "video_processor_type": "InternVLVideoProcessor", "initial_shift": True},
        "processor_config.json": {"image_seq_length": TOKENS_PER_TILE, "processor_class": "InternVLProcessor"},
        "special_tokens_map.json": {**named, "eos_token": END, "pad_token": PAD},
        "tokenizer_config.json": {
            "added_tokens_decoder": added, "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
            "clean_up_tokenization_spaces": False, "eos_token": END, "errors": "replace", "model_max_length": 1024,
            "pad_token": PAD, "split_special_tokens": False, "unk_token": None, "extra_special_tokens": named,
            "processor_class": "InternVLProcessor", "return_token_type_ids": False, **named, "tokenizer_class": "Qwen2Tokenizer",
        },
    }  # fmt: skip
