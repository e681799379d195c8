"""Starts a demo model from scenes-llava's (and scenes-blip2's) weights: what was learnt about the scenes and their language
carries over.

LLaVA-1.5's decoder, Qwen2's and Qwen-7B's compute the same layers under other names (Qwen2 adds biases, Qwen-7B has as
many key/value heads as heads), and CLIP's tower is Qwen-VL's but for the class token and GELU's exact form. Words that
both vocabularies know keep their rows; chat marks take those of what stands in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import qwenvl_model
import video_llama_model

STAND_INS = {"<|im_end|>": "</s>", "\n": ":", "user": "▁USER", "assistant": "▁ASSISTANT"}


class Source:
    def __init__(self, folder: Path):
        self.state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        self.vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()

    def layer(self, index: int, name: str) -> torch.Tensor:
        return self.state[f"language_model.model.layers.{index}.{name}.weight"]

    def tower(self, index: int, name: str, part: str) -> torch.Tensor:
        return self.state[f"vision_tower.vision_model.encoder.layers.{index}.{name}.{part}"]

    def row_of(self, token: str) -> int | None:
        """The row of a word; `token` is text with its leading space, if it has one."""
        for name in (STAND_INS.get(token, ""), "▁" + token.strip(), token.strip()):
            if name in self.vocabulary and token.strip(" "):
                return self.vocabulary[name]
        return None

    @torch.no_grad()
    def copy_words(self, texts: list[str], table: torch.Tensor, head: torch.Tensor) -> int:
        """Fills the rows of the tokens that both know; how many."""
        known = [(row, self.row_of(text)) for row, text in enumerate(texts)]
        known = [(row, theirs) for row, theirs in known if theirs is not None]
        for row, theirs in known:
            table[row] = self.state["language_model.model.embed_tokens.weight"][theirs]
            head[row] = self.state["language_model.lm_head.weight"][theirs]
        return len(known)


@torch.no_grad()
def qwen2_decoder(source: Source, model: torch.nn.Module, decode: Callable[[int], str], vocabulary: int) -> int:
    """Fills the decoder of an InternVLForConditionalGeneration of LLaVA's sizes; the number of words carried over."""
    decoder = model.model.language_model
    for index, layer in enumerate(decoder.layers):
        for name, parameter in layer.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            else:
                parameter.copy_(source.layer(index, name.removesuffix(".weight")))
    decoder.norm.weight.copy_(source.state["language_model.model.norm.weight"])
    texts = [decode(token) for token in range(vocabulary)]
    return source.copy_words(texts, decoder.embed_tokens.weight, model.lm_head.weight)


