"""What the drivers share: the prompt, the clock, the memory and the JSON they print."""

import json
import sys
import time

ROWS_PROMPT, ROWS, ROWS_NEW = 128, 8, 32  # the prompt and the answers of rows that decode together
QUESTIONS = ("Describe the picture.", "Which colours are there?")


def words(count: int) -> str:
    """Text that lengthens a prompt: a word is a token in both tokenizers."""
    return " red" * count


def fit(tokens, target: int) -> int:
    """The number of words that brings a prompt to target tokens; tokens(words) counts them."""
    count = target - tokens(0)
    if count < 0:
        raise SystemExit(f"the prompt has {tokens(0)} tokens without any words; {target} were asked for")
    return max(0, count - (tokens(count) - target))


def peak_mb() -> float:
    """The most memory this process has had, in 10⁶ bytes."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


class Clock:
    def __enter__(self):
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.ms = (time.perf_counter() - self.start) * 1e3


def report(**values) -> None:
    """Prints the driver's measurements. None: the system does not do that."""
    values["peak_mb"] = values.get("peak_mb") or peak_mb()
    json.dump({k: v for k, v in values.items() if v is not None}, sys.stdout)
    print()
