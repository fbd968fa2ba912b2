"""APNG: exact, lossy, or in a palette of up to 256 colours with full transparency.

Every frame is stored, also one that equals the frame before, and only the rectangle that changed is stored of it:
some platforms count frames, and Pillow's own writer joins equal ones and knows no palette for a whole clip.

PNG stores how each value differs from a prediction. `predictable` makes these differences multiples of a step, most
of them 0, where the prediction is the mean of the pixels to the left and above: detail is lost, not colours, and no
bands appear.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from .palette import smooth


SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE_TYPE, RGBA_TYPE = 3, 6
AVERAGE = 3  # the number of PNG's filter that predicts the mean of the pixels to the left and above
QUICK = 4  # zlib's level for choosing filters
DENSE = 1 / 8  # bytes per value: from here on it is noise, unless a quick search finds more than runs
WORTH = 1.02  # times the bytes of that search: runs that take no more are not searched any further
FRAMES = 16  # that are made lossy at once: their diagonals stay within 300 MB at 512 pixels
DEAD_ZONE = 0.65  # steps: smaller differences from the prediction are dropped


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deflate(data: bytes, level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """`data` as a zlib stream."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return compressor.compress(data) + compressor.flush()


def filtered_lines(pixels: np.ndarray) -> np.ndarray:
    """The lines of a picture (H, W, 4) under PNG's five filters, (5, H, 4 * W) uint8."""
    height, width = pixels.shape[:2]
    around = np.pad(pixels, ((1, 0), (1, 0), (0, 0))).astype(np.int16)
    left, above, corner = around[1:, :-1], around[:-1, 1:], around[:-1, :-1]
    to_left, to_above, to_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    paeth = np.where(to_above <= to_corner, above, corner)
    paeth = np.where((to_left <= to_above) & (to_left <= to_corner), left, paeth)
    predictions = np.stack([np.zeros_like(left), left, above, (left + above) >> 1, paeth])
    return (pixels - predictions).astype(np.uint8).reshape(5, height, 4 * width)


def compress(pixels: np.ndarray, effort: int) -> bytes:
    """The zlib stream of a picture (H, W) of indices or (H, W, 4) of RGBA, 8 bits each.

    Unfiltered lines are best where few colours repeat, the average filter for what `predictable` made, and for other
    pictures the filter that leaves each line the smallest values. Where runs are all there is to find, as in noise,
    no effort finds more.
    """
    if pixels.ndim == 2:
        return deflate(np.pad(pixels, ((0, 0), (1, 0))).tobytes(), effort)
    lines = filtered_lines(pixels)
    smallest = np.abs(lines.view(np.int8).astype(np.int16)).sum(axis=2).argmin(axis=0)  # the filter of each line
    attempts = []
    for filters in (np.zeros_like(smallest), np.full_like(smallest, AVERAGE), smallest):
        chosen = lines[filters, np.arange(len(filters))]
        data = np.concatenate([filters[:, None].astype(np.uint8), chosen], axis=1).tobytes()
        strategy = zlib.Z_FILTERED if filters.any() else zlib.Z_DEFAULT_STRATEGY
        attempts.append((len(deflate(data, QUICK, strategy)), data, strategy))
    quick, data, strategy = min(attempts)
    runs = deflate(data, QUICK, zlib.Z_RLE)
    if DENSE * len(data) < len(runs) <= WORTH * quick:
        return runs
    return min(runs, deflate(data, effort, strategy), key=len)


