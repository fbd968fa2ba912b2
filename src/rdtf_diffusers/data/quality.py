"""What can be measured of an animation, which ones are worth training on, and which are copies of each other.

```python
reason = Filters().reason(animation, row)   # None, or why it would be dropped
groups = near_duplicates(np.stack([perceptual_hash(animation) for animation in animations]))
```
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .animation import Animation


CELLS = 32  # motion and hashes look at frames averaged to this many cells a side
HASH_PARTS = 4  # equal parts of the time, each with bits of its own
HASH_FREQUENCIES = 8
# A coefficient counts as positive or negative from this share of the range from black to white on. Symmetric pictures,
# and most stickers are, have half of their coefficients at 0, where rounding alone would decide about the sign.
HASH_TOLERANCE = np.array([[0.004], [0.008]])  # of grey, of alpha
HASH_LEVELS = 16
BUCKET_WINDOW = 256
SET_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)


def _premultiplied(frames: np.ndarray) -> Iterator[Image.Image]:
    return (Image.fromarray(frame).convert("RGBa") for frame in frames)


def _cells(frames: np.ndarray) -> np.ndarray:
    """Straight RGBA (N, H, W, 4) uint8 -> means of premultiplied areas (N, CELLS, CELLS, 4) in [0, 1]."""
    small = [picture.resize((CELLS, CELLS), Image.Resampling.BOX) for picture in _premultiplied(frames)]
    return np.stack([np.asarray(picture) for picture in small]).astype(np.float32) / 255


def motion(frames: np.ndarray) -> float:
    """How far an animation gets from its first frame, in [0, 1]; 0 for stills.

    The largest of the mean absolute differences between a frame and the first one, premultiplied, over all pixels and
    channels. Not the mean step from frame to frame: that falls with every duplicated frame and with the frame rate,
    this does not. Frames are averaged to 32 x 32 cells before, which takes away most of a GIF's dithering.

    Args:
        frames: (N, H, W, 4) uint8, straight RGBA.
    """
    if len(frames) == 1:
        return 0.0
    cells = _cells(frames)
    return float(np.abs(cells - cells[0]).mean(axis=(1, 2, 3)).max())


def colour_bits(frames: np.ndarray) -> float:
    """Entropy, in bits, of the colours of all pixels of all frames (N, H, W, 4) uint8; 0 for a blank picture.

    Colours are premultiplied RGBA at 4 bits a channel, so that 0 to 16 bits are possible.
    """
    counts = np.zeros(2**16, dtype=np.int64)
    for picture in _premultiplied(frames):
        pixels = np.frombuffer(picture.tobytes(), dtype=np.uint32)  # four bytes, of which the high halves are kept
        codes = pixels >> 4 & 0xF | pixels >> 8 & 0xF0 | pixels >> 12 & 0xF00 | pixels >> 16 & 0xF000
        counts += np.bincount(codes, minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))  # without -0.0


def aspect_ratio(frames: np.ndarray) -> float:
    """Long side by short side of the canvas of (N, H, W, 4), at least 1.

    The canvas and not the drawing in it: clips are padded to a square, so a long canvas is what wastes the clip, while
    a pencil on a square canvas is a normal sticker.
    """
    height, width = frames.shape[1:3]
    return max(height, width) / min(height, width)


def alpha_share(frames: np.ndarray) -> float:
    """Share of the pixels of (N, H, W, 4) uint8 that are not opaque, in [0, 1]."""
    return float((frames[..., 3] < 255).mean())


@dataclass(frozen=True)
class Measures:
    """What the filters look at; see the functions of the same names.

    Attributes:
        num_frames: N.
        motion, colour_bits, aspect_ratio, alpha_share: as the functions.
        text_characters: how many characters, without spaces, are written in the picture; 0 if the data do not say.
    """

    num_frames: int
    motion: float
    colour_bits: float
    aspect_ratio: float
    alpha_share: float
    text_characters: int


def measure(animation: Animation, row: Mapping[str, Any]) -> Measures:
    """All measures of an animation and of its row, whose `ocr`, if there is one, is the text in the picture."""
    frames = animation.frames
    characters = len("".join((row.get("ocr") or "").split()))
    return Measures(
        len(frames), motion(frames), colour_bits(frames), aspect_ratio(frames), alpha_share(frames), characters
    )


@dataclass(frozen=True)
class Filters:
    """Which files are not worth training on.

    Attributes:
        min_motion: animations below it are near-static; stills are not concerned.
        min_colour_bits: pictures below it are blank or one flat area.
        max_aspect_ratio: at 3, two thirds of the square clip are padding.
        max_text_characters: more than this is a picture of text; None keeps everything.
    """

    min_motion: float = 0.0015
    min_colour_bits: float = 0.2
    max_aspect_ratio: float = 3.0
    max_text_characters: int | None = None

    def near_static(self, measures: Measures) -> bool:
        """Whether it is an animation that hardly moves."""
        return measures.num_frames > 1 and measures.motion < self.min_motion

    def judge(self, measures: Measures) -> str | None:
        """Why a file with these measures would be dropped, as `kind: details`; None if it is kept."""
        if self.near_static(measures):
            return f"near-static: motion {measures.motion:.4f} below {self.min_motion:g}"
        if measures.colour_bits < self.min_colour_bits:
            return f"too little colour: {measures.colour_bits:.2f} bits, below {self.min_colour_bits:g}"
        if measures.aspect_ratio > self.max_aspect_ratio:
            return f"too long: {measures.aspect_ratio:.1f} to 1, above {self.max_aspect_ratio:g}"
        if self.max_text_characters is not None and measures.text_characters > self.max_text_characters:
            return f"too much text: {measures.text_characters} characters, above {self.max_text_characters}"
        return None

    def reason(self, animation: Animation, row: Mapping[str, Any]) -> str | None:
        """Why an animation of a row would be dropped, "near-static: motion 0.0003 below 0.0015"; None if kept."""
        return self.judge(measure(animation, row))


def perceptual_hash(animation: Animation) -> np.ndarray:
    """Bits (150,) uint8 that hardly change when an animation is resized, encoded again or loses every other frame.

    Its time is cut into four equal parts: means over time do not jump with rounded durations, as picked frames do. Of
    each part's mean picture it holds the signs (a bit for plus, a bit for minus) of the 63 lowest frequencies above
    the mean (DCT, as pHash), once of the drawing's grey less its own mean, once of alpha, so that neither a background
    colour nor the silhouette hides the face; and the mean visible colour, each channel as a thermometer of 16 bits: a
    blue heart is no copy of a red one.
    """
    ends = np.cumsum(animation.durations) / animation.durations.sum() * HASH_PARTS  # in parts
    starts = np.concatenate([[0], ends[:-1]])
    part = np.arange(HASH_PARTS)[:, None]
    weights = np.clip(np.minimum(ends, part + 1) - np.maximum(starts, part), 0, None)  # (parts, N), rows add up to 1
    means = np.tensordot(weights, _cells(animation.frames), axes=1)  # (parts, CELLS, CELLS, 4)
    alpha = means[..., 3]
    colour = means[..., :3].mean(axis=(1, 2)) / np.maximum(alpha.mean(axis=(1, 2)), 1e-3)[:, None]  # (parts, 3)
    grey = (means[..., :3] - colour[:, None, None] * alpha[..., None]) @ np.array([0.299, 0.587, 0.114])
    low = dctn(np.stack([grey, alpha], axis=1), axes=(2, 3), norm="ortho") / CELLS
    low = low[..., :HASH_FREQUENCIES, :HASH_FREQUENCIES].reshape(HASH_PARTS, 2, -1)[..., 1:]  # (parts, 2, 63)
    levels = colour[..., None] > (np.arange(HASH_LEVELS) + 0.5) / HASH_LEVELS  # (parts, 3, 16)
    bits = [low > HASH_TOLERANCE, low < -HASH_TOLERANCE, levels]
    return np.packbits(np.concatenate([bit.reshape(HASH_PARTS, -1) for bit in bits], axis=1))


def near_duplicates(hashes: np.ndarray, max_distance: int = 20) -> list[list[int]]:
    """Groups of hashes that differ in few bits, from one to the next.

    Hashes are cut into `max_distance` + 1 bands. Two that differ in at most `max_distance` bits agree in one band at
    least, so only those that do are compared, and none is missed. One exception keeps the cost linear: where more than
    256 different hashes agree in a band, each is compared with the next 256 only, in the order of their bits.

    Args:
        hashes: (n, B) uint8, as `perceptual_hash` gives them.
        max_distance: bits, at most B - 1.

    Returns:
        Groups of at least two row numbers, in rising order; no row is in two groups.
    """
    if not 0 <= max_distance < hashes.shape[1]:
        raise ValueError(f"`max_distance` must be from 0 to {hashes.shape[1] - 1} bits, got {max_distance}.")
    different, group_of = np.unique(_rows_as_keys(hashes), return_inverse=True)  # equal hashes need no comparison
    different = different.view(np.uint8).reshape(-1, hashes.shape[1])
    bands = max_distance + 1
    pairs = [_close_pairs(different, different[:, band::bands], max_distance) for band in range(bands)]
    left, right = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(different), len(different)))
    labels = connected_components(graph, directed=False)[1][group_of]
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


def _rows_as_keys(rows: np.ndarray) -> np.ndarray:
    """Rows of bytes (n, B) as (n,) values that sort and compare as a whole."""
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").ravel()


def _close_pairs(hashes: np.ndarray, band: np.ndarray, max_distance: int) -> np.ndarray:
    """Row numbers (2, pairs) of hashes that agree in a band and are at most `max_distance` bits apart."""
    keys = np.unique(_rows_as_keys(band), return_inverse=True)[1]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    pairs = [np.empty((2, 0), dtype=np.intp)]
    first = np.arange(len(keys))
    for offset in range(1, BUCKET_WINDOW + 1):
        first = first[first + offset < len(keys)]
        first = first[keys[first] == keys[first + offset]]  # whoever has no mate here has none further on
        if not len(first):
            break
        pair = np.stack([order[first], order[first + offset]])
        distance = SET_BITS[hashes[pair[0]] ^ hashes[pair[1]]].sum(axis=1)
        pairs.append(pair[:, distance <= max_distance])
    return np.concatenate(pairs, axis=1)
