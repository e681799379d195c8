"""What the small BLIP-2's language model learns about a scene, packed into one row: the queries and </s>, then any number
of branches, each the caption or "Question: … Answer: …", each ended by a line break.

A branch sees the prefix and itself only, and its positions go on where the prefix ends: the row computes exactly what
one text a row would, but the picture's rows are paid for once. The caption is the first branch; its first token is
learnt at </s>.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

import blip2_tokenizers
import scenes
from blip2_model import PREFIX_LENGTH, QUERIES
from conversations import IGNORED, PADDING_SEGMENT


@dataclass(frozen=True)
class Text:
    kind: str  # "caption" or one of scenes.QUESTION_KINDS
    prompt: str  # empty for the caption
    answer: str


@dataclass(frozen=True)
class Rows:
    input_ids: torch.Tensor  # [rows, length - QUERIES]: what follows the queries
    labels: torch.Tensor  # [rows, length]: the token that follows, or IGNORED
    position_ids: torch.Tensor  # [rows, length]
    may_attend: torch.Tensor  # [rows, 1, length, length]
    branch_ids: torch.Tensor  # [rows, length]: the branch that a label belongs to, 1… (the caption is 1), else 0
    texts: list[list[Text]]


def training_texts(drawn: scenes.Scene, rng: random.Random) -> list[Text]:
    texts = [Text("caption", "", drawn.caption())]
    for question in drawn.one_question_of_each_kind(rng):
        prompt = rng.choice(blip2_tokenizers.QUESTION_PROMPTS)
        texts.append(Text(question.kind, prompt.format(question.text), question.answer))
    return texts


def test_texts(drawn: scenes.Scene, rng: random.Random) -> list[Text]:
    texts = [Text("caption", "", drawn.caption())]
    for question in drawn.one_question_of_each_kind(rng):
        texts.append(Text(question.kind, blip2_tokenizers.QUESTION_PROMPTS[0].format(question.text), question.answer))
    return texts


class Packer:
    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._begin = tokenizer.token_to_id(blip2_tokenizers.END)
        self._pad = tokenizer.token_to_id(blip2_tokenizers.PAD)
        self._branches: dict[Text, tuple[list[int], int]] = {}

    def branch(self, text: Text) -> tuple[list[int], int]:
        """Token ids after </s>, the line break included, and how many of them are the prompt's."""
        if text not in self._branches:
            prompt = self._tokenizer.encode(text.prompt).ids[1:]
            joint = f"{text.prompt} {text.answer}\n" if text.prompt else f"{text.answer}\n"
            whole = self._tokenizer.encode(joint).ids[1:]
            if whole[: len(prompt)] != prompt:
                raise ValueError(f"the tokens of {text.prompt!r} are not a prefix of its text's")
            if len(self._branches) > 100_000:
                self._branches.clear()
            self._branches[text] = (whole, len(prompt))
        return self._branches[text]

    def fitting(self, texts: list[Text], length: int) -> list[Text]:
        """The texts in their order, without those for which a row of this length has no room left."""
        room = length - PREFIX_LENGTH
        fit = []
        for text in texts:
            needed = len(self.branch(text)[0])
            if needed <= room:
                fit.append(text)
                room -= needed
        return fit

    def pack(self, texts: list[list[Text]], length: int | None = None) -> Rows:
        """One row a list, padded on the right to `length` (the longest row's where it is not given)."""
        rows = [self._row(each) for each in texts]
        longest = max(len(row[1]) for row in rows)
        if length is None:
            length = longest
        elif length < longest:
            raise ValueError(f"a row of {longest} tokens does not fit into {length}")
        columns = []
        for column, filler in enumerate((self._pad, IGNORED, 0, PADDING_SEGMENT, 0)):
            columns.append(torch.tensor([row[column] + [filler] * (length - len(row[1])) for row in rows]))
        ids, labels, positions, segments, branches = columns
        same = segments[:, :, None] == segments[:, None, :]
        prefix = segments[:, None, :] == 0
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        may_attend = ((same | prefix) & causal).unsqueeze(1)
        return Rows(ids[:, QUERIES:], labels, positions, may_attend, branches, texts)

    def _row(self, texts: list[Text]) -> tuple[list[int], ...]:
        if texts[0].prompt:
            raise ValueError("the first text must be the caption")
        ids = [self._pad] * QUERIES + [self._begin]
        labels = [IGNORED] * PREFIX_LENGTH
        positions = list(range(PREFIX_LENGTH))
        segments = [0] * PREFIX_LENGTH
        branches = [0] * PREFIX_LENGTH
        for number, text in enumerate(texts, 1):
            branch, prompt_length = self.branch(text)
            if not prompt_length:
                labels[-1], branches[-1] = branch[0], number  # </s> is followed by the caption
            learnt = max(prompt_length - 1, 0)
            ids += branch
            labels += [IGNORED] * learnt + branch[learnt + 1 :] + [IGNORED]
            positions += range(PREFIX_LENGTH, PREFIX_LENGTH + len(branch))
            segments += [number] * len(branch)
            branches += [0] * learnt + [number] * (len(branch) - learnt - 1) + [0]
        return ids, labels, positions, segments, branches
