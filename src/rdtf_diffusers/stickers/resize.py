"""A clip in another size: premultiplied, with crisp edges when it grows.

    fit_canvas(clip, 512, 512)  # (F, H, W, 4) -> (F, 512, 512, 4), uint8

Growing starts from a bicubic picture, which is blurred, and pushes each value away from the middle of what its
neighbourhood in the small picture holds; then it is corrected so that shrinking it again gives the small picture.
Nothing leaves the range of the neighbourhood, so there is no ringing.
"""

import numpy as np
from PIL import Image


Resampling = Image.Resampling
ROUNDS = 2  # of steepening and correcting
STEEPNESS = 1.5  # how much steeper an edge gets in a round
EDGE = (16.0, 64.0)  # levels between neighbours: below it is a gradient or texture, above it is an edge


def premultiplied(frame: np.ndarray) -> np.ndarray:
    """(H, W, 4) straight RGBA uint8 to premultiplied float32 in [0, 255]."""
    alpha = frame[..., 3:].astype(np.float32)
    return np.concatenate([frame[..., :3] * (alpha / 255), alpha], axis=2)


def straight(values: np.ndarray) -> np.ndarray:
    """The inverse of `premultiplied`, clipped and rounded."""
    alpha = np.clip(values[..., 3:], 0, 255)
    colour = np.where(alpha >= 0.5, values[..., :3] * 255 / np.maximum(alpha, 0.5), 0)
    return np.rint(np.clip(np.concatenate([colour, alpha], axis=2), 0, 255)).astype(np.uint8)


def resample(values: np.ndarray, width: int, height: int, method: Image.Resampling) -> np.ndarray:
    """Premultiplied (H, W, 4) float32 resampled by Pillow, which antialiases when shrinking."""
    planes = (Image.fromarray(np.ascontiguousarray(values[..., channel])) for channel in range(4))
    return np.stack([np.asarray(plane.resize((width, height), method)) for plane in planes], axis=2)


def neighbourhood(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of the 3 x 3 pixels around each of (H, W, 4)."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.minimum.reduce(shifted), np.maximum.reduce(shifted)


def enlarge(values: np.ndarray, width: int, height: int) -> np.ndarray:
    """Premultiplied (H, W, 4) float32, grown with crisp edges."""
    lowest, highest = (resample(bound, width, height, Resampling.BILINEAR) for bound in neighbourhood(values))
    span = np.maximum(highest - lowest, 1)
    slope = 1 + (STEEPNESS - 1) * np.clip((span - EDGE[0]) / (EDGE[1] - EDGE[0]), 0, 1)
    result = resample(values, width, height, Resampling.BICUBIC)
    for _ in range(ROUNDS):
        place = (np.clip(result, lowest, highest) - lowest) / span  # 0 at the lowest, 1 at the highest
        result = lowest + span * np.clip((place - 0.5) * slope + 0.5, 0, 1)
        lost = values - resample(result, values.shape[1], values.shape[0], Resampling.BOX)
        result = result + resample(lost, width, height, Resampling.BICUBIC)
    return np.clip(result, lowest, highest)


def fit_canvas(clip: np.ndarray, width: int, height: int) -> np.ndarray:
    """A clip (F, H, W, 4), straight RGBA uint8, as large as fits into `width` x `height`, with transparent margins."""
    rows, columns = clip.shape[1:3]
    if (columns, rows) == (width, height):
        return clip
    scale = min(width / columns, height / rows)
    inner_width, inner_height = max(1, round(columns * scale)), max(1, round(rows * scale))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    result = np.zeros((len(clip), height, width, 4), np.uint8)
    for frame, target in zip(clip, result[:, top : top + inner_height, left : left + inner_width]):
        values = premultiplied(frame)
        if scale > 1:
            target[...] = straight(enlarge(values, inner_width, inner_height))
        else:
            target[...] = straight(resample(values, inner_width, inner_height, Resampling.LANCZOS))
    return result
