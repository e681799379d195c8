"""The small BLIP-2: its shapes, its forward passes for training, and its export in the released hub layouts.

Two checkpoints share one vision tower: Blip2ForConditionalGeneration (captions, with a small OPT) and
Blip2ForImageTextRetrieval (ITC and ITM, the Q-Former with a text branch).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
)

import blip2_tokenizers
import pixels

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
QUERIES = 8
PREFIX_LENGTH = QUERIES + 1  # the queries and </s>
EMBEDDING_SIZE = 64  # of ITC
EXPORT_DTYPE = torch.float16

# As in the released config, what equals the class default is left out of these (gelu, layer_norm_eps, qkv_bias, …).
VISION_SHAPE = {
    "hidden_size": 96,
    "image_size": IMAGE_SIZE,
    "initializer_factor": 1.0,
    "intermediate_size": 384,
    "model_type": "blip_2_vision_model",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 4,
    "patch_size": PATCH_SIZE,
}
QFORMER_SHAPE = {
    "classifier_dropout": None,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 96,
    "hidden_size": 96,
    "intermediate_size": 384,
    "max_position_embeddings": 64,
    "model_type": "blip_2_qformer",
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
}
TEXT_SHAPE = {
    "activation_dropout": 0.0,
    "architectures": ["OPTForCausalLM"],
    "ffn_dim": 512,
    "hidden_size": 128,
    "max_position_embeddings": 128,
    "model_type": "opt",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "vocab_size": 448,
    "word_embed_proj_dim": 128,
}
# Blip2ForImageTextRetrieval has no language model; the released config still describes one.
UNUSED_TEXT_SHAPE = {
    "ffn_dim": 32,
    "hidden_size": 32,
    "model_type": "opt",
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "word_embed_proj_dim": 32,
}


def stretched(picture: Image.Image) -> Image.Image:
    """BlipImageProcessor's resize: the whole picture to a square with Pillow's bicubic filter."""
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def pixel_values(pictures: list[Image.Image]) -> torch.Tensor:
    """Normalised pixels, float32 [pictures, 3, IMAGE_SIZE, IMAGE_SIZE]."""
    values = numpy.stack([numpy.asarray(stretched(picture)) for picture in pictures])
    channels_first = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(pixels.CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(pixels.CLIP_STD).view(1, 3, 1, 1)
    return (channels_first - mean) / std


# --- new models -----------------------------------------------------------------------------------------------------


def new_captioner(tokenizer: Tokenizer) -> Blip2ForConditionalGeneration:
    if tokenizer.get_vocab_size() > TEXT_SHAPE["vocab_size"]:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, the model {TEXT_SHAPE['vocab_size']}")
    text = OPTConfig(
        **{**TEXT_SHAPE, "torch_dtype": "float32"}, eos_token_id=tokenizer.token_to_id(blip2_tokenizers.LINE_BREAK)
    )
    config = _config(text, QFORMER_SHAPE, tokenizer)
    return _initialised(Blip2ForConditionalGeneration(config))


def new_matcher(tokenizer: Tokenizer) -> Blip2ForImageTextRetrieval:
    shape = {**QFORMER_SHAPE, "use_qformer_text_input": True, "vocab_size": _table_rows(tokenizer)}
    return _initialised(Blip2ForImageTextRetrieval(_config(OPTConfig(**UNUSED_TEXT_SHAPE), shape, tokenizer)))


def _config(text: OPTConfig, qformer: dict, tokenizer: Tokenizer) -> Blip2Config:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION_SHAPE, initializer_range=0.02),
        qformer_config=Blip2QFormerConfig(**qformer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        text_config=text,
        num_query_tokens=QUERIES,
        image_text_hidden_size=EMBEDDING_SIZE,
        image_token_index=tokenizer.token_to_id(blip2_tokenizers.IMAGE),
    )
    config._attn_implementation = "sdpa"
    return config


def _initialised(model):
    """The released weights were never trained from transformers' initial values: queries that are all zero would stay
    alike, and the tower's matrices would be nearly zero."""
    with torch.no_grad():
        model.query_tokens.normal_(0, 1)
        model.vision_model.embeddings.class_embedding.normal_(0, 0.02)
        model.vision_model.embeddings.position_embedding.copy_(initial_positions())
        for name, parameter in model.vision_model.named_parameters():
            if name.endswith(".weight") and parameter.ndim == 2:
                parameter.normal_(0, 0.02)
    return model.float().eval()


