"""What the InternVL and the Qwen-VL run share: optimizers, schedule, averaged weights, state to go on with, the log.

A run may stop and go on in several sessions (--session-minutes): its schedule counts the minutes of all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch


def add_arguments(parser: argparse.ArgumentParser, minutes: float, batch: int) -> None:
    parser.add_argument("--work", type=Path, required=True, help="folder for the log and the training state")
    parser.add_argument("--export", type=Path, help="checkpoint folder, written anew at every evaluation")
    parser.add_argument("--minutes", type=float, default=minutes, help="the schedule's length")
    parser.add_argument("--session-minutes", type=float, default=math.inf, help="stop after this long, to go on later")
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the schedule")
    parser.add_argument("--ema", type=float, default=0.99, help="decay of the averaged weights, which are what is exported")
    parser.add_argument("--evaluate-every", type=float, default=2.0, help="minutes")
    parser.add_argument("--evaluation-scenes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)


class Session:
    """Trains `model` and `probes` (which only serve training); goes on from DIR/state.pt where there is one."""

    def __init__(
        self,
        options: argparse.Namespace,
        model: torch.nn.Module,
        probes: torch.nn.Module,
        tables: tuple[str, ...] = ("embed", "lm_head", "wte", "query", "positional"),
    ):
        """`tables` are parts of the names of matrices that are no layers' (AdamW trains them, Muon the layers')."""
        self.options, self.model, self.probes, self.tables = options, model, probes, tables
        options.work.mkdir(parents=True, exist_ok=True)
        self.averaged = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.optimizers = self._optimizers()
        self.step = 0
        self.earlier = 0.0  # minutes of the sessions before
        if (options.work / "state.pt").exists():
            self._load()
        self.started = time.monotonic()
        self.next_evaluation = self.minutes + options.evaluate_every
        self._losses: list[float] = []

    @property
    def minutes(self) -> float:
        return self.earlier + (time.monotonic() - self.started) / 60

    @property
    def finished(self) -> bool:
        return self.minutes >= self.options.minutes

    @property
    def over(self) -> bool:
        return self.finished or self.minutes - self.earlier >= self.options.session_minutes

    def due(self) -> bool:
        """Whether it is time to evaluate; then the next time is set."""
        if self.minutes < self.next_evaluation:
            return False
        self.next_evaluation = self.minutes + self.options.evaluate_every
        return True

    def update(self, loss: torch.Tensor, shown: float) -> None:
        rate = self.options.learning_rate * one_cycle(self.minutes / self.options.minutes, self.options.warmup)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        self.step += 1
        self._losses.append(shown)
        if self.step % 50 == 0:
            self.log(loss=round(sum(self._losses) / len(self._losses), 4))
            self._losses.clear()

    def log(self, **values) -> None:
        line = json.dumps({"step": self.step, "minutes": round(self.minutes, 2), **values})
        print(line, flush=True)
        with open(self.options.work / "log.jsonl", "a") as log:
            log.write(line + "\n")

    def save(self) -> None:
        state = {
            "step": self.step,
            "minutes": self.minutes,
            "model": self.model.state_dict(),
            "averaged": self.averaged,
            "probes": self.probes.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = self.options.work / "state.pt.new"
        torch.save(state, unfinished)
        unfinished.rename(self.options.work / "state.pt")

    def _load(self) -> None:
        state = torch.load(self.options.work / "state.pt", weights_only=True)
        self.step, self.earlier, self.averaged = state["step"], state["minutes"], state["averaged"]
        self.model.load_state_dict(state["model"])
        self.probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside the layers, AdamW for tables, heads, biases and norms."""
        layers, matrices, vectors = [], list(self.probes.parameters()), []
        for name, parameter in self.model.named_parameters():
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif parameter.ndim == 2 and not any(word in name for word in self.tables):
                layers.append(parameter)
            else:
                matrices.append(parameter)
        decay = self.options.weight_decay
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        return [
            torch.optim.AdamW(groups, lr=self.options.learning_rate, betas=(0.9, 0.98)),
            torch.optim.Muon(layers, lr=self.options.learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        ]

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.averaged[name].lerp_(tensor, 1 - decay)


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: a straight line up, half a cosine down to 1 %."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))) / 2
