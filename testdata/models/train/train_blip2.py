"""Trains the scenes captioner in BLIP-2's architecture and exports it as the hub publishes such a checkpoint.

    python train_blip2.py --work DIR [--minutes 25] [--export ../scenes-blip2]

Two stages under one schedule: first vision tower, Q-Former and OPT together, then the tower is frozen (rounded to the
stored half precision) and Q-Former and OPT are trained on it. DIR gets log.jsonl and averaged.pt, from which
train_blip2_itm.py starts.
"""

from __future__ import annotations

import argparse
import random

import torch
from transformers import Blip2ForConditionalGeneration

import blip2_model
import blip2_rows
import blip2_slots
import blip2_tokenizers
import blip2_training
from conversations import IGNORED


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    blip2_training.add_arguments(parser, minutes=25, batch=48)
    parser.add_argument("--freeze-at", type=float, default=0.75, help="share of the schedule after which the tower is frozen")
    parser.add_argument("--row-length", type=int, default=72, help="tokens a picture: its caption and what questions fit")
    parser.add_argument("--patch-loss", type=float, default=1.5, help="weight of the tower's patch labels")
    parser.add_argument("--slot-loss", type=float, default=1.5, help="weight of the queries' slot labels")
    parser.add_argument("--question-weight", type=float, default=2.0, help="of a short answer's token; a caption's has 1")
    return parser.parse_args()


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.tokenizer = blip2_tokenizers.build_opt()
        self.packer = blip2_rows.Packer(self.tokenizer)
        self.model = blip2_model.new_captioner(self.tokenizer)
        self.patch_probe = blip2_slots.PatchProbe(blip2_model.VISION_SHAPE["hidden_size"])
        self.slot_probe = blip2_slots.SlotProbe(blip2_model.QFORMER_SHAPE["hidden_size"])
        self.average = blip2_training.Average(self.model, options.ema)
        self.frozen = False
        self.see = blip2_model.vision_features
        self.read = queries_and_states
        if options.compile:
            self.see, self.read = (torch.compile(each, dynamic=False) for each in (self.see, self.read))
        self._set_optimizers()
        self.schedule = blip2_training.Schedule(options)

    def _set_optimizers(self) -> None:
        probes = list(self.slot_probe.parameters())
        if not self.frozen:
            probes += self.patch_probe.parameters()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad] + probes
        self.optimizers = blip2_training.optimizers_of(self.model.named_parameters(), probes, self.options)

    def train(self) -> None:
        options = self.options
        losses: list[float] = []
        for drawn in blip2_training.batches_of("train", options.batch):
            if self.schedule.progress >= 1:
                break
            if not self.frozen and self.schedule.progress >= options.freeze_at:
                self._freeze()
            losses.append(self._step(drawn))
            if self.schedule.step % 100 == 0:
                self.schedule.log(loss=sum(losses[-100:]) / 100)
            if self.schedule.step % options.evaluate_every == 0:
                self._checkpoint()
        self._checkpoint()

    def _step(self, drawn: list) -> float:
        options = self.options
        rng = random.Random(f"questions/{options.seed}/{self.schedule.step}")
        values = blip2_model.pixel_values([each.draw() for each in drawn])
        texts = [self.packer.fitting(blip2_rows.training_texts(each, rng), options.row_length) for each in drawn]
        rows = self.packer.pack(texts, options.row_length)
        slots = torch.tensor([blip2_slots.classes_of(blip2_slots.slots_of(each)) for each in drawn])
        if self.frozen:
            with torch.no_grad():
                features = self.see(self.model, values)
        else:
            features = self.see(self.model, values)
        queries, states = self.read(self.model, features, rows.input_ids, rows.position_ids, rows.may_attend)
        learnt = rows.labels != IGNORED
        logits = self.model.language_model.lm_head(states[learnt])
        each_loss = torch.nn.functional.cross_entropy(logits, rows.labels[learnt], reduction="none")
        weights = torch.where(rows.branch_ids[learnt] == 1, 1.0, options.question_weight)
        text_loss = (weights * each_loss).sum() / weights.sum()
        loss = text_loss + options.slot_loss * self.slot_probe.loss(queries, slots)
        if not self.frozen:
            patches = torch.stack([blip2_slots.stretched_patch_labels(each, blip2_model.GRID) for each in drawn])
            loss = loss + options.patch_loss * self.patch_probe.loss(features[:, 1:], patches)
        self.schedule.update(loss, self.optimizers, self.trained)
        self.average.update(self.model)
        return text_loss.item()

    def _freeze(self) -> None:
        """Goes on from the averaged weights with the tower as it will be stored."""
        self.model.load_state_dict(self.average.state)
        blip2_model.freeze_tower(self.model)
        self.average = blip2_training.Average(self.model, self.options.ema)
        self.frozen = True
        self._set_optimizers()
        self.schedule.log(frozen="vision tower")

    def _checkpoint(self) -> None:
        """Measures the averaged weights on validation scenes, then saves and exports them."""
        evaluated = blip2_model.new_captioner(self.tokenizer)
        evaluated.load_state_dict(self.average.state)
        self.schedule.log(exact_match=exact_match(evaluated, self.packer, "validation", self.options.evaluation_scenes))
        unfinished = self.options.work / "averaged.pt.new"
        torch.save(self.average.state, unfinished)
        unfinished.rename(self.options.work / "averaged.pt")
        if self.options.export:
            blip2_model.export_captioner(self.average.state, self.tokenizer, self.options.export)


def queries_and_states(model, features, input_ids, position_ids, may_attend) -> tuple[torch.Tensor, torch.Tensor]:
    queries = blip2_model.query_outputs(model, features)
    return queries, blip2_model.language_states(model, queries, input_ids, position_ids, may_attend)


@torch.no_grad()
def exact_match(model: Blip2ForConditionalGeneration, packer: blip2_rows.Packer, part: str, count: int) -> dict[str, float]:
    """Share of right answers by kind. Greedy decoding gives the true answer exactly when every one of its tokens, the
    line break included, is the most likely one after the tokens before it: one forward pass tells."""
    right: dict[str, list[bool]] = {}
    drawn = blip2_training.first_scenes(part, count)
    for start in range(0, count, 50):
        some = drawn[start : start + 50]
        rows = packer.pack([blip2_rows.test_texts(each, random.Random(number)) for number, each in enumerate(some, start)])
        features = blip2_model.vision_features(model, blip2_model.pixel_values([each.draw() for each in some]))
        _, states = queries_and_states(model, features, rows.input_ids, rows.position_ids, rows.may_attend)
        hit = (model.language_model.lm_head(states).argmax(-1) == rows.labels) | (rows.labels == IGNORED)
        for row, texts in enumerate(rows.texts):
            for branch, text in enumerate(texts, 1):
                right.setdefault(text.kind, []).append(bool(hit[row][rows.branch_ids[row] == branch].all()))
    answers = [hit for kind, hits in right.items() if kind != "caption" for hit in hits]
    shares = {kind: blip2_training.share(hits) for kind, hits in sorted(right.items())}
    return {**shares, "all_short_answers": blip2_training.share(answers)}


def main() -> None:
    options = parse_arguments()
    blip2_training.prepare(options)
    Run(options).train()


if __name__ == "__main__":
    main()
