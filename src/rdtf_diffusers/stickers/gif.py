"""GIF: up to 255 colours and "nothing here", times in hundredths of a second, one picture after the other.

Written block by block: Pillow's own writer leaves a broken file when a frame is empty, and joins equal frames.
"""

import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata

from .palette import quantise, squared_error


MOST_GIF_COLOURS = 255
VISIBLE = 2.5  # levels of 255: from here on, bands are seen
TRANSPARENT = 255  # the palette index kept for "nothing here"
OWN_PALETTES_GAIN = 0.7  # each frame gets its own palette if that brings the squared error below this share


def harden(clip: np.ndarray) -> np.ndarray:
    """A clip (F, H, W, 4) uint8 with every pixel either opaque or (0, 0, 0, 0).

    A pixel that is half there or more keeps its own straight colour, in which no background is mixed: no fringe.
    """
    return np.where(clip[..., 3:] >= 128, clip | np.array([0, 0, 0, 255], np.uint8), np.uint8(0))


def gif_palettes(clip: np.ndarray, number: int, dither: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Indices (H, W) and palette (K, 4) of every frame of a hard-edged clip, in at most `number` colours.

    All frames share one palette, so that what stands still keeps its colours, unless the clip as a whole has so many
    colours that palettes of their own are much closer; with fewer than 255 colours, bytes matter more.
    """
    indices, palette = quantise(clip, number, dither=dither)
    shared_error = squared_error(clip, palette[indices])
    if shared_error > 0 and number == MOST_GIF_COLOURS:
        own = [quantise(frame[None], number, dither=dither) for frame in clip]
        error = sum(squared_error(frame[None], table[index]) for frame, (index, table) in zip(clip, own)) / len(clip)
        if error < OWN_PALETTES_GAIN * shared_error:
            return [index[0] for index, _ in own], [table for _, table in own]
    return list(indices), [palette] * len(clip)


def colour_table(palette: np.ndarray) -> bytes:
    """The 256 RGB triples of a palette (K, 4)."""
    return palette[:TRANSPARENT, :3].tobytes().ljust(768, b"\0")


def encode_gif(
    clip: np.ndarray,
    times: Sequence[int],
    *,
    colours: int = MOST_GIF_COLOURS,
    dither: float = VISIBLE,
    loops: int = 0,
    description: str = "",
) -> bytes:
    """A clip (F, H, W, 4), straight RGBA uint8, as a GIF.

    Args:
        times: milliseconds of each frame, multiples of 10.
        colours: most colours of a palette, 2 to 255.
        dither: colours that are off by more levels of 255 are dithered in smooth regions; `math.inf` for none.
        loops: how often it plays; 0 is for ever.
        description: ASCII text for the comment.
    """
    hard = harden(clip)
    indices, palettes = gif_palettes(hard, colours, dither)
    height, width = clip.shape[1:3]
    blocks = [b"GIF89a", struct.pack("<HHBBB", width, height, 0xF7, TRANSPARENT, 0), colour_table(palettes[0])]
    if loops != 1:
        blocks.append(b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", max(loops - 1, 0), 0))
    if description:
        text = description.encode("ascii")
        parts = [text[i : i + 255] for i in range(0, len(text), 255)]
        blocks += [b"!\xfe", *(bytes([len(part)]) + part for part in parts), b"\0"]
    for frame, index, palette, time in zip(hard, indices, palettes, times):
        solid = frame[..., 3] > 0
        left, top, right, bottom = Image.fromarray(solid).getbbox() or (0, 0, 1, 1)
        index = np.where(solid, index, np.uint8(TRANSPARENT))[top:bottom, left:right]
        crop = Image.fromarray(np.ascontiguousarray(index))
        own = palette is not palettes[0]
        if own:
            crop.putpalette(colour_table(palette))
        options = {"duration": time, "disposal": 2, "transparency": TRANSPARENT, "interlace": 0}
        blocks += getdata(crop, (left, top), include_color_table=own, **options)
    return b"".join([*blocks, b";"])
