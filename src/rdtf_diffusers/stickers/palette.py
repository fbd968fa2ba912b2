"""A clip in few colours: one palette for all frames, and dithering that stands still.

    indices, palette = quantise(clip, 64, dither=2.5)  # (F, H, W) and (K, 4), both uint8

Colours are compared as they look over black and over white together, in luma and chroma. The palette divides the
clip's colours where they spread most and then moves by k-means; a colour that fills most of its cluster keeps its
exact value, so that flat art stays exact. Dithering mixes two entries of the palette by a threshold pattern that is
fixed in space: it does not crawl from frame to frame. It touches neither texture nor colours that the palette holds.
"""

import math
from typing import NamedTuple

import numpy as np


# Distinct colours that are told apart, of more those of a small cell count as one: where a palette is found, and where
# pixels are given its entries.
MOST_CLUSTERED, MOST_COLOURS = 1 << 16, 1 << 17
ROUNDS = 16  # of k-means
# Colours that are compared with a palette at once: few enough that BLAS keeps to one thread (OpenBLAS: below 2^18
# multiplications). More threads gain nothing here, and on a busy machine they wait for each other: 20 times as slow.
PIECE = 200
SMOOTH = 1.5  # levels of 255 from the mean around a pixel: above it, texture hides bands, and nothing is dithered
MOSTLY_SMOOTH = 0.8  # of what is visible; below it, nothing is dithered
NEIGHBOURS = 8  # entries of the palette that a colour may be mixed from
NOISE_PRICE = 0.25  # how much of the contrast between the two entries of a mixture counts as error
# Premultiplied R, G, B and alpha to: luma and chroma (as in JPEG) of the mean of "over black" and "over white", and
# half the difference of the two. Distances are those over both backgrounds; luma weighs most.
LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
TO_FEATURES = np.zeros((4, 4), np.float32)
TO_FEATURES[:3, :3] = LUMA_CHROMA
TO_FEATURES[0, 3], TO_FEATURES[3, 3] = -0.5, 0.5
FROM_FEATURES = np.linalg.inv(TO_FEATURES)


class Colours(NamedTuple):
    """The colours of a clip: `points` (N, 4) straight RGBA in [0, 255], `counts` (N,) of their pixels, and for each
    pixel (F, H, W) in `inverse` which point it is."""

    points: np.ndarray
    counts: np.ndarray
    inverse: np.ndarray


