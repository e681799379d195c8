"""Trains the demo model in Video-LLaMA's architecture on clips of moving shapes and tones; exports it as the release's pieces.

    python train_video_llama.py --work DIR [--minutes 30] [--session-minutes 15] [--export ../scenes-video]

As the authors do, the vision tower stays as it is (scenes-blip2's). Beside the answers, linear readings are learnt and thrown
away at the end: colour, kind and place from each frame's queries; direction, colour and kind from the video's; the tone from
the sound's. DIR gets log.jsonl and state.pt; called again, a run goes on.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer
from torch.nn import functional

import fbank
import llama_tokenizer
import moving_scenes
import scenes
import training_session
import video_llama_model
import warm_start

FRAMES = 8  # as glimpse and the authors choose them
TIMED = 0.85  # share of the videos whose frames' times are told
COLOURS, KINDS = list(scenes.SHAPE_COLOURS), list(scenes.SHAPES)
DIRECTIONS, TONES = list(moving_scenes.DIRECTIONS), list(moving_scenes.TONES)
PLACE_WEIGHT = 10.0
TABLES = ("embed", "lm_head", "query_tokens")
HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training_session.add_arguments(parser, minutes=30, batch=32)
    parser.set_defaults(learning_rate=1.5e-3, evaluate_every=4.0, threads=1)
    parser.add_argument("--tower-from", type=Path, default=HERE.parent / "scenes-blip2", help="tower and image Q-Former at the start")
    parser.add_argument("--decoder-from", type=Path, default=HERE.parent / "scenes-llava", help="the decoder at the start")
    parser.add_argument("--reading-share", type=float, default=0.25, help="share of the schedule with the readings alone")
    parser.add_argument("--reading-loss", type=float, default=0.3, help="weight of the readings behind that")
    parser.add_argument("--fresh", type=int, default=5, help="new clips a step; the others of a batch were seen before")
    parser.add_argument("--kept", type=int, default=3000, help="most clips that are kept for that")
    return parser.parse_args()


@dataclass
class Seen:
    """A clip as the trained part gets it."""

    shown: moving_scenes.Clip
    features: torch.Tensor  # float16 [FRAMES, 1 + patches, vision]
    places: torch.Tensor  # [FRAMES, 2]: the shape's centre as shares of width and height
    banks: torch.Tensor  # float16 [1, mels, frames]: all clips of a sound of two seconds are this one

    @property
    def seconds(self) -> list[float]:
        return moving_scenes.frame_seconds(self.shown, FRAMES)


@torch.no_grad()
def look_at(model: video_llama_model.VideoLlama, numbered: list[tuple[int, moving_scenes.Clip]]) -> list[Seen]:
    side = model.shape["image_size"]
    drawn = [moving_scenes.seen_frames(shown, FRAMES, side, random.Random(f"frames/{index}")) for index, shown in numbered]
    pixels = video_llama_model.pixel_values(torch.from_numpy(numpy.concatenate(drawn)))
    features = model.features(pixels).half().unflatten(0, (-1, FRAMES))
    seen = []
    for (index, shown), rows in zip(numbered, features):
        corners = [shown.corner(frame) for frame in moving_scenes.frame_indices(shown.frame_count, FRAMES)]
        half = shown.extent / 2
        places = torch.tensor([((x + half) / shown.width, (y + half) / shown.height) for x, y in corners])
        samples = moving_scenes.heard_samples(shown, random.Random(f"sound/{index}"))
        banks = torch.from_numpy(fbank.normalised(samples - samples.mean())).half()[None]
        seen.append(Seen(shown, rows, places, banks))
    return seen


def video_queries(model: video_llama_model.VideoLlama, batch: list[Seen]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each frame's queries [clips, FRAMES, queries, width] and the video's [clips, video queries, width]."""
    features = torch.cat([each.features.float() for each in batch])
    frames = model.frame_queries(features).unflatten(0, (-1, FRAMES))
    return frames, model.over_frames(frames)


