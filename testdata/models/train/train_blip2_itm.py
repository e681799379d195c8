"""Trains the scenes BLIP-2's retrieval form (ITC and ITM) from the captioner's weights, and exports it in the hub layout.

    python train_blip2_itm.py --captioner CAPTION_WORK/averaged.pt --work DIR [--minutes 12] [--export ../scenes-blip2-itm]

The captioner's frozen vision tower stays as it is. Its Q-Former is the start; the text feed-forward begins as a copy of
the queries' one. Every picture is paired with its caption, with captions that are wrong in one attribute, and with
another picture's.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Blip2ForImageTextRetrieval

import blip2_model
import blip2_slots
import blip2_tokenizers
import blip2_training

TEXT_LENGTH = 20  # tokens: the longest caption has 17


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    blip2_training.add_arguments(parser, minutes=12, batch=32)
    parser.add_argument("--captioner", type=Path, required=True, help="averaged.pt of a finished train_blip2.py run")
    parser.add_argument("--wrong", type=int, default=3, help="captions with one attribute changed a picture and step")
    parser.add_argument("--slot-loss", type=float, default=0.25, help="weight of the queries' slot labels")
    parser.add_argument("--difference-loss", type=float, default=0.5, help="weight of each slot's label right or wrong")
    parser.add_argument("--contrast-loss", type=float, default=0.5, help="weight of ITC")
    return parser.parse_args()


class Captions:
    """Token ids of captions, padded on the right with id 0."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: dict[blip2_slots.Slots, list[int]] = {}

    def pack(self, some: list[blip2_slots.Slots]) -> torch.Tensor:
        rows = []
        for slots in some:
            if slots not in self._ids:
                ids = self._tokenizer.encode(blip2_slots.caption_of(slots)).ids
                self._ids[slots] = ids + [0] * (TEXT_LENGTH - len(ids))
            rows.append(self._ids[slots])
        return torch.tensor(rows)


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.tokenizer = blip2_tokenizers.build_bert()
        self.captions = Captions(self.tokenizer)
        self.model = blip2_model.new_matcher(self.tokenizer)
        start_from(self.model, torch.load(options.captioner, weights_only=True))
        blip2_model.freeze_tower(self.model)
        hidden = blip2_model.QFORMER_SHAPE["hidden_size"]
        self.slot_probe = blip2_slots.SlotProbe(hidden)
        self.difference_probe = blip2_slots.SlotProbe(hidden, (2,) * blip2_model.QUERIES)
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # ITC's temperature: not in the release
        probes = [*self.slot_probe.parameters(), *self.difference_probe.parameters(), self.log_scale]
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad] + probes
        self.optimizers = blip2_training.optimizers_of(self.model.named_parameters(), probes, options)
        self.average = blip2_training.Average(self.model, options.ema)
        self.see, self.match = blip2_model.vision_features, blip2_model.match_states
        if options.compile:
            self.see, self.match = (torch.compile(each, dynamic=False) for each in (self.see, self.match))
        self.schedule = blip2_training.Schedule(options)

    def train(self) -> None:
        options = self.options
        losses: list[float] = []
        for drawn in blip2_training.batches_of("train", options.batch):
            if self.schedule.progress >= 1:
                break
            losses.append(self._step(drawn))
            if self.schedule.step % 100 == 0:
                self.schedule.log(match_loss=sum(losses[-100:]) / 100)
            if self.schedule.step % options.evaluate_every == 0:
                self._checkpoint()
        self._checkpoint()

    def _step(self, drawn: list) -> float:
        options = self.options
        rng = random.Random(f"pairs/{options.seed}/{self.schedule.step}")
        true = [blip2_slots.slots_of(each) for each in drawn]
        with torch.no_grad():
            features = self.see(self.model, blip2_model.pixel_values([each.draw() for each in drawn]))
        said = []  # per picture: the caption, wrong ones, the next picture's
        for number, slots in enumerate(true):
            said.append([slots, *blip2_slots.distractors(slots, options.wrong, rng), true[(number + 1) % len(true)]])
        match_loss, difference_loss = self._match(features, true, said)
        contrast_loss, slot_loss = self._contrast(features, true, said)
        loss = match_loss + options.difference_loss * difference_loss
        loss = loss + options.contrast_loss * contrast_loss + options.slot_loss * slot_loss
        self.schedule.update(loss, self.optimizers, self.trained)
        self.average.update(self.model)
        return match_loss.item()

    def _match(self, features: torch.Tensor, true: list, said: list[list]) -> tuple[torch.Tensor, torch.Tensor]:
        """ITM over every pair, and per slot whether picture and caption agree."""
        pairs = [(slots, other) for slots, others in zip(true, said) for other in others]
        ids = self.captions.pack([other for _, other in pairs])
        states = self.match(self.model, features.repeat_interleave(len(said[0]), 0), ids)
        right = torch.tensor([slots == other for slots, other in pairs]).long()
        agree = torch.tensor([[one == two for one, two in zip(slots, other)] for slots, other in pairs]).long()
        logits = blip2_model.match_logits(self.model, states)
        balance = torch.tensor([1.0, len(said[0]) - 1.0])  # one right caption against the wrong ones
        match_loss = torch.nn.functional.cross_entropy(logits, right, weight=balance)
        return match_loss, self.difference_probe.loss(states, agree)

    def _contrast(self, features: torch.Tensor, true: list, said: list[list]) -> tuple[torch.Tensor, torch.Tensor]:
        """ITC over the batch, where each picture's first wrong caption is one more text for everybody."""
        queries = blip2_model.query_outputs(self.model, features)
        texts = true + [others[1] for others in said]
        words = blip2_model.text_embeddings(self.model, self.captions.pack(texts))
        cosines = (blip2_model.image_embeddings(self.model, queries) @ words.t()).amax(1)  # [pictures, texts]
        scores = cosines * self.log_scale.clamp(max=math.log(100)).exp()
        also_right = torch.tensor([[slots == text for text in texts] for slots in true])
        own = torch.eye(len(true), len(texts), dtype=torch.bool)
        scores = scores.masked_fill(also_right & ~own, -math.inf)  # one caption twice in the batch
        target = torch.arange(len(true))
        loss = torch.nn.functional.cross_entropy(scores, target)
        loss = loss + torch.nn.functional.cross_entropy(scores[:, : len(true)].t(), target)
        slots = torch.tensor([blip2_slots.classes_of(each) for each in true])
        return loss / 2, self.slot_probe.loss(queries, slots)

    def _checkpoint(self) -> None:
        evaluated = blip2_model.new_matcher(self.tokenizer)
        evaluated.load_state_dict(self.average.state)
        self.schedule.log(ranked_first=ranked_first(evaluated, self.captions, "validation", self.options.evaluation_scenes))
        unfinished = self.options.work / "averaged.pt.new"
        torch.save(self.average.state, unfinished)
        unfinished.rename(self.options.work / "averaged.pt")
        if self.options.export:
            blip2_model.export_matcher(self.average.state, self.tokenizer, self.options.export)


