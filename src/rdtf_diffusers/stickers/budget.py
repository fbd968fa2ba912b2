"""The best quality of a format within a number of bytes.

Each format has one or more ways to save bytes, from its best quality down. How large a file becomes is estimated on a
few frames, so that a long clip is encoded as a whole only two or three times.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Literal, NamedTuple

import numpy as np

from .apng import changed_box, coarsen, predictable, write_apng
from .encode import encode_webp, exif_block
from .gif import MOST_GIF_COLOURS, best_colours, harden, own_colours, write_gif
from .palette import Quantised, count_colours, quantise, squared_error
from .similarity import similarity
from .webm import BEST_CRF, WORST_CRF, bleed, encode_webm


COLOURS = (255, 224, 192, 160, 128, 112, 96, 80, 64, 56, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2)
ROUNDED = (2, 3, 4, 6, 8, 12)  # steps of the values in RGBA files
LOSSY = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)  # steps of their distance from a prediction
FINER = 4  # times: the smaller steps where a clip is smooth
LOWEST_QUALITY, HIGHEST_CRF, FEWEST_COLOURS, LARGEST_STEP = 20, 50, 16, 32  # what still looks good
COARSE = 5.0  # levels of 255: smaller errors are not dithered, as that would take bytes and likeness from the rest
EFFORT = 8  # of zlib: 9 takes twice as long for 4 % fewer bytes
SAMPLED = 1 / 8  # the share of the frames by which a size is estimated
# What counts beside structural similarity, which hardly sees wrong colours in a still picture, and no flicker:
ERROR_PRICE = 1 / 4000  # of the mean squared error in levels of 255
FLICKER_PRICE = 0.01  # of a palette for each frame: what stands still does not keep its colours
CLOSE = 0.98  # a file that uses this share of its bytes is good enough


class Setting(NamedTuple):
    """One quality of a format, such as ("quality", 80)."""

    kind: Literal[
        "lossless",
        "quality",
        "crf",
        "rounded to",
        "lossy",
        "lossy, finer where smooth",
        "colours",
        "colours a frame",
        "dithered colours",
    ]
    value: int = 0

    def __str__(self) -> str:
        if "colours" in self.kind:
            return f"{self.value} {self.kind}"
        if self.kind == "lossless":
            return self.kind
        name, comma, where = self.kind.partition(",")
        return f"{name} {self.value}{comma}{where}"

    def looks_good(self) -> bool:
        """Whether this is tried before frames or pixels are given up."""
        if self.kind == "quality":
            return self.value >= LOWEST_QUALITY
        if "colours" in self.kind:
            return self.value >= FEWEST_COLOURS
        return self.value <= {"crf": HIGHEST_CRF, "rounded to": math.inf, "lossless": 0}.get(self.kind, LARGEST_STEP)


def settings(format: str, good_only: bool = False) -> list[list[Setting]]:
    """The qualities of a format: one or more ways to save bytes, each with its best quality first.

    The first quality of the first way is the best of all.
    """
    colours, own = ([Setting(kind, number) for number in COLOURS] for kind in ("colours", "colours a frame"))
    if format == "webp":
        ways = [[Setting("lossless"), *(Setting("quality", quality) for quality in range(100, -1, -2))]]
    elif format == "webm":
        ways = [[Setting("crf", crf) for crf in range(BEST_CRF, WORST_CRF + 1)]]
    elif format == "gif":
        ways = [[Setting("dithered colours", MOST_GIF_COLOURS), *own], colours]
    else:
        rounded = [Setting("lossless"), *(Setting("rounded to", step) for step in ROUNDED)]
        lossy = [[Setting(kind, step) for step in LOSSY] for kind in ("lossy", "lossy, finer where smooth")]
        ways = [rounded, *lossy, colours, own]
    return [[setting for setting in way if setting.looks_good() or not good_only] for way in ways]


class Encoded(NamedTuple):
    """A file, and its quality in words."""

    data: bytes
    quality: str


def in_words(colours: Sequence[Quantised]) -> str:
    """Such as "255 dithered colours", or "200 colours a frame"."""
    number = max(np.count_nonzero(one.palette[:, 3]) for one in colours)
    dithered = "dithered " if any(one.dithered for one in colours) else ""
    return f"{number} {dithered}colours{' a frame' if len(colours) > 1 else ''}"


@dataclass(frozen=True)
class Job:
    """A clip (F, H, W, 4) in its final size with its final times, to be encoded in one quality or another."""

    clip: np.ndarray
    times: list[int]
    plays: int
    format: str
    palette: bool  # whether the platform takes files with a palette
    description: str
    progress: Callable[[str], object] | None = None  # is told what is tried
    whole: "Job | None" = None  # what this is a part of
    first: int = 0  # the frame of it that this begins with

    @cached_property
    def in_colours(self) -> Callable[[int], Quantised]:
        """The clip in so many colours; a part shares those of the whole clip."""
        if self.whole:
            frames = slice(self.first, self.first + len(self.times))
            return lambda number: self.whole.in_colours(number).part(frames)
        return cache(partial(quantise, self.ready, colours=count_colours(self.ready)))

    @cached_property
    def ready(self) -> np.ndarray:
        """The clip with edges as the format wants them."""
        return {"gif": harden, "webm": bleed}.get(self.format, np.asarray)(self.clip)

    def sample(self) -> "Job":
        """A few frames from the middle; the job itself if it has hardly more."""
        count = max(2 if self.format == "webm" else 1, round(SAMPLED * len(self.times)))
        if 2 * count >= len(self.times):
            return self
        first = (len(self.times) - count) // 2
        frames = slice(first, first + count)
        return replace(self, clip=self.clip[frames], times=self.times[frames], whole=self, first=first)

    def encode(self, setting: Setting) -> Encoded:
        if self.progress:
            self.progress(str(setting))
        if self.format == "apng":
            return self.encode_apng(setting)
        if self.format == "webm":
            data = encode_webm(self.ready, self.times, crf=setting.value, description=self.description)
            return Encoded(data, str(setting))
        shared = {"loops": self.plays, "description": self.description}
        if self.format == "webp":
            quality = None if setting.kind == "lossless" else setting.value
            return Encoded(encode_webp(self.ready, self.times, quality=quality, **shared), str(setting))
        reduced = self.reduced(setting)
        return Encoded(write_gif(reduced, self.times, **shared), in_words(reduced))

    def encode_apng(self, setting: Setting) -> Encoded:
        shared = {"loops": self.plays, "exif": exif_block(self.description), "effort": EFFORT}
        if setting.kind == "colours" and self.palette:
            (reduced,) = self.reduced(setting)
            data = write_apng(reduced.indices, self.times, palette=reduced.palette, **shared)
            return Encoded(data, in_words([reduced]))
        return Encoded(write_apng(self.shown(setting), self.times, **shared), str(setting))

    def reduced(self, setting: Setting) -> list[Quantised]:
        """The clip in few colours, as one or frame by frame."""
        if setting.kind == "dithered colours":
            return best_colours(self.ready, COARSE)
        if setting.kind == "colours a frame":
            return own_colours(self.ready, setting.value)
        return [self.in_colours(setting.value)]

    def shown(self, setting: Setting) -> np.ndarray:
        """What an APNG or GIF in this quality shows, (F, H, W, 4) uint8."""
        if "colours" in setting.kind:
            return np.concatenate([one.pixels() for one in self.reduced(setting)])
        if "lossy" in setting.kind:
            finer = max(1, setting.value // FINER) if setting.kind != "lossy" else None
            return predictable(self.clip, setting.value, finer)
        return coarsen(self.clip, max(setting.value, 1))


def changed_pixels(clip: np.ndarray) -> int:
    """How many pixels of a clip (F, H, W, 4) are in the rectangles that change from frame to frame."""
    boxes = (changed_box(clip[index - 1] if index else None, frame) for index, frame in enumerate(clip))
    return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)


class Search:
    """Finds what fits into `aim` bytes.

    The size of a file is estimated as that of a sample times a factor, which is learnt from what has been encoded.
    """

    def __init__(self, job: Job, aim: int):
        self.aim, self.sample = aim, job.sample()
        self.encode = cache(job.encode)
        self.encode_sample = self.encode if self.sample is job else cache(self.sample.encode)
        self.factor = changed_pixels(job.clip) / changed_pixels(self.sample.clip)

    def fits(self, setting: Setting) -> bool:
        """Whether the file should fit."""
        return self.factor * len(self.encode_sample(setting).data) <= self.aim

    def first_fitting(self, way: Sequence[Setting]) -> int:
        """The place of the first quality that should fit, or the last place."""
        return bisect_left(range(len(way) - 1), True, key=lambda place: self.fits(way[place]))

    def likeness(self, setting: Setting) -> float:
        """How similar the sample stays, less the prices of wrong colours and flicker."""
        shown = self.sample.shown(setting)
        price = ERROR_PRICE * squared_error(self.sample.ready, shown)
        price += FLICKER_PRICE * (setting.kind == "colours a frame")
        return similarity(self.sample.ready, shown) - price

    def promise(self, way: Sequence[Setting]) -> float:
        """The likeness of the best quality that should fit; if none should, minus the least size."""
        if not self.fits(way[-1]):
            return -self.factor * len(self.encode_sample(way[-1]).data)
        return self.likeness(way[self.first_fitting(way)])

    def best(self, way: Sequence[Setting]) -> tuple[Encoded, Setting]:
        """The file in the best quality that fits, and that quality; those of the last if none does."""
        too_large, fitting, best = -1, len(way), None
        while fitting - too_large > 1 and not (best and CLOSE * self.aim <= len(best[0].data) <= self.aim):
            place = too_large + 1 + self.first_fitting(way[too_large + 1 : fitting])
            attempt = self.encode(way[place])
            self.factor = len(attempt.data) / len(self.encode_sample(way[place]).data)
            if len(attempt.data) <= self.aim:
                fitting, best = place, (attempt, way[place])
            else:
                too_large, best = place, best if fitting < len(way) else (attempt, way[place])
        return best


def best_within(job: Job, aim: int, ways: Sequence[Sequence[Setting]]) -> Encoded:
    """The best file of at most `aim` bytes; if there is none, a larger one."""
    search = Search(job, aim)
    if len(ways) == 1:
        return search.best(ways[0])[0]
    if search.fits(ways[0][0]):  # nothing beats it
        encoded, _ = search.best(ways[0][:1])
        if len(encoded.data) <= aim:
            return encoded
    # The most promising way is tried until none that is left promises more than the best one that has been tried
    found: dict[int, Encoded] = {}
    scores = [0.0] * len(ways)
    while True:
        scores = [scores[place] if place in found else search.promise(way) for place, way in enumerate(ways)]
        place = int(np.argmax(scores))
        if place in found:
            return found[place]
        found[place], setting = search.best(ways[place])
        size = len(found[place].data)
        scores[place] = search.likeness(setting) if size <= aim else -float(size)
