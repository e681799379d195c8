"""Video-LLaMA in plain torch: EVA ViT, Q-Formers over a frame, over all frames and over sound, ImageBind's audio trunk, a
LLaMA; its small shape here, its export in the release's pieces.

Written from the published description of the architecture; parameters have the release's names. video_llama_golden.py compares
it with stored arrays of the authors' code.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import fbank
import llama_tokenizer
import moving_scenes
import pixels

EXPORT_DTYPE = torch.float16
STOP = "###"
STRIDE = 10  # of the audio stem
SHAPE = {
    "image_size": 64,
    "patch_size": 8,
    "vision": 96,
    "vision_layers": 4,
    "vision_heads": 6,
    "qformer": 96,
    "qformer_layers": 4,
    "qformer_heads": 6,
    "qformer_intermediate": 384,
    "branch_layers": 2,
    "queries": 8,
    "video_queries": 8,
    "audio_queries": 8,
    "frames": 32,  # rows of the frame positions
    "sounds": 8,  # rows of the sound positions
    "audio": 48,
    "audio_layers": 2,
    "audio_heads": 4,
    "audio_embedding": 64,
}
TEXT_SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 352,
    "max_position_embeddings": 512,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.1",
    "use_cache": True,
    "vocab_size": 640,
}


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Of rows [batch, rows, width]. In float32 also where the rest is not: its backward pass in bfloat16 is several times
    slower on a CPU."""
    query, key, value = (part.float().unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Fields(nn.Module):
    """A module that only holds others under their released names."""

    def __init__(self, **parts: nn.Module | nn.Parameter):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def table(*size: int, spread: float = 0.02) -> nn.Parameter:
    return nn.Parameter(torch.randn(*size) * spread)


class EvaBlock(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Fields(qkv=nn.Linear(width, 3 * width, bias=False), proj=nn.Linear(width, width))
        self.attn.q_bias, self.attn.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.mlp = Fields(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.attn.q_bias, torch.zeros_like(self.attn.q_bias), self.attn.v_bias])
        fused = functional.linear(self.norm1(x), self.attn.qkv.weight, bias)
        x = x + self.attn.proj(attention(*fused.chunk(3, -1), self.heads))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class Eva(nn.Module):
    """eva_vit_g: pixels [pictures, 3, side, side] to rows [pictures, 1 + patches, width], without a last norm."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, patch: int, rows: int):
        super().__init__()
        self.cls_token, self.pos_embed = table(1, 1, width), table(1, rows, width)
        self.patch_embed = Fields(proj=nn.Conv2d(3, width, patch, patch))
        self.blocks = nn.ModuleList(EvaBlock(width, hidden, heads) for _ in range(layers))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed.proj(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class BertAttention(nn.Module):
    def __init__(self, width: int, memory: int, heads: int):
        super().__init__()
        self.heads = heads
        self.self = Fields(query=nn.Linear(width, width), key=nn.Linear(memory, width), value=nn.Linear(memory, width))
        self.output = Fields(dense=nn.Linear(width, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        seen = attention(self.self.query(x), self.self.key(memory), self.self.value(memory), self.heads)
        return self.output.LayerNorm(x + self.output.dense(seen))


class BertLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, memory: int | None):
        super().__init__()
        self.attention = BertAttention(width, width, heads)
        if memory is not None:
            self.crossattention = BertAttention(width, memory, heads)
        self.intermediate_query = Fields(dense=nn.Linear(width, hidden))
        self.output_query = Fields(dense=nn.Linear(hidden, width), LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x)
        if hasattr(self, "crossattention"):
            x = self.crossattention(x, memory)
        y = self.output_query.dense(functional.gelu(self.intermediate_query.dense(x)))
        return self.output_query.LayerNorm(x + y)


class QFormer(nn.Module):
    """Queries [1, queries, width] over memory [batch, rows, memory width]; looks at it in every `cross_every`-th layer."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, memory: int, cross_every: int):
        super().__init__()
        norm = Fields(LayerNorm=nn.LayerNorm(width, eps=1e-12))
        layer = [BertLayer(width, hidden, heads, None if i % cross_every else memory) for i in range(layers)]
        self.bert = Fields(embeddings=norm, encoder=Fields(layer=nn.ModuleList(layer)))

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = self.bert.embeddings.LayerNorm(queries).expand(len(memory), -1, -1)
        for layer in self.bert.encoder.layer:
            x = layer(x, memory)
        return x


class AudioBlock(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Fields(out_proj=nn.Linear(width, width), bias_k=table(1, 1, width), bias_v=table(1, 1, width))
        self.attn.in_proj_weight, self.attn.in_proj_bias = table(3 * width, width), nn.Parameter(torch.zeros(3 * width))
        self.mlp = Fields(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = functional.linear(self.norm_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, -1)
        key, value = (
            torch.cat([part, more.expand(len(x), -1, -1).to(part.dtype)], 1)
            for part, more in ((key, self.attn.bias_k), (value, self.attn.bias_v))
        )
        x = x + self.attn.out_proj(attention(query, key, value, self.heads))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm_2(x))))


