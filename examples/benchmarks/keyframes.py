# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How fast keyframes are found and how well they stand for their animation, clustering beside even spacing.

    python examples/benchmarks/keyframes.py --json keyframes.json
    python examples/benchmarks/keyframes.py --data stickers/train --features facebook/dinov2-small
    python examples/benchmarks/keyframes.py --count 3 --picture keyframes.png

The animations are drawn by code (16 to 24 frames with one short event) or read from `--data`, where those of more than
8 frames count. Every figure is over k = 3 to 8 keyframes. Each frame is compared with the keyframe nearest to it, by
the root mean square of the pixels' differences (premultiplied RGBA in [0, 1] at 64x64, whatever the features): `mean`
is weighted by time, `worst` is the moment that the keyframes miss most. `repeats` is the share of keyframes that add
no new picture although the animation has one. Brackets hold 95 % bootstrap intervals over the animations;
`animations/s` is for features and all six k on one core, files already decoded.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rdtf_diffusers.data.animation import Animation, AnimationError, frames_to_clip, read_animation
from rdtf_diffusers.data.keyframes import KEYFRAME_METHODS, extract_keyframes, keyframe_table, load_features


MIN_K, MAX_K = 3, 8
FIGURES = ("mean", "worst", "repeats")
COMPARED_SIZE = 64
RESAMPLES = 2000

STICKER_SIZE, OVERSAMPLING = 96, 4
INK = (64, 44, 40, 255)
COLOURS = ((255, 200, 61, 255), (110, 200, 120, 255), (240, 98, 112, 255), (110, 160, 245, 255), (190, 140, 235, 255))


