"""Reference vectors from Pillow for the tests of this folder's parent.

    pip install pillow==12.3.0 numpy==2.4.6 simplejpeg==1.9.0
    python make_vectors.py

writes resize.json (digests of resized pictures, a few of them in full) and pictures/ (small files of every format and
mode) with pictures.json (digests of their pixels, and the pixels where a decoder may differ by a level). A digest is
the first half of a SHA-256.
"""

import base64
import hashlib
import json
import pathlib
import struct
import zlib

import numpy as np
import simplejpeg  # writes the chroma samplings that Pillow cannot
from PIL import Image, features, ImageOps

HERE = pathlib.Path(__file__).parent
PICTURES = HERE / "pictures"
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def noise(width, height, seed, extreme=False):
    """A picture that the Go test makes by the same rule: bytes are the top 8 bits of a linear congruential generator,
    or, where extreme, 0 and 255 by the top bit alone."""
    n = 3 * width * height
    out = bytearray(n)
    x = seed
    for i in range(n):
        x = (x * 1664525 + 1013904223) % 2**32
        out[i] = x >> 24
        if extreme:
            out[i] = 255 if x >> 31 else 0
    return Image.frombytes("RGB", (width, height), bytes(out))


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()[:32]


def resize_cases():
    pairs = [
        # shrinking, enlarging, both at once, one axis only, one pixel, primes, exact multiples, nothing at all
        ((64, 48), (32, 24)), ((64, 48), (16, 12)), ((64, 48), (63, 47)), ((64, 48), (65, 49)), ((64, 48), (128, 96)),
        ((64, 48), (20, 90)), ((64, 48), (90, 20)), ((64, 48), (64, 24)), ((64, 48), (32, 48)), ((64, 48), (64, 48)),
        ((64, 48), (1, 1)), ((64, 48), (1, 48)), ((64, 48), (64, 1)), ((1, 1), (7, 5)), ((2, 1), (3, 2)), ((1, 9), (4, 4)),
        ((9, 1), (4, 4)), ((3, 3), (224, 224)), ((97, 61), (56, 56)), ((97, 61), (89, 56)), ((61, 97), (56, 89)),
        ((101, 103), (14, 14)), ((101, 103), (28, 13)), ((150, 40), (56, 56)), ((40, 150), (56, 56)), ((200, 150), (84, 63)),
        ((200, 10), (56, 3)), ((10, 200), (3, 56)), ((33, 17), (34, 16)), ((17, 33), (16, 34)), ((128, 128), (56, 56)),
        ((255, 7), (13, 11)), ((7, 255), (11, 13)), ((80, 80), (81, 79)), ((5, 5), (4, 4)), ((5, 5), (6, 6)), ((4, 4), (2, 2)),
        ((300, 200), (7, 5)), ((30, 20), (210, 140)), ((300, 2), (2, 300)),
    ]
    boxes = [
        ((64, 48), (20, 20), (0.5, 0.25, 63.25, 47.75)), ((64, 48), (64, 48), (0, 0, 32, 24)), ((64, 48), (16, 48), (8, 0, 24, 48)),
        ((97, 61), (33, 21), (10.1, 20.2, 90.3, 60.4)), ((64, 48), (32, 24), (0, 0, 32, 24)), ((64, 48), (10, 10), (63, 47, 64, 48)),
    ]
    cases = []
    for i, (source, target) in enumerate(pairs):
        for extreme in (False, True):
            image = noise(*source, seed=i + 1, extreme=extreme)
            for name, f in FILTERS.items():
                out = image.resize(target, f)
                case = dict(source=source, target=target, seed=i + 1, extreme=extreme, filter=name, sha256=digest(out))
                if not extreme and target in ((16, 12), (4, 4), (7, 5)) and name in ("bicubic", "lanczos"):
                    case["pixels"] = base64.b64encode(out.tobytes()).decode()
                cases.append(case)
    for i, (source, target, box) in enumerate(boxes):
        image = noise(*source, seed=100 + i)
        for name, f in FILTERS.items():
            out = image.resize(target, f, box=box)
            cases.append(dict(source=source, target=target, box=box, seed=100 + i, extreme=False, filter=name, sha256=digest(out)))
    return cases


