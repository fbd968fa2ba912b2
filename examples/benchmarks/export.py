# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether exported stickers keep the platforms' rules, and look at least as good as Pillow's files of that size.

    python examples/benchmarks/export.py --quick
    python examples/benchmarks/export.py --json export.json

Clips of four kinds (flat art, gradients, noise, photo-like texture), all with soft edges, are exported for every
platform and checked with `check`. Then Pillow saves the very same frames (same canvas, same times) in every quality or
number of colours of a sweep, and the best of its files that is no larger than ours is compared with ours: SSIM over
white, black and green, mean of the colour channels (Gaussian window of 1.5 pixels), up to 8 frames of the clip. GIF
files are judged against the frames with hard edges, which are all that a GIF can hold. There is no peer for WEBM.
"""

import argparse
import io
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageSequence
from scipy.ndimage import gaussian_filter

from rdtf_diffusers.stickers.check import check
from rdtf_diffusers.stickers.fit import Report, encode_for
from rdtf_diffusers.stickers.gif import harden
from rdtf_diffusers.stickers.platforms import PLATFORMS
from rdtf_diffusers.stickers.resize import fit_canvas


BACKGROUNDS = ((255, 255, 255), (0, 0, 0), (0, 200, 80))
SSIM_TOLERANCE = 5e-4  # what counts as equal
MOST_COMPARED = 8  # frames of a clip


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platforms", nargs="+", default=list(PLATFORMS), choices=list(PLATFORMS), metavar="KEY")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--frames", nargs="+", type=int, default=[2, 8, 24, 64])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 512])
    parser.add_argument("--quick", action="store_true", help="8 frames of 64 pixels only")
    parser.add_argument("--no_peer", action="store_true", help="check the rules only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(args)
    if options.quick:
        options.frames, options.sizes = [8], [64]
    return options


def draw_flat(count: int, size: int) -> np.ndarray:
    """A face that sways."""
    frames = []
    for index in range(count):
        unit = size / 16
        left = 1.5 * np.sin(2 * np.pi * index / count + 0.7)
        large = Image.new("RGBA", (4 * size, 4 * size))
        draw = ImageDraw.Draw(large)

        def box(*corners: float, left: float = left, unit: float = unit) -> tuple[float, ...]:
            return tuple(unit * (corner + (left if place % 2 == 0 else 0)) for place, corner in enumerate(corners))

        draw.ellipse(box(12, 12, 52, 52), fill="#fac828", outline="#281e14", width=max(1, round(2 * unit)))
        draw.ellipse(box(22, 24, 28, 32), fill="#281e14")
        draw.ellipse(box(36, 24, 42, 32), fill="#281e14")
        draw.arc(box(22, 28, 42, 46), 20, 160, fill="#c81e3c", width=max(1, round(2 * unit)))
        small = large.convert("RGBa").resize((size, size), Image.Resampling.BOX)
        frames.append(np.asarray(small.convert("RGBA")))
    return np.stack(frames)


def draw_gradient(count: int, size: int) -> np.ndarray:
    """A soft disc whose colours drift."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    frames = []
    for phase in 2 * np.pi * np.arange(count) / count:
        green = 0.4 + 0.3 * np.sin(3 * y + phase)
        alpha = np.clip((0.45 - np.hypot(x - 0.5 - 0.04 * np.sin(phase), y - 0.5)) * size / 1.5 + 0.5, 0, 1)
        frames.append(np.stack([0.2 + 0.6 * x, green, 0.9 - 0.5 * y, alpha], axis=2))
    return np.rint(255 * np.stack(frames)).astype(np.uint8)


def draw_noisy(count: int, size: int) -> np.ndarray:
    """The gradients with fresh noise in every frame."""
    clip = draw_gradient(count, size).astype(np.float32)
    clip[..., :3] += np.random.default_rng(0).normal(0, 20, clip[..., :3].shape)
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


