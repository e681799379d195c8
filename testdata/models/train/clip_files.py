"""Writes clips of moving_scenes.py as MP4 files (H.264 and AAC) with ffmpeg, and what is true of them.

    python clip_files.py                     testdata/clips: two clips of the test part, for the demonstration
    python clip_files.py FOLDER --clips 60   more of the test part, to measure with

FOLDER gets a clips.json:

    {"clips": [{"file": "clip-01.mp4",
                "questions": [{"kind": "seen", "question": "Describe the video.", "answer": "a red circle moves left"},
                              {"kind": "heard", …}, {"kind": "both", …}]}…]}

seen is asked of the frames alone, heard of the sound alone. The same ffmpeg writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import wave
from pathlib import Path

import moving_scenes

SOUND_RATE = 44100
EVALUATION_START = 10_000_000  # what a test clip shows is never seen in training, whatever its number
DEMO_START = 20_000_000
DEMO_CLIPS = 2
DEMO_FOLDER = Path(__file__).resolve().parent.parent.parent / "clips"


def write_mp4(shown: moving_scenes.Clip, path: Path) -> None:
    frames = b"".join(shown.frame(index).tobytes() for index in range(shown.frame_count))
    with tempfile.NamedTemporaryFile(suffix=".wav") as sound:
        with wave.open(sound.name, "wb") as file:
            file.setparams((1, 2, SOUND_RATE, 0, "NONE", ""))
            file.writeframes((shown.sound(SOUND_RATE) * 32767).round().astype("<i2").tobytes())
        video = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{shown.width}x{shown.height}", "-r", str(shown.rate), "-i", "-"]
        stored = ["-c:v", "libx264", "-crf", "23", "-pix_fmt", "yuv420p", "-c:a", "aac", "-b:a", "64k", "-threads", "1"]
        quiet = ["-hide_banner", "-loglevel", "error", "-y", "-fflags", "+bitexact"]
        exact = ["-map_metadata", "-1", "-flags:v", "+bitexact", "-flags:a", "+bitexact", "-movflags", "+faststart"]
        command = ["ffmpeg", *quiet, *video, "-i", sound.name, *stored, *exact, str(path)]
        subprocess.run(command, input=frames, check=True)


def entry(shown: moving_scenes.Clip, file: str) -> dict:
    questions = {"seen": moving_scenes.SEE[0], "heard": moving_scenes.HEAR[0], "both": moving_scenes.SEE_AND_HEAR[0]}
    asked = [{"kind": kind, "question": question, "answer": shown.answer(question)} for kind, question in questions.items()]
    return {"file": file, "questions": asked}


def write_folder(folder: Path, clips: list[moving_scenes.Clip]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, shown in enumerate(clips, 1):
        file = f"clip-{number:02d}.mp4"
        write_mp4(shown, folder / file)
        entries.append(entry(shown, file))
    (folder / "clips.json").write_text(json.dumps({"clips": entries}, indent=1) + "\n")


def test_clips(count: int, start: int = EVALUATION_START) -> list[moving_scenes.Clip]:
    stream = moving_scenes.clips_of("test", start)
    return [next(stream)[1] for _ in range(count)]


def demo_clips() -> list[moving_scenes.Clip]:
    """The first clips of which no two have a direction, a tone, a shape or a colour in common. No model has a say."""
    chosen: list[moving_scenes.Clip] = []
    for shown in test_clips(100, DEMO_START):
        traits = {shown.direction, shown.tone, shown.kind, shown.colour}
        if all(traits.isdisjoint({other.direction, other.tone, other.kind, other.colour}) for other in chosen):
            chosen.append(shown)
        if len(chosen) == DEMO_CLIPS:
            return chosen
    raise AssertionError("there are not enough different clips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="instead of testdata/clips")
    parser.add_argument("--clips", type=int, default=60)
    options = parser.parse_args()
    if options.folder:
        write_folder(options.folder, test_clips(options.clips))
    else:
        write_folder(DEMO_FOLDER, demo_clips())


if __name__ == "__main__":
    main()
