"""Trains the scenes demo model in LLaVA-1.5's architecture and exports it as the hub publishes such a checkpoint.

    python train_llava.py --work DIR [--steps 6000] [--minutes 60] [--export ../scenes-llava] [--compile] [--resume]

DIR gets log.jsonl (loss and exact match) and state.pt (to resume). The learning rate follows the larger of the two
shares step/steps and time/minutes, so a slow machine still ends with a finished schedule.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

import conversations
import llama_tokenizer
import llava_model
import patch_labels
import pixels
import scenes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the log and the training state")
    parser.add_argument("--export", type=Path, help="checkpoint folder, written anew at every evaluation")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--batch", type=int, default=32, help="pictures a step")
    parser.add_argument("--row-length", type=int, default=160, help="tokens a picture: its caption and what questions fit")
    parser.add_argument("--compile", action="store_true", help="compile the forward pass (needs a C++ compiler)")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="muon")
    parser.add_argument("--muon-factor", type=float, default=1.0, help="Muon's learning rate as a multiple of AdamW's")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--patch-loss", type=float, default=0.5, help="weight of the tower's patch labels (patch_labels.py)")
    parser.add_argument("--question-weight", type=float, default=3.0, help="of a short answer's token; a caption's has 1")
    parser.add_argument("--warmup", type=float, default=0.04, help="share of the schedule")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights, which are what is exported")
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--evaluation-scenes", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args()


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(options.seed)
        self.tokenizer = llama_tokenizer.build(llama_tokenizer.lexicon_texts())
        self.packer = conversations.Packer(self.tokenizer, llava_model.IMAGE_TOKENS)
        self.model = llava_model.new_model(self.tokenizer)
        self.probe = patch_labels.PatchProbe(llava_model.VISION_SHAPE["hidden_size"])
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.optimizers = self._optimizers()
        self.forward = llava_model.hidden_states
        if options.compile:
            self.forward = torch.compile(self.forward, dynamic=False)
        self.step = 0
        self.next_scene = 0
        self.seconds = 0.0
        if options.resume:
            self._load()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest."""
        options = self.options
        layers, matrices, vectors = [], list(self.probe.parameters()), []
        for name, parameter in self.model.named_parameters():
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif options.optimizer == "muon" and parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
                layers.append(parameter)
            else:
                matrices.append(parameter)
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98))]
        if layers:
            optimizers.append(
                torch.optim.Muon(
                    layers,
                    lr=options.learning_rate * options.muon_factor,
                    weight_decay=options.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["peak_lr"] = group["lr"]
        return optimizers

    def train(self) -> None:
        options = self.options
        started = time.monotonic() - self.seconds
        losses: list[float] = []
        while self.step < options.steps and self.seconds < options.minutes * 60:
            progress = max(self.step / options.steps, self.seconds / 60 / options.minutes)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * one_cycle(progress, options.warmup)
            loss = self._train_step()
            losses.append(loss)
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % 100 == 0:
                self._log(loss=sum(losses[-100:]) / 100)
            if self.step % options.evaluate_every == 0:
                self._checkpoint()
        self._checkpoint()

    def _train_step(self) -> float:
        pictures, patches, rows = self._next_batch()
        logits, features = llava_model.answer_logits(self.model, pictures, rows, self.forward)
        learnt = rows.labels != conversations.IGNORED
        losses = torch.nn.functional.cross_entropy(logits, rows.labels[learnt], reduction="none")
        weights = torch.where(rows.branch_ids[learnt] == 1, 1.0, self.options.question_weight)  # branch 1 is the caption
        answer_loss = (weights * losses).sum() / weights.sum()
        loss = answer_loss + self.options.patch_loss * self.probe.loss(features, patches)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        return answer_loss.item()

    def _next_batch(self) -> tuple[torch.Tensor, torch.Tensor, conversations.Rows]:
        rng = random.Random(f"questions/{self.options.seed}/{self.step}")
        batch = []
        for index, drawn in scenes.scenes_of("train", self.next_scene):
            batch.append(drawn)
            if len(batch) == self.options.batch:
                self.next_scene = index + 1
                break
        length = self.options.row_length
        turns = [self.packer.fitting(conversations.training_turns(drawn, rng), length) for drawn in batch]
        pictures = pixels.pixel_values([drawn.draw() for drawn in batch], llava_model.IMAGE_SIZE)
        patches = torch.stack([patch_labels.patch_labels(drawn, llava_model.GRID) for drawn in batch])
        return pictures, patches, self.packer.pack(turns, length)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.averaged[name].lerp_(tensor, 1 - decay)

    def _checkpoint(self) -> None:
        """Measures the averaged weights on validation scenes, then saves the state and the exported checkpoint."""
        evaluated = llava_model.new_model(self.tokenizer)
        evaluated.load_state_dict(self.averaged)
        self._log(exact_match=exact_match(evaluated, self.packer, "validation", self.options.evaluation_scenes))
        state = {
            "step": self.step,
            "next_scene": self.next_scene,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "probe": self.probe.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = self.options.work / "state.pt.new"
        torch.save(state, unfinished)
        unfinished.rename(self.options.work / "state.pt")
        if self.options.export:
            llava_model.export(self.averaged, self.tokenizer, self.options.export)

    def _load(self) -> None:
        state = torch.load(self.options.work / "state.pt", weights_only=True)
        self.step, self.next_scene, self.seconds = state["step"], state["next_scene"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.averaged = state["averaged"]
        self.probe.load_state_dict(state["probe"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _log(self, **values) -> None:
        line = json.dumps({"step": self.step, "minutes": round(self.seconds / 60, 2), **values})
        print(line, flush=True)
        with open(self.options.work / "log.jsonl", "a") as log:
            log.write(line + "\n")


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: a straight line up, half a cosine down to 1 %."""
    if progress < warmup:
        return progress / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))) / 2


@torch.no_grad()
def exact_match(model: LlavaForConditionalGeneration, packer: conversations.Packer, part: str, count: int) -> dict[str, float]:
    """Share of right answers by kind. Greedy decoding gives the true answer exactly when every one of its tokens, the
    end included, is the most likely one after the tokens before it: one forward pass tells."""
    right: dict[str, list[bool]] = {}
    drawn = []
    for _, candidate in scenes.scenes_of(part):
        drawn.append(candidate)
        if len(drawn) == count:
            break
    for start in range(0, count, 50):
        some = drawn[start : start + 50]
        rows = packer.pack([conversations.test_turns(each, random.Random(number)) for number, each in enumerate(some, start)])
        pictures = pixels.pixel_values([each.draw() for each in some], llava_model.IMAGE_SIZE)
        logits, _ = llava_model.answer_logits(model, pictures, rows)
        learnt = rows.labels != conversations.IGNORED
        hit = torch.ones_like(rows.labels, dtype=torch.bool)
        hit[learnt] = logits.argmax(-1) == rows.labels[learnt]
        for row, turns in enumerate(rows.turns):
            for branch, turn in enumerate(turns, 1):
                right.setdefault(turn.kind, []).append(bool(hit[row][rows.branch_ids[row] == branch].all()))
    shares = {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())}
    answers = [hit for kind, hits in right.items() if kind != "caption" for hit in hits]
    return {**shares, "all_short_answers": round(sum(answers) / len(answers), 4)}


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    Run(options).train()


if __name__ == "__main__":
    main()
