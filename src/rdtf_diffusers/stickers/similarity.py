"""How alike two clips look: mean structural similarity, over black and over white.

After Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, but in windows
around every other pixel only.
"""

import numpy as np


WINDOW = np.array([1, 6, 15, 20, 15, 6, 1], np.float32) / 64  # nearly a Gaussian
LUMINANCE, CONTRAST = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # the paper's C1 and C2


def window_means(values: np.ndarray) -> np.ndarray:
    """Weighted means of (H, W, C) around every other pixel of every other line."""
    reach = len(WINDOW) // 2
    for axis in (0, 1):
        length = values.shape[axis]
        margins = [(reach, reach) if dimension == axis else (0, 0) for dimension in range(3)]
        padded = np.pad(values, margins, mode="symmetric")
        parts = (padded[(slice(None),) * axis + (slice(start, start + length, 2),)] for start in range(len(WINDOW)))
        values = sum(weight * part for weight, part in zip(WINDOW, parts))
    return values


def similarity(clip: np.ndarray, other: np.ndarray) -> float:
    """The mean similarity of two clips (F, H, W, 4), straight RGBA uint8: 1 if they look the same."""
    values = []
    for frames in zip(clip, other):
        alphas = [frame[..., 3:] / np.float32(255) for frame in frames]
        for background in (0, 255):
            x, y = (frame[..., :3] * alpha + background * (1 - alpha) for frame, alpha in zip(frames, alphas))
            mean_x, mean_y, square_x, square_y, product = map(window_means, (x, y, x * x, y * y, x * y))
            variances = square_x - mean_x**2 + square_y - mean_y**2
            luminance = (2 * mean_x * mean_y + LUMINANCE) / (mean_x**2 + mean_y**2 + LUMINANCE)
            structure = (2 * (product - mean_x * mean_y) + CONTRAST) / (variances + CONTRAST)
            values.append(float((luminance * structure).mean()))
    return float(np.mean(values))
