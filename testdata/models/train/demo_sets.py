"""Writes the evaluation zips and the demo pictures of the InternVL and the Qwen-VL demo model, always the same bytes.

    python demo_sets.py

A set is a folder or a zip of PNG pictures with a captions.json (wide scenes; as in picture_sets.py, with questions of the
scenes' own kinds) or a questions.json (scenes with boxes, without captions). The demo pictures of the scenes with boxes are
drawn larger than the scenes, so that labels have room on them. Boxes are [left, top, right, bottom] in pixels of the
picture, right and bottom exclusive:

    {"prompt": "Describe the image.",
     "pictures": [{"file": "wide-01.png", "width": 256, "height": 128, "caption": "...",
                   "questions": [{"kind", "question", "answer", "boxes": [[...]]}...]}...]}
"""

from __future__ import annotations

import json
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator

import boxed_scenes
import picture_sets
import scenes
import wide_scenes

EVALUATION_START = 10_000_000  # the test part's captions are never seen in training, wherever they are drawn
DEMO_START = 20_000_000
WIDE_SCENES, BOXED_SCENES, DEMO_SCENES = 150, 250, 4
ENLARGED = 5  # the demo pictures of scenes with boxes

HERE = Path(__file__).resolve().parent
MODELS, TESTDATA = HERE.parent, HERE.parent.parent
Drawn = wide_scenes.WideScene | scenes.Scene
Numbered = tuple[int, Drawn]


def wide_entry(index: int, drawn: wide_scenes.WideScene, file: str) -> dict:
    questions = [
        {"kind": asked.kind, "question": asked.text, "answer": asked.answer}
        for asked in drawn.one_question_of_each_kind(random.Random(f"questions/{index}"))
    ]
    return {"file": file, "width": drawn.width, "height": drawn.height, "caption": drawn.caption(), "questions": questions}


def boxed_entry(index: int, drawn: scenes.Scene, file: str) -> dict:
    questions = [
        {"kind": asked.kind, "question": asked.question, "answer": asked.answer, "boxes": [list(box) for box in asked.boxes]}
        for asked in boxed_scenes.questions(drawn, random.Random(f"questions/{index}"))
    ]
    return {"file": file, "width": drawn.width, "height": drawn.height, "questions": questions}


def questions_json(entries: list[dict], prompt: str | None) -> str:
    head = {"prompt": prompt} if prompt else {}
    return json.dumps({**head, "pictures": entries}, separators=(",", ": "), indent=1) + "\n"


Entry = Callable[[int, Drawn, str], dict]


def listing(prompt: str | None) -> str:
    return "captions.json" if prompt else "questions.json"


def write_zip(path: Path, numbered: list[Numbered], name: str, entry: Entry, prompt: str | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (index, drawn) in enumerate(numbered, 1):
            file = f"{name}-{number:03d}.png"
            entries.append(entry(index, drawn, file))
            archive.writestr(zipfile.ZipInfo(file), picture_sets.png_bytes(drawn.draw()))  # ZipInfo's date is fixed
        listed = zipfile.ZipInfo(listing(prompt))
        listed.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(listed, questions_json(entries, prompt))


def write_folder(folder: Path, numbered: list[Numbered], name: str, entry: Entry, prompt: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (index, drawn) in enumerate(numbered, 1):
        file = f"{name}-{number:02d}.png"
        (folder / file).write_bytes(picture_sets.png_bytes(drawn.draw()))
        entries.append(entry(index, drawn, file))
    (folder / listing(prompt)).write_text(questions_json(entries, prompt))


def varied(stream: Iterator[Numbered], count: int) -> list[Numbered]:
    """The first scenes of two shapes with colours, kinds and a background not shown before. No model has a say."""
    chosen: list[Numbered] = []
    shown: set[str] = set()
    for index, drawn in stream:
        traits = {drawn.background, *(shape.colour for shape in drawn.shapes)}
        if len(drawn.shapes) == 2 and len(traits) == 3 and not traits & shown:
            chosen.append((index, drawn))
            shown |= traits
        if len(chosen) == count:
            return chosen
    raise ValueError("the stream of scenes ended")


def enlarged(drawn: scenes.Scene, times: int) -> scenes.Scene:
    """The same scene with so many times the pixels along each side."""
    shapes = tuple(replace(shape, box=tuple(times * edge for edge in shape.box)) for shape in drawn.shapes)
    return replace(drawn, width=times * drawn.width, height=times * drawn.height, shapes=shapes)


def main() -> None:
    for name, module, count, entry, folder, prompt in (
        ("wide", wide_scenes, WIDE_SCENES, wide_entry, "internvl", wide_scenes.CAPTION_PROMPT),
        ("boxed", boxed_scenes, BOXED_SCENES, boxed_entry, "qwenvl", None),
    ):
        stream = module.scenes_of("test", EVALUATION_START)
        write_zip(MODELS / f"scenes-{folder}" / "eval.zip", [next(stream) for _ in range(count)], name, entry, prompt)
        demo = varied(module.scenes_of("test", DEMO_START), DEMO_SCENES)
        if module is boxed_scenes:
            demo = [(index, enlarged(drawn, ENLARGED)) for index, drawn in demo]
        write_folder(TESTDATA / f"pictures-{folder}", demo, name, entry, prompt)


if __name__ == "__main__":
    main()
