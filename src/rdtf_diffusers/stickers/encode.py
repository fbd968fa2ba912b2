"""Frames to an animated picture file: lossless WebP or APNG, GIF, or WEBM, with alpha and the right timing.

    save_sticker(pipe("a dog jumping").frames[0], "dog.webp", fps=8)

8 frames at 8 fps last exactly 1.000 s in all formats: times are rounded on the running total, so that no error adds up
(a GIF counts in hundredths of a second: 130, 120, 130, 120 ms ...). WebP, GIF and APNG loop for ever; players decide
whether a WEBM does.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.files import write_whole
from .apng import write_apng
from .gif import encode_gif
from .webm import bleed, encode_webm


FORMATS = {".webp": "webp", ".gif": "gif", ".png": "apng", ".apng": "apng", ".webm": "webm"}
MIN_FPS, MAX_FPS = 0.1, 50.0  # viewers slow down frames that last less than 20 ms
IMAGE_DESCRIPTION = 0x010E  # the EXIF tag that carries the metadata of a WebP or APNG file


def sticker_format(path: str | Path) -> str:
    """The format that a file name's suffix stands for: "webp", "gif", "apng" or "webm".

    Raises:
        ValueError: if the suffix is none of .webp, .gif, .png, .apng and .webm.
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


def exif_block(description: str) -> bytes:
    """An EXIF block that holds a description; nothing for none."""
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = description
    return exif.tobytes().removeprefix(b"Exif\0\0") if description else b""


def encode_webp(
    clip: np.ndarray,
    times: Sequence[int],
    *,
    quality: int | None = None,
    loops: int = 0,
    description: str = "",
    effort: int = 4,
) -> bytes:
    """A clip (F, H, W, 4), straight RGBA uint8, as WebP; lossless, or with a quality from 0 to 100.

    Args:
        times: milliseconds of each frame.
        loops: how often it plays; 0 is for ever.
        description: text for the EXIF image description.
        effort: libwebp's `method`: 0 is fast, 4 small; 5 and 6 take a hundred times longer for transparency.
    """
    first, *rest = map(Image.fromarray, clip)
    options = {"lossless": True} if quality is None else {"quality": quality}
    options |= {"duration": list(times), "loop": loops, "exif": exif_block(description), "method": effort}
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=rest, **options)
    return buffer.getvalue()


def round_times(durations: Sequence[float], format: str) -> list[int]:
    """Durations in ms as whole numbers, in tens for a GIF; rounded on the running total."""
    unit = 10 if format == "gif" else 1
    ends = np.floor(np.cumsum(durations) / unit + 0.5).astype(int)
    return np.diff(unit * ends, prepend=0).tolist()


def frame_durations(count: int, fps: float, durations: Sequence[float] | None) -> list[float]:
    """How long each of `count` frames stands, in ms.

    Raises:
        ValueError: if `fps` or `durations` are not as `encode` wants them.
    """
    if durations is None:
        return [1000 / check_fps(fps)] * count
    if len(durations) != count or not all(20 <= duration <= 60_000 for duration in durations):
        raise ValueError(
            f"`durations` must be {count} numbers from 20 to 60000 ms, one a frame, not {list(durations)}"
        )
    return list(durations)


def encode(
    frames: Sequence[Image.Image] | np.ndarray,
    format: str,
    *,
    fps: float = 8.0,
    durations: Sequence[int] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> bytes:
    """A clip as the bytes of an animated picture; one frame makes a still picture.

    WebP and APNG keep every visible pixel exactly. A GIF has up to 255 colours, hard edges and times in hundredths of
    a second. A WEBM (VP9) is close to exact, with soft edges. Equal neighbouring frames
    of a WebP may be stored as one that stands longer; the total time stays.

    Args:
        frames: PIL pictures, or an array (F, H, W, 3 or 4), straight alpha: uint8, or floating point in [0, 1].
        format: "webp", "gif", "apng" or "webm".
        fps: frames per second, 0.1 to 50.
        durations: how long each frame stands, in ms, instead of `fps`.
        metadata: anything that JSON can hold, stored inside the file: as the EXIF image description (WebP, APNG) or
            as the comment (GIF, WEBM).

    Raises:
        ValueError: if the frames, the format, the speed or the durations are not as said above.
    """
    if format not in FORMATS.values():
        raise ValueError(f"`format` must be one of 'webp', 'gif', 'apng' and 'webm', not {format!r}")
    pictures = to_pictures(frames)
    clip = np.stack([np.asarray(picture) for picture in pictures])
    times = round_times(frame_durations(len(clip), fps, durations), format)
    description = json.dumps(metadata) if metadata else ""
    if format == "gif":
        return encode_gif(clip, times, description=description)
    if format == "webm":
        return encode_webm(bleed(clip), times, description=description)
    if format == "webp":
        return encode_webp(clip, times, description=description)
    return write_apng(clip, times, exif=exif_block(description))


def save_sticker(
    frames: Sequence[Image.Image] | np.ndarray,
    path: str | Path,
    *,
    fps: float = 8.0,
    durations: Sequence[int] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Saves a clip in the format that the suffix of `path` names: .webp, .gif, .png, .apng, .webm; else as `encode`.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Raises:
        ValueError: for an unknown suffix, and as `encode`.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    data = encode(frames, sticker_format(path), fps=fps, durations=durations, metadata=metadata)
    write_whole(path, data)
    return path
