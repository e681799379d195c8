"""Measures the exported Video-LLaMA on unseen clips: directions from frames alone, tones from sound alone, whole sentences.

    python evaluate_video_llama.py [--checkpoint ../scenes-video] [--clips 400] [--json FILE]      in torch, clips as drawn
    python evaluate_video_llama.py --glimpse ../../../bin/glimpse --model CONVERTED --clips 60     MP4 files through glimpse
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch

import clip_files
import moving_scenes
import train_video_llama
import video_llama_model


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).resolve().parent.parent / "scenes-video")
    parser.add_argument("--clips", type=int, default=400, help="number of clips of the test part")
    parser.add_argument("--glimpse", type=Path, help="the program: MP4 files are written with ffmpeg, and it is asked about them")
    parser.add_argument("--model", type=Path, help="the model folder that it converted")
    parser.add_argument("--json", type=Path, help="where to write the numbers and answers")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if bool(options.glimpse) != bool(options.model):
        parser.error("--glimpse and --model are given together")
    return options


def through_glimpse(options: argparse.Namespace) -> dict:
    clips = clip_files.test_clips(options.clips)
    texts: dict[str, list[str]] = {"seen": [], "heard": [], "both": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for shown in clips:
            clip_files.write_mp4(shown, path)
            video, audio = ["--video", str(path)], ["--audio", str(path)]
            for kind, media in (("seen", video), ("heard", audio), ("both", [*video, *audio])):
                question = {"seen": moving_scenes.SEE, "heard": moving_scenes.HEAR, "both": moving_scenes.SEE_AND_HEAR}[kind][0]
                command = [str(options.glimpse), "ask", str(options.model), question, *media, "--json"]
                printed = subprocess.run(command, check=True, capture_output=True).stdout
                texts[kind].append(json.loads(printed)["text"].strip())
    return {**train_video_llama.scores(texts, clips), "texts": texts}


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    if options.glimpse:
        report = through_glimpse(options)
    else:
        model, tokenizer = video_llama_model.load_exported(options.checkpoint)
        report = train_video_llama.evaluate(model, tokenizer, "test", options.clips, clip_files.EVALUATION_START)
    print(json.dumps({"clips": options.clips, **{key: value for key, value in report.items() if key != "texts"}}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