def sound_queries(model: video_llama_model.VideoLlama, batch: list[Seen]) -> torch.Tensor:
    vectors = model.audio_encoder(torch.stack([each.banks.float() for each in batch]))
    return model.over_sound(vectors[:, None].expand(-1, fbank.CLIPS, -1))


class Readings(torch.nn.Module):
    """Linear readings that only help to train: no part of the exported model."""

    def __init__(self, shape: dict):
        super().__init__()
        width = shape["qformer"]
        self.frame = torch.nn.Linear(shape["queries"] * width, len(COLOURS) + len(KINDS) + 2)
        self.direction = torch.nn.Linear(width, len(DIRECTIONS))  # each from a query of its own
        self.colour = torch.nn.Linear(width, len(COLOURS))
        self.kind = torch.nn.Linear(width, len(KINDS))
        self.tone = torch.nn.Linear(width, len(TONES))

    def of_frames(self, frames: torch.Tensor, batch: list[Seen]) -> torch.Tensor:
        colour, kind, place = self.frame(frames.flatten(2)).float().split([len(COLOURS), len(KINDS), 2], -1)
        places = torch.stack([each.places for each in batch])
        loss = PLACE_WEIGHT * (place - places).abs().mean()
        loss = loss + functional.cross_entropy(colour.flatten(0, 1), labels(batch, "colour", COLOURS).repeat_interleave(FRAMES))
        return loss + functional.cross_entropy(kind.flatten(0, 1), labels(batch, "kind", KINDS).repeat_interleave(FRAMES))

    def of_video(self, video: torch.Tensor, batch: list[Seen]) -> torch.Tensor:
        loss = functional.cross_entropy(self.direction(video[:, 0]).float(), labels(batch, "direction", DIRECTIONS))
        loss = loss + functional.cross_entropy(self.colour(video[:, 1]).float(), labels(batch, "colour", COLOURS))
        return loss + functional.cross_entropy(self.kind(video[:, 2]).float(), labels(batch, "kind", KINDS))

    def of_sound(self, sound: torch.Tensor, batch: list[Seen]) -> torch.Tensor:
        return functional.cross_entropy(self.tone(sound[:, 0]).float(), labels(batch, "tone", TONES))


def labels(batch: list[Seen], name: str, values: list[str]) -> torch.Tensor:
    return torch.tensor([values.index(getattr(each.shown, name)) for each in batch])


# --- conversations ---------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """What is asked about a batch of clips: the same media and the same question for all, as shapes then are much alike."""

    video: bool
    sound: bool
    question: str
    timed: bool

    def rows(self, model: video_llama_model.VideoLlama, tokenizer: Tokenizer, batch: list[Seen], media: list[torch.Tensor]) -> list:
        """Each clip's prompt as embedded rows [length, hidden]; media are [clips, tokens, hidden], sound first."""
        rows = []
        for number, each in enumerate(batch):
            text = video_llama_model.prompt(self.question, self.video, self.sound, each.seconds if self.timed else None)
            first, *others = video_llama_model.prompt_ids(tokenizer, text)
            parts = [model.embed(torch.tensor(first))]
            for shown, ids in zip(media, others, strict=True):
                parts += [shown[number].to(parts[0].dtype), model.embed(torch.tensor(ids))]
            rows.append(torch.cat(parts))
        return rows


def some_question(rng: random.Random) -> Asked:
    mode = rng.choices(("video", "both", "sound"), (0.5, 0.35, 0.15))[0]
    asked = {"video": moving_scenes.SEE, "sound": moving_scenes.HEAR}.get(mode)
    if asked is None:
        asked = rng.choices((moving_scenes.SEE_AND_HEAR, moving_scenes.SEE, moving_scenes.HEAR), (0.7, 0.15, 0.15))[0]
    return Asked(mode != "sound", mode != "video", rng.choice(asked), rng.random() < TIMED)


