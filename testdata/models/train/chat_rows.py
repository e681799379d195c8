"""Packed training rows of any chat format: one prefix with the picture, then branches of prompt and answer.

As in conversations.py, a branch sees the prefix and itself only and its positions go on where the prefix ends, so a row
computes what one conversation a row would and the picture's tokens are paid for once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100
PADDING_SEGMENT = -1


@dataclass(frozen=True)
class Branch:
    kind: str
    prompt: tuple[int, ...]  # from the end of the prefix to the answer
    answer: tuple[int, ...]  # with the token that ends it
    weight: float = 1.0


@dataclass(frozen=True)
class Rows:
    """[rows, length] each, but may_attend [rows, 1, length, length]. Labels are the tokens that follow."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    position_ids: torch.Tensor
    may_attend: torch.Tensor
    branch_ids: torch.Tensor  # 0 the prefix, 1… the branches
    branches: list[list[Branch]]

    @property
    def learnt(self) -> torch.Tensor:
        return self.labels != IGNORED


def pack(prefix: list[int], conversations: list[list[Branch]], pad: int, multiple: int = 16) -> Rows:
    """Rows padded on the right to the longest one's length, rounded up to a multiple."""
    rows = [_row(prefix, branches) for branches in conversations]
    length = -(-max(len(row[0]) for row in rows) // multiple) * multiple
    fillers = (pad, IGNORED, 0.0, 0, PADDING_SEGMENT)
    columns = []
    for column, filler in enumerate(fillers):
        columns.append(torch.tensor([row[column] + [filler] * (length - len(row[column])) for row in rows]))
    input_ids, labels, weights, position_ids, branch_ids = columns
    same = branch_ids[:, :, None] == branch_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    may_attend = ((same | (branch_ids[:, None, :] == 0)) & causal).unsqueeze(1)
    return Rows(input_ids, labels, weights, position_ids, may_attend, branch_ids, conversations)


def _row(prefix: list[int], branches: list[Branch]) -> tuple[list, ...]:
    ids, labels, weights = list(prefix), [IGNORED] * len(prefix), [0.0] * len(prefix)
    positions, numbers = list(range(len(prefix))), [0] * len(prefix)
    for number, branch in enumerate(branches, 1):
        whole = [*branch.prompt, *branch.answer]
        ids += whole
        labels += [IGNORED] * (len(branch.prompt) - 1) + list(branch.answer) + [IGNORED]
        weights += [0.0] * (len(branch.prompt) - 1) + [branch.weight] * len(branch.answer) + [0.0]
        positions += range(len(prefix), len(prefix) + len(whole))
        numbers += [number] * len(whole)
    return ids, labels, weights, positions, numbers


def answer_loss(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Weighted mean over the answers' tokens; logits [learnt tokens, vocabulary]."""
    losses = torch.nn.functional.cross_entropy(logits.float(), rows.labels[rows.learnt], reduction="none")
    weights = rows.weights[rows.learnt]
    return (weights * losses).sum() / weights.sum()


def exact(logits: torch.Tensor, rows: Rows) -> list[tuple[str, bool]]:
    """(kind, right) of every branch. Greedy decoding gives an answer exactly when each of its tokens, its end included,
    is the most likely one after those before it: one forward pass tells."""
    hit = torch.ones_like(rows.labels, dtype=torch.bool)
    hit[rows.learnt] = logits.argmax(-1) == rows.labels[rows.learnt]
    return [
        (branch.kind, bool(hit[row][rows.branch_ids[row] == number].all()))
        for row, branches in enumerate(rows.branches)
        for number, branch in enumerate(branches, 1)
    ]


def shares(judged: list[tuple[str, bool]]) -> dict[str, float]:
    by_kind: dict[str, list[bool]] = {}
    for kind, right in judged:
        by_kind.setdefault(kind, []).append(right)
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(by_kind.items())}
