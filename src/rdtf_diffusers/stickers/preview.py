"""A contact sheet: all frames of an animation as one picture, over a checkerboard, with their times."""

import math

import numpy as np
from PIL import Image, ImageDraw

from ..data.animation import Animation


MAX_FRAMES = 64  # on one sheet; of longer animations every n-th frame is shown
CHECK = 8  # pixels of a square of the checkerboard
GAP, CAPTION = 4, 14  # pixels between frames, and for the time below each


def checkerboard(width: int, height: int) -> Image.Image:
    """What shows through transparent parts: light grey squares on white, RGBA."""
    rows, columns = np.arange(height)[:, None] // CHECK, np.arange(width) // CHECK
    grey = np.where((rows + columns) % 2, 255, 225).astype(np.uint8)
    return Image.fromarray(grey).convert("RGBA")


def contact_sheet(animation: Animation, size: int = 128) -> Image.Image:
    """All frames in rows, each `size` pixels wide at most, with the moment when it appears in milliseconds.

    Args:
        animation: up to 64 frames are shown; of more, as many evenly spaced ones.
        size: pixels of the longer side of a frame on the sheet.
    """
    count = len(animation.frames)
    shown = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES)).round().astype(int))
    starts = np.concatenate([[0], np.cumsum(animation.durations)[:-1]])
    height, width = animation.frames.shape[1:3]
    scale = size / max(height, width)
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(len(shown), math.ceil(math.sqrt(len(shown) * cell[1] / cell[0])))
    rows = math.ceil(len(shown) / columns)
    step = cell[0] + GAP, cell[1] + GAP + CAPTION
    sheet = Image.new("RGBA", (columns * step[0] + GAP, rows * step[1] + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, number in enumerate(shown):
        left, top = GAP + place % columns * step[0], GAP + place // columns * step[1]
        frame = Image.fromarray(animation.frames[number]).convert("RGBa")  # premultiplied: no fringes when resized
        sheet.paste(checkerboard(*cell), (left, top))
        sheet.alpha_composite(frame.resize(cell, Image.Resampling.LANCZOS).convert("RGBA"), (left, top))
        pen.text((left, top + cell[1]), f"{number}: {starts[number]:.0f} ms", fill="black")
    return sheet.convert("RGB")