@torch.no_grad()
def qwen_decoder(source: Source, model: qwenvl_model.QwenVL, decode: Callable[[int], str], vocabulary: int) -> int:
    transformer, heads = model.transformer, model.config["num_attention_heads"]
    for index, layer in enumerate(transformer.h):
        query, key, value, output = (source.layer(index, f"self_attn.{name}_proj") for name in "qkvo")
        dim = query.shape[0] // heads
        key, value = (
            part.view(-1, dim, part.shape[1]).repeat_interleave(heads * dim // part.shape[0], 0).flatten(0, 1) for part in (key, value)
        )
        layer.attn.c_attn.weight.copy_(torch.cat([query, key, value]))
        layer.attn.c_attn.bias.zero_()
        layer.attn.c_proj.weight.copy_(output)
        layer.mlp.w1.weight.copy_(source.layer(index, "mlp.up_proj"))
        layer.mlp.w2.weight.copy_(source.layer(index, "mlp.gate_proj"))
        layer.mlp.c_proj.weight.copy_(source.layer(index, "mlp.down_proj"))
        layer.ln_1.weight.copy_(source.layer(index, "input_layernorm"))
        layer.ln_2.weight.copy_(source.layer(index, "post_attention_layernorm"))
    transformer.ln_f.weight.copy_(source.state["language_model.model.norm.weight"])
    texts = [decode(token) for token in range(vocabulary)]
    return source.copy_words(texts, transformer.wte.weight, model.lm_head.weight)


@torch.no_grad()
def qwen_tower(source: Source, visual: qwenvl_model.Visual) -> None:
    """Fills the tower from CLIP's of the same width, patch and picture."""
    prefix = "vision_tower.vision_model."
    visual.conv1.weight.copy_(source.state[prefix + "embeddings.patch_embedding.weight"])
    places = source.state[prefix + "embeddings.position_embedding.weight"][1:]  # without the class token's
    # The stored table is a larger square that is resized when run: the smallest one whose resized rows are CLIP's.
    resizing = qwenvl_model.resized_grid(torch.eye(qwenvl_model.POSITION_ROWS), len(places))
    visual.positional_embedding.copy_(torch.linalg.pinv(resizing) @ places)
    for part in ("weight", "bias"):
        getattr(visual.ln_pre, part).copy_(source.state[f"{prefix}pre_layrnorm.{part}"])
    for index, layer in enumerate(visual.transformer.resblocks):
        for part in ("weight", "bias"):
            fused = [source.tower(index, f"self_attn.{name}_proj", part).unflatten(0, (layer.heads, -1)) for name in "qkv"]
            getattr(layer.attn.in_proj, part).copy_(torch.stack(fused, 1).flatten(0, 2))  # per head: q, k, v
            getattr(layer.attn.out_proj, part).copy_(source.tower(index, "self_attn.out_proj", part))
            getattr(layer.mlp.c_fc, part).copy_(source.tower(index, "mlp.fc1", part))
            getattr(layer.mlp.c_proj, part).copy_(source.tower(index, "mlp.fc2", part))
            getattr(layer.ln_1, part).copy_(source.tower(index, "layer_norm1", part))
            getattr(layer.ln_2, part).copy_(source.tower(index, "layer_norm2", part))


@torch.no_grad()
def llama_decoder(source: Source, model: torch.nn.Module, tokens: list[str]) -> int:
    """Fills a LlamaForCausalLM of LLaVA's sizes; the number of words carried over."""
    state = {name.removeprefix("language_model."): tensor for name, tensor in source.state.items() if name.startswith("language_model.")}
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in tables}, strict=False)
    texts = [token.replace("▁", " ") for token in tokens]
    return source.copy_words(texts, model.model.embed_tokens.weight, model.lm_head.weight)


@torch.no_grad()
def eva_and_qformer(folder: Path, model: video_llama_model.VideoLlama) -> None:
    """Fills tower, ln_vision, queries and image Q-Former from BLIP-2 of the same sizes in the hub's layout."""
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    width = model.shape["vision"]
    vision = {
        "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
        "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
        "vision_model.embeddings.patch_embedding.": "visual_encoder.patch_embed.proj.",
        "vision_model.encoder.layers.": "visual_encoder.blocks.",
        "vision_model.post_layernorm.": "ln_vision.",
        "qformer.layernorm.": "Qformer.bert.embeddings.LayerNorm.",
        "qformer.encoder.": "Qformer.bert.encoder.",
        "query_tokens": "query_tokens",
    }
    inner = {"layer_norm": "norm", "self_attn.projection.": "attn.proj.", "self_attn.": "attn.", "attention.attention.": "attention.self."}
    own = model.state_dict()
    for name, tensor in state.items():
        renamed = next((to + name.removeprefix(old) for old, to in vision.items() if name.startswith(old)), None)
        if renamed is None:
            continue
        for old, to in inner.items():
            renamed = renamed.replace(old, to)
        if renamed.endswith("attn.qkv.bias"):
            if tensor[width : 2 * width].any():
                raise ValueError(f"{name}: EVA's keys have no bias")
            own[renamed.replace("qkv.bias", "q_bias")].copy_(tensor[:width])
            own[renamed.replace("qkv.bias", "v_bias")].copy_(tensor[2 * width :])
        else:
            own[renamed].copy_(tensor)
