"""Drawn scenes with true captions, short questions and boxes: the training and test data of the demo models.

Knows nothing about any model. A scene is one or two coloured shapes on a plain background. Everything that is said
about a scene follows from the drawing alone, and survives the usual recipe "shortest edge to N, centre crop N": shapes
stay inside the centred square of the picture, small and large are far apart, and a relation is only drawn where one
axis clearly wins.

Scenes are numbered: `scene(index)` is the same on every machine. Which part of the data a scene belongs to (train,
validation, test) is a hash of its caption, so no caption of the test part is ever seen in training.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Iterator

from PIL import Image, ImageDraw

SHAPE_COLOURS = {
    "red": (214, 32, 36),
    "orange": (250, 138, 20),
    "yellow": (250, 226, 40),
    "green": (30, 140, 50),
    "cyan": (60, 215, 225),
    "blue": (30, 60, 205),
    "purple": (128, 30, 150),
    "pink": (255, 130, 190),
}
BACKGROUND_COLOURS = {
    "white": (245, 245, 245),
    "grey": (135, 135, 135),
    "black": (16, 16, 16),
    "brown": (104, 68, 40),
}
SHAPES = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "star": "stars"}
SIZES = ("small", "large")
RELATION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

SHORT_ANSWER_INSTRUCTION = "Answer the question using a single word or phrase."
QUESTION_KINDS = ("colour", "shape", "size", "count", "position", "background", "presence")

SUPERSAMPLING = 4  # shapes are drawn this much larger and averaged down, for smooth edges


@dataclass(frozen=True)
class SceneOptions:
    """The geometry of the drawings. Extents are fractions of the centred square's side."""

    min_side: int = 64
    max_side: int = 96
    small_extent: tuple[float, float] = (0.20, 0.25)
    large_extent: tuple[float, float] = (0.37, 0.43)
    margin: float = 0.03
    gap: float = 0.04  # least free space between two shapes along the axis of their relation
    dominance: float = 1.7  # the offset along that axis is at least this many times the other one
    colour_jitter: int = 8  # per channel, the same over the whole shape
    one_shape_share: float = 0.25