def answer_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text + video_llama_model.STOP, add_special_tokens=False).ids


def answer_loss(model: video_llama_model.VideoLlama, tokenizer: Tokenizer, rows: list, answers: list[str]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens behind their prompts."""
    ids = [answer_ids(tokenizer, answer) for answer in answers]
    whole = [torch.cat([row, model.embed(torch.tensor(each[:-1]))]) for row, each in zip(rows, ids)]
    padded = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)  # behind what is asked, where nothing looks
    hidden = model.llama_model.model(inputs_embeds=padded, use_cache=False).last_hidden_state
    learnt = torch.cat([hidden[number, len(row) - 1 :][: len(each)] for number, (row, each) in enumerate(zip(rows, ids))])
    return functional.cross_entropy(model.llama_model.lm_head(learnt).float(), torch.tensor([token for each in ids for token in each]))


@torch.no_grad()
def answered(model: video_llama_model.VideoLlama, tokenizer: Tokenizer, batch: list[Seen], asked: Asked, most: int = 24) -> list[str]:
    """Greedy answers."""
    media = [model.audio_llama_proj(sound_queries(model, batch))] if asked.sound else []
    media += [model.llama_proj(video_queries(model, batch)[1])] if asked.video else []
    rows = asked.rows(model, tokenizer, batch, media)
    said: list[list[int]] = [[] for _ in rows]
    stop, end = tokenizer.token_to_id(video_llama_model.STOP), tokenizer.token_to_id(llama_tokenizer.END)
    for _ in range(most):
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = model.llama_model.model(inputs_embeds=padded, use_cache=False).last_hidden_state
        last = torch.stack([hidden[number, len(row) - 1] for number, row in enumerate(rows)])
        best = model.llama_model.lm_head(last).argmax(-1).tolist()
        for number, token in enumerate(best):
            if not said[number] or said[number][-1] not in (stop, end):
                said[number].append(token)
                rows[number] = torch.cat([rows[number], model.embed(torch.tensor([token]))])
        if all(each[-1] in (stop, end) for each in said):
            break
    return [tokenizer.decode(each).split(video_llama_model.STOP)[0].strip() for each in said]


MEASURED = {
    "seen": Asked(True, False, moving_scenes.SEE[0], True),
    "heard": Asked(False, True, moving_scenes.HEAR[0], False),
    "both": Asked(True, True, moving_scenes.SEE_AND_HEAR[0], False),
}


def evaluate(model: video_llama_model.VideoLlama, tokenizer: Tokenizer, part: str, count: int, start: int = 10_000_000) -> dict:
    """Shares of right directions (from frames alone), right tones (from sound alone) and right sentences of a part's clips."""
    stream = moving_scenes.clips_of(part, start)
    texts: dict[str, list[str]] = {name: [] for name in MEASURED}
    clips: list[moving_scenes.Clip] = []
    while len(clips) < count:
        batch = look_at(model, [next(stream) for _ in range(min(50, count - len(clips)))])
        clips += [each.shown for each in batch]
        for name, asked in MEASURED.items():
            texts[name] += answered(model, tokenizer, batch, asked)
    return {**scores(texts, clips), "texts": texts}


def scores(texts: dict[str, list[str]], clips: list[moving_scenes.Clip]) -> dict[str, float]:
    def share(name: str, right) -> float:
        return round(sum(right(text, shown) for text, shown in zip(texts[name], clips, strict=True)) / len(clips), 4)

    return {
        "direction": share("seen", lambda text, shown: text.split()[-1:] == [shown.direction]),
        "seen": share("seen", lambda text, shown: text == shown.seen()),
        "tone": share("heard", lambda text, shown: text == shown.heard()),
        "both": share("both", lambda text, shown: text == shown.caption()),
    }


# --- the run ---------------------------------------------------------------------------------------------------------


class Run:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        torch.manual_seed(options.seed)
        self.tokenizer = video_llama_model.build_tokenizer()
        self.model = video_llama_model.new_model(self.tokenizer)
        for former in (self.model.video_Qformer, self.model.audio_Qformer, self.model.audio_encoder.modality_trunks):
            for parameter in former.parameters():
                if parameter.ndim == 2:
                    torch.nn.init.normal_(parameter, 0, 0.05)
        for positions in (self.model.video_frame_position_embedding, self.model.audio_position_embedding):
            torch.nn.init.normal_(positions.weight, 0, 0.5)
        warm_start.eva_and_qformer(options.tower_from, self.model)
        tokens = [self.tokenizer.id_to_token(token) or "" for token in range(self.tokenizer.get_vocab_size())]
        warm_start.llama_decoder(warm_start.Source(options.decoder_from), self.model.llama_model, tokens)
        video_llama_model.freeze_tower(self.model)
        self.readings = Readings(self.model.shape)
        self.session = training_session.Session(options, self.model, self.readings, TABLES)
        self.kept: list[Seen] = []
        self.stream = moving_scenes.clips_of("train", 1_000_000 * (1 + self.session.step // 100))  # new ones every session

    def train(self) -> None:
        while not self.session.over:
            batch = self._batch()
            with torch.autocast("cpu", torch.bfloat16):
                if self.session.minutes < self.options.reading_share * self.options.minutes:
                    loss = shown = self._read(batch)
                else:
                    loss, shown = self._asked(batch)
            self.session.update(loss, shown.item())
            if self.session.due():
                self.checkpoint()
        self.checkpoint()

    def _batch(self) -> list[Seen]:
        rng = random.Random(f"batch/{self.session.step}")
        wanted = self.options.fresh if len(self.kept) > 4 * self.options.batch else self.options.batch
        fresh = look_at(self.model, [next(self.stream) for _ in range(wanted)])
        batch = fresh + rng.sample(self.kept, min(len(self.kept), self.options.batch - len(fresh)))
        for each in fresh:
            if len(self.kept) < self.options.kept:
                self.kept.append(each)
            else:
                self.kept[rng.randrange(len(self.kept))] = each
        return batch

    def _read(self, batch: list[Seen]) -> torch.Tensor:
        frames, video = video_queries(self.model, batch)
        read = self.readings.of_frames(frames, batch) + self.readings.of_video(video, batch)
        return read + self.readings.of_sound(sound_queries(self.model, batch), batch)

    def _asked(self, batch: list[Seen]) -> tuple[torch.Tensor, torch.Tensor]:
        asked = some_question(random.Random(f"question/{self.session.step}"))
        media, read = [], []
        if asked.sound:
            sound = sound_queries(self.model, batch)
            media.append(self.model.audio_llama_proj(sound))
            read.append(self.readings.of_sound(sound, batch))
        if asked.video:
            frames, video = video_queries(self.model, batch)
            media.append(self.model.llama_proj(video))
            read += [self.readings.of_frames(frames, batch), self.readings.of_video(video, batch)]
        rows = asked.rows(self.model, self.tokenizer, batch, media)
        loss = answer_loss(self.model, self.tokenizer, rows, [each.shown.answer(asked.question) for each in batch])
        return loss + self.options.reading_loss * torch.stack(read).sum(), loss

    def checkpoint(self) -> None:
        measured = video_llama_model.new_model(self.tokenizer)
        measured.load_state_dict(self.session.averaged)
        report = evaluate(measured.eval(), self.tokenizer, "validation", self.options.evaluation_scenes)
        self.session.log(**{key: value for key, value in report.items() if key != "texts"})
        print({name: texts[:3] for name, texts in report["texts"].items()}, flush=True)
        self.session.save()
        if self.options.export:
            video_llama_model.export(self.session.averaged, self.tokenizer, self.options.export)


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    Run(options).train()


if __name__ == "__main__":
    main()