class ImageBindAudio(nn.Module):
    """fbank [clips, 1, mels, frames] to one vector a clip, of length exp(log_logit_scale)."""

    def __init__(self, width: int, hidden: int, layers: int, heads: int, embedding: int):
        super().__init__()
        stem = Fields(proj=nn.Conv2d(1, width, 16, STRIDE, bias=False), norm_layer=nn.LayerNorm(width, eps=1e-5))
        rows = 1 + ((fbank.MEL_BINS - 16) // STRIDE + 1) * ((fbank.FRAMES - 16) // STRIDE + 1)
        positions = Fields(pos_embed=table(1, rows, width))
        audio = Fields(cls_token=table(1, 1, width), rgbt_stem=stem, pos_embedding_helper=positions)
        self.modality_preprocessors = Fields(audio=audio)
        blocks = nn.ModuleList(AudioBlock(width, hidden, heads) for _ in range(layers))
        self.modality_trunks = Fields(audio=Fields(blocks=blocks))
        head = [nn.LayerNorm(width, eps=1e-6), nn.Identity(), nn.Linear(width, embedding, bias=False)]
        self.modality_heads = Fields(audio=nn.Sequential(*head))
        scale = Fields(log_logit_scale=nn.Parameter(torch.tensor(20.0).log()))
        self.modality_postprocessors = Fields(audio=nn.Sequential(nn.Identity(), scale))

    def tokens(self, banks: torch.Tensor) -> torch.Tensor:
        before = self.modality_preprocessors.audio
        x = before.rgbt_stem.norm_layer(before.rgbt_stem.proj(banks).flatten(2).transpose(1, 2))
        return torch.cat([before.cls_token.expand(len(x), -1, -1), x], 1) + before.pos_embedding_helper.pos_embed

    def forward(self, banks: torch.Tensor) -> torch.Tensor:
        x = self.tokens(banks)
        for block in self.modality_trunks.audio.blocks:
            x = block(x)
        x = self.modality_heads.audio(x[:, 0])
        return functional.normalize(x.float(), dim=-1) * self.modality_postprocessors.audio[1].log_logit_scale.exp().clamp(max=100)


class VideoLlama(nn.Module):
    def __init__(self, shape: dict, text: dict):
        super().__init__()
        self.shape = shape
        width, hidden, heads = shape["qformer"], shape["qformer_intermediate"], shape["qformer_heads"]
        patches = (shape["image_size"] // shape["patch_size"]) ** 2
        vision = shape["vision"]
        mlp = shape.get("vision_mlp", 4 * vision)
        self.visual_encoder = Eva(vision, mlp, shape["vision_layers"], shape["vision_heads"], shape["patch_size"], 1 + patches)
        self.ln_vision = nn.LayerNorm(vision)
        self.query_tokens = table(1, shape["queries"], width, spread=1)
        self.Qformer = QFormer(width, hidden, shape["qformer_layers"], heads, vision, 2)
        self.video_query_tokens = table(1, shape["video_queries"], width, spread=1)
        self.video_Qformer = QFormer(width, hidden, shape["branch_layers"], heads, width, 1)
        self.video_frame_position_embedding = nn.Embedding(shape["frames"], width)
        self.llama_proj = nn.Linear(width, text["hidden_size"])
        self.audio_encoder = ImageBindAudio(
            shape["audio"], 4 * shape["audio"], shape["audio_layers"], shape["audio_heads"], shape["audio_embedding"]
        )
        self.audio_position_embedding = nn.Embedding(shape["sounds"], shape["audio_embedding"])
        self.audio_query_tokens = table(1, shape["audio_queries"], width, spread=1)
        self.audio_Qformer = QFormer(width, hidden, shape["branch_layers"], heads, shape["audio_embedding"], 1)
        self.audio_llama_proj = nn.Linear(width, text["hidden_size"])
        config = LlamaConfig(**{**text, "torch_dtype": "float32"})
        config._attn_implementation = "sdpa"
        self.llama_model = LlamaForCausalLM(config).float()

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[frames, 1 + patches, vision]."""
        return self.ln_vision(self.visual_encoder(pixel_values))

    def frame_queries(self, features: torch.Tensor) -> torch.Tensor:
        return self.Qformer(self.query_tokens, features)

    def over_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Queries of frames [clips, frames, queries, width], in time, to [clips, video queries, width]."""
        positions = self.video_frame_position_embedding.weight[: frames.shape[1]]
        return self.video_Qformer(self.video_query_tokens, (frames + positions[None, :, None]).flatten(1, 2))

    def over_sound(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Vectors of clips [sounds, clips, embedding] to [sounds, audio queries, width]."""
        positions = self.audio_position_embedding.weight[: embeddings.shape[1]]
        return self.audio_Qformer(self.audio_query_tokens, embeddings + positions[None])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llama_model.model.embed_tokens(ids)


def pixel_values(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [frames, side, side, 3] to normalised [frames, 3, side, side]."""
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (pixels.CLIP_MEAN, pixels.CLIP_STD))
    return (frames.permute(0, 3, 1, 2).float() / 255 - mean) / deviation


# --- prompts ---------------------------------------------------------------------------------------------------------

MEDIA = "<ImageHere>"
_SOUND = f"Close your eyes, open your ears and you imagine only based on the sound that: {MEDIA}. "
_VIDEO = f"<Video>{MEDIA}</Video>"


def prompt(question: str, video: bool, sound: bool, seconds: list[float] | None = None) -> str:
    """One question in the conversation of the release, for Vicuna; sound comes before the video. The form for a sound alone is
    glimpse's: the authors have none."""
    if video and sound:
        shown = f"{_SOUND}{' ' * 16}Close your ears, open your eyes and you see that {_VIDEO}.{' ' * 18}"
        shown += "Now answer my question based on what you have just seen and heard."
    elif sound:
        shown = f"{_SOUND}Now answer my question based on what you have just heard."
    else:
        shown = f"{_VIDEO} "
        if seconds is not None:
            times = ", ".join(str(each) for each in seconds)
            shown += f"The video contains {len(seconds)} frames sampled at {times} seconds. "
    return f"###Human: {shown} {question}###Assistant:"


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """The texts between media, each tokenized by itself; <s> in front of the first."""
    segments = [tokenizer.encode(segment, add_special_tokens=False).ids for segment in text.split(MEDIA)]
    return [[tokenizer.token_to_id(llama_tokenizer.BEGIN), *segments[0]], *segments[1:]]


# --- the small model -------------------------------------------------------------------------------------------------


def build_tokenizer() -> Tokenizer:
    questions = (*moving_scenes.SEE_AND_HEAR, *moving_scenes.SEE, *moving_scenes.HEAR)
    texts = []
    for index in range(2000):
        shown = moving_scenes.clip(index)
        times = [index % 10 / 10, 1 + index % 10 / 10]
        for question in questions:
            for video, sound in ((True, False), (False, True), (True, True)):
                texts += prompt(question, video, sound, times).split(MEDIA)
        texts += [shown.caption() + STOP, shown.heard() + STOP]
    # Words with the space before them; runs of spaces; numbers such as 0.5; #s together; other signs alone.
    split = pre_tokenizers.Split(Regex(r"▁{2,}(?=▁)|▁?[0-9]+\.[0-9]+|▁?\w+|#+|▁|[^\w▁]"), "isolated")
    return llama_tokenizer.build(texts, (), split)


def new_model(tokenizer: Tokenizer) -> VideoLlama:
    if tokenizer.get_vocab_size() > TEXT_SHAPE["vocab_size"]:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} entries, the model {TEXT_SHAPE['vocab_size']}")
    return VideoLlama(SHAPE, TEXT_SHAPE)


def freeze_tower(model: VideoLlama) -> None:
    """As the authors do: what is trained is behind the tower."""
    for part in (model.visual_encoder, model.ln_vision):
        part.requires_grad_(False)


# --- pieces ----------------------------------------------------------------------------------------------------------

QFORMER_PARTS = ("Qformer.", "query_tokens", "ln_vision.")
VIDEO_PARTS = ("video_Qformer.", "video_query_tokens", "video_frame_position_embedding.", "llama_proj.")
AUDIO_PARTS = ("audio_Qformer.", "audio_query_tokens", "audio_position_embedding.", "audio_llama_proj.")
PIECES = {
    "vision": "eva_vit_g.pth",
    "qformer": "blip2_pretrained_flant5xxl.pth",
    "video": "finetuned_visual_branch.pth",
    "audio": "finetuned_audio_branch.pth",
    "imagebind": "imagebind_huge.pth",
}
LLAMA = "vicuna-tiny"


def export(state: dict[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the pieces, the language model's folder and the .toml that names them."""
    stored = {name: tensor.detach().to(EXPORT_DTYPE).contiguous().clone() for name, tensor in state.items()}

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}

    def of(parts: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
        return {"model": {name: tensor for name, tensor in stored.items() if name.startswith(parts)}}

    llama = folder / LLAMA
    llama.mkdir(parents=True, exist_ok=True)
    torch.save(below("visual_encoder."), folder / PIECES["vision"])
    torch.save(of(QFORMER_PARTS), folder / PIECES["qformer"])
    torch.save(of(VIDEO_PARTS), folder / PIECES["video"])
    torch.save(of(AUDIO_PARTS), folder / PIECES["audio"])
    torch.save(below("audio_encoder."), folder / PIECES["imagebind"])
    torch.save(below("llama_model."), llama / "pytorch_model.bin")
    tokenizer.save(str(llama / "tokenizer.json"))
    special = {"bos_token": llama_tokenizer.BEGIN, "eos_token": llama_tokenizer.END, "unk_token": llama_tokenizer.UNKNOWN}
    files = {
        "config.json": TEXT_SHAPE,
        "generation_config.json": {
            "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "transformers_version": "4.28.1",
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "add_bos_token": True, "add_eos_token": False, **special, "clean_up_tokenization_spaces": False,
            "model_max_length": TEXT_SHAPE["max_position_embeddings"], "tokenizer_class": "LlamaTokenizer",
        },
    }  # fmt: skip
    for name, content in files.items():
        (llama / name).write_text(json.dumps(content, indent=2) + "\n")
    parts = "".join(f'{name} = "{file}"\n' for name, file in PIECES.items())
    options = "".join(f"{name} = {SHAPE[name]}\n" for name in ("vision_layers", "vision_heads", "qformer_heads", "audio_heads"))
    (folder / "video-llama.toml").write_text(f'checkpoint = "{LLAMA}"\n\n[parts]\n{parts}\n[options]\n{options}')


def load_pieces(folder: Path, llama: Path, shape: dict, text: dict, imagebind: str = PIECES["imagebind"]) -> VideoLlama:
    """The model in float32; tensors that nothing runs are left out."""
    model = VideoLlama(shape, text)
    own = model.state_dict()
    state: dict[str, torch.Tensor] = {}
    for name, file in {**PIECES, "imagebind": imagebind}.items():
        piece = torch.load(folder / file, weights_only=True)
        prefix = {"vision": "visual_encoder.", "imagebind": "audio_encoder."}.get(name, "")
        state |= {prefix + key: tensor.float() for key, tensor in piece.get("model", piece).items() if prefix + key in own}
    weights = torch.load(llama / "pytorch_model.bin", weights_only=True)
    state |= {f"llama_model.{key}": tensor.float() for key, tensor in weights.items() if f"llama_model.{key}" in own}
    model.load_state_dict(state)
    return model.eval()


def load_exported(folder: Path) -> tuple[VideoLlama, Tokenizer]:
    return load_pieces(folder, folder / LLAMA, SHAPE, TEXT_SHAPE), Tokenizer.from_file(str(folder / LLAMA / "tokenizer.json"))


@torch.no_grad()
def greedy(model: VideoLlama, prefix: torch.Tensor, most: int, end: set[int]) -> list[int]:
    """Ids that follow embedded rows [1, length, hidden]."""
    ids: list[int] = []
    rows = prefix
    while len(ids) < most and (not ids or ids[-1] not in end):
        best = int(model.llama_model(inputs_embeds=rows).logits[0, -1].argmax())
        ids.append(best)
        rows = torch.cat([rows, model.embed(torch.tensor([[best]]))], 1)
    return ids