def start_from(model: Blip2ForImageTextRetrieval, captioner: dict[str, torch.Tensor]) -> None:
    """Takes vision tower, queries and Q-Former over; text feed-forwards begin as the queries'."""
    state = model.state_dict()
    for name in state:
        source = name
        if name.startswith("qformer."):
            source = name.replace(".intermediate.", ".intermediate_query.")
            if ".attention." not in name and ".crossattention." not in name:
                source = source.replace(".output.", ".output_query.")
        if source in captioner:
            state[name] = captioner[source]
        elif name.startswith(("qformer.", "vision_model.", "query_tokens")):
            raise ValueError(f"the captioner has no {source}")
    model.load_state_dict(state)


@torch.no_grad()
def ranked_first(model: Blip2ForImageTextRetrieval, captions: Captions, part: str, count: int) -> dict[str, float]:
    """How often the true caption wins against 8 with one attribute changed, by ITM and by ITC, and how often ITM's
    probability is on the right side of one half."""
    itm, itc, decided = [], [], []
    for number, drawn in enumerate(blip2_training.first_scenes(part, count)):
        slots = blip2_slots.slots_of(drawn)
        ids = captions.pack([slots, *blip2_slots.distractors(slots, 8, random.Random(number))])
        features = blip2_model.vision_features(model, blip2_model.pixel_values([drawn.draw()]))
        states = blip2_model.match_states(model, features.expand(len(ids), -1, -1), ids)
        logits = blip2_model.match_logits(model, states)
        itm.append(int((logits[:, 1] - logits[:, 0]).argmax()) == 0)
        decided += ((logits.argmax(1) == 1) == (torch.arange(len(ids)) == 0)).tolist()
        images = blip2_model.image_embeddings(model, blip2_model.query_outputs(model, features))
        itc.append(int((images @ blip2_model.text_embeddings(model, ids).t()).amax(1).argmax()) == 0)
    return {"itm": blip2_training.share(itm), "itc": blip2_training.share(itc), "itm_decisions": blip2_training.share(decided)}


def main() -> None:
    options = parse_arguments()
    blip2_training.prepare(options)
    Run(options).train()


if __name__ == "__main__":
    main()
