"""ImageBind's view of sound in numpy: clips of two seconds, Kaldi's log mel filter banks of each."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy

RATE = 16000
CLIPS = 8
CLIP_SECONDS = 2
MEL_BINS, FRAMES = 128, 204
WINDOW, SHIFT, FFT = 400, 160, 512
LOW_HZ = 20.0
PREEMPHASIS = 0.97
MEAN, DEVIATION = -4.268, 9.138
FLOOR = 1.1920928955078125e-07


def clip_samples(count: int) -> list[tuple[int, int]]:
    """First and last sample of each clip: starts at i/CLIPS of what is left of the sound behind one clip."""
    duration = count / RATE
    if duration <= CLIP_SECONDS:
        return [(0, count)] * CLIPS
    step = Fraction(duration - CLIP_SECONDS) / CLIPS
    return [(int(step * i * RATE), int((step * i + CLIP_SECONDS) * RATE)) for i in range(CLIPS)]


def sound_clips(samples: numpy.ndarray) -> numpy.ndarray:
    """float32 [CLIPS, 1, MEL_BINS, FRAMES] of a sound at 16 kHz. Means are taken off in place, as the authors' code does."""
    samples = samples.astype(numpy.float32).copy()
    clips = []
    for first, last in clip_samples(len(samples)):
        part = samples[first:last]
        part -= part.mean(dtype=numpy.float32)
        clips.append(normalised(part)[None])
    return numpy.stack(clips)


def normalised(part: numpy.ndarray) -> numpy.ndarray:
    """[MEL_BINS, FRAMES] of one clip."""
    banks = log_mel(part).T[:, :FRAMES]
    banks = numpy.pad(banks, ((0, 0), (0, FRAMES - banks.shape[1])))
    return ((banks - MEAN) / DEVIATION).astype(numpy.float32)


def log_mel(samples: numpy.ndarray) -> numpy.ndarray:
    """[frames, MEL_BINS]; only whole windows."""
    frames = 1 + (len(samples) - WINDOW) // SHIFT
    rows = numpy.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::SHIFT][:frames].astype(numpy.float32)
    rows = rows - rows.mean(1, keepdims=True)
    rows = rows - PREEMPHASIS * numpy.concatenate([rows[:, :1], rows[:, :-1]], 1)
    window = (0.5 - 0.5 * numpy.cos(2 * math.pi * numpy.arange(WINDOW) / (WINDOW - 1))).astype(numpy.float32)
    power = numpy.abs(numpy.fft.rfft(rows * window, FFT)) ** 2
    return numpy.log(numpy.maximum(power[:, : FFT // 2].astype(numpy.float32) @ filters().T, FLOOR))


@cache
def filters() -> numpy.ndarray:
    """Triangles between equal steps of mel = 1127 ln(1 + Hz / 700), [MEL_BINS, FFT / 2]."""

    def mel(hertz):
        return 1127.0 * numpy.log(1.0 + hertz / 700.0)

    low, high = mel(LOW_HZ), mel(RATE / 2)
    step = (high - low) / (MEL_BINS + 1)
    left = low + numpy.arange(MEL_BINS)[:, None] * step
    bins = mel(RATE / FFT * numpy.arange(FFT // 2))[None]
    up, down = (bins - left) / step, (left + 2 * step - bins) / step
    return numpy.maximum(0.0, numpy.minimum(up, down)).astype(numpy.float32)
