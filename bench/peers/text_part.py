"""The language model of a LLaVA or InternVL checkpoint as a checkpoint of its own, for systems that run decoders only.

    text_part.py CHECKPOINT OUT

Weights are copied byte for byte; only their names change, to those of LlamaForCausalLM and Qwen2ForCausalLM.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
PREFIX = "language_model."


def main(checkpoint: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    text = config["text_config"]
    text["architectures"] = [ARCHITECTURES[text["model_type"]]]
    text["dtype"] = text["torch_dtype"] = config["dtype"]
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    # Readers of before transformers 5 look for the plain key.
    text.setdefault("rope_theta", text["rope_parameters"]["rope_theta"])
    (out / "config.json").write_text(json.dumps(text, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(checkpoint / name, out / name)
    copy_weights(checkpoint / "model.safetensors", out / "model.safetensors")


def copy_weights(source: Path, target: Path) -> None:
    with source.open("rb") as src, target.open("wb") as dst:
        length = struct.unpack("<Q", src.read(8))[0]
        header = json.loads(src.read(length))
        header.pop("__metadata__", None)
        chosen = {k.removeprefix(PREFIX): v for k, v in header.items() if k.startswith(PREFIX)}
        moved, end = {"__metadata__": {"format": "pt"}}, 0
        for name, info in chosen.items():
            first, last = info["data_offsets"]
            moved[name] = {"dtype": info["dtype"], "shape": info["shape"], "data_offsets": [end, end + last - first]}
            end += last - first
        raw = json.dumps(moved).encode()
        raw += b" " * (-len(raw) % 8)
        dst.write(struct.pack("<Q", len(raw)) + raw)
        for info in chosen.values():
            first, last = info["data_offsets"]
            src.seek(8 + length + first)
            while first < last:
                piece = src.read(min(16 << 20, last - first))
                dst.write(piece)
                first += len(piece)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
