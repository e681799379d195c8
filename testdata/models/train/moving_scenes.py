"""Numbered clips of two seconds: one shape that moves, and a low or a high tone. The training and test data of the
Video-LLaMA demo model; knows no model.

    a red circle moves left while a low tone plays

`clip(index)` is the same on every machine. What is seen and heard decides a clip's part of the data (train, validation,
test): what a test clip shows was never shown in training, in any drawing, and its tone is new as well.
"""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass
from typing import Iterator

import numpy
from PIL import Image, ImageFilter

import scenes

SECONDS = 2.0
RATES = (8, 10, 12, 15, 16, 20, 24, 25)  # frames a second
SIDES = range(64, 129, 2)  # even: 4:2:0 video has half the colour samples
EXTENT = (0.22, 0.36)  # of the shorter side
TRAVEL = (0.35, 0.60)  # of the side along which the shape moves
DRIFT = 0.05  # most that it strays across, of that side
MARGIN = 0.03
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TONES = {"low": (150.0, 350.0), "high": (900.0, 2000.0)}  # Hz of the fundamental
OVERTONES = ((), (0.5, 0.25, 0.12), (0.0, 0.33, 0.0, 0.2), (0.3,))  # amplitudes of the 2nd, 3rd, …

SEE_AND_HEAR = ("Describe the video and the sound.", "What happens?")
SEE = ("Describe the video.", "What is moving?")
HEAR = ("Describe the sound.", "What do you hear?")


@dataclass(frozen=True)
class Clip:
    width: int
    height: int
    rate: int
    background: tuple[int, int, int]
    colour: str
    kind: str
    rgb: tuple[int, int, int]
    extent: int
    start: tuple[float, float]  # corner of the shape's box at the beginning, and at the end
    end: tuple[float, float]
    direction: str
    tone: str
    hertz: float
    overtones: tuple[float, ...]
    volume: float
    tremolo: tuple[float, float]  # Hz and depth

    def seen(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.kind} moves {self.direction}"

    def heard(self) -> str:
        return f"a {self.tone} tone plays"

    def caption(self) -> str:
        return f"{self.seen()} while {self.heard()}"

    def answer(self, question: str) -> str:
        return self.seen() if question in SEE else self.heard() if question in HEAR else self.caption()

    @property
    def frame_count(self) -> int:
        return round(SECONDS * self.rate)

    def frame(self, index: int) -> Image.Image:
        """Frame `index` of frame_count, RGB at the clip's own size."""
        picture = Image.new("RGB", (self.width, self.height), self.background)
        x, y = self.corner(index)
        picture.paste(self.rgb, (round(x), round(y)), scenes.shape_mask(self.kind, self.extent))
        return picture

    def corner(self, index: int) -> tuple[float, float]:
        share = index / max(1, self.frame_count - 1)
        return tuple(a + (b - a) * share for a, b in zip(self.start, self.end))

    def sound(self, rate: int) -> numpy.ndarray:
        """float32 samples in [-1, 1], one channel."""
        time = numpy.arange(round(SECONDS * rate)) / rate
        wave = numpy.sin(2 * numpy.pi * self.hertz * time)
        for number, amplitude in enumerate(self.overtones, 2):
            wave += amplitude * numpy.sin(2 * numpy.pi * number * self.hertz * time)
        speed, depth = self.tremolo
        wave *= 1 - depth * (1 + numpy.sin(2 * numpy.pi * speed * time)) / 2
        edge = numpy.minimum(1, numpy.minimum(time, SECONDS - time) / 0.02)  # no click at either end
        return (self.volume * edge * wave / (1 + sum(self.overtones))).astype(numpy.float32)


