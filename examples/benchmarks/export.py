# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether exported stickers keep the platforms' rules, and look at least as good as Pillow's files of that size.

    python examples/benchmarks/export.py --quick
    python examples/benchmarks/export.py --json export.json  # the whole grid, smallest clips first; stop and go on
    python examples/benchmarks/export.py --platforms  # no exports: only how well clips grow, and bands in GIF files

Clips of four kinds (flat art, gradients, noise, photo-like texture), all with soft edges, are exported for every
platform and checked with `check`. Then Pillow saves the very same frames (same canvas, same times) without loss and in
the best quality or number of colours whose file is no larger than ours, found by bisection, and the most similar of
these is compared with ours: SSIM over white, black and green, mean of the colour channels (Gaussian window of 1.5
pixels), up to 8 frames of the clip. GIF files are judged against the frames with hard edges, which are all that a GIF
can hold. There is no peer for WEBM.

At the end: clips that grow from 64 to 512 pixels against Pillow's ways to resize them, and bands in GIF files of a
gradient against Pillow's default, as SSIM and as the error of the means of 8 x 8 pixels, which is how they look from
afar.
"""

import argparse
import functools
import io
import itertools
import json
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageSequence
from scipy.ndimage import gaussian_filter

from rdtf_diffusers.stickers.budget import Job, best_within, settings
from rdtf_diffusers.stickers.check import check
from rdtf_diffusers.stickers.encode import encode
from rdtf_diffusers.stickers.fit import Report, encode_for
from rdtf_diffusers.stickers.gif import harden
from rdtf_diffusers.stickers.platforms import PLATFORMS
from rdtf_diffusers.stickers.resize import fit_canvas
from rdtf_diffusers.utils.files import write_whole


BACKGROUNDS = ((255, 255, 255), (0, 0, 0), (0, 200, 80))
SSIM_TOLERANCE = 5e-4  # what counts as equal
MOST_COMPARED = 8  # frames of a clip


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platforms", nargs="*", default=list(PLATFORMS), choices=list(PLATFORMS), metavar="KEY")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--frames", nargs="+", type=int, default=[2, 8, 24, 64])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--quick", action="store_true", help="8 frames of 64 pixels only")
    parser.add_argument("--no_peer", action="store_true", help="check the rules only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each row to FILE; go on with what is in it")
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


def pillow_files(clip: np.ndarray, format: str, duration: int) -> list[list[tuple[str, Callable[[], bytes]]]]:
    """Pillow's ways to save a clip: names and files of growing size and quality."""
    pictures = [Image.fromarray(frame) for frame in clip]
    times = {"duration": duration}
    if format == "webp":
        whole = functools.partial(save, pictures, "WEBP", **times)
        lossy = [(f"quality {quality}", functools.partial(whole, quality=quality)) for quality in range(101)]
        return [[("lossless", functools.partial(whole, lossless=True))], lossy]
    kind = "GIF" if format == "gif" else "PNG"
    times["disposal"] = 2 if format == "gif" else 0
    default = [("default", functools.partial(save, pictures, kind, **times))]

    def reduced(number: int, method: Image.Quantize | None) -> bytes:
        if format == "gif":
            few = [few_colours(frame, number, method) for frame in clip]
            return save(few, kind, transparency=number - 1, **times)
        return save([picture.quantize(number).convert("RGBA") for picture in pictures], kind, blend=0, **times)

    ways = [default]
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.FASTOCTREE) if format == "gif" else (None,):
        suffix = f", {method.name}" if method is not None else ""
        numbers = (8, 16, 32, 48, 64, 96, 128, 192, 256)
        ways.append([(f"{number} colours{suffix}", functools.partial(reduced, number, method)) for number in numbers])
    return ways


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
    for files in pillow_files(clip, report.format, 120):
        encoded = functools.cache(lambda place, files=files: files[place][1]())
        place = bisect_right(range(len(files)), report.bytes, key=lambda place: len(encoded(place))) - 1
        if place >= 0:
            value = ssim(target[::step], read(encoded(place), count)[::step])
            if best is None or value > best:
                best, name = value, files[place][0]
    return {"ssim": ours, "pillow_ssim": best, "pillow": name}


