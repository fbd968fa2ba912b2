"""Sticker data sets: from a folder or a Hub id to rows, and from rows to training clips.

rows = load_rows("stickers")                  # captions and files, not yet read
clips = StickerClips(["stickers"], size=64)   # clips[0], clips[1], ... for ever
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from .animation import Animation, AnimationError, frames_to_clip, over_white, read_animation
from .procedural import animate


logger = logging.getLogger(__name__)


def load_rows(data: str | os.PathLike, caption_column: str = "text", split: str = "train") -> Sequence[dict]:
    """Rows of a data set, files not yet read.

    Args:
        data: a folder with a `metadata.jsonl` whose lines have `file_name` (the ImageFolder layout of HF datasets),
            or anything else that `datasets.load_dataset` takes: a Hub id, a folder of Parquet files.
        caption_column: the column with the captions.
        split: the split, for data sets that have several.

    Returns:
        Rows `{"image": {"path": str | None, "bytes": bytes | None}, "text": str}`. Animations stay whole: files are
        not decoded to one picture.

    Raises:
        ValueError: no such data set, a broken metadata line, no rows, or no such column (the columns are listed).
    """
    folder = Path(data)
    rows = _folder_rows(folder, caption_column) if (folder / "metadata.jsonl").is_file() else None
    if rows is None:
        rows = _hub_rows(os.fspath(data), caption_column, split)
    if len(rows) == 0:
        raise ValueError(f"{data}: the data set has no rows.")
    return rows


def _folder_rows(folder: Path, caption_column: str) -> list[dict]:
    # Read by hand: load_dataset("imagefolder") refuses a column that is a number in one line and a list in another.
    rows = []
    for number, line in enumerate((folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            path = os.fspath(folder / row["file_name"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}/metadata.jsonl, line {number}: not an object with `file_name`.") from error
        _check_columns(row, caption_column, folder)
        if not isinstance(row[caption_column], str | None):
            raise ValueError(f"{folder}/metadata.jsonl, line {number}: `{caption_column}` must be text.")
        rows.append({"image": {"path": path, "bytes": None}, "text": row[caption_column] or ""})
    return rows


def _hub_rows(data: str, caption_column: str, split: str) -> Sequence[dict]:
    from datasets import Image, load_dataset

    try:
        dataset = load_dataset(data, split=split)
    except Exception as error:  # datasets raises many kinds, none of them common to all
        raise ValueError(f"{data}: neither a folder with metadata.jsonl nor a data set that loads: {error}") from error
    _check_columns(dataset.column_names, "image", data)
    _check_columns(dataset.column_names, caption_column, data)
    dataset = dataset.select_columns(["image", caption_column]).cast_column("image", Image(decode=False))
    return dataset if caption_column == "text" else dataset.rename_column(caption_column, "text")


def _check_columns(columns, wanted: str, data: str | os.PathLike) -> None:
    if wanted not in columns:
        raise ValueError(f"{data}: no column `{wanted}`; the columns are {', '.join(columns)}.")


def read_row(row: dict) -> Animation:
    """Decode one row of `load_rows`; raises AnimationError that names the file."""
    image = row["image"]
    if image["bytes"] is None:
        return read_animation(image["path"])
    return read_animation(image["bytes"], source=image["path"])


def iterate_animations(rows: Sequence[dict]) -> Iterator[Animation]:
    """Decode every row in order; a bad file is named in a warning and skipped."""
    for row in rows:
        try:
            yield read_row(row)
        except AnimationError as error:
            logger.warning("Skipped: %s", error)


def describe(caption: str, phrase: str, rng: np.random.Generator) -> str:
    """A caption for a picture in motion, in varied forms; the style after the last comma is kept in half of the draws.

    "dog, flat emoji" and "jumping high" give "a dog jumping high", "dog, jumping high, flat emoji" and the like.
    """
    subject, comma, style = caption.rpartition(", ") if ", " in caption else (caption, "", "")
    if not subject.strip():
        return phrase
    forms = [f"{subject}, {phrase}", f"{subject} {phrase}", f"{phrase} {subject}"]
    if subject.split()[0].lower() not in ("a", "an", "the"):
        forms.append(f"{'an' if subject[0].lower() in 'aeiou' else 'a'} {subject} {phrase}")
    return str(rng.choice(forms)) + (comma + style if rng.random() < 0.5 else "")


class StickerClips(Dataset):
    """An endless, shuffled stream of training clips, addressed by sample number.

        clips = StickerClips(["stickers"], size=64)
        clips[0]  # {"clip": (n, 4, 64, 64) in [-1, 1], "caption": str, "index": int, "seed": int}

    Every row comes once in `len(clips)` samples. Which row a sample is, and everything random about it, is drawn from
    the seed and the sample's number: the same on every process, with any number of workers, and after a resume. An
    animation gives some frames, evenly spaced in time. A still picture is set in motion, with a caption that says how,
    or stays a clip of one frame. A file that cannot be read is named in a warning, and the next row stands in for it.

    Args:
        sources: folders or Hub ids, see `load_rows`.
        num_frames: frames of a procedural clip, F.
        size: height and width of the clips in pixels.
        channels: 4 for premultiplied RGBA, 3 for RGB over white.
        caption_column: the column with the captions.
        procedural_fraction: share of still pictures that are set in motion.
        min_keyframes, max_keyframes: bounds, both included, of the frames drawn from an animation.
        seed: of the whole stream.
        cache_bytes: decoded files are kept in memory up to this size, per process.

    Raises:
        ValueError: as `load_rows`; when a sample is read, if no file at all can be.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike],
        num_frames: int = 8,
        size: int = 256,
        channels: int = 4,
        caption_column: str = "text",
        procedural_fraction: float = 0.5,
        min_keyframes: int = 3,
        max_keyframes: int = 8,
        seed: int = 0,
        cache_bytes: int = 2**30,
    ):
        self.sources = [load_rows(source, caption_column) for source in sources]
        self.num_frames, self.size, self.channels = num_frames, size, channels
        self.procedural_fraction = procedural_fraction
        self.min_keyframes, self.max_keyframes = min_keyframes, max_keyframes
        self.seed, self.free_bytes = seed, cache_bytes
        self.cache: dict[int, Animation | None] = {}
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=int))  # epoch and its row numbers

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.sources)

    def row(self, index: int) -> dict:
        """Row `index` of all sources, one after the other."""
        for rows in self.sources:
            if index < len(rows):
                return rows[index]
            index -= len(rows)
        raise IndexError(index)

    def shuffled(self, sample: int) -> int:
        """The row number of a sample; each epoch has an order of its own."""
        epoch, position = divmod(sample, len(self))
        if self.order[0] != epoch:
            self.order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self)))
        return int(self.order[1][position])

    def read(self, index: int) -> Animation | None:
        """The decoded file of a row, from memory if it was read before; None, once with a warning, if it is bad."""
        if index not in self.cache:
            try:
                animation = read_row(self.row(index))
            except AnimationError as error:
                logger.warning("Skipped: %s", error)
                animation = None
            size = 0 if animation is None else animation.frames.nbytes
            if size > self.free_bytes:
                return animation
            self.free_bytes -= size
            self.cache[index] = animation
        return self.cache[index]

    def __getitem__(self, sample: int) -> dict:
        first = self.shuffled(sample)
        for offset in range(len(self)):
            index = (first + offset) % len(self)
            animation = self.read(index)
            if animation is not None:
                break
        else:
            raise ValueError("No file of the data set can be read.")
        rng = np.random.default_rng([self.seed, 1, sample])
        clip, caption = self.make_clip(animation, self.row(index)["text"], rng)
        return {"clip": clip, "caption": caption, "index": index, "seed": int(rng.integers(2**63))}

    def make_clip(self, animation: Animation, caption: str, rng: np.random.Generator) -> tuple[torch.Tensor, str]:
        """A clip (n, C, size, size) and its caption."""
        count = int(rng.integers(self.min_keyframes, self.max_keyframes + 1))
        if len(animation.frames) > 1:
            return frames_to_clip(animation.pick(count), self.size, self.channels), caption
        if rng.random() >= self.procedural_fraction:
            return frames_to_clip(animation.frames, self.size, self.channels), caption
        picture = frames_to_clip(animation.frames, max(animation.frames.shape[1:3])).add(1).div(2)[0]  # (4, S, S)
        motion = animate(picture, rng, self.num_frames, self.size)
        clip = motion.frames if self.channels == 4 else over_white(motion.frames)
        return clip, describe(caption, motion.phrase, rng)
