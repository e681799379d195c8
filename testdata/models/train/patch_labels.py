"""What each patch of the model's picture shows: dense labels that teach a vision tower shapes long before captions do."""

from __future__ import annotations

import torch

import scenes

NOTHING = 0
COLOUR_CLASSES = ("nothing", *scenes.SHAPE_COLOURS)
KIND_CLASSES = ("nothing", *scenes.SHAPES)
SIZE_CLASSES = ("nothing", *scenes.SIZES)
CLASS_COUNTS = (len(COLOUR_CLASSES), len(KIND_CLASSES), len(SIZE_CLASSES))


def patch_labels(drawn: scenes.Scene, grid: int) -> torch.Tensor:
    """[grid * grid, 3] classes of colour, kind and size: those of the shape whose box holds the patch's centre, after
    the centred square of the picture has been cut into grid × grid patches."""
    labels = torch.full((grid, grid, 3), NOTHING)
    side = min(drawn.width, drawn.height)
    patch = side / grid
    offset_x, offset_y = (drawn.width - side) / 2, (drawn.height - side) / 2
    for shape in drawn.shapes:
        left, top, right, bottom = shape.box
        columns = _centres_between((left - offset_x) / patch, (right - offset_x) / patch)
        rows = _centres_between((top - offset_y) / patch, (bottom - offset_y) / patch)
        labels[rows, columns] = torch.tensor(
            [COLOUR_CLASSES.index(shape.colour), KIND_CLASSES.index(shape.kind), SIZE_CLASSES.index(shape.size)]
        )
    return labels.view(grid * grid, 3)


def _centres_between(start: float, end: float) -> slice:
    """The patches whose centres (0.5, 1.5, …) lie in [start, end)."""
    return slice(max(0, -int(-(start - 0.5) // 1)), max(0, -int(-(end - 0.5) // 1)))


class PatchProbe(torch.nn.Module):
    """Linear readings of a tower's patch features. Only trains the tower: it is no part of the exported model."""

    def __init__(self, hidden_size: int, nothing_weight: float = 0.1):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(hidden_size, classes) for classes in CLASS_COUNTS)
        self.nothing_weight = nothing_weight  # most patches show nothing

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """features [pictures, patches, hidden], labels [pictures, patches, 3]; the mean over the three readings."""
        losses = []
        for reading, head in enumerate(self.heads):
            weight = torch.ones(head.out_features)
            weight[NOTHING] = self.nothing_weight
            logits = head(features).flatten(0, 1)
            losses.append(torch.nn.functional.cross_entropy(logits, labels[..., reading].flatten(), weight=weight))
        return torch.stack(losses).mean()
