"""GIF: up to 255 colours and "nothing here", times in hundredths of a second, one picture after the other.

Written block by block: Pillow's own writer leaves a broken file when a frame is empty, and joins equal frames.
"""

import math
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata

from .palette import Quantised, quantise, squared_error


MOST_GIF_COLOURS = 255
VISIBLE = 2.5  # levels of 255: from here on, bands are seen, and colours are dithered
OWN_PALETTES_GAIN = 0.7  # each frame gets its own palette if that brings the squared error below this share


def harden(clip: np.ndarray) -> np.ndarray:
    """A clip (F, H, W, 4) uint8 with every pixel either opaque or (0, 0, 0, 0).

    A pixel that is half there or more keeps its own straight colour, in which no background is mixed: no fringe.
    """
    return np.where(clip[..., 3:] >= 128, clip | np.array([0, 0, 0, 255], np.uint8), np.uint8(0))


def own_colours(clip: np.ndarray, number: int, *, dither: float = math.inf) -> list[Quantised]:
    """A hard-edged clip (F, H, W, 4) in at most `number` colours a frame."""
    return [quantise(frame[None], number, dither=dither) for frame in clip]


def best_colours(clip: np.ndarray, dither: float) -> list[Quantised]:
    """A hard-edged clip (F, H, W, 4) in 255 colours: frame by frame, or as one if all share a palette.

    They share one, so that what stands still keeps its colours, unless the clip as a whole has so many colours that
    palettes of their own are much closer.
    """
    shared = quantise(clip, MOST_GIF_COLOURS, dither=dither)
    shared_error = squared_error(clip, shared.pixels())
    if shared_error > 0:
        own = own_colours(clip, MOST_GIF_COLOURS, dither=dither)
        error = sum(squared_error(frame[None], one.pixels()) for frame, one in zip(clip, own)) / len(clip)
        if error < OWN_PALETTES_GAIN * shared_error:
            return own
    return [shared]


def colour_table(palette: np.ndarray) -> tuple[bytes, int]:
    """The RGB triples of a palette (K, 4), as many as a power of two, and the index in it for "nothing here"."""
    visible = palette[palette[:, 3] > 0, :3]
    return visible.tobytes().ljust(3 << max(2, len(visible).bit_length()), b"\0"), len(visible)


def write_gif(colours: Sequence[Quantised], times: Sequence[int], *, loops: int = 0, description: str = "") -> bytes:
    """A clip, frame by frame or as one, as a GIF.

    Args:
        times: milliseconds of each frame, multiples of 10.
        loops: how often it plays; 0 is for ever.
        description: ASCII text for the comment.
    """
    frames = [(index, one.palette) for one in colours for index in one.indices]
    height, width = frames[0][0].shape
    table, nothing = colour_table(frames[0][1])
    flags = 0xF0 | (len(table) // 3).bit_length() - 2
    blocks = [b"GIF89a", struct.pack("<HHBBB", width, height, flags, nothing, 0), table]
    if loops != 1:
        blocks.append(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", max(loops - 1, 0), 0))
    if description:
        text = description.encode("ascii")
        parts = [text[i : i + 255] for i in range(0, len(text), 255)]
        blocks += [b"!\xfe", *(bytes([len(part)]) + part for part in parts), b"\0"]
    for (index, palette), time in zip(frames, times):
        left, top, right, bottom = Image.fromarray(palette[index, 3] > 0).getbbox() or (0, 0, 1, 1)
        crop = Image.fromarray(index[top:bottom, left:right])
        own = palette is not frames[0][1]
        if own:
            table, nothing = colour_table(palette)
            crop.putpalette(table)
        options = {"duration": time, "disposal": 2, "transparency": nothing, "interlace": 0}
        blocks += getdata(crop, (left, top), include_color_table=own, **options)
    return b"".join([*blocks, b";"])


def encode_gif(clip: np.ndarray, times: Sequence[int], *, description: str = "") -> bytes:
    """A clip (F, H, W, 4), straight RGBA uint8, as a GIF in 255 colours, dithered where bands would be seen."""
    return write_gif(best_colours(harden(clip), VISIBLE), times, description=description)
