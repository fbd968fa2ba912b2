# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pictures of docs/stickers.md: what exported files look like, read back from the files.

    python examples/benchmarks/export_pictures.py docs/images/dog.webp --output docs/images

edges.png: an animation as each format of sticker, over three backgrounds, with a part of its edge enlarged.
bands.png: a gradient as GIF files by us and by Pillow. growing.png: its first frame, eight times as large.
"""

import argparse
from pathlib import Path

import numpy as np
from export import BACKGROUNDS, KINDS, gif_files, grow
from PIL import Image, ImageDraw

from rdtf_diffusers.data.animation import read_animation
from rdtf_diffusers.stickers.fit import encode_for
from rdtf_diffusers.stickers.gif import harden


FORMATS = {
    "WebP, WhatsApp": "whatsapp",
    "WEBM, Telegram": "telegram",
    "APNG, Discord": "discord",
    "GIF, WeChat": "wechat",
}
GAP, CAPTION = 4, 14  # pixels between pictures, and for the words above them


def over(frame: np.ndarray, background: tuple[int, int, int]) -> Image.Image:
    """A frame (H, W, 4), straight RGBA uint8, over a colour."""
    picture = Image.new("RGBA", frame.shape[1::-1], background)
    picture.alpha_composite(Image.fromarray(frame))
    return picture.convert("RGB")


def sheet(columns: dict[str, list[Image.Image]]) -> Image.Image:
    """Pictures of one size in columns, below their names."""
    width, height = next(iter(columns.values()))[0].size
    rows = max(map(len, columns.values()))
    result = Image.new("RGB", (len(columns) * (width + GAP) + GAP, CAPTION + rows * (height + GAP)), "white")
    pen = ImageDraw.Draw(result)
    for column, (name, pictures) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        pen.text((left, 1), name, fill="black")
        for row, picture in enumerate(pictures):
            result.paste(picture, (left, CAPTION + row * (height + GAP)))
    return result


def whole_and_edge(frame: np.ndarray, background: tuple[int, int, int], side: int = 96) -> Image.Image:
    """A frame over a colour, and beside it its edge on the diagonal from the left above, four times as large."""
    picture = over(frame, background)
    edge = int((np.diagonal(frame[..., 3]) >= 128).argmax()) - side // 8
    zoomed = picture.crop((edge, edge, edge + side // 4, edge + side // 4)).resize((side, side), Image.Resampling.BOX)
    result = Image.new("RGB", (2 * side, side))
    result.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (0, 0))
    result.paste(zoomed, (side, 0))
    return result


def draw_edges(frames: np.ndarray) -> Image.Image:
    """A clip (F, H, W, 4) as each format over each background."""
    columns = {}
    for name, key in FORMATS.items():
        first = read_animation(encode_for(frames, key, cover="first")[0]).frames[0]
        columns[name] = [whole_and_edge(first, background) for background in BACKGROUNDS]
    return sheet(columns)


def draw_bands(size: int = 176) -> Image.Image:
    """A gradient as it is and as GIF files show it."""
    clip = harden(KINDS["gradient"](8, size))
    shown = {name: read_animation(data).frames[0] for name, data in gif_files(clip).items()}
    return sheet({name: [over(frame, BACKGROUNDS[0])] for name, frame in {"the clip": clip[0], **shown}.items()})


def draw_growing(frames: np.ndarray, times: int = 8, side: int = 160) -> Image.Image:
    """The middle of a clip's first frame in a larger size."""
    size = times * frames.shape[1]
    corner = (size - side) // 2
    box = (corner, corner, corner + side, corner + side)
    grown = grow(frames[:1], size)
    return sheet({name: [over(clip[0], BACKGROUNDS[0]).crop(box)] for name, clip in grown.items()})


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("animation", type=Path, help="a square one of 64 pixels or so")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder for the pictures")
    options = parser.parse_args(args)
    frames = read_animation(options.animation).frames
    pictures = {"edges": draw_edges(frames), "bands": draw_bands(), "growing": draw_growing(frames)}
    for name, picture in pictures.items():
        picture.save(options.output / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
