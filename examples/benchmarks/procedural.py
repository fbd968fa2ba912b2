# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How fast one core sets pictures in motion, beside the plain Pillow route.

    python examples/benchmarks/procedural.py --json procedural.json
    python examples/benchmarks/procedural.py --clips 0 --picture procedural.png

Ours is all of `animate`: drawing parameters, motion, layer and caption. The peer resizes the picture and calls
Pillow's affine transform for each frame on premultiplied pixels, with poses of the same motion, the same interpolation
and the same kind of tensor as its result, but no parameters, no caption and neither ripples nor layers. Both take
turns on one thread, round by round. A figure is that of the best round, in processor time, so that what else the
machine does counts little. `--picture` draws a clip of every motion and layer.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from rdtf_diffusers.data.animation import over_white
from rdtf_diffusers.data.layers import LAYERS
from rdtf_diffusers.data.procedural import MOTIONS, Place, Pose, animate
from rdtf_diffusers.data.shapes import draw_shape


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="height and width of the clips")
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--picture_size", type=int, default=96, help="height and width of the pictures")
    parser.add_argument("--clips", type=int, default=40, help="clips of each kind in a round; 0 for no measurement")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw a contact sheet to FILE")
    return parser.parse_args(args)


def pillow_render(picture: Image.Image, pose: Pose, num_frames: int, place: Place) -> torch.Tensor:
    """What `procedural.render` does after resizing, from a picture in Pillow's premultiplied mode RGBa."""
    picture = picture.resize((place.side, place.side), Image.Resampling.BICUBIC)
    half = place.side / 2
    x = place.left + half + place.size * pose.x + half * pose.offset_x
    y = place.top + half + place.size * pose.y + half * pose.offset_y
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    rows = [[cosine / pose.scale_x, sine / pose.scale_x], [-sine / pose.scale_y, cosine / pose.scale_y]]
    values = [value for a, b in rows for value in (a, b, half - a * x - b * y)]
    coefficients = np.stack([np.broadcast_to(value, num_frames) for value in values], axis=1)
    size = (place.size, place.size)
    frames = [
        np.asarray(picture.transform(size, Image.Transform.AFFINE, tuple(frame), Image.Resampling.BILINEAR))
        for frame in coefficients
    ]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()  # (F, 4, size, size)
    opacity = np.broadcast_to(pose.opacity, num_frames).astype(np.float32)
    return pixels * torch.from_numpy(opacity / 127.5).view(-1, 1, 1, 1) - 1


def pillow_clip(picture: Image.Image, motion: str, rng: np.random.Generator, num_frames: int, size: int):
    """A clip of a motion, placed at random."""
    side = round(size * rng.uniform(0.6, 1.0))
    left, top = rng.integers(size - side + 1, size=2)
    pose = MOTIONS[motion].pose(np.arange(num_frames) / num_frames, 0.5, 1)
    return pillow_render(picture, pose, num_frames, Place(size, side, int(left), int(top)))


def best_rates(makers: dict[str, Callable[[], Any]], clips: int, repeats: int) -> dict[str, float]:
    """Clips per second of each maker in its best round; they take turns, after a round that does not count."""
    seconds = dict.fromkeys(makers, float("inf"))
    for number in range(repeats + 1):
        for name, make in makers.items():
            start = time.process_time()
            for _ in range(clips):
                make()
            if number:
                seconds[name] = min(seconds[name], time.process_time() - start)
    return {name: clips / value for name, value in seconds.items()}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table: everything as it is drawn for training, then each motion and each layer alone."""
    picture, _ = draw_shape(np.random.default_rng(0), options.picture_size, "cat", "orange")
    pixels = (picture * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.frombytes("RGBa", (options.picture_size,) * 2, pixels.tobytes())
    rng, shape = np.random.default_rng(0), (options.num_frames, options.size)
    kinds = [("everything", {})]
    kinds += [(f"motion {name}", {"motion": name}) for name in MOTIONS]
    kinds += [(f"layer {name}", {"layer": name}) for name in LAYERS]
    rows = []
    for kind, named in kinds:
        makers = {"ours": lambda named=named: animate(picture, rng, *shape, **named)}
        if "motion" in named and named["motion"] != "wave":
            makers["pillow"] = lambda named=named: pillow_clip(image, named["motion"], rng, *shape)
        clips = options.clips * (5 if kind == "everything" else 1)  # a fair share of each kind
        rates = best_rates(makers, clips, options.repeats)
        ratio = rates["ours"] / rates["pillow"] if "pillow" in rates else None
        rows.append({"kind": kind, "ours": rates["ours"], "pillow": rates.get("pillow"), "ratio": ratio})
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'':<26}{'ours clips/s':>14}{'Pillow clips/s':>16}{'ratio':>8}")
    for row in rows:
        peer = "" if row["ratio"] is None else f"{row['pillow']:>16.0f}{row['ratio']:>8.2f}"
        print(f"{row['kind']:<26}{row['ours']:>14.0f}{peer}")
    slowest = min(rows, key=lambda row: row["ours"])
    ratios = [row["ratio"] for row in rows if row["ratio"] is not None]
    print(f"everything: {rows[0]['ours']:.0f} clips/s (bar 500); slowest: {slowest['kind']}, {slowest['ours']:.0f}")
    print(f"ratio to Pillow over the motions: median {np.median(ratios):.2f}, lowest {min(ratios):.2f}")


def contact_sheet(size: int, num_frames: int) -> Image.Image:
    """A clip of every motion and layer over white, in two columns, each with its caption."""
    kinds = [{"motion": name} for name in MOTIONS] + [{"layer": name} for name in LAYERS]
    gap, line, half = 2, size + 16, (len(kinds) + 1) // 2
    width = num_frames * (size + gap) + 10
    sheet = Image.new("RGB", (2 * width - 10, half * line), (232, 232, 236))
    for number, named in enumerate(kinds):
        rng = np.random.default_rng(number)
        face = {"shape": "smiling face", "colour": "purple"} if "layer" in named else {}
        picture, caption = draw_shape(rng, **face)
        clip = animate(picture, rng, num_frames, size, **named)
        frames = (over_white(clip.frames) * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
        left, top = number // half * width, number % half * line
        ImageDraw.Draw(sheet).text((left + 2, top + 1), f"{caption} {clip.phrase}", fill="black")
        for index, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame.numpy()), (left + index * (size + gap), top + 14))
    return sheet.quantize(256, dither=Image.Dither.NONE)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    if options.picture is not None:
        contact_sheet(options.size, options.num_frames).save(options.picture, optimize=True)
    if options.clips == 0:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = measure(options)
    finally:
        torch.set_num_threads(threads)
    print_table(rows)
    if options.json is not None:
        setup = {"python": platform.python_version(), "torch": torch.__version__, "threads": 1}
        setup |= {name: getattr(options, name) for name in ("size", "num_frames", "picture_size", "clips", "repeats")}
        options.json.write_text(json.dumps({"setup": setup, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
