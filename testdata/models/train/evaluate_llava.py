"""Measures an exported checkpoint the way a user meets it: the folder loaded by transformers, pictures read from PNG or
JPEG bytes through its processor, its chat template, greedy decoding.

    python evaluate_llava.py [--checkpoint ../scenes-llava] [--scenes 500 | --set ../../pictures] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Iterator

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import llama_tokenizer
import picture_sets

BATCH = 50


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=picture_sets.EVALUATION_ZIP.parent)
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes of the test part")
    parser.add_argument("--set", type=Path, help="a picture set (folder or zip) instead")
    parser.add_argument("--json", type=Path, help="where to write the shares")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def drawn_set(count: int) -> Iterator[tuple[dict, bytes]]:
    for number, (index, drawn) in enumerate(picture_sets.test_scenes(count), 1):
        yield picture_sets.entry(index, drawn, f"scene-{number:03d}.png"), picture_sets.png_bytes(drawn.draw())


class Captioner:
    def __init__(self, checkpoint: Path):
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        # The stored half-precision weights, computed with in float32.
        self.model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def prompt(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    @torch.no_grad()
    def answers(self, pictures: list[Image.Image], texts: list[str]) -> list[str]:
        """Greedy answers; the prompts of one call need not be of one length."""
        inputs = self.processor(
            images=pictures, text=[self.prompt(text) for text in texts], padding=True, return_tensors="pt"
        )
        generated = self.model.generate(**inputs, max_new_tokens=32, do_sample=False)
        return self.processor.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def tasks_of(entries: Iterator[tuple[dict, bytes]]) -> Iterator[tuple[str, str, str, str, Image.Image]]:
    """kind, file, user text, truth, picture"""
    for entry, stored in entries:
        picture = Image.open(io.BytesIO(stored))
        yield "caption", entry["file"], llama_tokenizer.CAPTION_PROMPT, entry["caption"], picture
        for question in entry["questions"]:
            yield question["kind"], entry["file"], question["question"], question["answer"], picture


def evaluate(captioner: Captioner, entries: Iterator[tuple[dict, bytes]]) -> dict:
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    tasks = sorted(tasks_of(entries), key=lambda task: (task[0] != "caption", len(task[2])))  # prompts of like length together
    for start in range(0, len(tasks), BATCH):
        some = tasks[start : start + BATCH]
        answers = captioner.answers([task[4] for task in some], [task[2] for task in some])
        for (kind, file, text, truth, _), answer in zip(some, answers):
            right[kind].append(answer.strip() == truth)
            if answer.strip() != truth:
                wrong.append({"file": file, "prompt": text, "answer": answer.strip(), "truth": truth})
    short = [hit for kind, hits in right.items() if kind != "caption" for hit in hits]
    return {
        "exact_captions": share(right["caption"]),
        "short_answers": share(short),
        "by_kind": {kind: share(hits) for kind, hits in sorted(right.items()) if kind != "caption"},
        "wrong": wrong,
    }


def share(hits: list[bool]) -> dict[str, float]:
    return {"right": sum(hits), "of": len(hits), "share": round(sum(hits) / len(hits), 4)}


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    entries = picture_sets.read_set(options.set) if options.set else drawn_set(options.scenes)
    report = evaluate(Captioner(options.checkpoint), entries)
    for mistake in report["wrong"]:
        print(f"{mistake['file']}: {mistake['prompt']}\n    answer {mistake['answer']}\n    truth  {mistake['truth']}")
    print(json.dumps({key: value for key, value in report.items() if key != "wrong"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
