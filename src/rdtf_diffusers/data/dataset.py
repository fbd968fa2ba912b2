"""From rows to training clips.

```python
maker = ClipMaker(size=64)                           # how a file becomes a clip
clips = StickerClips(["stickers"], maker)            # clips[0], clips[1], ... for ever
```
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from .animation import Animation, AnimationError, evenly_timed, frames_to_clip, over_white
from .keyframes import keyframe_table, ping_pong, pixel_features
from .procedural import animate, check_motion_weights
from .rows import check_captions, check_files, load_rows, read_row


logger = logging.getLogger(__name__)

CHECKED_ROWS = 100  # of which one must be readable before a run starts
# What a mirrored picture would contradict.
SIDES = re.compile(r"\b(left|right)(wards?)?\b|clockwise|[左右]", re.IGNORECASE)


def describe(caption: str, phrase: str, rng: np.random.Generator, may_lead: bool = True) -> str:
    """A caption for a picture in motion, in varied forms; the style after the last comma is kept in half of the draws.

    "dog, flat emoji" and "jumping high" give "a dog jumping high", "dog, jumping high, flat emoji" and the like, and
    "jumping high dog" if the phrase `may_lead`.
    """
    subject, comma, style = caption.rpartition(", ") if ", " in caption else (caption, "", "")
    if not subject.strip():
        return phrase
    forms = [f"{subject}, {phrase}", f"{subject} {phrase}", *([f"{phrase} {subject}"] if may_lead else [])]
    if subject.split()[0].lower() not in ("a", "an", "the"):
        forms.append(f"{'an' if subject[0].lower() in 'aeiou' else 'a'} {subject} {phrase}")
    return str(rng.choice(forms)) + (comma + style if rng.random() < 0.5 else "")


def sample_generator(seed: int, sample: int) -> np.random.Generator:
    """What decides everything random about one sample of a stream, on any process and after any resume."""
    return np.random.default_rng([seed, 1, sample])


def draw_rows(count: int, max_samples: int | None, seed: int) -> np.ndarray:
    """The numbers, rising, of the rows that are used: `max_samples` of `count`, drawn from the seed, or all.

    Raises:
        ValueError: `max_samples` is below 1.
    """
    if max_samples is None:
        return np.arange(count)
    if max_samples < 1:
        raise ValueError(f"`max_samples` must be at least 1, got {max_samples}.")
    return np.sort(np.random.default_rng([seed, 3, 1]).permutation(count)[:max_samples])


@dataclass(frozen=True)
class ClipMaker:
    """How a file becomes a training clip.

    An animation gives k frames, k drawn evenly from `min_keyframes`..`max_keyframes` (RDTF, arXiv 2503.17735, frame
    extraction by feature clustering); an animation that has fewer runs back and forth. A still picture is set in
    motion, with a caption that says how, or stays a clip of one frame.

    Attributes:
        num_frames: frames of a procedural clip, F.
        size: height and width of the clips in pixels.
        channels: 4 for premultiplied RGBA, 3 for RGB over white.
        procedural_fraction: share of still pictures that are set in motion.
        min_keyframes, max_keyframes: bounds, both included, of the frames taken from an animation.
        keyframes: how they are chosen, one of `KEYFRAME_METHODS`.
        features: what clustering compares, (N, H, W, 4) uint8 -> (N, D); see `load_features`.
        center_crop: stickers that are not square are cut to their central square instead of padded.
        interpolation: the filter for resizing, one of `INTERPOLATION_MODES`. Pictures that are set in motion are
            placed with the bicubic one.
        random_flip: half of the samples are mirrored, before they are set in motion. Never those whose caption names a
            side or which hold written words (`ocr`).
        motion_weights: factors on how often a picture is set in each motion, by name; others keep 1.
    """

    num_frames: int = 8
    size: int = 256
    channels: int = 4
    procedural_fraction: float = 0.5
    min_keyframes: int = 3
    max_keyframes: int = 8
    keyframes: str = "cluster"
    features: Callable[[np.ndarray], np.ndarray] = pixel_features
    center_crop: bool = False
    interpolation: str = "bicubic"
    random_flip: bool = False
    motion_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.min_keyframes <= self.max_keyframes <= self.num_frames:
            raise ValueError(
                f"`min_keyframes` {self.min_keyframes} and `max_keyframes` {self.max_keyframes} must rise and stay "
                f"within `num_frames` {self.num_frames}."
            )
        check_motion_weights(self.motion_weights)

    def keyframe_table(self, animation: Animation, row: Mapping[str, Any]) -> dict[int, np.ndarray]:
        """Which frames stand for an animation: k -> their numbers (k,), for every k that can be drawn.

        Keyframes that the data set itself names go before clustering.
        """
        counts = range(self.min_keyframes, self.max_keyframes + 1)
        given = sorted({index for index in row.get("keyframes") or () if 0 <= index < len(animation.frames)})
        if given:
            places = {k: np.linspace(0, len(given) - 1, min(k, len(given))).round().astype(int) for k in counts}
            table = {k: np.array(given)[places[k]] for k in counts}
        elif self.keyframes == "uniform":  # in time: a frame that stands long is seen more than once
            return {k: evenly_timed(animation.durations, k) for k in counts}
        else:
            table = keyframe_table(animation, self.features, self.keyframes, counts[0], counts[-1])
        return {k: ping_pong(table[k], k) for k in counts}

    def clip(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (n, H, W, 4) uint8 as they are, (n, C, size, size)."""
        return frames_to_clip(frames, self.size, self.channels, self.center_crop, self.interpolation)

    def set_in_motion(
        self, animation: Animation, caption: str, rng: np.random.Generator
    ) -> tuple[torch.Tensor, str, tuple[str, ...]]:
        """A picture in motion, (F, C, size, size), a caption that says how, and the names of its motions."""
        height, width = animation.frames.shape[1:3]
        side = min(height, width) if self.center_crop else max(height, width)  # so that nothing is resized yet
        picture = frames_to_clip(animation.frames, side, center_crop=self.center_crop).add(1).div(2)[0]  # (4, S, S)
        motion = animate(picture, rng, self.num_frames, self.size, motion_weights=self.motion_weights)
        clip = motion.frames if self.channels == 4 else over_white(motion.frames)
        return clip, describe(caption, motion.phrase, rng, may_lead=motion.layer is None), motion.motions

    def sample(
        self,
        animation: Animation,
        row: Mapping[str, Any],
        table: dict[int, np.ndarray] | None,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        """Draw one training sample of a file: {"clip": (n, C, size, size), "caption": str, "seed": int}.

        A picture that was set in motion also has "motions", their names; none of them if only a layer was added.

        Args:
            table: the animation's `keyframe_table`; None for a still.
            rng: as `sample_generator` gives it.
        """
        sample = {"caption": row["text"], "seed": int(rng.integers(2**63))}
        if self.random_flip and rng.random() < 0.5 and not (SIDES.search(row["text"]) or row.get("ocr")):
            animation = replace(animation, frames=animation.frames[:, :, ::-1])
        if table is not None:
            count = int(rng.integers(self.min_keyframes, self.max_keyframes + 1))
            return sample | {"clip": self.clip(animation.frames[table[count]])}
        if rng.random() >= self.procedural_fraction:
            return sample | {"clip": self.clip(animation.frames)}
        clip, caption, motions = self.set_in_motion(animation, row["text"], rng)
        return sample | {"clip": clip, "caption": caption, "motions": motions}


class StickerClips(Dataset):
    """An endless, shuffled stream of training clips, addressed by sample number.

        clips = StickerClips(["stickers"], ClipMaker(size=64))
        clips[0]  # {"clip": (n, 4, 64, 64) in [-1, 1], "caption": str, "index": int, "seed": int}

    Every row comes once in `len(clips)` samples. Which row a sample is, and everything random about it, is drawn from
    the seed and the sample's number: the same on every process, with any number of workers, and after a resume. A file
    that cannot be read is named in a warning, and the next row stands in for it.

    Args:
        sources: folders, files or Hub ids, see `load_rows`.
        maker: how a file becomes a clip.
        caption_column, image_column, config_name, cache_dir: of the sources, see `load_rows`.
        seed: of the whole stream.
        cache_bytes: decoded files are kept in memory up to this size, per process. Keyframes are always kept.
        max_samples: use this many rows, drawn from the seed; all by default.

    Raises:
        ValueError: as `load_rows`, or `max_samples` is below 1; when a sample is read, if no file at all can be.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike],
        maker: ClipMaker,
        caption_column: str | None = None,
        image_column: str | None = None,
        seed: int = 0,
        cache_bytes: int = 2**30,
        config_name: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        max_samples: int | None = None,
    ):
        options = {"config_name": config_name, "cache_dir": cache_dir}
        self.sources = [load_rows(source, caption_column, image_column, **options) for source in sources]
        rows = ConcatDataset(self.sources)
        self.rows = rows if max_samples is None else Subset(rows, draw_rows(len(rows), max_samples, seed))
        self.maker, self.seed, self.free_bytes = maker, seed, cache_bytes
        self.files: dict[int, Animation | None] = {}
        self.tables: dict[int, dict[int, np.ndarray]] = {}
        self.epoch, self.order = -1, np.empty(0, dtype=int)

    def __len__(self) -> int:
        return len(self.rows)

    def check(self) -> None:
        """Refuses, before a run starts, data that it cannot learn from; see `check_captions` and `check_files`.

        Raises:
            ValueError: no row has a caption, or none of up to `CHECKED_ROWS` rows, as the run takes them, can be read.
        """
        check_captions(rows.data.column("text") for rows in self.sources)
        check_files(self.rows[self.shuffled(sample)] for sample in range(min(len(self), CHECKED_ROWS)))

    def shuffled(self, sample: int) -> int:
        """The row number of a sample; each epoch has an order of its own."""
        epoch, position = divmod(sample, len(self))
        if self.epoch != epoch:
            self.epoch, self.order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self))
        return int(self.order[position])

    def read(self, index: int) -> Animation | None:
        """The decoded file of a row, from memory if it was read before; None, once with a warning, if it is bad."""
        if index not in self.files:
            try:
                animation = read_row(self.rows[index])
            except AnimationError as error:
                logger.warning("Skipped: %s", error)
                animation = None
            size = 0 if animation is None else animation.frames.nbytes
            if size > self.free_bytes:
                return animation
            self.free_bytes -= size
            self.files[index] = animation
        return self.files[index]

    def table(self, index: int, animation: Animation) -> dict[int, np.ndarray] | None:
        """The keyframes of a row's animation, worked out once; None for a still."""
        if len(animation.frames) == 1:
            return None
        if index not in self.tables:
            self.tables[index] = self.maker.keyframe_table(animation, self.rows[index])
        return self.tables[index]

    def __getitem__(self, sample: int) -> dict[str, Any]:
        first = self.shuffled(sample)
        for offset in range(len(self)):
            index = (first + offset) % len(self)
            animation = self.read(index)
            if animation is not None:
                break
        else:
            raise ValueError("No file of the data set can be read.")
        rng = sample_generator(self.seed, sample)
        return self.maker.sample(animation, self.rows[index], self.table(index, animation), rng) | {"index": index}
