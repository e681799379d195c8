"""Writes tiling.json: what transformers' own functions make of hundreds of picture sizes. Run from this folder where
transformers and torch are installed. All sizes are [width, height]."""

import json
import math
import random

import numpy as np
import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil, get_resize_output_image_size

EXTREMES = [(1, 3000), (3000, 1), (17, 23), (4032, 3024), (3024, 4032), (1, 1), (2, 1), (1, 2), (336, 336), (448, 448), (672, 336),
            (1920, 1080), (1080, 1920), (640, 480), (301, 200), (187, 319), (65535, 2), (2, 65535), (896, 448), (448, 1344), (511, 513)]
rng = random.Random(5)
SIZES = EXTREMES + [(int(round(math.exp(rng.uniform(0, 8.6)))), int(round(math.exp(rng.uniform(0, 8.6))))) for _ in range(380)]

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * r, 384 * c] for r in range(1, 7) for c in range(1, 7)]
TINY = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def empty(width, height):
    return np.broadcast_to(np.uint8(0), (3, height, width))


def grids(tile, fewest, most):
    return {"tile": tile, "min": fewest, "max": most,
            "grids": [get_optimal_tiled_canvas.__wrapped__((h, w), (tile, tile), fewest, most) for w, h in SIZES]}


def shrink(columns, rows, max_tiles, side):
    """The arithmetic of LlavaOnevisionModel.pack_image_features."""
    ratio = math.sqrt(rows * columns / (max_tiles * side**2))
    return (int(columns // ratio), int(rows // ratio)) if ratio > 1.1 else (columns, rows)


def anyres(pinpoints, tile, side, max_tiles):
    out = []
    for w, h in SIZES:
        bh, bw = select_best_resolution((h, w), pinpoints)
        fh, fw = get_patch_output_size(empty(w, h), (bh, bw), "channels_first")
        rows, columns = bh // tile * side, bw // tile * side
        numbered = torch.arange(rows * columns).reshape(1, rows, columns)
        part = unpad_image(numbered, (h, w))
        first = int(part.flatten()[0]) if part.numel() else -1
        c, r = part.shape[2], part.shape[1]
        sc, sr = shrink(c, r, max_tiles, side) if max_tiles else (c, r)
        out.append([bw, bh, fw, fh, first, c, r, sc, sr])
    return {"pinpoints": pinpoints, "tile": tile, "side": side, "max_tiles": max_tiles, "rows": out}


def split(edge, tile):
    processor, out = SmolVLMImageProcessorPil(), []
    sizes = []
    processor.resize = lambda image, size, resample=None: sizes.append((size.width, size.height))
    for w, h in SIZES:
        rh, rw = get_resize_output_image_size(empty(w, h), edge)
        processor.resize_for_vision_encoder(empty(rw, rh), tile)
        out.append([rw, rh, *sizes.pop()])
    return {"edge": edge, "tile": tile, "rows": out}


def interpolate(rows, columns, to_rows, to_columns):
    """Where each output of the bilinear interpolation comes from, read off unit impulses."""
    maps = torch.eye(rows * columns).reshape(rows * columns, 1, rows, columns)
    out = torch.nn.functional.interpolate(maps, size=[to_rows, to_columns], mode="bilinear")
    weights = out.reshape(rows * columns, -1).T
    return {"from": [columns, rows], "to": [to_columns, to_rows],
            "weights": [[[int(i), float(np.float32(row[i]))] for i in torch.nonzero(row).flatten()] for row in weights]}


json.dump({
    "sizes": SIZES,
    "closest": [grids(448, 1, 12), grids(448, 1, 6), grids(56, 1, 12), grids(448, 2, 40), grids(224, 1, 4)],
    "anyres": [anyres(NEXT, 336, 24, 0), anyres(ONEVISION, 384, 27, 9), anyres(TINY, 56, 4, 4)],
    "split": [split(2048, 512), split(1536, 384), split(1456, 364), split(168, 84)],
    "interpolate": [interpolate(5, 7, 3, 4), interpolate(4, 4, 2, 2), interpolate(27, 3, 14, 2), interpolate(3, 2, 5, 6)],
}, open("tiling.json", "w"), separators=(",", ":"))
