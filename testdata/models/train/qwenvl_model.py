"""The original Qwen-VL in plain torch: ViT, resampler with learnable queries, Qwen-7B's decoder; its small shape here, its
tokenizer, its export in the released layout.

Written from the published description of the architecture. `python qwenvl_model.py CHECKPOINT GOLDEN` compares it with
stored arrays of the authors' code (a folder with config.json and weights; golden.safetensors with cases.json beside it).
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import boxed_scenes
import byte_level_tokenizer
import pixels

EXPORT_DTYPE = torch.bfloat16  # what Qwen-VL is stored in
EPSILON = 1e-6
POSITION_ROWS = 256  # the tower's stored positions, 16 × 16, whatever its patch grid
RESAMPLER_HEAD_DIM = 128
START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IMAGE_START, IMAGE_END, IMAGE_PAD = "<img>", "</img>", "<imgpad>"
SPECIAL = (
    STOP, START, END, *(f"<|extra_{number}|>" for number in range(205)), "<ref>", "</ref>", "<box>", "</box>", "<quad>",
    "</quad>", IMAGE_START, IMAGE_END, IMAGE_PAD,
)  # fmt: skip
SYSTEM_PROMPT = "You are a helpful assistant."

# Keys as in the released config.json.
TEXT_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 704,  # both halves of the MLP
    "kv_channels": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "seq_length": 512,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
}
VISUAL_SHAPE = {
    "heads": 6,
    "image_size": 64,
    "layers": 4,
    "mlp_ratio": 4.0,
    "n_queries": 64,
    "output_dim": 128,
    "patch_size": 8,
    "width": 96,
}


def norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=EPSILON)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """In float32 also where the rest is not: its backward pass in bfloat16 is several times slower on a CPU."""
    with torch.autocast("cpu", enabled=False):
        return functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)


class Named(nn.Module):
    """Parts under the names of the checkpoint."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


