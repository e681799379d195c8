"""Trains the boxes demo model in the original Qwen-VL's architecture and exports it in the released layout.

    python train_qwenvl.py --work DIR [--minutes 15] [--session-minutes 8] [--export ../scenes-qwenvl]

Beside the answers, two linear readings are learnt and thrown away at the end: from the tower's patches and from the
resampler's queries, what shape is at their place and where its box begins and ends. DIR gets log.jsonl and state.pt;
called again, a run goes on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

import boxed_scenes
import chat_rows
import qwenvl_model
import scenes
import training_session
import warm_start
from byte_level_tokenizer import RankedBytes

GRID = 8  # of the readings: the patch grid, and that of the queries
BINS = 100 // (boxed_scenes.STEP // 10) + 1
BIN_SPREAD = 1.5  # a coordinate's label is a bell over the bins beside it
NOTHING_WEIGHT = 0.2
EDGE_WEIGHT = 5.0
SYSTEM_SHARE = 0.5  # of the batches that have the system prompt


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training_session.add_arguments(parser, minutes=15, batch=32)
    parser.add_argument("--start-from", type=Path, help="scenes-llava's folder, for the tower and the decoder at the start")
    parser.add_argument("--tower-share", type=float, default=0.4, help="share of the schedule with the readings alone")
    parser.add_argument("--alone-first", type=float, default=0.2, help="share of the schedule behind that with one shape a scene")
    parser.add_argument("--tower-every", type=int, default=1, help="steps from one that trains the tower to the next")
    parser.add_argument("--place-loss", type=float, default=0.5, help="weight of the readings")
    return parser.parse_args()


class Places(torch.nn.Module):
    """Linear readings of rows at the places of a grid. Only train the tower: no part of the exported model."""

    def __init__(self, width: int):
        super().__init__()
        self.colour = torch.nn.Linear(width, 1 + len(scenes.SHAPE_COLOURS))
        self.kind = torch.nn.Linear(width, 1 + len(scenes.SHAPES))
        self.box = torch.nn.Linear(width, 4 * BINS)
        self.edges = torch.nn.Linear(width, 4)  # the box once more, as numbers: coarse places are learnt sooner so

    def loss(self, features: torch.Tensor, labels: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = features.flatten(0, 1)
        losses = []
        for name, head in (("colour", self.colour), ("kind", self.kind)):
            weight = torch.ones(head.out_features)
            weight[0] = NOTHING_WEIGHT
            losses.append(torch.nn.functional.cross_entropy(head(rows).float(), labels[name].flatten(), weight=weight))
        shown = labels["colour"].flatten() > 0
        read = self.box(rows[shown]).float().view(-1, BINS)
        bells = labels["box"].flatten(0, 1)[shown].view(-1, BINS)
        losses.append(torch.nn.functional.cross_entropy(read, bells))
        places = bells @ torch.linspace(0, 1, BINS)
        losses.append(EDGE_WEIGHT * (self.edges(rows[shown]).float().flatten() - places).abs().mean())
        return torch.stack(losses).sum()


def place_labels(drawn: scenes.Scene) -> dict[str, torch.Tensor]:
    """colour and kind [GRID * GRID] of the shape that covers a cell's centre (0 for none), and its box [GRID * GRID, 4, BINS]."""
    colour = torch.zeros(GRID, GRID, dtype=torch.long)
    kind = torch.zeros(GRID, GRID, dtype=torch.long)
    box = torch.zeros(GRID, GRID, 4, BINS)
    centres = (torch.arange(GRID) + 0.5) / GRID * 1000
    bins = torch.arange(BINS) * boxed_scenes.STEP
    for shape in drawn.shapes:
        place = boxed_scenes.thousandths(drawn, shape.box)
        left, top, right, bottom = place
        inside = ((centres >= top) & (centres < bottom))[:, None] & ((centres >= left) & (centres < right))
        colour[inside] = 1 + list(scenes.SHAPE_COLOURS).index(shape.colour)
        kind[inside] = 1 + list(scenes.SHAPES).index(shape.kind)
        distance = (bins[None] - torch.tensor(place)[:, None]) / (boxed_scenes.STEP * BIN_SPREAD)
        box[inside] = torch.softmax(-distance.square() / 2, -1)
    return {"colour": colour.flatten(), "kind": kind.flatten(), "box": box.flatten(0, 1)}


