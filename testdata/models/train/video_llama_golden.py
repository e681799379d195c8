"""Compares video_llama_model.py with stored arrays of the authors' code.

    python video_llama_golden.py ../../goldens/videollama-tiny

The folder has checkpoint/ckpt, cases.json, golden.safetensors, tokenizer_equivalent.json and, beside it, media.
"""

from __future__ import annotations

import json
import sys
import wave
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import fbank
import video_llama_model

GOLDEN_SHAPE = {
    "image_size": 56, "patch_size": 14, "vision": 64, "vision_mlp": 279, "vision_layers": 2, "vision_heads": 4, "qformer": 48,
    "qformer_layers": 3, "qformer_heads": 4, "qformer_intermediate": 96, "branch_layers": 2, "queries": 32, "video_queries": 32,
    "audio_queries": 8, "frames": 32, "sounds": 8, "audio": 48, "audio_layers": 2, "audio_heads": 4, "audio_embedding": 40,
}  # fmt: skip


def read_wave(path: Path) -> numpy.ndarray:
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (fbank.RATE, 1, 2):
            raise ValueError(f"{path} is not 16-bit mono at {fbank.RATE} Hz")
        return numpy.frombuffer(file.readframes(file.getnframes()), "<i2").astype(numpy.float32) / 32768


@torch.no_grad()
def compare(golden: Path) -> None:
    """Prints the largest difference of every array, and whether prompts and generated ids are equal."""
    checkpoint = golden / "checkpoint" / "ckpt"
    text = json.loads((checkpoint / "vicuna-tiny" / "config.json").read_text())
    model = video_llama_model.load_pieces(checkpoint, checkpoint / "vicuna-tiny", GOLDEN_SHAPE, text, "imagebind_path/imagebind_huge.pth")
    tokenizer = Tokenizer.from_file(str(golden / "tokenizer_equivalent.json"))
    arrays = load_file(golden / "golden.safetensors")
    wrong = False

    def check(case: dict, name: str, value: torch.Tensor, tolerance: float = 1e-4) -> None:
        nonlocal wrong
        expected = arrays[f"{case['id']}.{name}"]
        difference = (value.reshape(expected.shape) - expected).abs().max().item()
        wrong |= not difference <= tolerance
        print(f"{case['id']:24}{name:24}{difference:.2e}{'' if difference <= tolerance else '  WRONG'}")

    def check_sound(case: dict, file: str, inner: bool) -> torch.Tensor:
        banks = torch.from_numpy(fbank.sound_clips(read_wave(golden.parent / "media" / file)))
        embeddings = model.audio_encoder(banks)[None]
        if inner:
            # A bin near silence shows the order of float32 sums; the mean of the others is within 1e-6.
            check(case, "fbank", banks[[0, 1, 7]], 1e-3)
            stored = arrays[f"{case['id']}.fbank"]
            print(f"{'':24}{'mean':24}{(banks[[0, 1, 7]] - stored).abs().mean().item():.2e}")
            check(case, "imagebind_tokens_clip0", model.audio_encoder.tokens(banks[:1]), 1e-3)
            check(case, "imagebind_embedding", embeddings, 1e-3)
        positions = model.audio_position_embedding.weight
        check(case, "audio_qformer_input", embeddings + positions, 1e-3)
        heard = model.over_sound(embeddings)
        check(case, "audio_qformer", heard, 1e-3)
        check(case, "audio_projected", model.audio_llama_proj(heard), 1e-3)
        return model.audio_llama_proj(heard)

    for case in json.loads((golden / "cases.json").read_text())["cases"]:
        if case.get("style") == "vicuna" and case["id"] in ("video", "video_audio"):
            expected, media = case["expected"], []
            seconds = [round(index / expected["fps"], 1) for index in expected["frame_indices"]]
            asked = video_llama_model.prompt(case["question"], True, case["mode"] == "video_audio", seconds)
            same = asked == expected["prompt_text"]
            if case["mode"] == "video_audio":
                media.append(check_sound(case, case["audio_file"], False))
            values = video_llama_model.pixel_values(arrays[f"{case['id']}.frames_uint8"])
            check(case, "pixel_values", values)
            features = model.features(values)
            check(case, "vision_features", features)
            queries = model.frame_queries(features)
            check(case, "image_qformer", queries)
            seen = model.over_frames(queries[None])
            check(case, "video_qformer", seen)
            media.append(model.llama_proj(seen))
            check(case, "projected", media[-1])
            ids = video_llama_model.prompt_ids(tokenizer, asked)
            same &= ids == expected["segment_ids"]
            rows = [model.embed(torch.tensor([ids[0]]))]
            for shown, segment in zip(media, ids[1:]):
                rows += [shown, model.embed(torch.tensor([segment]))]
            prefix = torch.cat(rows, 1)
            check(case, "inputs_embeds", prefix)
            check(case, "logits_first", model.llama_model(inputs_embeds=prefix).logits[0, -1])
            generated = video_llama_model.greedy(model, prefix, len(expected["generated_ids"]), set())
            same &= generated == expected["generated_ids"]
            wrong |= not same
            print(f"{case['id']:24}{'prompt and ids':24}{'equal' if same else 'WRONG'}")
        elif case["id"] == "audio_chirp_16k_mono":
            check_sound(case, "chirp_16k_mono.wav", True)
    if wrong:
        sys.exit("the model differs from the reference")


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