def clip(index: int, stream: str = "clips") -> Clip:
    rng = random.Random(f"{stream}/{index}")
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    if rng.random() < 0.5:
        height = width
    extent = round(min(width, height) * rng.uniform(*EXTENT))
    direction = rng.choice(list(DIRECTIONS))
    step = DIRECTIONS[direction]
    axis = 0 if step[0] else 1
    sides = (width, height)
    low = [MARGIN * side for side in sides]
    high = [side - MARGIN * side - extent for side in sides]
    travel = min(rng.uniform(*TRAVEL) * sides[axis], high[axis] - low[axis])
    start, end = [0.0, 0.0], [0.0, 0.0]
    first = rng.uniform(low[axis], high[axis] - travel)
    start[axis], end[axis] = (first, first + travel) if step[axis] > 0 else (first + travel, first)
    across = 1 - axis
    start[across] = rng.uniform(low[across], high[across])
    end[across] = min(high[across], max(low[across], start[across] + rng.uniform(-DRIFT, DRIFT) * sides[across]))
    colour, kind = rng.choice(list(scenes.SHAPE_COLOURS)), rng.choice(list(scenes.SHAPES))
    background = rng.choice(list(scenes.BACKGROUND_COLOURS.values()))
    tone = rng.choice(list(TONES))
    return Clip(
        width, height, rng.choice(RATES), jittered(background, rng), colour, kind, jittered(scenes.SHAPE_COLOURS[colour], rng),
        extent, tuple(start), tuple(end), direction, tone, rng.uniform(*TONES[tone]), rng.choice(OVERTONES),
        10 ** rng.uniform(-1.2, -0.1), (rng.uniform(1, 6), rng.choice((0.0, 0.0, 0.5))),
    )  # fmt: skip


def jittered(rgb: tuple[int, int, int], rng: random.Random, most: int = 8) -> tuple[int, int, int]:
    return tuple(max(0, min(255, channel + rng.randint(-most, most))) for channel in rgb)


def part_of(shown: Clip) -> str:
    """train (90 %), validation (5 %) or test (5 %), decided by what is seen alone."""
    bucket = int.from_bytes(hashlib.sha256(shown.seen().encode()).digest()[:4], "big") % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")


def clips_of(part: str, start: int = 0, stream: str = "clips") -> Iterator[tuple[int, Clip]]:
    """Numbered clips of one part, without end."""
    index = start
    while True:
        candidate = clip(index, stream)
        if part_of(candidate) == part:
            yield index, candidate
        index += 1


def frame_indices(count: int, wanted: int) -> list[int]:
    """The reference's choice: numpy.arange(0, n, n / min(wanted, n)) as whole numbers."""
    return numpy.arange(0, count, count / min(wanted, count)).astype(int).tolist()


def seen_frames(shown: Clip, wanted: int, side: int, rng: random.Random) -> numpy.ndarray:
    """The chosen frames as the model gets them, uint8 [frames, side, side, 3], with marks such as a video codec leaves: half
    the colour samples, blocks, blur."""
    quality = rng.choice((0, rng.randint(40, 95)))
    blur = rng.choice((0.0, 0.0, rng.uniform(0.2, 0.7)))
    frames = []
    for index in frame_indices(shown.frame_count, wanted):
        picture = shown.frame(index)
        if blur:
            picture = picture.filter(ImageFilter.GaussianBlur(blur))
        if quality:
            stored = io.BytesIO()
            picture.save(stored, "JPEG", quality=quality, subsampling=2)
            picture = Image.open(stored)
        frames.append(numpy.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)))
    return numpy.stack(frames)


def frame_seconds(shown: Clip, wanted: int) -> list[float]:
    return [round(index / shown.rate, 1) for index in frame_indices(shown.frame_count, wanted)]


def heard_samples(shown: Clip, rng: random.Random, rate: int = 16000) -> numpy.ndarray:
    """The sound as it comes out of a codec: with a noise floor, a late start and an early end."""
    wave = shown.sound(rate)
    noise = numpy.random.default_rng(rng.getrandbits(32)).standard_normal(len(wave)).astype(numpy.float32)
    wave = wave + noise * numpy.float32(10 ** rng.uniform(-4.5, -1.8))
    late, early = rng.randrange(rate // 20), rng.randrange(rate // 20)
    wave[:late] = 0
    wave[len(wave) - early :] = 0
    return wave
