"""Wide drawn scenes whose fine print needs tiling: a shape carries a mark of 6 × 6 pixels.

A scene is one or two large shapes on a plain background, 256 × 128 or 192 × 128 pixels: four by two or three by two
tiles of 64 pixels, cut without resizing. In the middle of one shape is a mark in black and white, one pixel a line:
striped, barred, checked or slanted. All four are half black and half white, and every line is gone once the picture
has been squeezed to one tile of 64 × 64: what is left is a grey spot. The shapes themselves can be read either way.

Scenes are numbered as in scenes.py, and the caption decides the part of the data in the same way.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Iterator

import numpy
from PIL import Image

import scenes
from scenes import Question

TILE = 64
SIZES = ((256, 128), (192, 128))
MARK_SIDE = 6
MARKS = ("striped", "barred", "checked", "slanted")  # lines that lie, stand, alternate, lean
BLACK, WHITE = 16, 240
SHAPE_EXTENT = (46, 60)
MARK_WANDER = 3  # pixels between a shape's centre and its mark's, at most
GAP = 6
MARGIN = 3
COLOUR_JITTER = 8
ONE_SHAPE_SHARE = 0.3
MARK_KIND = "mark"  # the kind of question that one tile cannot answer
CAPTION_PROMPT = "Describe the image."


@dataclass(frozen=True)
class MarkedShape:
    colour: str
    kind: str
    rgb: tuple[int, int, int]
    box: tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive
    mark: str | None = None  # on one shape of a scene
    mark_box: tuple[int, int, int, int] | None = None
    phase: int = 0  # where the mark's lines begin

    @property
    def phrase(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class WideScene:
    width: int
    height: int
    background: str
    background_rgb: tuple[int, int, int]
    shapes: tuple[MarkedShape, ...]  # from left to right

    def caption(self) -> str:
        named = [f"a {shape.phrase}{f' with a {shape.mark} mark' if shape.mark else ''}" for shape in self.shapes]
        return f"{' left of '.join(named)} on a {self.background} background"

    def draw(self) -> Image.Image:
        picture = Image.new("RGB", (self.width, self.height), self.background_rgb)
        for shape in self.shapes:
            left, top, right, _ = shape.box
            picture.paste(shape.rgb, (left, top), scenes.shape_mask(shape.kind, right - left))
            if shape.mark:
                picture.paste(mark_pixels(shape.mark, shape.phase), shape.mark_box[:2])
        return picture

    def close_up(self, rng: random.Random) -> WideScene:
        """The tile-sized piece of the picture around the mark, anywhere in it: a picture of one tile that shows all."""
        left, top, right, bottom = next(shape.mark_box for shape in self.shapes if shape.mark)
        x = rng.randint(max(0, right - TILE), min(left, self.width - TILE))
        y = rng.randint(max(0, bottom - TILE), min(top, self.height - TILE))
        shapes = tuple(
            replace(
                shape,
                box=_moved(shape.box, -x, -y),
                mark_box=_moved(shape.mark_box, -x, -y) if shape.mark else None,
            )
            for shape in self.shapes
        )
        return replace(self, width=TILE, height=TILE, shapes=shapes)

    def questions(self, rng: random.Random) -> list[Question]:
        found = [
            Question("count", "How many shapes are there?", ("one", "two")[len(self.shapes) - 1]),
            Question("background", "What colour is the background?", self.background),
        ]
        for shape in self.shapes:
            if shape.mark:
                found.append(Question(MARK_KIND, f"Which mark is on the {shape.phrase}?", shape.mark))
            found.append(Question("colour", f"What colour is the {shape.kind}?", shape.colour))
            found.append(Question("shape", f"Which shape is {shape.colour}?", shape.kind))
        return found

    def one_question_of_each_kind(self, rng: random.Random) -> list[Question]:
        by_kind: dict[str, list[Question]] = {}
        for question in self.questions(rng):
            by_kind.setdefault(question.kind, []).append(question)
        return [rng.choice(by_kind[kind]) for kind in sorted(by_kind)]


def scene(index: int, stream: str = "wide") -> WideScene:
    rng = random.Random(f"{stream}/{index}")
    width, height = rng.choice(SIZES)
    background = rng.choice(list(scenes.BACKGROUND_COLOURS))
    count = 1 if rng.random() < ONE_SHAPE_SHARE else 2
    colours = rng.sample(list(scenes.SHAPE_COLOURS), count)
    kinds = rng.sample(list(scenes.SHAPES), count)  # colour and kind name a shape, each alone
    extents = [rng.randint(*SHAPE_EXTENT) for _ in range(count)]
    slack = width - 2 * MARGIN - GAP * (count - 1) - sum(extents)
    cuts = sorted(rng.randint(0, slack) for _ in range(count))
    shapes = []
    used = 0
    marked = rng.randrange(count)
    for number in range(count):
        left = MARGIN + cuts[number] + used + GAP * number
        used += extents[number]
        top = rng.randint(MARGIN, height - MARGIN - extents[number])
        box = (left, top, left + extents[number], top + extents[number])
        shape = MarkedShape(colours[number], kinds[number], _jittered(scenes.SHAPE_COLOURS[colours[number]], rng), box)
        shapes.append(_marked(rng, shape) if number == marked else shape)
    return WideScene(width, height, background, _jittered(scenes.BACKGROUND_COLOURS[background], rng), tuple(shapes))


def scenes_of(part: str, start: int = 0) -> Iterator[tuple[int, WideScene]]:
    """Numbered scenes of one part (train, validation, test), without end."""
    index = start
    while True:
        candidate = scene(index)
        if scenes.part_of(candidate) == part:
            yield index, candidate
        index += 1


def mark_pixels(mark: str, phase: int) -> Image.Image:
    y, x = numpy.mgrid[:MARK_SIDE, :MARK_SIDE]
    line = {"striped": y + phase, "barred": x + phase, "checked": x + y + phase, "slanted": (x + y + phase) // 2}[mark]
    values = numpy.where(line % 2 == 0, BLACK, WHITE).astype(numpy.uint8)
    return Image.fromarray(values).convert("RGB")


def _marked(rng: random.Random, shape: MarkedShape) -> MarkedShape:
    left, top, right, _ = shape.box
    mark_left, mark_top = (
        start + (right - left - MARK_SIDE) // 2 + rng.randint(-MARK_WANDER, MARK_WANDER) for start in (left, top)
    )
    box = (mark_left, mark_top, mark_left + MARK_SIDE, mark_top + MARK_SIDE)
    return replace(shape, mark=rng.choice(MARKS), mark_box=box, phase=rng.randrange(4))


def _moved(box: tuple[int, int, int, int], x: int, y: int) -> tuple[int, int, int, int]:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _jittered(rgb: tuple[int, int, int], rng: random.Random) -> tuple[int, int, int]:
    return tuple(max(0, min(255, channel + rng.randint(-COLOUR_JITTER, COLOUR_JITTER))) for channel in rgb)