def changed_box(before: np.ndarray | None, after: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what differs between two pictures; one pixel if nothing does."""
    if before is None:
        return 0, 0, after.shape[1], after.shape[0]
    differs = before != after
    differs = differs if after.ndim == 2 else differs.any(axis=2)
    return Image.fromarray(differs).getbbox() or (0, 0, 1, 1)


def write_apng(
    frames: np.ndarray,
    times: Sequence[int],
    *,
    palette: np.ndarray | None = None,
    loops: int = 0,
    exif: bytes = b"",
    effort: int = 9,
) -> bytes:
    """RGBA frames (F, H, W, 4), or indices (F, H, W) into a palette (K, 4), as an APNG; one frame is a still PNG.

    Args:
        times: milliseconds of each frame.
        loops: how often it plays; 0 is for ever.
        exif: the bytes of an EXIF block (beginning with its byte order).
        effort: zlib's level, 0 to 9; 6 is up to ten times as fast as 9 and about a tenth larger.
    """
    height, width = frames.shape[1:3]
    kind = RGBA_TYPE if palette is None else PALETTE_TYPE
    chunks = [SIGNATURE, chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))]
    if palette is not None:
        chunks += [chunk(b"PLTE", palette[:, :3].tobytes()), chunk(b"tRNS", palette[:, 3].tobytes())]
    if exif:
        chunks.append(chunk(b"eXIf", exif))
    if len(frames) > 1:
        chunks.append(chunk(b"acTL", struct.pack(">II", len(frames), loops)))
    number = 0  # of the animation's chunks so far
    for index, (frame, time) in enumerate(zip(frames, times)):
        left, top, right, bottom = changed_box(frames[index - 1] if index else None, frame)
        if len(frames) > 1:
            place = (right - left, bottom - top, left, top)
            chunks.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *place, time, 1000, 0, 0)))
            number += 1
        data = compress(frame[top:bottom, left:right], effort)
        if index:
            data = struct.pack(">I", number) + data
            number += 1
        chunks.append(chunk(b"fdAT" if index else b"IDAT", data))
    return b"".join([*chunks, chunk(b"IEND", b"")])


def coarsen(clip: np.ndarray, step: int) -> np.ndarray:
    """A clip (F, H, W, 4) uint8 with every visible value rounded to a multiple of `step` or to 255."""
    levels = np.arange(256, dtype=np.uint8)
    rounded = np.minimum(np.rint(levels / step) * step, 255).astype(np.uint8)
    rounded[255] = 255
    return np.where(clip[..., 3:] > 0, rounded[clip], np.uint8(0))


def predictable(clip: np.ndarray, step: int, smooth_step: int | None = None) -> np.ndarray:
    """A clip (F, H, W, 4) uint8 made lossy: each value is the mean of those to its left and above plus a multiple of
    `step`, or plus nothing if that is less than 0.65 steps off. The ends of alpha stay; what is invisible may be any
    colour.

    Args:
        smooth_step: the step where the clip is smooth, if it is another one: there, coarse steps are seen.
    """
    boxes = [changed_box(clip[index - 1] if index else None, frame) for index, frame in enumerate(clip)]
    lossy = np.empty_like(clip)
    for first in range(0, len(clip), FRAMES):
        piece = slice(first, first + FRAMES)
        changed = predictable_boxes(clip[piece], boxes[piece], step, smooth_step)
        for index, ((left, top, right, bottom), pixels) in enumerate(zip(boxes[piece], changed), first):
            lossy[index] = lossy[index - 1] if index else 0
            lossy[index, top:bottom, left:right] = pixels
    return lossy


def predictable_boxes(
    clip: np.ndarray, boxes: Sequence[tuple[int, int, int, int]], step: int, smooth_step: int | None
) -> Iterator[np.ndarray]:
    """The same for a rectangle (left, top, right, bottom) of each frame: (height, width, 4) uint8."""
    height = max(bottom - top for _, top, _, bottom in boxes)
    width = max(right - left for left, _, right, _ in boxes)
    # Pixels on one diagonal do not depend on each other: (H + W, H, F, 4), each diagonal one row further down
    target = np.zeros((height + width, height, len(clip), 4), np.int16)
    steps = np.full((*target.shape[:3], 1), step, np.float32)
    for index, (left, top, right, bottom) in enumerate(boxes):
        finer = smooth(clip[index : index + 1])[0, ..., None] if smooth_step else None
        for y in range(bottom - top):
            place = slice(y + 1, y + 1 + right - left), y, index
            target[place] = clip[index, top + y, left:right]
            if smooth_step:
                steps[place] = np.where(finer[top + y, left:right], smooth_step, step)
    result = np.zeros_like(target)  # diagonal 0 is outside
    for diagonal in range(1, height + width):
        rows = slice(max(0, diagonal - width), min(height, diagonal))
        before, values, step_here = result[diagonal - 1], target[diagonal, rows], steps[diagonal, rows]
        above = np.concatenate([np.zeros_like(before[:1]), before[:-1]])[rows]
        prediction = (before[rows] + above) >> 1
        off = values - prediction
        multiple = np.rint(off / step_here) * (np.abs(off) >= DEAD_ZONE * step_here)
        found = np.minimum(np.maximum(prediction + (step_here * multiple).astype(np.int16), 0), 255)
        alpha = values[..., 3:]
        found = np.where(alpha > 0, found, prediction)
        soft = np.minimum(np.maximum(found[..., 3:], 1), 254)
        found[..., 3:] = np.where((alpha == 0) | (alpha == 255), alpha, soft)
        result[diagonal, rows] = found
    for index, (left, top, right, bottom) in enumerate(boxes):
        rows = [result[y + 1 : y + 1 + right - left, y, index] for y in range(bottom - top)]
        yield np.stack(rows).astype(np.uint8)