def draw_photo(count: int, size: int) -> np.ndarray:
    """Texture with detail of all sizes, as in photographs, that moves behind a round window."""
    rng = np.random.default_rng(1)
    texture = np.zeros((size, size + size // 4, 3))
    for scale in (1, 3, 8, 20, 50):
        noise = rng.normal(size=texture.shape)
        layer = gaussian_filter(noise, (scale * size / 256 + 0.3,) * 2 + (0,), mode="wrap")
        grey = layer.mean(axis=2, keepdims=True)
        layer = grey + 0.4 * (layer - grey)
        texture += layer / layer.std() * scale**0.6
    texture = (texture - texture.min()) / (texture.max() - texture.min())
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    alpha = np.clip((0.47 - np.hypot(x - 0.5, y - 0.5)) * size / 4 + 0.5, 0, 1)[..., None]
    lefts = (size / 8 * (1 + np.sin(2 * np.pi * np.arange(count) / count + 0.7))).astype(int)
    frames = [np.concatenate([texture[:, left : left + size], alpha], axis=2) for left in lefts]
    return np.rint(255 * np.stack(frames)).astype(np.uint8)


KINDS = {"flat": draw_flat, "gradient": draw_gradient, "noisy": draw_noisy, "photo": draw_photo}


def ssim(clip: np.ndarray, other: np.ndarray) -> float:
    """The mean SSIM of two clips (F, H, W, 4), straight RGBA uint8, over the three backgrounds."""
    values = []
    for background, frames in itertools.product(BACKGROUNDS, zip(clip, other)):
        x, y = (
            frame[..., :3] * (frame[..., 3:] / np.float32(255))
            + np.array(background, np.float32) * (1 - frame[..., 3:] / np.float32(255))
            for frame in frames
        )
        blurred = [gaussian_filter(value, (1.5, 1.5, 0), truncate=3.5) for value in (x, y, x * x, y * y, x * y)]
        mean_x, mean_y, square_x, square_y, product = blurred
        variances = square_x - mean_x**2 + square_y - mean_y**2
        luminance = (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
        structure = (2 * (product - mean_x * mean_y) + 58.5225) / (variances + 58.5225)
        values.append(float((luminance * structure).mean()))
    return float(np.mean(values))


def save(frames: list[Image.Image], format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], loop=0, **options)
    return buffer.getvalue()


def few_colours(frame: np.ndarray, number: int, method: Image.Quantize) -> Image.Image:
    """A frame in a palette of its own, the last entry of which is "nothing here"."""
    coloured = Image.fromarray(frame[..., :3]).quantize(number - 1, method, dither=Image.Dither.NONE)
    indices = np.where(frame[..., 3] >= 128, np.asarray(coloured), number - 1).astype(np.uint8)
    picture = Image.fromarray(indices)
    picture.putpalette(bytes(coloured.getpalette()).ljust(3 * number, b"\0"))
    return picture


def pillow_files(clip: np.ndarray, format: str, duration: int) -> Iterator[tuple[str, bytes]]:
    """Pillow's files of a clip and their names: its default, and a sweep over quality or colours."""
    pictures = [Image.fromarray(frame) for frame in clip]
    times = {"duration": duration}
    if format == "webp":
        yield "lossless", save(pictures, "WEBP", lossless=True, **times)
        for quality in (20, 35, 50, 65, 75, 80, 85, 90, 95, 100):
            yield f"quality {quality}", save(pictures, "WEBP", quality=quality, **times)
        return
    kind = "GIF" if format == "gif" else "PNG"
    times["disposal"] = 2 if format == "gif" else 0
    yield "default", save(pictures, kind, **times)
    for number in (16, 32, 64, 128, 256):
        if format == "gif":
            for method in (Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE):
                reduced = [few_colours(frame, number, method) for frame in clip]
                yield f"{number} colours, {method.name}", save(reduced, kind, transparency=number - 1, **times)
        else:
            reduced = [picture.quantize(number).convert("RGBA") for picture in pictures]
            yield f"{number} colours", save(reduced, kind, blend=0, **times)


def read(data: bytes, count: int) -> np.ndarray:
    """The frames of a file; equal neighbours that were stored as one are told apart by their times."""
    with Image.open(io.BytesIO(data)) as file:
        shown = [(np.asarray(frame.convert("RGBA")), frame.info["duration"]) for frame in ImageSequence.Iterator(file)]
    frames = np.stack([frame for frame, _ in shown])
    if len(frames) == count:
        return frames
    ends = np.cumsum([duration for _, duration in shown])
    middles = (np.arange(count) + 0.5) * ends[-1] / count
    return frames[np.searchsorted(ends, middles)]


def compare(clip: np.ndarray, data: bytes, report: Report) -> dict[str, Any]:
    """SSIM of our file, and of the best file of Pillow's that is no larger, to the frames in the platform's size."""
    count = len(clip)
    target = harden(clip) if report.format == "gif" else clip
    step = max(1, count // MOST_COMPARED)
    ours = ssim(target[::step], read(data, count)[::step])
    best, name = None, None
    for peer, encoded in pillow_files(clip, report.format, 120):
        if len(encoded) <= report.bytes:
            value = ssim(target[::step], read(encoded, count)[::step])
            if best is None or value > best:
                best, name = value, peer
    return {"ssim": ours, "pillow_ssim": best, "pillow": name}


def measure(kind: str, count: int, size: int, key: str, folder: Path, peer: bool) -> dict[str, Any]:
    """One row of the table."""
    clip = KINDS[kind](count, size)
    row = {"kind": kind, "frames": count, "size": size, "platform": key}
    start = time.process_time()
    try:
        data, report = encode_for(clip, key, cover="first")
    except ValueError as error:  # refused: it counts as a file that does not pass
        return row | {"violations": [str(error)]}
    row["cpu_seconds"] = time.process_time() - start
    path = folder / f"sticker{report.suffix}"
    path.write_bytes(data)
    row |= {"bytes": report.bytes, "quality": report.quality, "rung": report.rung, "stored": report.frames}
    row["violations"] = [str(violation) for violation in check(path, key)]
    # What was dropped or shown twice differs between the two: only clips that kept their frames are compared
    if peer and report.format != "webm" and report.rung in ("whole", "lowest quality") and report.frames <= count:
        resized = fit_canvas(clip, *report.size)[: report.frames]
        if report.frames == count or report.time_change:
            row |= compare(resized, data, report)
    return row


def print_row(row: dict[str, Any]) -> None:
    name = f"{row['kind']} {row['frames']} x {row['size']} px, {row['platform']}"
    result = "; ".join(row["violations"]) or "passes"
    if "bytes" not in row:
        print(f"{name:<42}{result}", flush=True)
        return
    line = (
        f"{name:<42}{row['bytes']:>9} B  {row['quality']:<22}{row['rung']:<20}{row['cpu_seconds']:>6.1f} s  {result}"
    )
    if row.get("pillow_ssim") is not None:
        line += f"  SSIM {row['ssim']:.4f}, Pillow {row['pillow_ssim']:.4f} ({row['pillow']})"
    print(line, flush=True)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, count, size, key in itertools.product(
            options.kinds, options.frames, options.sizes, options.platforms
        ):
            rows.append(measure(kind, count, size, key, Path(folder), not options.no_peer))
            print_row(rows[-1])
    passed = sum(not row["violations"] for row in rows)
    compared = [row for row in rows if row.get("pillow_ssim") is not None]
    won = sum(row["ssim"] >= row["pillow_ssim"] - SSIM_TOLERANCE for row in compared)
    print(f"{passed} of {len(rows)} files pass; SSIM is at least Pillow's in {won} of {len(compared)}")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