def measure(kind: str, count: int, size: int, key: str, folder: Path, peer: bool) -> dict[str, Any]:
    """One row of the table."""
    clip = KINDS[kind](count, size)
    row = {"kind": kind, "frames": count, "size": size, "platform": key}
    start = time.process_time()
    try:
        data, report = encode_for(clip, key, cover="first")
    except ValueError as error:  # refused: it counts as one that does not pass
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
        f"{name:<42}{row['bytes']:>9} B  {row['quality']:<33}{row['rung']:<20}{row['cpu_seconds']:>6.1f} s  {result}"
    )
    if row.get("pillow_ssim") is not None:
        line += f"  SSIM {row['ssim']:.4f}, Pillow {row['pillow_ssim']:.4f} ({row['pillow']})"
    print(line, flush=True)


def grow(clip: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """A small square clip (F, H, H, 4) in a larger size: our way and Pillow's."""
    grown = {"ours": fit_canvas(clip, size, size)}
    for method in (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.NEAREST):
        frames = [Image.fromarray(frame).convert("RGBa").resize((size, size), method) for frame in clip]
        grown[method.name.lower()] = np.stack([np.asarray(frame.convert("RGBA")) for frame in frames])
    return grown


def print_growing(kinds: list[str]) -> None:
    """SSIM of clips that were shrunk from 512 to 64 pixels and grow again."""
    for kind in kinds:
        large = KINDS[kind](2, 512)
        values = {name: ssim(large, clip) for name, clip in grow(fit_canvas(large, 64, 64), 512).items()}
        print(f"64 to 512 px, {kind:<12}" + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))


def gif_files(clip: np.ndarray) -> dict[str, bytes]:
    """A clip with hard edges as a GIF by us and by Pillow."""
    pillow = save([Image.fromarray(frame) for frame in clip], "GIF", duration=120, disposal=2)
    job = Job(clip, [120] * len(clip), 0, "gif", True, "")
    return {
        "as save_sticker": encode(clip, "gif", durations=job.times),
        "Pillow's default": pillow,
        "ours, no larger": best_within(job, len(pillow), settings("gif")).data,
    }


def print_bands() -> None:
    """How GIF files show a gradient."""
    clip = harden(KINDS["gradient"](8, 256))

    def afar(frames: np.ndarray) -> np.ndarray:
        return (frames.astype(np.float32) * (frames[..., 3:] > 0)).reshape(8, 32, 8, 32, 8, 4).mean(axis=(2, 4))

    for name, data in gif_files(clip).items():
        shown = read(data, len(clip))
        error = float(np.sqrt(np.square(afar(shown) - afar(clip))[..., :3].mean()))
        print(f"GIF, gradient, {name:<17}{len(data):>8} B  SSIM {ssim(clip, shown):.4f}, from afar {error:.1f} off")


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    resumed = options.json and options.json.exists()
    done = json.loads(options.json.read_text(encoding="utf-8"))["rows"] if resumed else []
    rows = {(row["kind"], row["frames"], row["size"], row["platform"]): row for row in done}
    cells = itertools.product(options.kinds, options.frames, options.sizes, options.platforms)
    with tempfile.TemporaryDirectory() as folder:
        for cell in sorted(cells, key=lambda cell: cell[1] * cell[2] ** 2):
            if cell in rows:
                continue
            rows[cell] = measure(*cell, Path(folder), not options.no_peer)
            print_row(rows[cell])
            if options.json:
                write_whole(options.json, json.dumps({"rows": list(rows.values())}, indent=2).encode())
    passed = sum(not row["violations"] for row in rows.values())
    compared = [row for row in rows.values() if row.get("pillow_ssim") is not None]
    won = sum(row["ssim"] >= row["pillow_ssim"] - SSIM_TOLERANCE for row in compared)
    if options.quick or not options.platforms:
        print_growing(options.kinds)
        print_bands()
    refused = sum("bytes" not in row for row in rows.values())
    print(f"{passed} of {len(rows)} clips pass, {refused} are refused")
    print(f"SSIM is at least Pillow's in {won} of {len(compared)}")


if __name__ == "__main__":
    main()
