"""Measures an exported Qwen-VL folder on unseen scenes: the boxes of its greedy answers against those that were drawn.

    python evaluate_qwenvl.py [--checkpoint ../scenes-qwenvl] [--scenes 500] [--json FILE]
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

import torch

import qwenvl_model
import train_qwenvl
from byte_level_tokenizer import RankedBytes


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).resolve().parent.parent / "scenes-qwenvl")
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes of the test part")
    parser.add_argument("--json", type=Path, help="where to write the numbers and answers")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    lines = (options.checkpoint / "qwen.tiktoken").read_bytes().splitlines()
    tokenizer = RankedBytes([base64.b64decode(line.split()[0]) for line in lines], qwenvl_model.SPECIAL)
    report = train_qwenvl.evaluate(qwenvl_model.load(options.checkpoint), tokenizer, "test", options.scenes)
    print(json.dumps({"scenes": options.scenes, **{key: value for key, value in report.items() if key != "answers"}}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
