"""CLIP's picture recipe with Pillow, as the released image processors do it: the product's path, byte for byte."""

from __future__ import annotations

import numpy
import torch
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_and_crop(picture: Image.Image, size: int) -> Image.Image:
    """Shortest edge to `size` with Pillow's bicubic filter, then the centred size × size square."""
    width, height = picture.size
    shortest = min(width, height)
    resized = picture.resize((int(size * width / shortest), int(size * height / shortest)), Image.Resampling.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def pixel_values(pictures: list[Image.Image], size: int) -> torch.Tensor:
    """Normalised pixels, float32 [pictures, 3, size, size]."""
    pixels = numpy.stack([numpy.asarray(resize_and_crop(picture, size)) for picture in pictures])
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    return (channels_first - mean) / std
