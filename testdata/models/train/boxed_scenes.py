"""The scenes of scenes.py with questions about places, answered in Qwen-VL's grounded text.

    Where is the red circle?   <ref>the red circle</ref><box>(340,120),(560,450)</box>

Coordinates are thousandths of the picture's width and height, in steps of ten.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Iterator

import scenes

STEP = 10
Box = tuple[int, int, int, int]
_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")


@dataclass(frozen=True)
class Grounded:
    kind: str  # "where" about one shape, "all" about every shape
    question: str
    answer: str
    boxes: tuple[Box, ...]  # left, top, right, bottom in pixels of the picture


def scene(index: int) -> scenes.Scene:
    return scenes.scene(index, stream="boxed")


def scenes_of(part: str, start: int = 0) -> Iterator[tuple[int, scenes.Scene]]:
    return scenes.scenes_of(part, start, stream="boxed")


def thousandths(drawn: scenes.Scene, box: Box) -> Box:
    """A box in pixels as the answer has it."""
    sides = (drawn.width, drawn.height, drawn.width, drawn.height)
    return tuple(round(1000 / STEP * edge / side) * STEP for edge, side in zip(box, sides))


def grounded(drawn: scenes.Scene, shape: scenes.Shape) -> str:
    left, top, right, bottom = thousandths(drawn, shape.box)
    return f"<ref>the {shape.colour} {shape.kind}</ref><box>({left},{top}),({right},{bottom})</box>"


def questions(drawn: scenes.Scene, rng: random.Random) -> list[Grounded]:
    found = [
        Grounded("where", f"Where is the {shape.colour} {shape.kind}?", grounded(drawn, shape), (shape.box,))
        for shape in drawn.shapes
    ]
    rng.shuffle(found)
    every = "".join(grounded(drawn, shape) for shape in drawn.shapes)
    return [*found, Grounded("all", "Where are the shapes?", every, tuple(shape.box for shape in drawn.shapes))]


def boxes_in(answer: str) -> list[Box]:
    """The boxes of a grounded text, in thousandths."""
    return [tuple(int(value) for value in match.groups()) for match in _BOX.finditer(answer)]


def overlap(box: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return width * height / (sum(areas) - width * height)


def in_pixels(drawn: scenes.Scene, box: Box) -> tuple[float, float, float, float]:
    sides = (drawn.width, drawn.height, drawn.width, drawn.height)
    return tuple(edge / 1000 * side for edge, side in zip(box, sides))
