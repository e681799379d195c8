"""Sets of drawn pictures with their truth: written as files for the product's tests and demo, read back to evaluate.

A set is a folder or a zip of pictures with a captions.json:

    {"prompt": "Describe the image.",
     "pictures": [{"file": "scene-01.png", "caption": "...", "questions": [{"kind", "question", "answer"}...]}...]}

`question` is the whole user text, with the instruction to answer shortly.

    python picture_sets.py          writes testdata/pictures and scenes-llava/eval.zip anew (always the same bytes)
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Iterator

from PIL import Image

import llama_tokenizer
import scenes

EVALUATION_START = 10_000_000  # far beyond what a training run draws; the test part's captions are held out anyway
DEMO_START = 20_000_000
EVALUATION_ZIP_SCENES = 200
DEMO_SCENES = 12
DEMO_JPEGS = {5, 11}  # stored as JPEG instead of PNG

HERE = Path(__file__).resolve().parent
DEMO_FOLDER = HERE.parent.parent / "pictures"
EVALUATION_ZIP = HERE.parent / "scenes-llava" / "eval.zip"


def test_scenes(count: int, start: int = EVALUATION_START) -> list[tuple[int, scenes.Scene]]:
    stream = scenes.scenes_of("test", start)
    return [next(stream) for _ in range(count)]


def entry(index: int, drawn: scenes.Scene, file: str) -> dict:
    questions = [
        {"kind": question.kind, "question": scenes.short_answer_prompt(question.text), "answer": question.answer}
        for question in drawn.one_question_of_each_kind(random.Random(f"questions/{index}"))
    ]
    return {"file": file, "caption": drawn.caption(), "questions": questions}


def captions_json(entries: list[dict]) -> str:
    return json.dumps({"prompt": llama_tokenizer.CAPTION_PROMPT, "pictures": entries}, indent=1) + "\n"


def png_bytes(picture: Image.Image) -> bytes:
    """A lossless palette PNG: a drawn scene has a few dozen colours."""
    colours = [colour for _, colour in sorted(picture.getcolors(256), reverse=True)]
    index_of = {colour: index for index, colour in enumerate(colours)}
    paletted = Image.new("P", picture.size)
    paletted.putpalette([channel for colour in colours for channel in colour])
    paletted.putdata([index_of[colour] for colour in picture.get_flattened_data()])
    if paletted.convert("RGB").tobytes() != picture.tobytes():
        raise AssertionError("the palette picture differs from the drawing")
    stored = io.BytesIO()
    paletted.save(stored, "PNG", optimize=True)
    return stored.getvalue()


def jpeg_bytes(picture: Image.Image) -> bytes:
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=96, subsampling=0)
    return stored.getvalue()


def write_zip(path: Path, count: int) -> None:
    entries = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (index, drawn) in enumerate(test_scenes(count), 1):
            file = f"scene-{number:03d}.png"
            entries.append(entry(index, drawn, file))
            archive.writestr(zipfile.ZipInfo(file), png_bytes(drawn.draw()))  # ZipInfo's date is fixed
        captions = zipfile.ZipInfo("captions.json")
        captions.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(captions, captions_json(entries))


def write_demo_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (index, drawn) in enumerate(_varied(test_scenes(400, DEMO_START), DEMO_SCENES), 1):
        as_jpeg = number in DEMO_JPEGS
        file = f"scene-{number:02d}.{'jpg' if as_jpeg else 'png'}"
        (folder / file).write_bytes(jpeg_bytes(drawn.draw()) if as_jpeg else png_bytes(drawn.draw()))
        entries.append(entry(index, drawn, file))
    (folder / "captions.json").write_text(captions_json(entries))


def _varied(candidates: list[tuple[int, scenes.Scene]], count: int) -> list[tuple[int, scenes.Scene]]:
    """Picks scenes one by one, each the first that shows most of what was shown least. No model has a say."""
    shown: dict[object, int] = {}
    chosen: list[tuple[int, scenes.Scene]] = []
    for _ in range(count):
        rest = [candidate for candidate in candidates if candidate not in chosen]
        best = min(rest, key=lambda candidate: _familiarity(candidate[1], shown))
        chosen.append(best)
        for trait in _traits(best[1]):
            shown[trait] = shown.get(trait, 0) + 1
    return chosen


def _traits(drawn: scenes.Scene) -> list[object]:
    traits: list[object] = [drawn.background, ("relation", drawn.relation)]
    for shape in drawn.shapes:
        traits += [shape.size, shape.colour, shape.kind]
    return traits


def _familiarity(drawn: scenes.Scene, shown: dict[object, int]) -> float:
    traits = _traits(drawn)
    return sum(shown.get(trait, 0) for trait in traits) / len(traits)


def read_set(path: Path) -> Iterator[tuple[dict, bytes]]:
    """Every entry of a folder's or zip's captions.json with its picture's bytes."""
    if path.is_dir():
        for each in json.loads((path / "captions.json").read_text())["pictures"]:
            yield each, (path / each["file"]).read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for each in json.loads(archive.read("captions.json"))["pictures"]:
            yield each, archive.read(each["file"])


if __name__ == "__main__":
    write_demo_folder(DEMO_FOLDER)
    write_zip(EVALUATION_ZIP, EVALUATION_ZIP_SCENES)
