"""APNG: exact, or in a palette of up to 256 colours with full transparency.

Every frame is stored, also one that equals the frame before, and only the rectangle that changed is stored of it:
some platforms count frames, and Pillow's own writer joins equal ones and knows no palette for a whole clip.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE_TYPE, RGBA_TYPE = 3, 6


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def compress(pixels: np.ndarray, effort: int) -> bytes:
    """The zlib stream of a picture (H, W) of indices or (H, W, 4) of RGBA, 8 bits each.

    Unfiltered lines are best where few colours repeat; for RGBA, Pillow's choice of filters is tried as well.
    """
    lines = pixels.reshape(len(pixels), -1)
    plain = zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes(), effort)
    if pixels.ndim == 2:
        return plain
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=effort)
    data, position, filtered = buffer.getvalue(), len(SIGNATURE), []
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"IDAT":
            filtered.append(data[position + 8 : position + 8 + length])
        position += length + 12
    return min(plain, b"".join(filtered), key=len)


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
        effort: zlib's level, 0 to 9; 6 is ten times as fast as 9 and about a tenth larger.
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