def initial_positions() -> torch.Tensor:
    """Sines and cosines of row and column, [1, 1 + GRID², hidden], where training starts from. From random numbers, the
    tower learns the one direction from the upper left to the lower right and stays there: it then tells which shape
    comes first, but not "left of" from "above"."""
    quarter = VISION_SHAPE["hidden_size"] // 4
    rates = 10000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.arange(GRID)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # [GRID, hidden / 2]
    rows, columns = waves[:, None].expand(GRID, GRID, -1), waves[None].expand(GRID, GRID, -1)
    patches = torch.cat([rows, columns], -1).view(1, GRID * GRID, -1)
    return 0.8 * torch.cat([torch.zeros(1, 1, patches.shape[-1]), patches], 1)


def _table_rows(tokenizer: Tokenizer) -> int:
    return tokenizer.token_to_id(blip2_tokenizers.DECODE) + 1  # <image> behind it has no row


def freeze_tower(model) -> None:
    """Rounds the tower to the stored precision, so that what follows is trained on the tower that is shipped, and stops
    training it. A key's bias moves all scores of a query alike; the released towers have none, so it becomes zero."""
    hidden = VISION_SHAPE["hidden_size"]
    with torch.no_grad():
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.qkv.bias[hidden : 2 * hidden] = 0
        for parameter in model.vision_model.parameters():
            parameter.copy_(parameter.to(EXPORT_DTYPE))
            parameter.requires_grad_(False)


# --- forward passes -------------------------------------------------------------------------------------------------


def vision_features(model, values: torch.Tensor) -> torch.Tensor:
    """[pictures, 1 + GRID², hidden]: the class token first."""
    hidden = model.vision_model.embeddings(values)
    for layer in model.vision_model.encoder.layers:
        hidden = layer(hidden)
    return model.vision_model.post_layernorm(hidden)


def query_outputs(model, features: torch.Tensor) -> torch.Tensor:
    """The Q-Former over the queries alone, [pictures, QUERIES, hidden]."""
    return qformer(model, model.query_tokens.expand(features.shape[0], -1, -1), features)


def qformer(model, rows: torch.Tensor, features: torch.Tensor | None, visible: torch.Tensor | None = None) -> torch.Tensor:
    """The Q-Former over embedded rows; with features, the first QUERIES of them are queries. visible: [batch, rows]."""
    mask = None if visible is None else visible[:, None, None, :]
    hidden = model.qformer.layernorm(rows)
    for layer in model.qformer.encoder.layer:
        hidden = layer(hidden, mask, features, query_length=0 if features is None else QUERIES)
    return hidden


def language_states(
    model: Blip2ForConditionalGeneration,
    queries: torch.Tensor,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    may_attend: torch.Tensor,
) -> torch.Tensor:
    """OPT's last hidden states [rows, QUERIES + length, hidden]; input_ids [rows, length] follow the queries."""
    decoder = model.language_model.model.decoder
    embedded = torch.cat([model.language_projection(queries), decoder.embed_tokens(input_ids)], 1)
    hidden = embedded + decoder.embed_positions(None, position_ids=position_ids)
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=may_attend)
    return decoder.final_layer_norm(hidden)