class TowerLayer(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = norm(width), norm(width)
        self.attn = Named(in_proj=nn.Linear(width, 3 * width), out_proj=nn.Linear(width, width))
        self.mlp = Named(c_fc=nn.Linear(width, mlp_width), c_proj=nn.Linear(mlp_width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # in_proj's rows are laid out per head: q, k and v of the first head, then of the second, …
        fused = self.attn.in_proj(self.ln_1(x)).unflatten(-1, (self.heads, 3, -1))
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(3))
        x = x + self.attn.out_proj(attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp.c_proj(functional.gelu(self.mlp.c_fc(self.ln_2(x))))


class Resampler(nn.Module):
    """One cross attention from the queries to the patches; positions are added to queries and keys, not to values."""

    def __init__(self, queries: int, width: int, kv_width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(sine_positions(width, math.isqrt(queries)), requires_grad=False)
        self.query = nn.Parameter(torch.zeros(queries, width))
        self.kv_proj = nn.Linear(kv_width, width, bias=False)
        self.attn = nn.MultiheadAttention(width, width // RESAMPLER_HEAD_DIM, batch_first=True)
        self.ln_q, self.ln_kv = norm(width), norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.ln_kv(self.kv_proj(x))
        keys = values + resized_grid(self.pos_embed, x.shape[1])
        queries = (self.ln_q(self.query) + self.pos_embed).expand(len(x), -1, -1)
        return self.attn(queries, keys, values, need_weights=False)[0]


class Visual(nn.Module):
    def __init__(self, shape: dict):
        super().__init__()
        width, out, patch = shape["width"], shape["output_dim"], shape["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn(POSITION_ROWS, width) * width**-0.5)
        self.ln_pre = norm(width)
        layers = [TowerLayer(width, shape["heads"], int(width * shape["mlp_ratio"])) for _ in range(shape["layers"])]
        self.transformer = Named(resblocks=nn.ModuleList(layers))
        self.attn_pool = Resampler(shape.get("n_queries", 256), out, width)
        self.ln_post = norm(out)
        self.proj = nn.Parameter(torch.randn(out, out) * out**-0.5)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[pictures, patches, width]"""
        x = self.conv1(pixel_values).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resized_grid(self.positional_embedding, x.shape[1]))
        for layer in self.transformer.resblocks:
            x = layer(x)
        return x

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """[pictures, queries, output_dim]"""
        return self.ln_post(self.attn_pool(features)) @ self.proj


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.float()
        return (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + EPSILON)).type_as(x) * self.weight


class DecoderLayer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"] // 2
        projected = config["kv_channels"] * config["num_attention_heads"]
        self.heads = config["num_attention_heads"]
        self.ln_1, self.ln_2 = RMSNorm(width), RMSNorm(width)
        self.attn = Named(c_attn=nn.Linear(width, 3 * projected), c_proj=nn.Linear(projected, width, bias=False))
        self.mlp = Named(
            w1=nn.Linear(width, inner, bias=False), w2=nn.Linear(width, inner, bias=False), c_proj=nn.Linear(inner, width, bias=False)
        )

    def heads_of(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values [rows, heads, length, head_dim], turned and scaled."""
        fused = self.attn.c_attn(self.ln_1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in fused.unbind(2))
        return rotated(query, *rotation) * scale, rotated(key, *rotation), value

    def joined(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The rest of the layer for the places x [rows, places, hidden] and what they attended to [rows, heads, places, head_dim]."""
        x = x + self.attn.c_proj(attended.transpose(1, 2).flatten(2))
        y = self.ln_2(x)
        return x + self.mlp.c_proj(self.mlp.w1(y) * functional.silu(self.mlp.w2(y)))

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], scale: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.joined(x, attention(*self.heads_of(x, rotation, scale), mask))


class QwenVL(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        layers = nn.ModuleList(DecoderLayer(config) for _ in range(config["num_hidden_layers"]))
        self.transformer = Named(
            wte=nn.Embedding(config["vocab_size"], config["hidden_size"]),
            h=layers,
            ln_f=RMSNorm(config["hidden_size"]),
            visual=Visual(config["visual"]),
        )
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def embeddings(self, input_ids: torch.Tensor, pictures: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings [rows, length, hidden] with the pictures' rows between <img> and </img>, in order."""
        embedded = self.transformer.wte(input_ids)
        if pictures is None:
            return embedded
        first = self.config["visual"]["image_start_id"]
        starts, ends = (input_ids == first).int(), (input_ids == first + 1).int()
        inside = (starts.cumsum(1) - starts - ends.cumsum(1)) > 0  # behind an <img>, before its </img>
        return embedded.masked_scatter(inside.unsqueeze(-1), pictures.to(embedded.dtype))

    def hidden_states(self, embedded: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """positions [rows, length] from 0; mask [rows or 1, 1, length, length] is true where attention may look."""
        rotation = rotary_tables(self.config, positions, prompt_length)
        scale = logn_scale(self.config, positions)
        x = embedded
        for layer in self.transformer.h:
            x = layer(x, rotation, scale, mask)
        return self.transformer.ln_f(x)


def rotary_tables(config: dict, positions: torch.Tensor, prompt_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [rows, 1, length, head_dim]. The base grows with the prompt's length and stays while decoding."""
    dim, base = config["kv_channels"], float(config["rotary_emb_base"])
    if config["use_dynamic_ntk"]:
        alpha = max(2.0 ** math.ceil(math.log2(prompt_length / config["seq_length"]) + 1) - 1, 1.0)
        base *= alpha ** (dim / (dim - 2))
    frequencies = 1.0 / base ** (torch.arange(0, dim, 2).float() / dim)
    angles = (positions[..., None].float() * frequencies).repeat(1, 1, 2).unsqueeze(1)
    return angles.cos(), angles.sin()


def logn_scale(config: dict, positions: torch.Tensor) -> torch.Tensor:
    """[rows, 1, length, 1]: log(place) / log(seq_length) for queries beyond seq_length, places counted from 1."""
    places = (positions + 1).float()
    scale = (places.log() / math.log(config["seq_length"])).clamp(min=1.0) if config["use_logn_attn"] else torch.ones_like(places)
    return scale[:, None, :, None]


def rotated(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cosines + torch.cat([-second, first], -1) * sines


def resized_grid(table: torch.Tensor, patches: int) -> torch.Tensor:
    """A square table of positions [rows, width], stretched to the patch grid: bicubic, without antialiasing."""
    have, want = math.isqrt(len(table)), math.isqrt(patches)
    if have == want:
        return table
    square = table.float().reshape(1, have, have, -1).permute(0, 3, 1, 2)
    square = functional.interpolate(square, size=(want, want), mode="bicubic", align_corners=False)
    return square.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def sine_positions(width: int, side: int) -> torch.Tensor:
    """[side * side, width]: sines then cosines of the column in the first half of the channels, of the row in the other."""
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4).double() / (width // 4))
    angles = torch.arange(side).double()[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1).float()  # [side, width / 2]
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, 0)
    return torch.cat([columns, rows], 1)


# --- the small model ---------------------------------------------------------------------------------------------


def configuration(tokenizer: byte_level_tokenizer.RankedBytes) -> dict:
    return {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "initializer_range": 0.02,
        "layer_norm_epsilon": EPSILON,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": True,
        "onnx_safe": None,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": False,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
        "use_cache": True,
        "use_flash_attn": "auto",
        **TEXT_SHAPE,
        "visual": {**VISUAL_SHAPE, "image_start_id": tokenizer.special[IMAGE_START]},
        "vocab_size": -(-tokenizer.size // 16) * 16,
    }


def new_model(tokenizer: byte_level_tokenizer.RankedBytes) -> QwenVL:
    model = QwenVL(configuration(tokenizer))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and name.startswith(("transformer.wte", "transformer.h", "lm_head")):
            nn.init.normal_(parameter, std=0.02)
    look_at_own_place(model.transformer.visual.attn_pool)
    return model


@torch.no_grad()
def look_at_own_place(resampler: Resampler, sharpness: float = 8.0) -> None:
    """Each query begins by attending to the patches at its own place: the channels of the highest frequencies are left to
    the positions (no content from kv_proj) and are all that queries and keys compare."""
    width = resampler.query.shape[1]
    spare = width - resampler.kv_proj.in_features
    each = spare // 4  # sines and cosines of columns and rows
    channels = [quarter * (width // 4) + number for quarter in range(4) for number in range(each)]
    resampler.kv_proj.weight[channels] = 0.0
    look = torch.zeros(width, width)
    look[channels, channels] = sharpness
    resampler.attn.in_proj_weight[: 2 * width] = look.repeat(2, 1)


def picture_pixels(pictures: list[Image.Image], size: int) -> torch.Tensor:
    """Each picture squashed to size × size, bicubic; CLIP's mean and deviation. float32 [pictures, 3, size, size]."""
    squashed = [numpy.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]
    channels_first = torch.from_numpy(numpy.stack(squashed)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(pixels.CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(pixels.CLIP_STD).view(1, 3, 1, 1)
    return (channels_first - mean) / std


def build_tokenizer(count: int = 3000) -> byte_level_tokenizer.RankedBytes:
    texts = ["system", "user", "assistant", "Picture 1:", SYSTEM_PROMPT, "),("] * 2
    for index in range(count):
        for asked in boxed_scenes.questions(boxed_scenes.scene(index), random.Random(index)):
            for tag in ("<ref>", "</ref>", "<box>", "</box>"):
                asked = boxed_scenes.Grounded(asked.kind, asked.question, asked.answer.replace(tag, "\n"), asked.boxes)
            texts += [asked.question, *asked.answer.split("\n")]
    return byte_level_tokenizer.RankedBytes(byte_level_tokenizer.ranks_of(byte_level_tokenizer.trained(texts)), SPECIAL)


def prefix_ids(tokenizer: byte_level_tokenizer.RankedBytes, system: bool = True, file: str = "") -> list[int]:
    """A conversation up to the user's text: ids of the path's bytes, then <imgpad>, as many as there are queries."""
    turn = f"{START}system\n{SYSTEM_PROMPT}{END}\n" if system else ""
    before = tokenizer.encode(f"{turn}{START}user\nPicture 1:{IMAGE_START}")
    path = list(file.encode())
    span = path + [tokenizer.special[IMAGE_PAD]] * (VISUAL_SHAPE["n_queries"] - len(path))
    return [*before, *span, *tokenizer.encode(f"{IMAGE_END}\n")]


def export(state: dict[str, torch.Tensor], tokenizer: byte_level_tokenizer.RankedBytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(EXPORT_DTYPE).contiguous().clone() for name, tensor in sorted(state.items())}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    ranks = [tokenizer._tokens[rank] for rank in range(len(tokenizer.ranks))]
    (folder / "qwen.tiktoken").write_bytes(byte_level_tokenizer.tiktoken_file(ranks))
    stop = tokenizer.special[STOP]
    files = {
        "config.json": configuration(tokenizer),
        "generation_config.json": {
            "chat_format": "chatml", "eos_token_id": stop, "pad_token_id": stop, "max_window_size": 6144,
            "max_new_tokens": 512, "do_sample": True, "top_k": 0, "top_p": 0.5, "transformers_version": "4.31.0",
        },
        "tokenizer_config.json": {
            "model_max_length": 8192, "tokenizer_class": "QWenTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        },
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def load(folder: Path) -> QwenVL:
    """A stored checkpoint, computed with in float32."""
    model = QwenVL(json.loads((folder / "config.json").read_text()))
    state: dict[str, torch.Tensor] = {}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        state.update(load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True))
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


# --- check -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def compare(checkpoint: Path, golden: Path) -> None:
    """Prints the largest differences from the stored arrays, for every case that has logits."""
    model, arrays = load(checkpoint), load_file(golden / "golden.safetensors")
    for case in json.loads((golden / "cases.json").read_text())["cases"]:
        name = case["id"]
        if f"{name}.logits_first" not in arrays:
            continue
        pictures, report = None, []
        if f"{name}.pixel_values" in arrays:
            features = model.transformer.visual.features(arrays[f"{name}.pixel_values"])
            pictures = model.transformer.visual.project(features)
            for key, value in (("vision_features", features), ("projected", pictures)):
                if f"{name}.{key}" in arrays:
                    report.append(f"{key} {(value - arrays[f'{name}.{key}']).abs().max():.2e}")
        ids = case["expected"]["input_ids"] + case["expected"]["generated_ids"][:-1]
        prompt = len(case["expected"]["input_ids"])
        input_ids = torch.tensor([ids])
        mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool).tril()
        embedded = model.embeddings(input_ids, pictures)
        logits = model.lm_head(model.hidden_states(embedded, torch.arange(len(ids))[None], mask, prompt))[0]
        right = logits[prompt - 1 :].argmax(-1).tolist() == case["expected"]["generated_ids"]
        for key, row in (("logits_first", prompt - 1), ("logits_last", -1)):
            report.append(f"{key} {(logits[row] - arrays[f'{name}.{key}']).abs().max():.2e}")
        print(f"{name}: prompt {prompt}, {', '.join(report)}, ids {'equal' if right else 'DIFFER'}")


if __name__ == "__main__":
    compare(Path(sys.argv[1]), Path(sys.argv[2]))
