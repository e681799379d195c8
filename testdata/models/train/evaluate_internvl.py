"""Measures an exported InternVL folder on unseen wide scenes, with tiling and with one tile a picture.

    python evaluate_internvl.py [--checkpoint ../scenes-internvl] [--scenes 300] [--json FILE]

The folder is loaded by transformers. An answer is right when greedy decoding gives it exactly, which one forward pass
tells; `generate` itself is run on a few scenes to see that it agrees, and transformers' own picture processor is held
against the tiles used here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

import chat_rows
import internvl_model
import train_internvl
import wide_scenes

CHECKED_SCENES = 20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).resolve().parent.parent / "scenes-internvl")
    parser.add_argument("--scenes", type=int, default=300, help="number of scenes of the test part")
    parser.add_argument("--json", type=Path, help="where to write the shares")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


@torch.no_grad()
def check(model: torch.nn.Module, encoder: internvl_model.Encoder, tokenizer: Tokenizer, recipe: dict) -> None:
    """Raises where `generate` or transformers' processor disagrees with what the measurement uses."""
    processor = GotOcr2ImageProcessorPil(**{key: value for key, value in recipe.items() if "processor" not in key})
    stream = wide_scenes.scenes_of("test", 10_000_000)
    for index, drawn in [next(stream) for _ in range(CHECKED_SCENES)]:
        for tiling in (True, False):
            tiles = internvl_model.normalised(internvl_model.tiles_of(drawn.draw(), tiling))
            theirs = processor(drawn.draw(), crop_to_patches=tiling, return_tensors="pt")["pixel_values"]
            if tiles.shape != theirs.shape or (tiles - theirs).abs().max() > 1e-5:
                raise AssertionError(f"scene {index}: the tiles are not the processor's")
            for branch in train_internvl.asked(encoder, index, drawn):
                prefix = encoder.prefix(len(tiles))
                rows = chat_rows.pack(prefix, [[branch]], encoder.pad)
                features = internvl_model.vision_features(model, tiles)
                pictures = internvl_model.picture_tokens(model, features)
                right = chat_rows.exact(internvl_model.answer_logits(model, pictures, rows), rows)[0][1]
                ids = torch.tensor([prefix + list(branch.prompt)])
                made = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=tiles, max_new_tokens=48, do_sample=False,
                    eos_token_id=tokenizer.token_to_id(internvl_model.END), pad_token_id=encoder.pad,
                )  # fmt: skip
                if right != (made[0, ids.shape[1] :].tolist() == list(branch.answer)):
                    raise AssertionError(f"scene {index}, {branch.kind}: generate disagrees")


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    folder = options.checkpoint
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = internvl_model.Encoder(tokenizer)
    model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    check(model, encoder, tokenizer, json.loads((folder / "preprocessor_config.json").read_text()))
    report = {"scenes": options.scenes}
    for name, tiling in (("tiled", True), ("one_tile", False)):
        report[name] = chat_rows.shares(train_internvl.evaluate(model, encoder, "test", options.scenes, tiling))
    report["chance_of_a_mark"] = 1 / len(wide_scenes.MARKS)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