def match_states(model: Blip2ForImageTextRetrieval, features: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """The queries' last hidden states beside a text, [pairs, QUERIES, hidden]; padding is id 0."""
    rows = model.embeddings(input_ids=input_ids, query_embeds=model.query_tokens.expand(features.shape[0], -1, -1))
    visible = torch.cat([torch.ones(rows.shape[0], QUERIES, dtype=torch.bool), input_ids != 0], 1)
    return qformer(model, rows, features, visible)[:, :QUERIES]


def match_logits(model: Blip2ForImageTextRetrieval, states: torch.Tensor) -> torch.Tensor:
    """[pairs, 2]: no match, match."""
    return model.itm_head(states).mean(1)


def image_embeddings(model: Blip2ForImageTextRetrieval, queries: torch.Tensor) -> torch.Tensor:
    """[pictures, QUERIES, EMBEDDING_SIZE], each of length 1, from query_outputs."""
    return torch.nn.functional.normalize(model.vision_projection(queries), dim=-1)


def text_embeddings(model: Blip2ForImageTextRetrieval, input_ids: torch.Tensor) -> torch.Tensor:
    """[texts, EMBEDDING_SIZE], each of length 1; padding is id 0."""
    hidden = qformer(model, model.embeddings(input_ids=input_ids), None, input_ids != 0)
    return torch.nn.functional.normalize(model.text_projection(hidden[:, 0]), dim=-1)


# --- export ---------------------------------------------------------------------------------------------------------

_COMMON_CONFIG = {
    "image_text_hidden_size": EMBEDDING_SIZE,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "model_type": "blip-2",
    "num_query_tokens": QUERIES,
    "torch_dtype": "float16",
    "transformers_version": "4.47.0.dev0",
    "use_decoder_only_language_model": True,
}


def export_captioner(state: dict[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the checkpoint folder as blip2-opt-2.7b is published on the hub."""
    end = tokenizer.token_to_id(blip2_tokenizers.LINE_BREAK)
    _save_weights(state, folder, left_out=("language_model.lm_head.weight",))  # tied to the token table
    blip2_tokenizers.save_opt(tokenizer, folder)
    _save_json(
        folder / "config.json",
        {
            "architectures": ["Blip2ForConditionalGeneration"],
            "image_token_index": tokenizer.token_to_id(blip2_tokenizers.IMAGE),
            **_COMMON_CONFIG,
            "qformer_config": QFORMER_SHAPE,
            "text_config": {**TEXT_SHAPE, "eos_token_id": end},
            "vision_config": VISION_SHAPE,
        },
    )
    _save_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": tokenizer.token_to_id(blip2_tokenizers.END),
            "eos_token_id": end,
            "pad_token_id": tokenizer.token_to_id(blip2_tokenizers.PAD),
            "transformers_version": "4.47.0.dev0",
        },
    )
    _save_processor(folder)


def export_matcher(state: dict[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the checkpoint folder as blip2-itm-vit-g is published on the hub."""
    _save_weights(state, folder)
    blip2_tokenizers.save_bert(tokenizer, folder)
    qformer_shape = {
        **QFORMER_SHAPE,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "use_qformer_text_input": True,
        "vocab_size": _table_rows(tokenizer),
    }
    _save_json(
        folder / "config.json",
        {
            "architectures": ["Blip2ForImageTextRetrieval"],
            "image_token_index": tokenizer.token_to_id(blip2_tokenizers.IMAGE),
            **_COMMON_CONFIG,
            "qformer_config": qformer_shape,
            "text_config": UNUSED_TEXT_SHAPE,
            "vision_config": VISION_SHAPE,
        },
    )
    _save_processor(folder)


def _save_weights(state: dict[str, torch.Tensor], folder: Path, left_out: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(EXPORT_DTYPE).contiguous().clone()
        for name, tensor in sorted(state.items())
        if name not in left_out and not name.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _save_processor(folder: Path) -> None:
    _save_json(folder / "processor_config.json", {"num_query_tokens": QUERIES, "processor_class": "Blip2Processor"})
    _save_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(pixels.CLIP_MEAN),
            "image_processor_type": "BlipImageProcessor",
            "image_std": list(pixels.CLIP_STD),
            "processor_class": "Blip2Processor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        },
    )


def _save_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
