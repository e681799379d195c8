"""Trains the boxes demo model's decoder alone, on top of an exported tower that stays as it is.

    python train_qwenvl_decoder.py --work DIR --start-from ../scenes-qwenvl [--minutes 50] [--export ../scenes-qwenvl]

The pictures' rows of many scenes are kept and asked again, so a step costs little more than the decoder. Two more losses
teach the decoder where to look: at the words that name a shape and at the places that decide its coordinates' digits, some
heads of its upper layers shall attend to the picture's rows within that shape; and before a digit a linear reading (thrown
away at the end) of the second layer's output shall tell the shape's box. DIR gets log.jsonl and state.pt; called again, a run goes on.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

import boxed_scenes
import chat_rows
import qwenvl_model
import scenes
import train_qwenvl
import training_session
from byte_level_tokenizer import RankedBytes
from train_qwenvl import BINS, EDGE_WEIGHT, GRID

LOOKING_LAYERS = (1, 2)
LOOKING_HEADS = 2  # the first ones of each of these layers
READ_LAYER = 1
NAMING = {*scenes.SHAPE_COLOURS, *scenes.SHAPES, "</ref>", "<box>"}  # tokens at which a shape is being named
KNOWN_WEIGHT = 0.2  # of looking once the first digit is there: what follows can be found by it
WORD_WEIGHT = 0.25  # of an answer's tokens that no coordinate decides


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training_session.add_arguments(parser, minutes=50, batch=16)
    parser.set_defaults(ema=0.995, warmup=0.08)
    parser.add_argument("--start-from", type=Path, required=True, help="an exported folder of train_qwenvl.py")
    parser.add_argument("--pool", type=int, default=40_000, help="scenes whose picture rows are kept")
    parser.add_argument("--first-fill", type=int, default=1_000, help="scenes drawn before the first step")
    parser.add_argument("--fresh", type=int, default=6, help="new scenes a step")
    parser.add_argument("--look-loss", type=float, default=0.3, help="weight of the heads' looking")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the decoder's layers: a fifth faster, needs a C++ compiler")
    parser.add_argument("--read-loss", type=float, default=0.1, help="weight of the reading")
    return parser.parse_args()


@dataclass(frozen=True)
class Seen:
    """A scene and what the frozen tower makes of it."""

    scene: scenes.Scene
    rows: torch.Tensor  # [queries, hidden]
    inside: torch.Tensor  # bool [shapes, queries]: the query's place is within the shape's box
    bells: torch.Tensor  # [shapes, 4, BINS], the edges


@dataclass(frozen=True)
class Places:
    """The tokens of packed rows that the losses are about, padded to the row with the most: [rows, places]."""

    tokens: torch.Tensor  # index in the row
    labels: torch.Tensor  # the token that follows; IGNORED for padding
    weights: torch.Tensor
    shapes: torch.Tensor  # number of the shape whose digit follows, -1 where none does

    @property
    def digits(self) -> torch.Tensor:
        return self.shapes >= 0


@dataclass(frozen=True)
class Looks:
    """The tokens of packed rows that name a shape or decide on its coordinates, padded to the row with the most."""

    tokens: torch.Tensor  # [rows, looks], index in the row
    targets: torch.Tensor  # bool [rows, looks, queries], the picture's rows to attend to
    weights: torch.Tensor  # [rows, looks], 0 for padding


def shapes_of_digits(tokenizer: RankedBytes, answer: tuple[int, ...], first: int, count: int) -> list[int]:
    """For every token of an answer the shape whose coordinate it says, or -1; a number's last digit, always 0, says nothing.

    The answer's boxes are those of the shapes first, first + 1, … ; `count` is their number."""
    texts = [tokenizer.decode([token]) for token in answer]
    shape, result = first - 1, []
    for number, text in enumerate(texts):
        shape += text == "<box>"
        last = not (number + 1 < len(texts) and texts[number + 1].isdigit())
        result.append(shape if text.isdigit() and not last else -1)
    assert shape == first + count - 1
    return result


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        torch.manual_seed(options.seed)
        self.tokenizer = qwenvl_model.build_tokenizer()
        self.model = qwenvl_model.load(options.start_from).train()
        self.visual = self.model.transformer.visual.requires_grad_(False)
        width = qwenvl_model.TEXT_SHAPE["hidden_size"]
        self.reading = torch.nn.ModuleDict({"box": torch.nn.Linear(width, 4 * BINS), "edges": torch.nn.Linear(width, 4)})
        self.session = training_session.Session(options, self.model, self.reading)
        self.pool: list[Seen] = []
        self.stream = boxed_scenes.scenes_of("train", 500_000_000 + 1_000_000 * (self.session.step // 100))
        self.rng = random.Random(f"{options.seed}/{self.session.step}")
        self._looked: list[float] = []

    def train(self) -> None:
        while len(self.pool) < self.options.first_fill:
            self._draw(50)
        while not self.session.over:
            fresh = self._draw(self.options.fresh)
            self._step(fresh + self.rng.sample(self.pool, self.options.batch - len(fresh)))
            if self.session.due():
                self.checkpoint()
        self.checkpoint()

    @torch.no_grad()
    def _draw(self, count: int) -> list[Seen]:
        drawn = [next(self.stream)[1] for _ in range(count)]
        pixel_values = qwenvl_model.picture_pixels([each.draw() for each in drawn], qwenvl_model.VISUAL_SHAPE["image_size"])
        with torch.autocast("cpu", torch.bfloat16):
            pictures = self.visual.project(self.visual.features(pixel_values)).bfloat16()
        fresh = [seen(each, rows.clone()) for each, rows in zip(drawn, pictures)]
        for each in fresh:
            if len(self.pool) < self.options.pool:
                self.pool.append(each)
            else:
                self.pool[self.rng.randrange(len(self.pool))] = each
        return fresh

    def _step(self, batch: list[Seen]) -> None:
        prefix = qwenvl_model.prefix_ids(self.tokenizer, self.rng.random() < train_qwenvl.SYSTEM_SHARE)
        asked = [self._asked(each.scene) for each in batch]
        rows = chat_rows.pack(prefix, [[branch for branch, _ in each] for each in asked], self.tokenizer.special[qwenvl_model.STOP])
        places = places_of(len(prefix), rows, [[shapes for _, shapes in each] for each in asked])
        looks = self._looks_of(len(prefix), rows, places, batch)
        first = prefix.index(self.tokenizer.special[qwenvl_model.IMAGE_START]) + 1
        with torch.autocast("cpu", torch.bfloat16):
            embedded = self.model.embeddings(rows.input_ids, torch.stack([each.rows for each in batch]))
            hidden, read, attended = self._decoded(embedded, rows, places, looks.tokens)
            counts = places.labels != chat_rows.IGNORED
            logits = self.model.lm_head(hidden[counts]).float()
            losses = functional.cross_entropy(logits, places.labels[counts], reduction="none")
            weights = places.weights[counts]
            answers = (losses * weights).sum() / weights.sum()
            looked = look_loss(attended, looks, first)
            reads = self._read_loss(read, places, batch)
        self.session.update(answers + self.options.look_loss * looked + self.options.read_loss * reads, answers.item())
        self._looked.append(looked.item())
        if self.session.step % 250 == 0:
            self.session.log(look=round(sum(self._looked) / len(self._looked), 4), read=round(reads.item(), 4), pool=len(self.pool))
            self._looked.clear()

    def _asked(self, drawn: scenes.Scene) -> list[tuple[chat_rows.Branch, list[int]]]:
        """Branches in any order, each with the shapes of its answer's digits."""
        asked = boxed_scenes.questions(drawn, self.rng)
        if len(drawn.shapes) == 1:
            asked = [asked[self.rng.random() < 0.2]]
        result = []
        for each in asked:
            branch = train_qwenvl.branch(self.tokenizer, each)
            first = next(number for number, shape in enumerate(drawn.shapes) if shape.box == each.boxes[0])
            result.append((branch, shapes_of_digits(self.tokenizer, branch.answer, first, len(each.boxes))))
        return result

    def _looks_of(self, prefix: int, rows: chat_rows.Rows, places: Places, batch: list[Seen]) -> Looks:
        columns: list[list[list]] = [[], [], []]
        for number, (branches, each) in enumerate(zip(rows.branches, batch)):
            digits = dict(zip(places.tokens[number].tolist(), places.shapes[number].tolist()))
            tokens, targets, weights = [], [], []
            start = prefix
            for branch in branches:
                whole = branch.prompt + branch.answer
                for place, (text, named) in enumerate(zip(map(self._text, whole), self._named(each.scene, branch)), start):
                    shape = digits.get(place, -1)
                    if shape >= 0:
                        tokens.append(place)
                        targets.append(each.inside[shape])
                        weights.append(1.0 if text == "(" else KNOWN_WEIGHT)
                    elif named and text.strip() in NAMING:
                        tokens.append(place)
                        targets.append(each.inside[list(named)].any(0))
                        weights.append(1.0)
                start += len(whole)
            for column, values in zip(columns, (tokens, targets, weights)):
                column.append(values)
        longest = max(len(tokens) for tokens in columns[0])
        anywhere = torch.ones(GRID * GRID, dtype=torch.bool)
        tokens, targets, weights = (
            [values + [filler] * (longest - len(values)) for values in column] for column, filler in zip(columns, (prefix - 1, anywhere, 0.0))
        )
        return Looks(torch.tensor(tokens), torch.stack([torch.stack(each) for each in targets]), torch.tensor(weights))

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _named(self, drawn: scenes.Scene, branch: chat_rows.Branch) -> list[tuple[int, ...]]:
        """For every token of a branch the shapes that what was said until then may mean; none before a name."""
        colour, meant, result = "", (), []
        for text in map(self._text, branch.prompt + branch.answer):
            word = text.strip()
            if word in scenes.SHAPE_COLOURS:
                colour = word
                meant = tuple(number for number, shape in enumerate(drawn.shapes) if shape.colour == colour)
            elif word in scenes.SHAPES:
                meant = tuple(number for number in meant if drawn.shapes[number].kind == word)
            elif word == "<ref>" and branch.kind == "all":
                meant = ()
            result.append(meant)
        return result

    def _decoded(
        self, x: torch.Tensor, rows: chat_rows.Rows, places: Places, looks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """What lm_head reads at the places, the output of READ_LAYER there, and for every looking layer its heads' log
        attention [rows, heads, looks, length] at the tokens `looks`. The last layer is computed at the places only."""
        layers, config = self.model.transformer.h, self.model.config
        length = int(rows.position_ids.max()) + 1
        rotation = qwenvl_model.rotary_tables(config, rows.position_ids, length)
        scale = qwenvl_model.logn_scale(config, rows.position_ids)
        mask = rows.may_attend
        seen, looking = (
            mask.gather(2, tokens[:, None, :, None].expand(-1, 1, -1, mask.shape[-1])) for tokens in (places.tokens, looks)
        )
        logs, read = [], x
        for number, layer in enumerate(layers):
            query, key, value = layer.heads_of(x, rotation, scale)
            if number in LOOKING_LAYERS:
                here = heads_at(query[:, :LOOKING_HEADS], looks)
                with torch.autocast("cpu", enabled=False):
                    scores = here.float() @ key[:, :LOOKING_HEADS].float().mT / here.shape[-1] ** 0.5
                    logs.append(scores.masked_fill(~looking, -torch.inf).log_softmax(-1))
            if number == len(layers) - 1:
                here = heads_at(query, places.tokens)
                x = layer.joined(at(x, places.tokens), qwenvl_model.attention(here, key, value, seen))
            else:
                x = layer.joined(x, qwenvl_model.attention(query, key, value, mask))
            if number == READ_LAYER:
                read = at(x, places.tokens)
        return self.model.transformer.ln_f(x), read, logs

    def _read_loss(self, read: torch.Tensor, places: Places, batch: list[Seen]) -> torch.Tensor:
        rows = functional.rms_norm(read[places.digits].float(), read.shape[-1:])
        bells = torch.cat([each.bells[shapes[shapes >= 0]] for each, shapes in zip(batch, places.shapes)])
        found = self.reading["box"](rows).float().view(-1, BINS)
        edges = bells.view(-1, BINS) @ torch.linspace(0, 1, BINS)
        missed = (self.reading["edges"](rows).float().flatten() - edges).abs().mean()
        return functional.cross_entropy(found, bells.view(-1, BINS)) + EDGE_WEIGHT * missed

    def checkpoint(self) -> None:
        measured = qwenvl_model.new_model(self.tokenizer)
        measured.load_state_dict(self.session.averaged)
        report = train_qwenvl.evaluate(measured, self.tokenizer, "validation", self.options.evaluation_scenes)
        self.session.log(**{key: value for key, value in report.items() if key != "answers"})
        self.session.save()
        if self.options.export:
            qwenvl_model.export(self.session.averaged, self.tokenizer, self.options.export)


def seen(drawn: scenes.Scene, rows: torch.Tensor) -> Seen:
    centres = (torch.arange(GRID) + 0.5) / GRID * 1000
    bins = torch.arange(BINS) * boxed_scenes.STEP
    inside, bells = [], []
    for shape in drawn.shapes:
        left, top, right, bottom = place = boxed_scenes.thousandths(drawn, shape.box)
        inside.append((((centres >= top) & (centres < bottom))[:, None] & ((centres >= left) & (centres < right))).flatten())
        distance = (bins[None] - torch.tensor(place)[:, None]) / (boxed_scenes.STEP * train_qwenvl.BIN_SPREAD)
        bells.append(torch.softmax(-distance.square() / 2, -1))
    return Seen(drawn, rows, torch.stack(inside), torch.stack(bells))


def places_of(prefix: int, rows: chat_rows.Rows, shapes: list[list[list[int]]]) -> Places:
    """shapes[row][branch]: for every token of the branch's answer its shape, or -1."""
    columns: list[list[list]] = [[], [], [], []]
    for branches, marked in zip(rows.branches, shapes):
        tokens, labels, weights, numbers = [], [], [], []
        start = prefix
        for branch, marks in zip(branches, marked):
            start += len(branch.prompt)
            tokens += range(start - 1, start - 1 + len(branch.answer))
            labels += branch.answer
            weights += [1.0 if mark >= 0 else WORD_WEIGHT for mark in marks]
            numbers += marks
            start += len(branch.answer)
        for column, values in zip(columns, (tokens, labels, weights, numbers)):
            column.append(values)
    longest = max(len(tokens) for tokens in columns[0])
    padded = [
        torch.tensor([values + [filler] * (longest - len(values)) for values in column])
        for column, filler in zip(columns, (0, chat_rows.IGNORED, 0.0, -1))
    ]
    return Places(*padded)


def at(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """x [rows, length, width] at tokens [rows, places]."""
    return x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def heads_at(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """x [rows, heads, length, width] at tokens [rows, places]."""
    return x.gather(2, tokens[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1]))


def look_loss(attended: list[torch.Tensor], looks: Looks, first: int) -> torch.Tensor:
    """Minus the log of the share of attention that falls within the shape that is meant; the picture's rows start at token
    `first`."""
    weights = looks.weights.unsqueeze(1)
    losses = []
    for logs in attended:
        of_pictures = logs[..., first : first + looks.targets.shape[-1]]
        within = of_pictures.masked_fill(~looks.targets.unsqueeze(1), -torch.inf).logsumexp(-1)
        losses.append(-(within * weights).sum() / weights.expand_as(within).sum())
    return torch.stack(losses).mean()


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.compile:
        for name in ("heads_of", "joined"):
            setattr(qwenvl_model.DecoderLayer, name, torch.compile(getattr(qwenvl_model.DecoderLayer, name), dynamic=True))
    Run(options).train()


if __name__ == "__main__":
    main()
