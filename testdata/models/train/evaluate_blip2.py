"""Measures the exported BLIP-2 folders the way a user meets them: loaded by transformers, pictures read from PNG or JPEG
bytes through their processors, greedy decoding, and the true caption ranked against 8 wrong in one attribute.

    python evaluate_blip2.py [--scenes 500 | --set ../../pictures] [--json FILE]
    python evaluate_blip2.py --write-sets        writes scenes-blip2/eval.zip and scenes-blip2-itm/ranking.json anew
"""

from __future__ import annotations

import argparse
import io
import json
import random
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Iterator

import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

import blip2_slots
import blip2_tokenizers
import picture_sets
import scenes
from evaluate_llava import share

HERE = Path(__file__).resolve().parent
CAPTIONER = HERE.parent / "scenes-blip2"
MATCHER = HERE.parent / "scenes-blip2-itm"
BATCH = 50
DISTRACTORS = 8


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioner", type=Path, default=CAPTIONER)
    parser.add_argument("--matcher", type=Path, default=MATCHER)
    parser.add_argument("--only", choices=("captions", "ranking"))
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes of the test part")
    parser.add_argument("--set", type=Path, help="a picture set (folder or zip) instead; its questions are reworded")
    parser.add_argument("--json", type=Path, help="where to write the shares")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-sets", action="store_true")
    return parser.parse_args()


# --- sets -----------------------------------------------------------------------------------------------------------


def entry(index: int, drawn: scenes.Scene, file: str) -> dict:
    """picture_sets.entry with BLIP-2's way of asking."""
    questions = [
        {"kind": question.kind, "question": asked(question.text), "answer": question.answer}
        for question in drawn.one_question_of_each_kind(random.Random(f"questions/{index}"))
    ]
    return {"file": file, "caption": drawn.caption(), "questions": questions}


def asked(question: str) -> str:
    return blip2_tokenizers.QUESTION_PROMPTS[0].format(question)


def reworded(each: dict) -> dict:
    """An entry of the LLaVA sets with BLIP-2's way of asking."""
    questions = [
        {**question, "question": asked(question["question"].removesuffix(" " + scenes.SHORT_ANSWER_INSTRUCTION))}
        if question["question"].endswith(scenes.SHORT_ANSWER_INSTRUCTION)
        else question
        for question in each["questions"]
    ]
    return {**each, "questions": questions}


def drawn_set(count: int) -> Iterator[tuple[dict, bytes]]:
    for number, (index, drawn) in enumerate(picture_sets.test_scenes(count), 1):
        yield entry(index, drawn, f"scene-{number:03d}.png"), picture_sets.png_bytes(drawn.draw())


def slots_of_caption(caption: str) -> blip2_slots.Slots:
    """The slots that a caption was written from."""
    before, background = caption.removesuffix(" background").rsplit(" on a ", 1)
    for relation, words in scenes.RELATION_WORDS.items():
        first, found, second = before.removeprefix("a ").partition(f" {words} a ")
        if found:
            return (*first.split(), relation, *second.split(), background)
    return (*before.removeprefix("a ").split(), blip2_slots.NONE, *(blip2_slots.NONE,) * 3, background)


def wrong_captions(caption: str, seed: str) -> list[str]:
    """DISTRACTORS captions with one attribute changed, always the same for one seed."""
    slots = slots_of_caption(caption)
    if blip2_slots.caption_of(slots) != caption:
        raise ValueError(f"not a caption of a scene: {caption!r}")
    rng = random.Random(f"distractors/{seed}")
    return [blip2_slots.caption_of(each) for each in blip2_slots.distractors(slots, DISTRACTORS, rng)]


