"""What the two BLIP-2 runs share: optimizers, the schedule, averaged weights, the log."""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Iterable, Iterator

import torch

import scenes
from train_llava import one_cycle


def add_arguments(parser: argparse.ArgumentParser, minutes: float, batch: int) -> None:
    parser.add_argument("--work", type=Path, required=True, help="folder for the log and the weights")
    parser.add_argument("--export", type=Path, help="checkpoint folder, written anew at every evaluation")
    parser.add_argument("--minutes", type=float, default=minutes, help="the schedule's length")
    parser.add_argument("--steps", type=int, default=10**9, help="the schedule's length where it is shorter")
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--warmup", type=float, default=0.04, help="share of the schedule")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights, which are what is exported")
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--evaluation-scenes", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="compile the forward passes (needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)


def optimizers_of(
    named: Iterable[tuple[str, torch.nn.Parameter]], probes: Iterable[torch.nn.Parameter], options: argparse.Namespace
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for tables, heads, biases and norms. Frozen parameters are left out."""
    layers, matrices, vectors = [], [], []
    for parameter in probes:
        (matrices if parameter.ndim > 1 else vectors).append(parameter)
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or name == "query_tokens":
            vectors.append(parameter)
        elif parameter.ndim == 2 and not any(word in name for word in ("embed", "lm_head", "itm_head")):
            layers.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    muon = torch.optim.Muon(
        layers, lr=options.learning_rate, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98)), muon]


class Schedule:
    """The clock of a run: a step's share of the schedule is the larger one of its steps and its minutes."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.step = 0
        self.started = time.monotonic()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    @property
    def progress(self) -> float:
        return max(self.step / self.options.steps, self.minutes / self.options.minutes)

    def update(self, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer], parameters: list[torch.nn.Parameter]) -> None:
        rate = self.options.learning_rate * one_cycle(self.progress, self.options.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        self.step += 1

    def log(self, **values) -> None:
        line = json.dumps({"step": self.step, "minutes": round(self.minutes, 2), **values})
        print(line, flush=True)
        with open(self.options.work / "log.jsonl", "a") as log:
            log.write(line + "\n")


class Average:
    """Exponentially averaged weights of a model."""

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.count = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        self.count += 1
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)


def batches_of(part: str, size: int) -> Iterator[list[scenes.Scene]]:
    """Scenes of one part of the data, without end and without repetition."""
    stream = scenes.scenes_of(part)
    while True:
        yield [next(stream)[1] for _ in range(size)]


def first_scenes(part: str, count: int) -> list[scenes.Scene]:
    return next(batches_of(part, count))


def share(hits: list[bool]) -> float:
    return round(sum(hits) / len(hits), 4)


def prepare(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    if not (math.isfinite(options.minutes) and options.minutes > 0):
        raise ValueError(f"--minutes {options.minutes} is no length of a schedule")
