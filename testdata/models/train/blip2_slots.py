"""A scene as eight slots, one a query token of the small BLIP-2, and the captions that are wrong in one attribute.

The slots are what a caption says, in its order: size, colour and kind of the first shape, where it lies, size, colour
and kind of the second one, the background. They label the training signals of the Q-Former, and they are what a
distractor changes.
"""

from __future__ import annotations

import random
from typing import Sequence

import torch

import patch_labels
import scenes

NONE = ""  # the value of the slots that a scene with one shape has not
_RELATIONS = tuple(scenes.RELATION_WORDS)
SLOT_NAMES = ("size", "colour", "kind", "relation", "second size", "second colour", "second kind", "background")
SLOT_VALUES = (
    scenes.SIZES,
    tuple(scenes.SHAPE_COLOURS),
    tuple(scenes.SHAPES),
    (NONE, *_RELATIONS),
    (NONE, *scenes.SIZES),
    (NONE, *scenes.SHAPE_COLOURS),
    (NONE, *scenes.SHAPES),
    tuple(scenes.BACKGROUND_COLOURS),
)
_RELATION, _BACKGROUND = 3, 7

Slots = tuple[str, ...]


def slots_of(drawn: scenes.Scene) -> Slots:
    first = drawn.shapes[0]
    second = (drawn.shapes[1].size, drawn.shapes[1].colour, drawn.shapes[1].kind) if drawn.relation else (NONE,) * 3
    return (first.size, first.colour, first.kind, drawn.relation or NONE, *second, drawn.background)


def classes_of(slots: Slots) -> list[int]:
    """The number of each slot's value in SLOT_VALUES."""
    return [values.index(value) for values, value in zip(SLOT_VALUES, slots, strict=True)]


def caption_of(slots: Slots) -> str:
    """What scenes.Scene.caption says of such a scene."""
    text = "a " + " ".join(slots[:3])
    if slots[_RELATION]:
        text += f" {scenes.RELATION_WORDS[slots[_RELATION]]} a " + " ".join(slots[4:7])
    return f"{text} on a {slots[_BACKGROUND]} background"


def in_caption_order(slots: Slots) -> Slots:
    """The same scene with the shape first that a caption names first: the large one, else the left or upper one."""
    relation = slots[_RELATION]
    if not relation:
        return slots
    swap = slots[0] == "small" if slots[0] != slots[4] else relation in ("right", "below")
    return (*slots[4:7], scenes.OPPOSITE[relation], *slots[:3], slots[_BACKGROUND]) if swap else slots


def changes(slots: Slots) -> list[list[Slots]]:
    """For each slot that the scene has, every scene that differs in this slot alone.

    They are put in caption order, and none has two shapes of one colour and kind: a wrong caption must not be known by
    its wording.
    """
    by_slot = []
    for slot, values in enumerate(SLOT_VALUES):
        if not slots[slot]:
            continue
        changed = [(*slots[:slot], value, *slots[slot + 1 :]) for value in values if value and value != slots[slot]]
        by_slot.append([in_caption_order(each) for each in changed if each[1:3] != each[5:7]])
    return by_slot


def distractors(slots: Slots, count: int, rng: random.Random) -> list[Slots]:
    """`count` different scenes with one attribute changed, the changes spread evenly over the attributes."""
    by_slot = [rng.sample(changed, len(changed)) for changed in changes(slots)]
    rng.shuffle(by_slot)
    chosen: list[Slots] = []
    turn = 0
    while len(chosen) < count:
        if not any(by_slot):
            raise ValueError(f"{caption_of(slots)!r} has only {len(chosen)} changes")
        left = by_slot[turn % len(by_slot)]
        turn += 1
        if left:
            chosen.append(left.pop())
    return chosen


# --- labels for the training signals ------------------------------------------------------------------------------

ROLE_CLASSES = 3  # nothing, the shape that is named first, the other one
RELATION_CLASSES = len(SLOT_VALUES[_RELATION])  # on both shapes: where the first one is seen from the other; 0 of one shape


def stretched_patch_labels(drawn: scenes.Scene, grid: int) -> torch.Tensor:
    """[grid * grid, 5] classes of colour, kind, size, role and relation of the shape whose box holds the patch's centre, after
    the whole picture has been stretched to a square of grid × grid patches (patch_labels has the cropped one)."""
    labels = torch.full((grid, grid, 5), patch_labels.NOTHING)
    for role, shape in enumerate(drawn.shapes, 1):
        left, top, right, bottom = shape.box
        columns = _centres_between(left * grid / drawn.width, right * grid / drawn.width)
        rows = _centres_between(top * grid / drawn.height, bottom * grid / drawn.height)
        labels[rows, columns] = torch.tensor(
            [
                patch_labels.COLOUR_CLASSES.index(shape.colour),
                patch_labels.KIND_CLASSES.index(shape.kind),
                patch_labels.SIZE_CLASSES.index(shape.size),
                role,
                SLOT_VALUES[_RELATION].index(drawn.relation or NONE),
            ]
        )
    return labels.view(grid * grid, 5)


def _centres_between(start: float, end: float) -> slice:
    """The patches whose centres (0.5, 1.5, …) lie in [start, end)."""
    return slice(max(0, -int(-(start - 0.5) // 1)), max(0, -int(-(end - 0.5) // 1)))


class PatchProbe(patch_labels.PatchProbe):
    """The tower's patch readings, whether a patch shows the shape that the caption names first, and the relation: without
    it, the tower is slow to tell left from above."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size)
        self.heads.append(torch.nn.Linear(hidden_size, ROLE_CLASSES))
        self.heads.append(torch.nn.Linear(hidden_size, RELATION_CLASSES))


class SlotProbe(torch.nn.Module):
    """A linear reading of slot i from query i. Only trains the Q-Former: it is no part of the exported model."""

    def __init__(self, hidden_size: int, class_counts: Sequence[int] = tuple(map(len, SLOT_VALUES))):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(hidden_size, count) for count in class_counts)

    def loss(self, queries: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """queries [rows, 8, hidden], labels [rows, 8]; the mean over the slots."""
        losses = [
            torch.nn.functional.cross_entropy(head(queries[:, slot]), labels[:, slot]) for slot, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()
