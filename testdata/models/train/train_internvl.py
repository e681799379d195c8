"""Trains the wide scenes' demo model in InternVL's architecture and exports it in the hub's layout.

    python train_internvl.py --work DIR [--minutes 15] [--session-minutes 8] [--export ../scenes-internvl]

First the tower alone learns what each patch of a few tiles shows (the linear readings are thrown away at the end), then
everything learns from whole conversations. DIR gets log.jsonl and state.pt; called again, a run goes on.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy
import torch

import chat_rows
import internvl_model
import scenes
import training_session
import warm_start
import wide_scenes
from wide_scenes import TILE, WideScene

READINGS = (
    ("nothing", *scenes.SHAPE_COLOURS),
    ("nothing", *scenes.SHAPES),
    ("nothing", *wide_scenes.MARKS),
)
NOTHING_WEIGHT = 0.1  # most patches show nothing
LEAST_OF_A_MARK = 3  # pixels a patch must show of a mark, along both axes, to be labelled with it


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training_session.add_arguments(parser, minutes=15, batch=16)
    parser.add_argument("--tower-share", type=float, default=0.2, help="share of the schedule in which the tower learns alone")
    parser.add_argument("--single-share", type=float, default=0.15, help="share of the steps with one tile a picture")
    parser.add_argument("--tower-every", type=int, default=3, help="steps from one that trains the tower to the next")
    parser.add_argument("--tower-from", type=Path, help="state.pt of an earlier run, for the tower at the start")
    parser.add_argument("--decoder-from", type=Path, help="scenes-llava's folder, for the decoder at the start")
    parser.add_argument("--close-share", type=float, default=0.3, help="share of the other steps with close-ups of one tile")
    parser.add_argument("--close-first", type=float, default=0.15, help="share of the schedule with close-ups only")
    parser.add_argument("--patch-loss", type=float, default=1.0, help="weight of the patch readings")
    return parser.parse_args()


def patch_labels(drawn: WideScene, tiling: bool) -> numpy.ndarray:
    """[tiles, GRID * GRID, 3] classes: the colour and kind of the shape whose box holds the patch's centre, and the mark
    of which the patch shows enough; marks are not labelled where the picture is squeezed."""
    grid = internvl_model.GRID
    columns, rows = internvl_model.grid_of(drawn.width, drawn.height)
    small = columns * rows == 1  # a picture of one tile is not squeezed
    whole = _labels(drawn, grid, grid, marks=small).reshape(1, grid * grid, 3)
    if small or not tiling:
        return whole
    full = _labels(drawn, columns * grid, rows * grid, marks=True)
    cut = full.reshape(rows, grid, columns, grid, 3).swapaxes(1, 2).reshape(-1, grid * grid, 3)
    return numpy.concatenate([cut, whole])


def _labels(drawn: WideScene, columns: int, rows: int, marks: bool) -> numpy.ndarray:
    labels = numpy.zeros((rows, columns, 3), numpy.int64)
    width, height = drawn.width / columns, drawn.height / rows
    x, y = (numpy.arange(columns) + 0.5) * width, (numpy.arange(rows) + 0.5) * height
    for shape in drawn.shapes:
        left, top, right, bottom = shape.box
        inside = ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))[None]
        labels[inside, 0] = READINGS[0].index(shape.colour)
        labels[inside, 1] = READINGS[1].index(shape.kind)
        if marks and shape.mark:
            left, top, right, bottom = shape.mark_box
            across = numpy.minimum(x + width / 2, right) - numpy.maximum(x - width / 2, left)
            down = numpy.minimum(y + height / 2, bottom) - numpy.maximum(y - height / 2, top)
            labels[(down >= LEAST_OF_A_MARK)[:, None] & (across >= LEAST_OF_A_MARK)[None], 2] = READINGS[2].index(shape.mark)
    return labels


def token_labels(labels: torch.Tensor) -> torch.Tensor:
    """[tiles, TOKENS_PER_TILE, 3] of patch labels: a token is four patches and shows what any of them shows."""
    half = internvl_model.GRID // 2
    return labels.view(-1, half, 2, half, 2, len(READINGS)).amax((2, 4)).flatten(1, 2)


class Probe(torch.nn.Module):
    """Linear readings of patches or of picture tokens. Only trains what is below: no part of the exported model."""

    def __init__(self, hidden: int):
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(hidden, len(classes)) for classes in READINGS)

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = []
        for reading, head in enumerate(self.heads):
            weight = torch.ones(head.out_features)
            weight[0] = NOTHING_WEIGHT
            logits = head(features).flatten(0, 1).float()
            losses.append(torch.nn.functional.cross_entropy(logits, labels[..., reading].flatten(), weight=weight))
        return torch.stack(losses).mean()


def branches_of(encoder: internvl_model.Encoder, drawn: WideScene, rng: random.Random, close: bool) -> list[chat_rows.Branch]:
    """The caption, the mark, and three questions of other kinds; only the mark of a close-up."""
    if close:
        marks = [question for question in drawn.questions(rng) if question.kind == wide_scenes.MARK_KIND]
        return [encoder.branch(question.kind, question.text, question.answer, 5.0) for question in marks]
    branches = [encoder.branch("caption", wide_scenes.CAPTION_PROMPT, drawn.caption())]
    questions = [question for question in drawn.questions(rng) if question.kind == wide_scenes.MARK_KIND]
    others = [question for question in drawn.one_question_of_each_kind(rng) if question.kind != wide_scenes.MARK_KIND]
    for question in [*questions, *rng.sample(others, 3)]:
        weight = 5.0 if question.kind == wide_scenes.MARK_KIND else 3.0
        branches.append(encoder.branch(question.kind, question.text, question.answer, weight))
    return branches


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        torch.manual_seed(options.seed)
        self.tokenizer = internvl_model.build_tokenizer()
        self.encoder = internvl_model.Encoder(self.tokenizer)
        self.model = internvl_model.new_model(self.tokenizer)
        self.patches = Probe(internvl_model.VISION_SHAPE["hidden_size"])
        self.tokens = Probe(internvl_model.TEXT_SHAPE["hidden_size"])
        if options.tower_from:
            earlier = torch.load(options.tower_from, weights_only=True)["averaged"]
            tower = {name: tensor for name, tensor in earlier.items() if name.startswith("model.vision_tower.")}
            self.model.load_state_dict(tower, strict=False)
        if options.decoder_from:
            source = warm_start.Source(options.decoder_from)
            count = self.tokenizer.get_vocab_size()
            warm_start.qwen2_decoder(source, self.model, lambda token: self.tokenizer.decode([token], False), count)
        probes = torch.nn.ModuleList([self.patches, self.tokens])
        self.session = training_session.Session(options, self.model, probes)
        self._start = 1_000_000 * (1 + self.session.step // 100)  # never the scenes of an earlier session

    def train(self) -> None:
        options, session = self.options, self.session
        # A wide picture's tiles are a fixed number in a batch: scenes wait here until enough of one size are drawn.
        waiting: dict[tuple[int, int], list[WideScene]] = {size: [] for size in wide_scenes.SIZES}
        for _, drawn in wide_scenes.scenes_of("train", self._start):
            if session.over:
                break
            alike = waiting[(drawn.width, drawn.height)]
            alike.append(drawn)
            rng = random.Random(f"{options.seed}/{session.step}")
            tiling = rng.random() >= options.single_share
            progress = session.minutes / options.minutes
            tower_only = progress < options.tower_share
            close = not tower_only and (progress < options.tower_share + options.close_first or rng.random() < options.close_share)
            if len(alike) < options.batch * (1 if tiling and not close else 2):
                continue
            if tower_only:
                self._tower_step(alike, rng)
            elif close:
                self._step([each.close_up(rng) for each in alike], True, rng, close=True)
            else:
                self._step(alike, tiling, rng)
            alike.clear()
            if session.due():
                self.checkpoint()
        self.checkpoint()

    def _tower_step(self, batch: list[WideScene], rng: random.Random) -> None:
        """Three tiles a picture: two that show something, and the whole."""
        tiles, labels = [], []
        for drawn in batch:
            cut, shown = internvl_model.tiles_of(drawn.draw()), patch_labels(drawn, True)
            marked = [tile for tile in range(len(cut) - 1) if shown[tile, :, 2].any()]
            chosen = [*rng.sample(marked, min(2, len(marked))), len(cut) - 1]
            tiles.append(cut[chosen])
            labels.append(shown[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            pixels = internvl_model.normalised(numpy.concatenate(tiles))
            features = internvl_model.vision_features(self.model, pixels)
            loss = self.patches.loss(features, torch.from_numpy(numpy.concatenate(labels)))
        self.session.update(loss, loss.item())

    def _step(self, batch: list[WideScene], tiling: bool, rng: random.Random, close: bool = False) -> None:
        """One step on whole conversations; about close-ups only the mark is asked for."""
        tiles = [internvl_model.tiles_of(drawn.draw(), tiling) for drawn in batch]
        labels = torch.from_numpy(numpy.concatenate([patch_labels(drawn, tiling) for drawn in batch]))
        rows = chat_rows.pack(
            self.encoder.prefix(len(tiles[0])), [branches_of(self.encoder, drawn, rng, close) for drawn in batch], self.encoder.pad
        )
        learns = self.session.step % self.options.tower_every == 0
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(learns):
                features = internvl_model.vision_features(self.model, internvl_model.normalised(numpy.concatenate(tiles)))
            pictures = internvl_model.picture_tokens(self.model, features)
            answers = chat_rows.answer_loss(internvl_model.answer_logits(self.model, pictures, rows), rows)
            read = self.tokens.loss(pictures, token_labels(labels))
            if learns:
                read = read + self.patches.loss(features, labels)
        self.session.update(answers + self.options.patch_loss * read, answers.item())

    def checkpoint(self) -> None:
        measured = internvl_model.new_model(self.tokenizer)
        measured.load_state_dict(self.session.averaged)
        for name, tiling in (("tiled", True), ("one_tile", False)):
            judged = evaluate(measured, self.encoder, "validation", self.options.evaluation_scenes, tiling)
            self.session.log(**{name: chat_rows.shares(judged)})
        self.session.save()
        if self.options.export:
            internvl_model.export(self.session.averaged, self.tokenizer, self.options.export)


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, encoder: internvl_model.Encoder, part: str, count: int, tiling: bool, start: int = 10_000_000
) -> list[tuple[str, bool]]:
    """(kind, right) of the caption and one question of each kind about the first scenes of a part."""
    judged = []
    stream = wide_scenes.scenes_of(part, start)
    drawn = [next(stream) for _ in range(count)]
    for size in wide_scenes.SIZES:
        alike = [(index, each) for index, each in drawn if (each.width, each.height) == size]
        for first in range(0, len(alike), 25):
            some = alike[first : first + 25]
            tiles = [internvl_model.tiles_of(each.draw(), tiling) for _, each in some]
            branches = [asked(encoder, index, each) for index, each in some]
            rows = chat_rows.pack(encoder.prefix(len(tiles[0])), branches, encoder.pad)
            features = internvl_model.vision_features(model, internvl_model.normalised(numpy.concatenate(tiles)))
            pictures = internvl_model.picture_tokens(model, features)
            judged += chat_rows.exact(internvl_model.answer_logits(model, pictures, rows), rows)
    return judged


def asked(encoder: internvl_model.Encoder, index: int, drawn: WideScene) -> list[chat_rows.Branch]:
    questions = drawn.one_question_of_each_kind(random.Random(f"questions/{index}"))
    return [
        encoder.branch("caption", wide_scenes.CAPTION_PROMPT, drawn.caption()),
        *(encoder.branch(question.kind, question.text, question.answer) for question in questions),
    ]


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    Run(options).train()


if __name__ == "__main__":
    main()