def branches_of(tokenizer: RankedBytes, drawn: scenes.Scene, rng: random.Random) -> list[chat_rows.Branch]:
    """Every question; of a shape that is alone one of the two, which have one answer."""
    asked = boxed_scenes.questions(drawn, rng)
    if len(drawn.shapes) == 1:
        asked = [asked[rng.random() < 0.2]]
    return [branch(tokenizer, each) for each in asked]


def branch(tokenizer: RankedBytes, asked: boxed_scenes.Grounded) -> chat_rows.Branch:
    prompt = f"{asked.question}{qwenvl_model.END}\n{qwenvl_model.START}assistant\n"
    return chat_rows.Branch(asked.kind, tuple(tokenizer.encode(prompt)), tuple(tokenizer.encode(asked.answer + qwenvl_model.END)))


def answer_logits(model: qwenvl_model.QwenVL, pictures: torch.Tensor, rows: chat_rows.Rows) -> torch.Tensor:
    """Logits [learnt tokens, vocabulary]."""
    embedded = model.embeddings(rows.input_ids, pictures)
    length = int(rows.position_ids.max()) + 1  # as one conversation a row: far below seq_length
    return model.lm_head(model.hidden_states(embedded, rows.position_ids, rows.may_attend, length)[rows.learnt])


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        torch.manual_seed(options.seed)
        self.tokenizer = qwenvl_model.build_tokenizer()
        self.model = qwenvl_model.new_model(self.tokenizer)
        if options.start_from:
            source = warm_start.Source(options.start_from)
            warm_start.qwen_decoder(source, self.model, lambda token: self.tokenizer.decode([token]), self.tokenizer.size)
            warm_start.qwen_tower(source, self.model.transformer.visual)
        visual = qwenvl_model.VISUAL_SHAPE
        self.places = torch.nn.ModuleList([Places(visual["width"]), Places(visual["output_dim"])])
        self.session = training_session.Session(options, self.model, self.places)
        self._next = 1_000_000 * (1 + self.session.step // 100)  # never the scenes of an earlier session

    def train(self) -> None:
        stream = boxed_scenes.scenes_of("train", self._next)
        alone = (numbered for numbered in boxed_scenes.scenes_of("train", self._next) if len(numbered[1].shapes) == 1)
        while not self.session.over:
            progress = self.session.minutes / self.options.minutes - self.options.tower_share
            if progress < 0:
                self._tower_step([next(stream)[1] for _ in range(self.options.batch)])
            elif progress < self.options.alone_first:
                self._step([next(alone)[1] for _ in range(self.options.batch)])
            else:
                self._step([next(stream)[1] for _ in range(self.options.batch)])
            if self.session.due():
                self.checkpoint()
        self.checkpoint()

    def _step(self, batch: list[scenes.Scene]) -> None:
        rng = random.Random(f"{self.options.seed}/{self.session.step}")
        prefix = qwenvl_model.prefix_ids(self.tokenizer, rng.random() < SYSTEM_SHARE)
        branches = [branches_of(self.tokenizer, drawn, rng) for drawn in batch]
        rows = chat_rows.pack(prefix, branches, self.tokenizer.special[qwenvl_model.STOP])
        with torch.autocast("cpu", torch.bfloat16):
            pictures, read = self._looked_at(batch)
            answers = chat_rows.answer_loss(answer_logits(self.model, pictures, rows), rows)
        self.session.update(answers + self.options.place_loss * read, answers.item())

    def _tower_step(self, batch: list[scenes.Scene]) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            _, read = self._looked_at(batch)
        self.session.update(read, read.item())

    def _looked_at(self, batch: list[scenes.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
        """The pictures' rows for the decoder, and the loss of the readings."""
        marked = [place_labels(drawn) for drawn in batch]
        labels = {name: torch.stack([each[name] for each in marked]) for name in marked[0]}
        visual = self.model.transformer.visual
        pixel_values = qwenvl_model.picture_pixels([drawn.draw() for drawn in batch], qwenvl_model.VISUAL_SHAPE["image_size"])
        learns = self.session.step % self.options.tower_every == 0
        with torch.set_grad_enabled(learns):
            features = visual.features(pixel_values)
        pictures = visual.project(features)
        read = self.places[1].loss(pictures, labels)
        return pictures, read + self.places[0].loss(features, labels) if learns else read

    def checkpoint(self) -> None:
        measured = qwenvl_model.new_model(self.tokenizer)
        measured.load_state_dict(self.session.averaged)
        report = evaluate(measured, self.tokenizer, "validation", self.options.evaluation_scenes)
        self.session.log(**{key: value for key, value in report.items() if key != "answers"})
        self.session.save()
        if self.options.export:
            qwenvl_model.export(self.session.averaged, self.tokenizer, self.options.export)


@torch.no_grad()
def answered(model: qwenvl_model.QwenVL, tokenizer: RankedBytes, pictures: list, questions: list[str], most: int = 48) -> list[str]:
    """Greedy answers to one question about each picture."""
    visual = model.transformer.visual
    rows = visual.project(visual.features(qwenvl_model.picture_pixels(pictures, qwenvl_model.VISUAL_SHAPE["image_size"])))
    prefix, end = qwenvl_model.prefix_ids(tokenizer), tokenizer.special[qwenvl_model.END]
    sequences = [
        prefix + tokenizer.encode(f"{question}{qwenvl_model.END}\n{qwenvl_model.START}assistant\n") for question in questions
    ]
    lengths = [len(sequence) for sequence in sequences]
    open_ = set(range(len(sequences)))
    for _ in range(most):
        if not open_:
            break
        longest = max(len(sequence) for sequence in sequences)
        ids = torch.tensor([sequence + [end] * (longest - len(sequence)) for sequence in sequences])
        mask = torch.ones(1, 1, longest, longest, dtype=torch.bool).tril()
        hidden = model.hidden_states(model.embeddings(ids, rows), torch.arange(longest)[None], mask, max(lengths))
        for number in sorted(open_):
            best = int(model.lm_head(hidden[number, len(sequences[number]) - 1]).argmax())
            sequences[number].append(best)
            if best == end:
                open_.discard(number)
    return [tokenizer.decode(sequence[length:]).removesuffix(qwenvl_model.END) for sequence, length in zip(sequences, lengths)]


def evaluate(model: qwenvl_model.QwenVL, tokenizer: RankedBytes, part: str, count: int, start: int = 10_000_000) -> dict:
    """Mean IoU, in the picture's pixels, of the first "where" question of each of a part's first scenes."""
    stream = boxed_scenes.scenes_of(part, start)
    drawn = [next(stream) for _ in range(count)]
    overlaps, exact, answers = [], [], []
    for first in range(0, count, 50):
        some = drawn[first : first + 50]
        asked = [boxed_scenes.questions(each, random.Random(f"questions/{index}"))[0] for index, each in some]
        texts = answered(model, tokenizer, [each.draw() for _, each in some], [question.question for question in asked])
        for (_, each), question, text in zip(some, asked, texts):
            found = boxed_scenes.boxes_in(text)
            exact.append(text == question.answer)
            box = boxed_scenes.in_pixels(each, found[0]) if len(found) == 1 else (0, 0, 0, 0)
            overlaps.append(boxed_scenes.overlap(box, question.boxes[0]))
            answers.append(text)
    return {
        "mean_iou": round(sum(overlaps) / count, 4),
        "iou_above_0.5": round(sum(overlap > 0.5 for overlap in overlaps) / count, 4),
        "exact_text": round(sum(exact) / count, 4),
        "answers": answers,
    }


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    Run(options).train()


if __name__ == "__main__":
    main()
