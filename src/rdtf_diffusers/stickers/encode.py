"""Frames to an animated picture file: lossless WebP, GIF and APNG, with alpha and the right timing.

    save_sticker(pipe("a dog jumping").frames[0], "dog.webp", fps=8)

All three formats loop for ever, and 8 frames at 8 fps last exactly 1.000 s in each of them: times are rounded on the
running total, so that no error adds up (a GIF counts in hundredths of a second: 130, 120, 130, 120 ms ...).
"""

import io
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata
from PIL.PngImagePlugin import Blend


FORMATS = {".webp": "webp", ".gif": "gif", ".png": "apng", ".apng": "apng"}
MIN_FPS, MAX_FPS = 0.1, 50.0  # viewers slow down frames that last less than 20 ms
IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that carries the metadata of a WebP or APNG file
TRANSPARENT = 255  # the palette index that a GIF keeps for "nothing here"


def sticker_format(path: str | Path) -> str:
    """The format that a file name's suffix stands for: "webp", "gif" or "apng".

    Raises:
        ValueError: if the suffix is none of .webp, .gif, .png and .apng.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"`path` must end in one of {', '.join(FORMATS)}, not {str(path)!r}")
    return FORMATS[suffix]


def check_fps(fps: float) -> float:
    """`fps` itself.

    Raises:
        ValueError: if it is not between 0.1 and 50 frames per second.
    """
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ValueError(f"`fps` must be between {MIN_FPS:g} and {MAX_FPS:g}, not {fps!r}")
    return fps


def to_pictures(frames: Sequence[Image.Image] | np.ndarray) -> list[Image.Image]:
    """A clip as RGBA pictures of one size.

    Args:
        frames: PIL pictures, or an array (F, H, W, C) with C = 3 or 4: uint8, or floating point in [0, 1].

    Raises:
        ValueError: if there is no frame, the frames differ in size, or an array has another shape or range.
    """
    if isinstance(frames, np.ndarray):
        if frames.ndim != 4 or frames.shape[-1] not in (3, 4):
            raise ValueError(f"`frames` must have the shape (F, H, W, 3 or 4), not {frames.shape}")
        if frames.dtype != np.uint8:
            if not (frames.size and 0 <= frames.min() and frames.max() <= 1):
                raise ValueError(f"`frames` must be uint8 or numbers in [0, 1], not {frames.dtype} beyond that range")
            frames = np.rint(frames * 255).astype(np.uint8)
        frames = [Image.fromarray(frame) for frame in frames]
    pictures = [frame.convert("RGBA") for frame in frames]
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"`frames` must be at least one picture, all of one size, not {len(pictures)} of {sizes}")
    return pictures


def _shared_palette(clip: np.ndarray) -> tuple[np.ndarray, bytes]:
    """A clip (F, H, W, 4) uint8 as palette indices (F, H, W) and the palette's 256 RGB triples.

    One palette of up to 255 colours for all frames, so that no colour flickers, and one index for "nothing here" that
    pixels with an alpha below 128 get. No dithering: its noise would crawl from frame to frame.
    """
    solid = clip[..., 3] >= 128  # (F, H, W)
    colours = clip[solid][None, :, :3] if solid.any() else np.zeros((1, 1, 3), np.uint8)  # (1, solid pixels, 3)
    reference = Image.fromarray(colours).quantize(TRANSPARENT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    tall = Image.fromarray(clip[..., :3].reshape(-1, clip.shape[2], 3))  # the frames one below the other
    indices = np.asarray(tall.quantize(palette=reference, dither=Image.Dither.NONE)).reshape(solid.shape)
    return np.where(solid, indices, TRANSPARENT).astype(np.uint8), bytes(reference.getpalette()).ljust(768, b"\0")


def _encode_gif(pictures: list[Image.Image], durations: Sequence[int], description: str) -> bytes:
    """Written block by block: Pillow's own writer leaves a broken file when a frame is empty."""
    indices, palette = _shared_palette(np.stack([np.asarray(picture) for picture in pictures]))
    blocks = [b"GIF89a", struct.pack("<HHBBB", *pictures[0].size, 0xF7, TRANSPARENT, 0), palette]
    blocks.append(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # loops for ever
    if description:
        text = description.encode("ascii")
        parts = [text[i : i + 255] for i in range(0, len(text), 255)]
        blocks += [b"!\xfe", *(bytes([len(part)]) + part for part in parts), b"\0"]
    for frame, duration in zip(indices, durations):
        left, top, right, bottom = Image.fromarray(frame != TRANSPARENT).getbbox() or (0, 0, 1, 1)
        crop = Image.fromarray(np.ascontiguousarray(frame[top:bottom, left:right]))
        options = {"duration": duration, "disposal": 2, "transparency": TRANSPARENT, "interlace": 0}
        blocks += getdata(crop, (left, top), **options)
    return b"".join([*blocks, b";"])


def encode(
    frames: Sequence[Image.Image] | np.ndarray,
    format: str,
    *,
    fps: float = 8.0,
    durations: Sequence[int] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """A clip as the bytes of an animated picture that loops for ever; one frame makes a still picture.

    WebP and APNG keep every visible pixel exactly. A GIF has up to 255 colours, hard edges and times in hundredths of
    a second. Equal neighbouring frames may be stored as one that stands longer; the total time stays.

    Args:
        frames: PIL pictures, or an array (F, H, W, 3 or 4), straight alpha: uint8, or floating point in [0, 1].
        format: "webp", "gif" or "apng".
        fps: frames per second, 0.1 to 50.
        durations: how long each frame stands, in ms, instead of `fps`.
        metadata: anything that JSON can hold, stored inside the file: as the EXIF image description (WebP, APNG) or
            as the comment (GIF).

    Raises:
        ValueError: if the frames, the format, the speed or the durations are not as said above.
    """
    if format not in FORMATS.values():
        raise ValueError(f"`format` must be one of 'webp', 'gif' and 'apng', not {format!r}")
    pictures = to_pictures(frames)
    if durations is None:
        ends = np.arange(1, len(pictures) + 1) * 1000 / check_fps(fps)
    else:
        if len(durations) != len(pictures) or min(durations) < 20 or max(durations) > 60_000:
            raise ValueError(
                f"`durations` must be {len(pictures)} numbers from 20 to 60000 ms, one a frame, not {list(durations)}"
            )
        ends = np.cumsum(durations)
    unit = 10 if format == "gif" else 1
    times = np.diff(unit * np.floor(ends / unit + 0.5).astype(int), prepend=0).tolist()
    description = json.dumps(metadata) if metadata else ""
    if format == "gif":
        return _encode_gif(pictures, times, description)
    exif = Image.Exif()
    if description:
        exif[IMAGE_DESCRIPTION] = description
    options = {"lossless": True, "method": 4} if format == "webp" else {"blend": Blend.OP_SOURCE}
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="PNG" if format == "apng" else "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=times,
        loop=0,
        exif=exif,
        **options,
    )
    return buffer.getvalue()


def save_sticker(
    frames: Sequence[Image.Image] | np.ndarray,
    path: str | Path,
    *,
    fps: float = 8.0,
    durations: Sequence[int] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Saves a clip as the format that the suffix of `path` names (.webp, .gif, .png, .apng); arguments as `encode`.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Raises:
        ValueError: for an unknown suffix, and as `encode`.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    data = encode(frames, sticker_format(path), fps=fps, durations=durations, metadata=metadata)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