@dataclass(frozen=True)
class Shape:
    size: str
    colour: str
    kind: str
    rgb: tuple[int, int, int]
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture; right and bottom exclusive

    @property
    def phrase(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    width: int
    height: int
    background: str
    background_rgb: tuple[int, int, int]
    shapes: tuple[Shape, ...]  # in the order of the caption
    relation: str | None = field(default=None)  # where the first shape is, seen from the second

    def caption(self) -> str:
        text = f"a {self.shapes[0].phrase}"
        if self.relation is not None:
            text += f" {RELATION_WORDS[self.relation]} a {self.shapes[1].phrase}"
        return f"{text} on a {self.background} background"

    def draw(self) -> Image.Image:
        picture = Image.new("RGB", (self.width, self.height), self.background_rgb)
        for shape in self.shapes:
            left, top, right, bottom = shape.box
            mask = shape_mask(shape.kind, right - left)
            picture.paste(shape.rgb, (left, top), mask)
        return picture

    def questions(self, rng: random.Random) -> list[Question]:
        """Every kind of question that has one right answer here; rng picks the wording and the distractors."""
        return [
            *_colour_questions(self),
            *_shape_questions(self),
            *_size_questions(self, rng),
            *_count_questions(self, rng),
            *_position_questions(self, rng),
            Question("background", "What colour is the background?", self.background),
            *_presence_questions(self, rng),
        ]

    def one_question_of_each_kind(self, rng: random.Random) -> list[Question]:
        """In any order."""
        by_kind: dict[str, list[Question]] = {}
        for question in self.questions(rng):
            by_kind.setdefault(question.kind, []).append(question)
        return [rng.choice(by_kind[kind]) for kind in rng.sample(sorted(by_kind), len(by_kind))]


def scene(index: int, options: SceneOptions = SceneOptions(), stream: str = "scenes") -> Scene:
    """Scene number `index` of a stream. Streams are independent of each other."""
    rng = random.Random(f"{stream}/{index}")  # string seeds are hashed with SHA-512: the same everywhere
    width = rng.randint(options.min_side, options.max_side)
    height = rng.randint(options.min_side, options.max_side)
    if rng.random() < 0.3:
        height = width
    background = rng.choice(list(BACKGROUND_COLOURS))
    background_rgb = _jittered(BACKGROUND_COLOURS[background], rng, options)
    if rng.random() < options.one_shape_share:
        traits = [_traits(rng)]
    else:
        first, second = _traits(rng), _traits(rng)
        while first[1:] == second[1:]:  # "red circle" must name one shape
            second = _traits(rng)
        traits = [first, second]

    side = min(width, height)
    offset = ((width - side) // 2, (height - side) // 2)
    extents = [round(side * rng.uniform(*_extent_range(size, options))) for size, _, _ in traits]
    if len(traits) == 1:
        corners = [_place_one(side, extents[0], rng, options)]
        relation = None
    else:
        corners, relation = _place_two(side, extents, rng, options)
    shapes = []
    for (size, colour, kind), extent, (x, y) in zip(traits, extents, corners):
        left, top = offset[0] + x, offset[1] + y
        box = (left, top, left + extent, top + extent)
        shapes.append(Shape(size, colour, kind, _jittered(SHAPE_COLOURS[colour], rng, options), box))
    if relation is not None and _named_second(shapes, relation):
        shapes.reverse()
        relation = OPPOSITE[relation]
    return Scene(width, height, background, background_rgb, tuple(shapes), relation)


def part_of(scene_: Scene) -> str:
    """train (90 %), validation (5 %) or test (5 %), decided by the caption alone."""
    bucket = int.from_bytes(hashlib.sha256(scene_.caption().encode()).digest()[:4], "big") % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")


def scenes_of(part: str, start: int = 0, options: SceneOptions = SceneOptions(), stream: str = "scenes") -> Iterator[tuple[int, Scene]]:
    """Numbered scenes of one part, without end."""
    index = start
    while True:
        candidate = scene(index, options, stream)
        if part_of(candidate) == part:
            yield index, candidate
        index += 1


def short_answer_prompt(question: str) -> str:
    return f"{question} {SHORT_ANSWER_INSTRUCTION}"


# --- placing -----------------------------------------------------------------------------------------------------


def _traits(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(SIZES), rng.choice(list(SHAPE_COLOURS)), rng.choice(list(SHAPES))


def _jittered(rgb: tuple[int, int, int], rng: random.Random, options: SceneOptions) -> tuple[int, int, int]:
    jitter = options.colour_jitter
    return tuple(max(0, min(255, channel + rng.randint(-jitter, jitter))) for channel in rgb)


def _extent_range(size: str, options: SceneOptions) -> tuple[float, float]:
    return options.small_extent if size == "small" else options.large_extent


def _place_one(side: int, extent: int, rng: random.Random, options: SceneOptions) -> tuple[int, int]:
    margin = round(side * options.margin)
    last = side - margin - extent
    return rng.randint(margin, last), rng.randint(margin, last)


def _place_two(side: int, extents: list[int], rng: random.Random, options: SceneOptions) -> tuple[list[tuple[int, int]], str]:
    """Corners of the two shapes inside the square, and where the first one is seen from the second.

    Draws along the main axis first (first shape before the second), then across it within the dominance bound.
    """
    margin = round(side * options.margin)
    gap = max(2, round(side * options.gap))
    slack = side - 2 * margin - gap - sum(extents)
    before, between = sorted((rng.randint(0, slack), rng.randint(0, slack)))
    along = (margin + before, margin + extents[0] + gap + between)
    distance = (along[1] + extents[1] / 2) - (along[0] + extents[0] / 2)
    most_across = distance / options.dominance

    while True:
        across = tuple(rng.randint(margin, side - margin - extent) for extent in extents)
        if abs((across[1] + extents[1] / 2) - (across[0] + extents[0] / 2)) <= most_across:
            break
    if rng.random() < 0.5:
        return list(zip(along, across)), "left"
    return list(zip(across, along)), "above"


def _named_second(shapes: list[Shape], relation: str) -> bool:
    """Whether the first shape comes second in the caption: the large one is named first, else the left or upper one."""
    if shapes[0].size != shapes[1].size:
        return shapes[0].size == "small"
    return relation in ("right", "below")


# --- drawing -----------------------------------------------------------------------------------------------------

_CROSS_ARM = 0.34
# A five-pointed star in the unit square, point up: (x, y) of its ten corners.
_STAR = (
    (0.500, 0.000), (0.638, 0.345), (1.000, 0.382), (0.728, 0.615), (0.809, 1.000),
    (0.500, 0.800), (0.191, 1.000), (0.272, 0.615), (0.000, 0.382), (0.362, 0.345),
)  # fmt: skip


def shape_mask(kind: str, extent: int) -> Image.Image:
    """The shape as an L mask of extent × extent pixels."""
    full = extent * SUPERSAMPLING
    mask = Image.new("L", (full, full), 0)
    pen = ImageDraw.Draw(mask)
    end = full - 1
    if kind == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif kind == "square":
        pen.rectangle((0, 0, end, end), fill=255)
    elif kind == "triangle":
        pen.polygon([(end / 2, 0), (end, end), (0, end)], fill=255)
    elif kind == "cross":
        low, high = round(full * (0.5 - _CROSS_ARM / 2)), round(full * (0.5 + _CROSS_ARM / 2)) - 1
        pen.rectangle((low, 0, high, end), fill=255)
        pen.rectangle((0, low, end, high), fill=255)
    elif kind == "star":
        pen.polygon([(x * end, y * end) for x, y in _STAR], fill=255)
    else:
        raise ValueError(f"no such shape: {kind!r}")
    return mask.reduce(SUPERSAMPLING)


# --- questions ---------------------------------------------------------------------------------------------------


def _name(scene_: Scene, shape: Shape) -> str:
    """The shortest name that picks this shape out: its kind, or colour and kind where both are of one kind."""
    alone = sum(other.kind == shape.kind for other in scene_.shapes) == 1
    return shape.kind if alone else f"{shape.colour} {shape.kind}"


def _place_of(scene_: Scene, shape: Shape) -> str:
    """on the left, on the right, at the top or at the bottom (two shapes only)."""
    relation = scene_.relation if shape is scene_.shapes[0] else OPPOSITE[scene_.relation]
    return {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}[relation]


def _colour_questions(scene_: Scene) -> list[Question]:
    found = []
    for shape in scene_.shapes:
        if _name(scene_, shape) == shape.kind:
            found.append(Question("colour", f"What colour is the {shape.kind}?", shape.colour))
        if len(scene_.shapes) == 1:
            found.append(Question("colour", "What colour is the shape?", shape.colour))
        else:
            found.append(Question("colour", f"What colour is the shape {_place_of(scene_, shape)}?", shape.colour))
            if scene_.shapes[0].size != scene_.shapes[1].size:
                found.append(Question("colour", f"What colour is the {shape.size} shape?", shape.colour))
    return found


def _shape_questions(scene_: Scene) -> list[Question]:
    if len(scene_.shapes) == 1:
        return [Question("shape", "What shape is it?", scene_.shapes[0].kind)]
    found = []
    for shape in scene_.shapes:
        found.append(Question("shape", f"Which shape is {_place_of(scene_, shape)}?", shape.kind))
        if scene_.shapes[0].colour != scene_.shapes[1].colour:
            found.append(Question("shape", f"Which shape is {shape.colour}?", shape.kind))
        if scene_.shapes[0].size != scene_.shapes[1].size:
            found.append(Question("shape", f"Which shape is {shape.size}?", shape.kind))
    return found


def _size_questions(scene_: Scene, rng: random.Random) -> list[Question]:
    wordings = ("Is the {} small or large?", "What size is the {}?")
    return [Question("size", rng.choice(wordings).format(_name(scene_, shape)), shape.size) for shape in scene_.shapes]


def _count_questions(scene_: Scene, rng: random.Random) -> list[Question]:
    numbers = ("zero", "one", "two")
    present = rng.choice(scene_.shapes).kind
    absent = rng.choice([kind for kind in SHAPES if all(shape.kind != kind for shape in scene_.shapes)])
    found = [Question("count", "How many shapes are there?", numbers[len(scene_.shapes)])]
    for kind in (present, absent):
        count = sum(shape.kind == kind for shape in scene_.shapes)
        found.append(Question("count", f"How many {SHAPES[kind]} are there?", numbers[count]))
    return found


def _position_questions(scene_: Scene, rng: random.Random) -> list[Question]:
    if scene_.relation is None:
        return []
    first, second = scene_.shapes
    relation = scene_.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    a, b = _name(scene_, first), _name(scene_, second)
    choice = "left or right of" if relation in ("left", "right") else "above or below"
    return [
        Question("position", f"Where is the {a} relative to the {b}?", relation),
        Question("position", f"Is the {a} {choice} the {b}?", relation),
    ]


def _presence_questions(scene_: Scene, rng: random.Random) -> list[Question]:
    """One question with a yes and one with a no that shares the colour or the shape of something there."""
    there = {(shape.colour, shape.kind) for shape in scene_.shapes}
    colour, kind = rng.choice(sorted(there))
    found = [Question("presence", f"Is there {_article(colour)} {colour} {kind}?", "yes")]
    colour, kind = rng.choice(sorted(there))
    while (colour, kind) in there:
        if rng.random() < 0.5:
            colour = rng.choice(list(SHAPE_COLOURS))
        else:
            kind = rng.choice(list(SHAPES))
    found.append(Question("presence", f"Is there {_article(colour)} {colour} {kind}?", "no"))
    return found


def _article(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"
