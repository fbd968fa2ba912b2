"""Read any sticker file into frames with their timing, and turn frames into clips.

```python
animation = read_animation("cat.webp")
frames = animation.pick(8)                  # evenly spaced in time
clip = frames_to_clip(frames, size=64)      # (8, 4, 64, 64) in [-1, 1]
```
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .decoders import DECODING_ERRORS, Limits, decode


MAX_BYTES = 32 * 2**20
MAX_FRAME_PIXELS = 4096 * 4096
MAX_FRAMES = 1000
MAX_TOTAL_PIXELS = 64 * 2**20
DEFAULT_DURATION_MS = 100
# Pillow's filters, as they resize channels of floats. All but `nearest` average over what they make smaller.
INTERPOLATION_MODES = ("bicubic", "bilinear", "lanczos", "hamming", "box", "nearest")


class AnimationError(ValueError):
    """A file that cannot be read as a picture or animation; the message names the file and the reason."""


@dataclass(frozen=True)
class Animation:
    """A decoded picture or animation.

    Attributes:
        frames: (N, H, W, 4) uint8, straight (not premultiplied) RGBA.
        durations: (N,) float64, how long each frame is shown, in milliseconds, all above 0.
        source: the file's name, for messages.
    """

    frames: np.ndarray
    durations: np.ndarray
    source: str

    def pick(self, count: int) -> np.ndarray:
        """`count` frames evenly spaced in time, (count, H, W, 4); see `evenly_timed`."""
        return self.frames[evenly_timed(self.durations, count)]


def evenly_timed(durations: np.ndarray, count: int) -> np.ndarray:
    """Indices (count,) of the frames shown at the start of each of `count` equal steps of an animation's time.

    Encoders merge equal neighbours into one long frame, so a long frame may be returned more than once.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1, got {count}.")
    ends = np.cumsum(durations)
    times = np.arange(count) * (ends[-1] / count)
    return np.searchsorted(ends, times + 1e-6, side="right").clip(max=len(ends) - 1)


def read_animation(
    file: str | os.PathLike | bytes,
    source: str | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    max_frame_pixels: int = MAX_FRAME_PIXELS,
    max_frames: int = MAX_FRAMES,
    max_total_pixels: int = MAX_TOTAL_PIXELS,
) -> Animation:
    """Read a GIF, APNG, animated WebP, WebM, MP4, TGS, Lottie JSON, PNG or JPEG with every frame and its timing.

    The format is told by the content; the file's suffix does not matter.

    Args:
        file: a path, or the file's bytes.
        source: the name used in messages; the path by default.
        max_bytes: largest file read; the other limits bound pixels per frame, frames, and pixels of all frames
            together. They act before anything is decoded, so that a small hostile file cannot fill the memory.

    Missing durations become 100 ms and so do, in GIF, APNG and WebP, those of 10 ms and less, as browsers show them.
    Stills are turned as their EXIF orientation says, videos as their rotation says.

    Raises:
        AnimationError: the file is missing, too large, broken, cut short or not one of these formats; or it is a TGS
            or Lottie file and rlottie-python is not installed.
    """
    source = source or (f"{len(file)} bytes" if isinstance(file, bytes) else os.fspath(file))
    try:
        if isinstance(file, bytes):
            data = file
        else:
            with open(file, "rb") as stream:
                data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ValueError(f"more than {max_bytes} bytes")
        frames, durations = zip(*decode(data, Limits(max_frame_pixels, max_frames, max_total_pixels)))
        if len({frame.shape for frame in frames}) > 1:
            raise ValueError("its frames differ in size")
    except DECODING_ERRORS as error:
        raise AnimationError(f"{source}: {getattr(error, 'strerror', None) or error}") from error
    milliseconds = np.asarray(durations, dtype=np.float64)
    return Animation(np.stack(frames), np.where(milliseconds > 0, milliseconds, DEFAULT_DURATION_MS), source)


def premultiply(frames: np.ndarray) -> torch.Tensor:
    """Straight RGBA uint8 (N, H, W, 4) -> premultiplied float (N, 4, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float().div_(255)
    pixels[:, :3] *= pixels[:, 3:]
    return pixels


def pad_to_square(pixels: torch.Tensor) -> torch.Tensor:
    """Centre (N, C, H, W) in a transparent square (N, C, S, S), S = max(H, W)."""
    height, width = pixels.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(pixels, (left, side - width - left, top, side - height - top))


def crop_to_square(pixels: torch.Tensor) -> torch.Tensor:
    """The central square (N, C, S, S) of (N, C, H, W), S = min(H, W)."""
    height, width = pixels.shape[-2:]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return pixels[..., top : top + side, left : left + side]


def resize_premultiplied(pixels: torch.Tensor, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """Resize premultiplied RGBA (N, 4, S, S) in [0, 1] to (N, 4, size, size) with antialiasing.

    Raises:
        ValueError: `interpolation` is none of `INTERPOLATION_MODES`.
    """
    if interpolation not in INTERPOLATION_MODES:
        raise ValueError(f"`interpolation` must be one of {', '.join(INTERPOLATION_MODES)}, got {interpolation!r}.")
    if pixels.shape[-1] == size:
        return pixels
    if interpolation in ("bicubic", "bilinear"):  # the same filters as Pillow's, all channels at once
        pixels = F.interpolate(pixels, size=(size, size), mode=interpolation, antialias=True, align_corners=False)
    else:
        resample = Image.Resampling[interpolation.upper()]
        planes = [Image.fromarray(plane).resize((size, size), resample) for plane in pixels.flatten(0, 1).numpy()]
        pixels = torch.from_numpy(np.stack(planes)).unflatten(0, pixels.shape[:2])
    pixels = pixels.clamp(0, 1)
    return torch.minimum(pixels, pixels[:, 3:])  # bicubic and Lanczos overshoot, and no colour is above its alpha


def over_white(clip: torch.Tensor) -> torch.Tensor:
    """Premultiplied RGBA (N, 4, H, W) in [-1, 1] -> RGB over white (N, 3, H, W) in [-1, 1]."""
    return clip[:, :3] - clip[:, 3:] + 1


def frames_to_clip(
    frames: np.ndarray, size: int, channels: int = 4, center_crop: bool = False, interpolation: str = "bicubic"
) -> torch.Tensor:
    """Frames -> a clip, made square and resized with antialiasing while premultiplied.

    Args:
        frames: (N, H, W, 4) uint8, straight RGBA.
        size: height and width of the clip in pixels.
        channels: 4 for premultiplied RGBA (transparent = -1 everywhere), 3 for RGB over white.
        center_crop: cut frames to their central square; by default they are padded with transparency.
        interpolation: the filter for resizing, one of `INTERPOLATION_MODES`.

    Returns:
        Float tensor (N, channels, size, size) in [-1, 1].
    """
    if channels not in (3, 4):
        raise ValueError(f"`channels` must be 4 (premultiplied RGBA) or 3 (RGB over white), got {channels}.")
    pixels = premultiply(frames)
    pixels = crop_to_square(pixels) if center_crop else pad_to_square(pixels)
    clip = resize_premultiplied(pixels, size, interpolation) * 2 - 1
    return clip if channels == 4 else over_white(clip)
