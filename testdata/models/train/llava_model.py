"""The small LLaVA-1.5: its shape, its forward pass over packed rows, and its export in the released hub layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import llama_tokenizer
import pixels
from conversations import IGNORED, Rows

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
IMAGE_TOKENS = GRID * GRID
PLACEHOLDERS = slice(4, 4 + IMAGE_TOKENS)  # after <s>, ▁USER, : and ▁
CONTEXT_LENGTH = 512
EXPORT_DTYPE = torch.float16  # what the released LLaVA-1.5 is stored in

# As in the released config, what equals the class default is left out of these (quick_gelu, rope_theta 10000, …).
VISION_SHAPE = {
    "hidden_size": 96,
    "image_size": IMAGE_SIZE,
    "intermediate_size": 384,
    "model_type": "clip_vision_model",
    "num_attention_heads": 6,
    "num_hidden_layers": 5,  # vision_feature_layer -2: the last one is never used
    "patch_size": PATCH_SIZE,
    "projection_dim": 96,
    "vocab_size": 576,
}
TEXT_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": CONTEXT_LENGTH,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "torch_dtype": "float16",
    "vocab_size": 576,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}


def new_model(tokenizer: Tokenizer) -> LlavaForConditionalGeneration:
    if tokenizer.get_vocab_size() > TEXT_SHAPE["vocab_size"]:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, the model {TEXT_SHAPE['vocab_size']}")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION_SHAPE),
        text_config=LlamaConfig(**{**TEXT_SHAPE, "torch_dtype": "float32"}),
        image_token_index=tokenizer.token_to_id(llama_tokenizer.IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        image_seq_length=IMAGE_TOKENS,
        pad_token_id=tokenizer.token_to_id(llama_tokenizer.PAD),
    )
    config._attn_implementation = "sdpa"
    return LlavaForConditionalGeneration(config).float()


def vision_features(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """[pictures, IMAGE_TOKENS, vision hidden]: vision_feature_layer -2 without CLS, not running the unused last layer."""
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden[:, 1:]


def hidden_states(
    model: LlavaForConditionalGeneration,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    may_attend: torch.Tensor,
    position_ids: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The decoder's last hidden states [rows, length, text hidden] and the vision features; one picture a row."""
    features = vision_features(model, pixel_values)
    embeddings = model.model.language_model.embed_tokens(input_ids)
    before, after = embeddings[:, : PLACEHOLDERS.start], embeddings[:, PLACEHOLDERS.stop :]
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([before, model.model.multi_modal_projector(features), after], 1),
        attention_mask=may_attend,
        position_ids=position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden, features


def answer_logits(
    model: LlavaForConditionalGeneration, pixel_values: torch.Tensor, rows: Rows, forward=hidden_states
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [learnt tokens, vocabulary] at the places whose next token belongs to an answer, row by row, and the
    vision features. `forward` may be a compiled hidden_states."""
    if not (rows.input_ids[:, PLACEHOLDERS] == model.config.image_token_id).all():
        raise ValueError(f"the picture's placeholders are not at {PLACEHOLDERS}")
    hidden, features = forward(model, pixel_values, rows.input_ids, rows.may_attend, rows.position_ids)
    return model.lm_head(hidden[rows.labels != IGNORED]), features


# --- export ------------------------------------------------------------------------------------------------------


def hub_name(name: str) -> str:
    """The released checkpoint's name of a parameter of this transformers version's model."""
    for prefix, released in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
    ):
        if name.startswith(prefix):
            return released + name.removeprefix(prefix)
    raise ValueError(f"no released name known for the parameter {name!r}")


def export(state: dict[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the checkpoint folder as LLaVA-1.5 is published on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        hub_name(name): tensor.detach().to(EXPORT_DTYPE).contiguous().clone()
        for name, tensor in sorted(state.items())
        if not name.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in _published_files(tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def _published_files(tokenizer: Tokenizer) -> dict[str, dict]:
    image, pad = tokenizer.token_to_id(llama_tokenizer.IMAGE), tokenizer.token_to_id(llama_tokenizer.PAD)
    begin, end = tokenizer.token_to_id(llama_tokenizer.BEGIN), tokenizer.token_to_id(llama_tokenizer.END)
    special = {
        "bos_token": llama_tokenizer.BEGIN,
        "eos_token": llama_tokenizer.END,
        "pad_token": llama_tokenizer.PAD,
        "unk_token": llama_tokenizer.UNKNOWN,
    }
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
        }
        for token in (llama_tokenizer.UNKNOWN, llama_tokenizer.BEGIN, llama_tokenizer.END, llama_tokenizer.IMAGE, llama_tokenizer.PAD)
    }  # fmt: skip
    return {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "ignore_index": IGNORED,
            "image_seq_length": IMAGE_TOKENS,
            "image_token_index": image,
            "model_type": "llava",
            "pad_token_id": pad,
            "projector_hidden_act": "gelu",
            "text_config": TEXT_SHAPE,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "transformers_version": "4.40.0",
            "vision_config": VISION_SHAPE,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "vocab_size": TEXT_SHAPE["vocab_size"],
        },
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": begin,
            "eos_token_id": end,
            "pad_token_id": pad,
            "transformers_version": "4.40.0",
        },
        "preprocessor_config.json": {
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(pixels.CLIP_MEAN),
            "image_processor_type": "CLIPImageProcessor",
            "image_std": list(pixels.CLIP_STD),
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": IMAGE_SIZE},
        },
        "processor_config.json": {
            "image_token": llama_tokenizer.IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": PATCH_SIZE,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "special_tokens_map.json": {**special, "image_token": llama_tokenizer.IMAGE},
        "tokenizer_config.json": {
            "added_tokens_decoder": added,
            "add_bos_token": True,
            "add_eos_token": False,
            **special,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": CONTEXT_LENGTH,
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
            "image_token": llama_tokenizer.IMAGE,
            "extra_special_tokens": {"image_token": llama_tokenizer.IMAGE},
            "sp_model_kwargs": {},
            "trust_remote_code": False,
            "use_default_system_prompt": False,
            "tokenizer_class": "LlamaTokenizer",
        },
    }