def scene(width, height):
    """A smooth coloured picture with edges, as lossy formats meet them."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.stack([127 + 120 * np.sin(x / 5 + y / 9), 255 * x / width, 255 * y / height], -1)
    out[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2] = (230, 30, 40)
    out[height // 8 : height // 4, width // 8 : width // 2] = (20, 60, 220)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png16(color_type, channels, width, height, seed, trns=None):
    """A 16-bit PNG, which Pillow reads but cannot write in every colour type."""
    rows = b""
    for y in range(height):
        row = bytearray(noise(2 * width, 1, seed + y).tobytes()[: width * channels * 2])
        if color_type == 0:
            row[0::4] = bytes(len(row[0::4]))  # every other value fits 8 bits
        rows += b"\0" + bytes(row)
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    if trns:
        out += chunk(b"tRNS", trns)
    return out + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def write_pictures():
    PICTURES.mkdir(exist_ok=True)
    for old in PICTURES.iterdir():
        old.unlink()
    s = scene(29, 21)
    alpha = Image.fromarray((np.arange(29 * 21).reshape(21, 29) % 256).astype(np.uint8))
    rgba = s.copy()
    rgba.putalpha(alpha)
    grey = s.convert("L")
    la = Image.merge("LA", (grey, alpha))
    palette = s.quantize(40)
    save = lambda name, image, **options: image.save(PICTURES / name, **options)

    save("rgb.png", s)
    save("rgba.png", rgba)
    save("grey.png", grey)
    save("la.png", la)
    save("one_bit.png", grey.convert("1"))
    save("palette.png", palette)
    save("palette_2bit.png", s.quantize(4), bits=2)
    save("palette_transparent.png", palette, transparency=bytes(range(0, 240, 6)))
    save("rgb_transparent.png", s, transparency=(230, 30, 40))
    save("grey_transparent.png", grey, transparency=90)
    (PICTURES / "grey16.png").write_bytes(png16(0, 1, 9, 5, 3))
    (PICTURES / "rgb16.png").write_bytes(png16(2, 3, 7, 5, 4))
    (PICTURES / "la16.png").write_bytes(png16(4, 2, 9, 5, 5))
    for o in range(1, 9):
        save(f"exif{o}.jpg", s, quality=90, exif=exif_of(o))
    for o in (3, 6):
        save(f"exif{o}.png", s, exif=exif_of(o))
        save(f"exif{o}.webp", s, lossless=True, exif=exif_of(o))
        save(f"exif{o}.tif", s, tiffinfo={274: o})
    for sampling in ("444", "422", "420", "440", "411"):
        for width, height in ((29, 21), (30, 22), (3, 3), (17, 16)):
            pixels = np.ascontiguousarray(np.asarray(scene(width, height)))
            encoded = simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling=sampling)
            (PICTURES / f"{sampling}_{width}x{height}.jpg").write_bytes(encoded)
    save("progressive.jpg", s, quality=85, progressive=True)
    save("grey.jpg", grey, quality=90)
    save("cmyk.jpg", s.convert("CMYK"), quality=95, subsampling=0)
    cmyk_bytes = bytearray((PICTURES / "cmyk.jpg").read_bytes())
    cmyk_bytes[cmyk_bytes.index(b"Adobe") + 11] = 2  # the same data taken for YCCK
    (PICTURES / "ycck.jpg").write_bytes(cmyk_bytes)
    save("not_ycbcr.jpg", s, quality=95, subsampling=0, keep_rgb=True)
    save("restart.jpg", s, quality=90, restart_marker_blocks=3)
    save("lossless.webp", s, lossless=True)
    save("lossless_alpha.webp", rgba, lossless=True, exact=True)
    for width, height in ((29, 21), (30, 22), (1, 1), (2, 5)):
        save(f"lossy_{width}x{height}.webp", scene(width, height), quality=80)
    save("lossy_alpha.webp", rgba, quality=80, exact=True)
    save("animated.webp", s, save_all=True, append_images=[scene(29, 21).rotate(90), s.rotate(180)], lossless=True)
    save("rgb.gif", palette)
    save("interlaced.gif", palette, interlace=1)
    save("transparent.gif", palette, transparency=5)
    save("animated.gif", palette, save_all=True, append_images=[palette.rotate(90), palette.rotate(180)])
    write_offset_gifs()
    save("rgb.bmp", s)
    save("grey.bmp", grey)
    save("one_bit.bmp", grey.convert("1"))
    save("palette.bmp", s.quantize(256))
    save("rgba.bmp", rgba)
    save("rgb.tif", s)
    save("grey.tif", grey)
    save("lzw.tif", s, compression="tiff_lzw")
    save("deflate.tif", s, compression="tiff_adobe_deflate")
    save("packbits.tif", s, compression="packbits")
    save("rgba.tif", rgba)
    save("palette.tif", palette)
    save("grey16.tif", Image.fromarray((np.arange(9 * 5).reshape(5, 9) * 13).astype(np.uint16)))
    save("pages.tif", s, save_all=True, append_images=[grey, s.rotate(180)])


def write_offset_gifs():
    """GIFs whose first frame covers a part of the canvas, or reaches over its edge."""
    data = bytearray((PICTURES / "rgb.gif").read_bytes())
    at = data.index(b"\x2c\0\0\0\0" + struct.pack("<HH", 29, 21))
    for name, screen, place in (("offset.gif", (40, 36), (7, 11)), ("over_edge.gif", (20, 20), (3, 4))):
        out = bytearray(data)
        out[6:10] = struct.pack("<HH", *screen)
        out[at + 1 : at + 5] = struct.pack("<HH", *place)
        (PICTURES / name).write_bytes(out)
        control = b"\x21\xf9\x04\x01\0\0\x03\0"  # transparent index 3
        (PICTURES / name.replace(".", "_transparent.")).write_bytes(out[:at] + control + out[at:])


def picture_cases():
    cases = []
    for path in sorted(PICTURES.iterdir()):
        with Image.open(path) as image:
            stored = image.size
            frames = getattr(image, "n_frames", 1)
            image.load()
            orientation = image.getexif().get(0x0112, 1)
            if path.suffix == ".tif":  # Pillow's TIFF reader turns pictures while loading
                orientation = int(path.stem[4:]) if path.stem.startswith("exif") else 1
                stored = stored[::-1] if orientation >= 5 else stored  # and tells the upright size before that
            rgb = ImageOps.exif_transpose(image).convert("RGB")
        case = dict(file=path.name, stored=stored, frames=frames, orientation=orientation, size=rgb.size, sha256=digest(rgb))
        if path.suffix == ".jpg":
            case["pixels"] = base64.b64encode(zlib.compress(rgb.tobytes(), 9)).decode()
        cases.append(case)
    return cases


def dump(name, cases):
    versions = dict(pillow=Image.__version__, libjpeg_turbo=features.version("libjpeg_turbo"), webp=features.version("webp"))
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    (HERE / name).write_text(f'{{"versions":{json.dumps(versions)},"cases":[\n{lines}\n]}}\n')


dump("resize.json", resize_cases())
write_pictures()
dump("pictures.json", picture_cases())
