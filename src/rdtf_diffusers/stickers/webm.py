"""WEBM: VP9 with transparency and no sound, by PyAV."""

import io
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


MILLISECOND = Fraction(1, 1000)
BEST_CRF, WORST_CRF = 4, 63  # VP9's quality: lower is better
SMPTE170M, STUDIO_RANGE = 6, 1  # FFmpeg's numbers for the colours as they are converted here: written into the file


def bleed(clip: np.ndarray) -> np.ndarray:
    """A clip (F, H, W, 4), straight RGBA uint8, whose invisible pixels take on the colours of visible ones nearby.

    VP9 stores colours at half the resolution: without this, edges would mix with whatever is invisible beside them.
    """
    return np.stack([bleed_frame(frame) for frame in clip])


def bleed_frame(frame: np.ndarray) -> np.ndarray:
    """The same for one frame (H, W, 4)."""
    alpha = frame[..., 3:].astype(np.float32)
    levels = [np.concatenate([frame[..., :3] * alpha, alpha], axis=2)]  # premultiplied, ever smaller
    while max(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        even = np.pad(levels[-1], ((0, height % 2), (0, width % 2), (0, 0)))
        levels.append(even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2])
    colour = np.zeros((1, 1, 3), np.float32)
    for level in reversed(levels):
        height, width = level.shape[:2]
        beneath = colour.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        colour = np.where(level[..., 3:] > 0, level[..., :3] / np.maximum(level[..., 3:], 1), beneath)
    return np.concatenate([np.rint(colour).astype(np.uint8), frame[..., 3:]], axis=2)


def encode_webm(clip: np.ndarray, times: Sequence[int], *, crf: int = 15, description: str = "") -> bytes:
    """A clip (F, H, W, 4), straight RGBA uint8 as `bleed` leaves it, as WEBM: VP9, yuva420p, no sound.

    Args:
        times: milliseconds of each frame.
        crf: VP9's constant quality, 4 (nearly exact) to 63.
        description: text for the container's comment.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        container.metadata["comment"] = description
        rate = Fraction(1000 * len(times), sum(times)).limit_denominator(1000)
        stream = container.add_stream("libvpx-vp9", rate=rate)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuva420p"
        codec = stream.codec_context
        codec.time_base, codec.thread_count = MILLISECOND, 1  # with more threads the bytes vary
        codec.colorspace, codec.color_range = SMPTE170M, STUDIO_RANGE
        # Alternate reference frames and transparency exclude each other in libvpx
        codec.options = {"crf": str(crf), "b": "0", "auto-alt-ref": "0", "cpu-used": "3", "deadline": "good"}
        starts = np.cumsum([0, *times]).tolist()
        packets = []
        for pixels, start in zip(clip, starts):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            frame.pts, frame.time_base = start, MILLISECOND
            packets += stream.encode(frame)
        for packet, time in zip(packets + stream.encode(), times):
            packet.duration = time  # libvpx gives each the mean time, which would be wrong for the last one
            container.mux(packet)
    return buffer.getvalue()