def write_sets() -> None:
    entries = []
    with zipfile.ZipFile(CAPTIONER / "eval.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for each, stored in drawn_set(picture_sets.EVALUATION_ZIP_SCENES):
            entries.append(each)
            archive.writestr(zipfile.ZipInfo(each["file"]), stored)  # ZipInfo's date is fixed
        captions = zipfile.ZipInfo("captions.json")
        captions.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(captions, json.dumps({"prompt": "", "pictures": entries}, indent=1) + "\n")
    pictures = [
        {"file": each["file"], "caption": each["caption"], "distractors": wrong_captions(each["caption"], each["file"])}
        for each, _ in picture_sets.read_set(picture_sets.DEMO_FOLDER)
    ]
    (MATCHER / "ranking.json").write_text(json.dumps({"pictures": pictures}, indent=1) + "\n")


# --- captions and short answers ---------------------------------------------------------------------------------------


class Captioner:
    def __init__(self, checkpoint: Path):
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.tokenizer.padding_side = "right"
        # The stored half-precision weights, computed with in float32.
        self.model = Blip2ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def answers(self, pictures: list[Image.Image], text: str) -> list[str]:
        """Greedy answers to one prompt; an empty one asks for the caption."""
        texts = {"text": [text] * len(pictures)} if text else {}
        inputs = self.processor(images=pictures, return_tensors="pt", **texts)
        generated = self.model.generate(**inputs, max_new_tokens=24, do_sample=False)
        skipped = inputs["input_ids"].shape[1] if text else self.model.config.num_query_tokens + 1
        if generated.shape[1] <= skipped:
            raise ValueError("generate returned no new tokens")
        return self.processor.batch_decode(generated[:, skipped:], skip_special_tokens=True)


def caption_report(captioner: Captioner, entries: list[tuple[dict, bytes]]) -> dict:
    by_prompt: dict[str, list[tuple[str, str, str, Image.Image]]] = defaultdict(list)
    for each, stored in entries:
        picture = Image.open(io.BytesIO(stored))
        by_prompt[""].append(("caption", each["file"], each["caption"], picture))
        for question in each["questions"]:
            by_prompt[question["question"]].append((question["kind"], each["file"], question["answer"], picture))
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for prompt, tasks in by_prompt.items():
        for start in range(0, len(tasks), BATCH):
            some = tasks[start : start + BATCH]
            answers = captioner.answers([picture for *_, picture in some], prompt)
            for (kind, file, truth, _), answer in zip(some, answers, strict=True):
                right[kind].append(answer.strip() == truth)
                if answer.strip() != truth:
                    wrong.append({"file": file, "prompt": prompt, "answer": answer.strip(), "truth": truth})
    short = [hit for kind, hits in right.items() if kind != "caption" for hit in hits]
    return {
        "exact_captions": share(right["caption"]),
        "short_answers": share(short),
        "by_kind": {kind: share(hits) for kind, hits in sorted(right.items()) if kind != "caption"},
        "wrong": wrong,
    }


# --- ranking ----------------------------------------------------------------------------------------------------------


class Matcher:
    def __init__(self, checkpoint: Path):
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.model = Blip2ForImageTextRetrieval.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def scores(self, picture: Image.Image, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """ITM probabilities and ITC cosines of one picture and many texts."""
        inputs = self.processor(images=[picture] * len(texts), text=texts, padding=True, return_tensors="pt")
        itm = self.model(**inputs, use_image_text_matching_head=True).logits_per_image.softmax(1)[:, 1]
        itc = self.model(**inputs, use_image_text_matching_head=False).logits_per_image[0]
        return itm, itc


def ranking_report(matcher: Matcher, entries: list[tuple[dict, bytes]]) -> dict:
    itm_first, itc_first, decided, missed = [], [], [], []
    for each, stored in entries:
        texts = [each["caption"], *wrong_captions(each["caption"], each["file"])]
        itm, itc = matcher.scores(Image.open(io.BytesIO(stored)), texts)
        itm_first.append(bool(itm[0] > itm[1:].max()))
        itc_first.append(bool(itc[0] > itc[1:].max()))
        decided += [bool(itm[0] > 0.5), *(itm[1:] <= 0.5).tolist()]
        if not itm_first[-1]:
            missed.append({"file": each["file"], "truth": texts[0], "preferred": texts[int(itm.argmax())]})
    return {
        "itm_ranked_first": share(itm_first),
        "itc_ranked_first": share(itc_first),
        "itm_right_side_of_half": share(decided),
        "missed": missed,
    }


def main() -> None:
    options = parse_arguments()
    if options.write_sets:
        write_sets()
        return
    torch.set_num_threads(options.threads)
    if options.set:
        entries = [(reworded(each), stored) for each, stored in picture_sets.read_set(options.set)]
    else:
        entries = list(drawn_set(options.scenes))
    report = {}
    if options.only != "ranking":
        report["captions"] = caption_report(Captioner(options.captioner), entries)
    if options.only != "captions":
        report["ranking"] = ranking_report(Matcher(options.matcher), entries)
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