def cells(colours: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """For each colour (..., 4), straight RGBA uint8, the number of its cell, and how many cells are in use.

    The cells of the RGBA cube are halved along every channel, bit by bit, as long as at most `most` are in use. What
    is invisible has a cell of its own, and nothing opaque shares one with what is not.
    """
    packed = np.ascontiguousarray(colours).view("<u4")[..., 0]
    alpha = colours[..., 3]
    packed = np.where(alpha > 0, packed, np.uint32(0))
    cell, number = (alpha > 0) + (alpha == 255).astype(np.int32), 3
    for bit in range(7, -1, -1):
        bits = packed >> np.uint32(bit) & np.uint32(0x01010101)
        bits = (bits | bits >> np.uint32(7) | bits >> np.uint32(14) | bits >> np.uint32(21)) & np.uint32(15)
        halves = cell << 4 | bits.view(np.int32)
        used = np.zeros(16 * number, bool)
        used[halves] = True
        if np.count_nonzero(used) > most:
            break
        cell, number = (np.cumsum(used, dtype=np.int32) - 1)[halves], np.count_nonzero(used)
    return cell, number


def count_colours(clip: np.ndarray, most: int = MOST_COLOURS) -> Colours:
    """At most `most` colours of a clip (F, H, W, 4), straight RGBA uint8; everything invisible is one colour."""
    inverse, number = cells(clip, most)
    counts = np.bincount(inverse.ravel(), minlength=number)
    shown = np.where(clip[..., 3:] > 0, clip, np.uint8(0))
    sums = [np.bincount(inverse.ravel(), shown[..., channel].ravel(), number) for channel in range(4)]
    return Colours((np.stack(sums, axis=1) / counts[:, None]).astype(np.float32), counts, inverse)


def fewer_colours(points: np.ndarray, counts: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours (N, 4) that occur `counts` times as at most `most` means of near ones, and how often those occur."""
    inverse, number = cells(np.rint(points).astype(np.uint8), most)
    total = np.bincount(inverse, counts, number)
    sums = [np.bincount(inverse, counts * column, number) for column in points.T]
    return (np.stack(sums, axis=1) / total[:, None]).astype(np.float32), total


def to_features(points: np.ndarray) -> np.ndarray:
    """Straight RGBA (N, 4) as points whose distances are differences over black and over white."""
    points = points.astype(np.float32)
    alpha = points[:, 3:]
    return np.concatenate([points[:, :3] * alpha / 255, alpha], axis=1) @ TO_FEATURES.T


def to_straight(features: np.ndarray) -> np.ndarray:
    """The straight RGBA (N, 4) uint8 of such points; nearly opaque and nearly invisible become so."""
    premultiplied = features @ FROM_FEATURES.T
    alpha = premultiplied[:, 3:]
    alpha = np.where(alpha > 252, 255, np.where(alpha < 3, 0, alpha))
    colour = np.where(alpha > 0, premultiplied[:, :3] * 255 / np.maximum(alpha, 1), 0)
    return np.clip(np.rint(np.concatenate([colour, alpha], axis=1)), 0, 255).astype(np.uint8)


def divide(features: np.ndarray, counts: np.ndarray, number: int) -> np.ndarray:
    """The centres (at most `number`, 4) of a clip's colours, divided again and again where the error is largest.

    Each division is at the mean, across the axis along which that part of the colours spreads most.
    """

    def measure(members: np.ndarray) -> tuple[float, int, float, np.ndarray]:
        weights = counts[members]
        mean = np.average(features[members], axis=0, weights=weights)
        spread = weights @ (features[members] - mean) ** 2
        axis = int(spread.argmax())
        return float(spread.sum()), axis, float(mean[axis]), mean

    parts = [np.arange(len(features))]
    measures = [measure(parts[0])]
    while len(parts) < number:
        worst = max(range(len(parts)), key=lambda part: measures[part][0])
        error, axis, threshold, _ = measures[worst]
        members = parts[worst]
        above = features[members, axis] > threshold
        if error <= 0 or not 0 < above.sum() < len(members):
            break  # nothing left to tell apart
        parts[worst], rest = members[above], members[~above]
        parts.append(rest)
        measures[worst] = measure(parts[worst])
        measures.append(measure(rest))
    return np.stack([mean for *_, mean in measures]).astype(np.float32)


def nearest(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Which of `centres` (K, 4) is nearest to each of `features` (N, 4)."""
    # |feature - centre|^2 but for |feature|^2, as one product, in pieces that stay in the processor's cache
    left = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
    right = np.concatenate([-2 * centres, (centres**2).sum(axis=1, keepdims=True)], axis=1).T.copy()
    pieces = [(left[start : start + PIECE] @ right).argmin(axis=1) for start in range(0, len(left), PIECE)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.intp)


def cluster(points: np.ndarray, counts: np.ndarray, number: int) -> np.ndarray:
    """A palette (at most `number`, 4) of straight RGBA uint8 for colours that occur `counts` times.

    A colour that makes up most of its cluster stands for it exactly.
    """
    if len(points) <= number:  # also if there is none
        return np.rint(points).astype(np.uint8)
    features = to_features(points)
    centres = divide(features, counts, number)
    for _ in range(ROUNDS):
        own = nearest(features, centres)
        sizes = np.bincount(own, counts, len(centres))
        sums = [np.bincount(own, counts * column, len(centres)) for column in features.T]
        means = np.stack(sums, axis=1) / np.maximum(sizes, 1)[:, None]
        centres = np.where(sizes[:, None] > 0, means, centres).astype(np.float32)
    palette = to_straight(centres)
    dominant = np.flatnonzero(counts > sizes[own] / 2)
    palette[own[dominant]] = np.rint(points[dominant])
    return np.unique(palette, axis=0)


def thresholds(height: int, width: int) -> np.ndarray:
    """Thresholds in (0, 1) for an (H, W) picture: Bayer's 8 x 8 pattern, which compresses well."""
    pattern = np.zeros((1, 1))
    for _ in range(3):
        pattern = np.block([[4 * pattern, 4 * pattern + 2], [4 * pattern + 3, 4 * pattern + 1]])
    tiles = np.tile((pattern + 0.5) / 64, (-(-height // 8), -(-width // 8)))
    return tiles[:height, :width].astype(np.float32)


def smooth(clip: np.ndarray) -> np.ndarray:
    """Where (F, H, W) every channel of a clip (F, H, W, 4) is near the mean of the 5 x 5 pixels around it.

    So it is in any even gradient, where bands would be seen, and it is not in texture and at edges.
    """
    height, width = clip.shape[1:3]
    padded = np.pad(clip, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge").astype(np.int16)
    rows = sum(padded[:, y : y + height] for y in range(5))
    total = sum(rows[:, :, x : x + width] for x in range(5))
    return (np.abs(total - 25 * clip.astype(np.int16)) <= 25 * SMOOTH).all(axis=3)


def mixtures(features: np.ndarray, entries: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `features` (N, 4) the second entry (of (K, 4)) to mix, and its share, at most one half.

    `first` is the nearest entry. The second is the one whose mixture comes closest to the colour, where contrast
    within the mixture, which is seen as noise, counts as error too.
    """
    between = ((entries[:, None] - entries) ** 2).sum(axis=2)
    near = np.argsort(between, axis=1)[first, 1 : NEIGHBOURS + 1]  # (N, neighbours)
    gap = features - entries[first]  # (N, 4)
    step = entries[near] - entries[first][:, None]  # (N, neighbours, 4)
    contrast = np.maximum((step**2).sum(axis=2), 1e-6)
    share = np.clip(np.einsum("nc,nkc->nk", gap, step) / contrast, 0, 0.5)
    error = ((gap[:, None] - share[..., None] * step) ** 2).sum(axis=2) + NOISE_PRICE * share * (1 - share) * contrast
    best = error.argmin(axis=1)[:, None]
    return np.take_along_axis(near, best, axis=1)[:, 0], np.take_along_axis(share, best, axis=1)[:, 0]


class Quantised(NamedTuple):
    """A clip in few colours: indices (F, H, W) uint8 into a palette (K, 4), straight RGBA uint8, and whether any of
    them were dithered. Colours that fit are kept exactly. What is invisible has the palette's last index."""

    indices: np.ndarray
    palette: np.ndarray
    dithered: bool

    def pixels(self) -> np.ndarray:
        """The clip itself, (F, H, W, 4)."""
        return self.palette[self.indices]

    def part(self, frames: slice) -> "Quantised":
        """Some of the frames, in the same palette."""
        return self._replace(indices=self.indices[frames])


def quantise(clip: np.ndarray, number: int, *, dither: float = math.inf, colours: Colours | None = None) -> Quantised:
    """A clip (F, H, W, 4), straight RGBA uint8, in at most `number` visible colours.

    Colours that are off by more than `dither` levels of 255 are dithered where the clip is smooth, if that is most of
    it: elsewhere texture hides bands, and dithering would be one more noise.

    Args:
        colours: what `count_colours` finds in the clip, if it is known already.
    """
    points, counts, inverse = colours or count_colours(clip)
    seen = np.flatnonzero(points[:, 3] > 0)
    palette = cluster(*fewer_colours(points[seen], counts[seen], MOST_CLUSTERED), number)
    features, entries = to_features(points[seen]), to_features(palette)
    first = np.full(len(points), len(palette), np.uint8)
    first[seen] = nearest(features, entries)
    if len(seen) < len(points):
        palette = np.concatenate([palette, np.zeros((1, 4), np.uint8)])
    off = ((features - entries[first[seen]]) ** 2).sum(axis=1) > dither**2
    if not off.any() or len(entries) == 1:
        return Quantised(first[inverse], palette, False)
    even = smooth(clip) & (clip[..., 3] > 0)
    if even.sum() < MOSTLY_SMOOTH * np.count_nonzero(clip[..., 3]):
        return Quantised(first[inverse], palette, False)
    second, share = first.copy(), np.zeros(len(points), np.float32)
    second[seen[off]], share[seen[off]] = mixtures(features[off], entries, first[seen[off]])
    mixed = even & (share[inverse] > thresholds(*inverse.shape[1:]))
    return Quantised(np.where(mixed, second[inverse], first[inverse]), palette, bool(mixed.any()))


def squared_error(clip: np.ndarray, other: np.ndarray) -> float:
    """How much two clips (F, H, W, 4), straight RGBA uint8, differ over black and white: the mean over the pixels."""
    total = 0.0
    for frame, rest in zip(clip, other):
        difference = to_features(frame.reshape(-1, 4)) - to_features(rest.reshape(-1, 4))
        total += float(np.einsum("nc,nc->", difference, difference))
    return total / (clip.size / 4)
