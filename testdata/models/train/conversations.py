"""What is asked about a scene in training, and how several conversations about one picture share one row.

A row is the picture's prefix ("USER: <image>\\n") followed by any number of branches, each "prompt ASSISTANT: answer</s>".
A branch sees the prefix and itself only, and its positions go on where the prefix ends: the row computes exactly what
one conversation a row would, but the picture's tokens are paid for once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

import llama_tokenizer
import scenes

IGNORED = -100  # label of the tokens that are not learnt
PADDING_SEGMENT = -1


@dataclass(frozen=True)
class Turn:
    kind: str  # "caption" or one of scenes.QUESTION_KINDS
    prompt: str
    answer: str


@dataclass(frozen=True)
class Rows:
    """A batch of packed rows; every tensor is [rows, length] but the mask, [rows, 1, length, length]."""

    input_ids: torch.Tensor
    labels: torch.Tensor  # the token that follows, or IGNORED
    position_ids: torch.Tensor
    may_attend: torch.Tensor
    branch_ids: torch.Tensor  # 0 the prefix, 1… the branches, PADDING_SEGMENT
    turns: list[list[Turn]]


def training_turns(drawn: scenes.Scene, rng: random.Random) -> list[Turn]:
    """The caption and one question of every kind in any order, with some variety in how they are put."""
    prompt = llama_tokenizer.CAPTION_PROMPT
    if rng.random() < 0.1:
        prompt = rng.choice(llama_tokenizer.OTHER_CAPTION_PROMPTS)
    turns = [Turn("caption", prompt, drawn.caption())]
    for question in drawn.one_question_of_each_kind(rng):
        turns.append(Turn(question.kind, _worded(question.text, rng), question.answer))
    return turns


def test_turns(drawn: scenes.Scene, rng: random.Random) -> list[Turn]:
    """The caption by the product's default prompt, and a question of every kind with the usual instruction."""
    turns = [Turn("caption", llama_tokenizer.CAPTION_PROMPT, drawn.caption())]
    for question in drawn.one_question_of_each_kind(rng):
        turns.append(Turn(question.kind, scenes.short_answer_prompt(question.text), question.answer))
    return turns


def _worded(question: str, rng: random.Random) -> str:
    """Mostly the usual instruction; sometimes on its own line (as LLaVA was trained) or left out."""
    choice = rng.random()
    if choice < 0.7:
        return scenes.short_answer_prompt(question)
    if choice < 0.85:
        return f"{question}\n{scenes.SHORT_ANSWER_INSTRUCTION}"
    return question


def chat_prompt(prompt: str) -> str:
    """What LLaVA-1.5's chat template renders for one picture and one user text."""
    return f"USER: {llama_tokenizer.IMAGE}\n{prompt} ASSISTANT:"


class Packer:
    def __init__(self, tokenizer: Tokenizer, image_tokens: int):
        self._tokenizer = tokenizer
        self._end = tokenizer.token_to_id(llama_tokenizer.END)
        self._pad = tokenizer.token_to_id(llama_tokenizer.PAD)
        image = tokenizer.token_to_id(llama_tokenizer.IMAGE)
        ids = tokenizer.encode(f"USER: {llama_tokenizer.IMAGE}\n").ids
        where = ids.index(image)
        self._unexpanded = ids
        self.prefix = ids[:where] + [image] * image_tokens + ids[where + 1 :]
        self._branches: dict[Turn, tuple[list[int], int]] = {}

    def branch(self, turn: Turn) -> tuple[list[int], int]:
        """Token ids of "prompt ASSISTANT: answer</s>" after the prefix, and how many of them are the prompt's."""
        if turn not in self._branches:
            prompt = self._tokenizer.encode(chat_prompt(turn.prompt)).ids
            whole = self._tokenizer.encode(f"{chat_prompt(turn.prompt)} {turn.answer}").ids
            skipped = len(self._unexpanded)
            if prompt[:skipped] != self._unexpanded or whole[: len(prompt)] != prompt:
                raise ValueError(f"the tokens of {turn.prompt!r} are not a prefix of its conversation's")
            if len(self._branches) > 100_000:
                self._branches.clear()
            self._branches[turn] = (whole[skipped:] + [self._end], len(prompt) - skipped)
        return self._branches[turn]

    def fitting(self, turns: list[Turn], length: int) -> list[Turn]:
        """The turns in their order, without those for which a row of this length has no room left."""
        room = length - len(self.prefix)
        fit = []
        for turn in turns:
            needed = len(self.branch(turn)[0])
            if needed <= room:
                fit.append(turn)
                room -= needed
        return fit

    def pack(self, conversations: list[list[Turn]], length: int | None = None) -> Rows:
        """One row a conversation list, padded on the right to `length` (the longest row's where it is not given)."""
        rows = [self._row(turns) for turns in conversations]
        longest = max(len(row[0]) for row in rows)
        if length is None:
            length = longest
        elif length < longest:
            raise ValueError(f"a row of {longest} tokens does not fit into {length}")
        fillers = (self._pad, IGNORED, 0, PADDING_SEGMENT)
        columns = []
        for column, filler in enumerate(fillers):
            columns.append(torch.tensor([row[column] + [filler] * (length - len(row[column])) for row in rows]))
        input_ids, labels, position_ids, branch_ids = columns
        same = branch_ids[:, :, None] == branch_ids[:, None, :]
        prefix = branch_ids[:, None, :] == 0
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        may_attend = ((same | prefix) & causal).unsqueeze(1)
        return Rows(input_ids, labels, position_ids, may_attend, branch_ids, conversations)

    def _row(self, turns: list[Turn]) -> tuple[list[int], list[int], list[int], list[int]]:
        ids = list(self.prefix)
        labels = [IGNORED] * len(ids)
        positions = list(range(len(ids)))
        branches = [0] * len(ids)
        start = len(self.prefix)
        for number, turn in enumerate(turns, 1):
            branch, prompt_length = self.branch(turn)
            ids += branch
            labels += [IGNORED] * (prompt_length - 1) + branch[prompt_length:] + [IGNORED]
            positions += range(start, start + len(branch))
            branches += [number] * len(branch)
        return ids, labels, positions, branches