class Canvas:
    """Shapes in units of the sticker's side, antialiased by drawing them larger."""

    def __init__(self):
        self.picture = Image.new("RGBA", (STICKER_SIZE * OVERSAMPLING,) * 2)
        self.pen = ImageDraw.Draw(self.picture)

    def scaled(self, numbers: list[float] | tuple[float, ...]) -> list[float]:
        return [number * self.picture.width for number in numbers]

    def ellipse(self, x: float, y: float, width: float, height: float, fill: tuple, outline: tuple = INK) -> None:
        box = self.scaled((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        self.pen.ellipse(box, fill=fill, outline=outline, width=8)

    def line(self, points: list[float], fill: tuple = INK, width: float = 0.03) -> None:
        self.pen.line(self.scaled(points), fill=fill, width=round(width * self.picture.width), joint="curve")

    def arc(self, x: float, y: float, width: float, height: float, start: int, end: int) -> None:
        box = self.scaled((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        self.pen.arc(box, start, end, fill=INK, width=10)

    def pixels(self) -> np.ndarray:
        """(96, 96, 4) uint8."""
        return np.asarray(self.picture.resize((STICKER_SIZE,) * 2, Image.Resampling.LANCZOS))


def blinking_face(event: float, idle: float, colour: tuple) -> np.ndarray:
    """A face that closes its eyes; it does nothing else."""
    canvas, opened = Canvas(), abs(np.cos(np.pi * event))
    canvas.ellipse(0.5, 0.5, 0.9, 0.9, colour)
    for x in (0.34, 0.66):
        if opened > 0.3:
            canvas.ellipse(x, 0.42, 0.15, 0.22 * opened, INK)
        else:
            canvas.arc(x, 0.38, 0.2, 0.14, 20, 160)
    canvas.arc(0.5, 0.55, 0.44, 0.36, 25, 155)
    return canvas.pixels()


def jumping_ball(event: float, idle: float, colour: tuple) -> np.ndarray:
    """A ball with a face that breathes for long and jumps once."""
    canvas, height = Canvas(), 0.42 * np.sin(np.pi * event)
    stretch = 1 + 0.03 * np.sin(2 * np.pi * idle) + 0.2 * np.sin(2 * np.pi * event) * (event > 0)
    wide, tall = 0.44 / stretch, 0.44 * stretch
    middle = 0.96 - tall / 2 - height
    canvas.ellipse(0.5, 0.95, wide * (1 - height), 0.06, (0, 0, 0, 50), (0, 0, 0, 0))
    canvas.ellipse(0.5, middle, wide, tall, colour)
    for x in (-0.08, 0.08):
        canvas.ellipse(0.5 + x, middle - 0.05, 0.06, 0.08, INK)
    canvas.arc(0.5, middle + 0.03, 0.16, 0.1, 10, 170)
    return canvas.pixels()


def bursting_gift(event: float, idle: float, colour: tuple) -> np.ndarray:
    """A gift box, still but for rays and confetti that burst out of it once."""
    canvas, reach = Canvas(), 0.2 + 0.18 * event
    lift = 0.16 * np.sin(np.pi * event)
    for number, angle in enumerate(np.linspace(1.08, 1.92, 7) * np.pi):
        if event > 0:
            x, y = np.cos(angle), np.sin(angle)
            shade = COLOURS[number % len(COLOURS)]
            canvas.line([0.5 + x * 0.2, 0.5 + y * 0.2, 0.5 + x * reach, 0.5 + y * reach], shade, 0.035)
            canvas.ellipse(0.5 + x * (reach + 0.09), 0.5 + y * (reach + 0.09), 0.09, 0.09, shade)
    for left, top, right, bottom in ((0.2, 0.56, 0.8, 0.94), (0.15, 0.44 - lift, 0.85, 0.58 - lift)):
        canvas.pen.rounded_rectangle(canvas.scaled((left, top, right, bottom)), 14, colour, INK, 8)
        canvas.pen.rectangle(canvas.scaled((0.45, top + 0.02, 0.55, bottom - 0.02)), (255, 244, 214, 255))
    for x in (0.42, 0.58):
        canvas.ellipse(x, 0.39 - lift, 0.17, 0.12, (255, 244, 214, 255))
    return canvas.pixels()


SCENES: dict[str, Callable[[float, float, tuple], np.ndarray]] = {
    "a face that blinks": blinking_face,
    "a long rest and one jump": jumping_ball,
    "a still and a short burst": bursting_gift,
}


def draw_stickers(count: int, seed: int) -> list[Animation]:
    """Animations of 16 to 24 frames, the scenes in turn, each with one event of 3 to 6 frames at a random moment."""
    rng = np.random.default_rng(seed)
    stickers = []
    for number in range(count):
        name = list(SCENES)[number % len(SCENES)]
        num_frames, length = int(rng.integers(16, 25)), int(rng.integers(3, 7))
        start = int(rng.integers(1, num_frames - length))
        colour = COLOURS[rng.integers(len(COLOURS))]
        index = np.arange(num_frames)
        event = np.where((index >= start) & (index < start + length), (index - start + 1) / (length + 1), 0)
        frames = [SCENES[name](moment, idle, colour) for moment, idle in zip(event, index / 12)]
        stickers.append(Animation(np.stack(frames), np.full(num_frames, 60.0), name))
    return stickers


def read_stickers(folder: Path, count: int) -> list[Animation]:
    """The first `count` animations of a folder that have more frames than keyframes; other files are passed over."""
    stickers = []
    for path in sorted(folder.rglob("*.*")):
        if len(stickers) == count:
            break
        try:
            animation = read_animation(path, source=path.stem)
        except AnimationError:
            continue
        if len(animation.frames) > MAX_K:
            stickers.append(animation)
    if not stickers:
        raise ValueError(f"{folder}: no animation of more than {MAX_K} frames.")
    return stickers


def quality(animation: Animation, table: dict[int, np.ndarray]) -> list[float]:
    """`FIGURES` of one animation, averaged over k."""
    pixels = frames_to_clip(animation.frames, COMPARED_SIZE).flatten(1) / 2
    distance = torch.cdist(pixels, pixels, compute_mode="donot_use_mm_for_euclid_dist") / pixels.shape[1] ** 0.5
    distinct = len(pixels.unique(dim=0))
    rows = []
    for k, indices in table.items():
        missed = distance[:, indices].amin(dim=1).numpy()
        pictures = len(pixels[indices].unique(dim=0))
        mean = np.average(missed, weights=animation.durations)
        rows.append((mean, missed.max(), 1 - pictures / min(k, distinct)))
    return np.mean(rows, axis=0).tolist()


def estimate(value: float, resampled: np.ndarray) -> dict:
    return {"value": float(value), "interval": np.percentile(resampled, [2.5, 97.5]).tolist()}


def shown(estimated: dict) -> str:
    low, high = estimated["interval"]
    return f"{estimated['value']:.3f} [{low:.3f}, {high:.3f}]"


def measure(stickers: list[Animation], features: Callable, seed: int) -> dict:
    """Every method's speed and figures, and clustering relative to even spacing, animation by animation."""
    samples = np.random.default_rng(seed).integers(len(stickers), size=(RESAMPLES, len(stickers)))
    means, rows = {}, {}
    for method in KEYFRAME_METHODS:
        start = time.perf_counter()
        tables = [keyframe_table(sticker, features, method, MIN_K, MAX_K) for sticker in stickers]
        rows[method] = {"animations_per_second": len(stickers) / (time.perf_counter() - start)}
        values = np.array([quality(sticker, table) for sticker, table in zip(stickers, tables)])  # (n, 3)
        means[method] = values[samples].mean(axis=1)  # (RESAMPLES, 3)
        for column, figure in enumerate(FIGURES):
            rows[method][figure] = estimate(values[:, column].mean(), means[method][:, column])
    ratios = {}
    for column, figure in enumerate(("mean", "worst")):
        ratio = rows["cluster"][figure]["value"] / rows["uniform"][figure]["value"]
        ratios[figure] = estimate(ratio, means["cluster"][:, column] / means["uniform"][:, column])
    return {"methods": rows, "cluster_to_uniform": ratios}


PICKED = {"cluster": ("clustering", (37, 99, 235)), "uniform": ("even spacing", (234, 120, 20))}
MARGIN, TILE, PICK_TILE, PICTURE_K = 16, 48, 96, 5
PANEL = (243, 244, 246)


def paste(sheet: Image.Image, frame: np.ndarray, left: int, top: int, size: int) -> None:
    picture = Image.fromarray(frame)
    picture.thumbnail((size - 4, size - 4), Image.Resampling.LANCZOS)
    ImageDraw.Draw(sheet).rounded_rectangle((left, top, left + size - 2, top + size - 2), 5, fill=PANEL)
    corner = (left + (size - picture.width) // 2 - 1, top + (size - picture.height) // 2 - 1)
    sheet.paste(picture, corner, picture)


def draw_strip(sheet: Image.Image, animation: Animation, top: int, features: Callable) -> None:
    """One animation: its name, all frames with bars below the picked ones, and the picked ones again, larger."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    pen.text((MARGIN, top), animation.source, fill=INK, font=font)
    for index, frame in enumerate(animation.frames):
        paste(sheet, frame, MARGIN + index * TILE, top + 28, TILE)
    values = features(animation.frames)
    for row, (method, (label, colour)) in enumerate(PICKED.items()):
        left, line = MARGIN + row * (sheet.width - MARGIN) // 2, top + 28 + TILE + 9 * row
        picks = extract_keyframes(values, animation.durations, PICTURE_K, method)
        pen.text((left, top + TILE + 54), f"{label}, k = {PICTURE_K}", fill=colour, font=font)
        for place, index in enumerate(picks):
            x = MARGIN + index * TILE
            pen.rounded_rectangle((x + 2, line + 2, x + TILE - 5, line + 8), 3, fill=colour)
            x, y = left + place * (PICK_TILE + 6), top + TILE + 80
            paste(sheet, animation.frames[index], x, y, PICK_TILE)
            pen.rounded_rectangle((x, y, x + PICK_TILE - 2, y + PICK_TILE - 2), 5, outline=colour, width=2)


def contact_sheet(animations: list[Animation], features: Callable) -> Image.Image:
    """What clustering and even spacing pick of each animation."""
    width = MARGIN * 2 + max(max(len(animation.frames) for animation in animations) * TILE, 11 * (PICK_TILE + 6))
    height = TILE + PICK_TILE + 104
    sheet = Image.new("RGB", (width, MARGIN + height * len(animations)), "white")
    for row, animation in enumerate(animations):
        draw_strip(sheet, animation, MARGIN + row * height, features)
    return sheet.quantize(128)


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of animations; default: drawn by code")
    parser.add_argument("--count", type=int, default=300, help="animations, at most")
    parser.add_argument("--features", default="pixels", help="pixels, timm:vgg16 or a transformers model")
    parser.add_argument("--device", default="cpu", help="for the features of a model")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn animations and the bootstrap")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the first three animations' keyframes")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    if options.data is None:
        stickers = draw_stickers(options.count, options.seed)
    else:
        stickers = read_stickers(options.data, options.count)
    torch.set_num_threads(1)
    features = load_features(options.features, options.device)
    keyframe_table(stickers[0], features)  # imports and warms up
    table = measure(stickers, features, options.seed)

    source = str(options.data or f"drawn, seed {options.seed}")
    print(f"{len(stickers)} animations ({source}), features: {options.features}, k = {MIN_K} to {MAX_K}")
    print(f"{'method':<12}{'animations/s':>12}" + "".join(f"{figure:>24}" for figure in FIGURES))
    for method, row in table["methods"].items():
        cells = "".join(f"{shown(row[figure]):>24}" for figure in FIGURES)
        print(f"{method:<12}{row['animations_per_second']:>12.1f}{cells}")
    for figure, ratio in table["cluster_to_uniform"].items():
        print(f"{figure}, clustering / even spacing: {shown(ratio)}")
    if options.json is not None:
        settings = {"count": len(stickers), "source": source, "features": options.features, "seed": options.seed}
        options.json.write_text(json.dumps({**settings, **table}, indent=2) + "\n")
    if options.picture is not None:
        contact_sheet(stickers[:3], features).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
