"""A clip as a file that a platform accepts: its canvas, its times, and the best quality within its bytes.

    data, report = encode_for(frames, "whatsapp", fps=8)

What is given up for bytes, in this order: quality or colours down to what still looks good; frames that look alike;
more frames; pixels, where the platform permits; the last of the quality. Times are kept throughout.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ..data.decoders import Limits, decode
from .apng import coarsen, write_apng
from .check import most_flashes
from .encode import encode_webp, exif_block, frame_durations, round_times, to_pictures
from .gif import MOST_GIF_COLOURS, encode_gif
from .palette import quantise, squared_error
from .platforms import SUFFIXES, Platform, find_platform
from .resize import fit_canvas
from .timing import SAME, Schedule, at_least, drop_frames, plan_time, telling_frame, turn
from .webm import BEST_CRF, WORST_CRF, encode_webm


COLOURS = (255, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2)
STEPS = (2, 3, 4, 6, 8, 12)  # of the values in RGBA files
LOWEST_QUALITY, FEWEST_COLOURS, HIGHEST_CRF = 20, 16, 50  # below it, frames and pixels are given up first
COARSE = 5.0  # levels of 255: smaller errors are not dithered, as that would take bytes and likeness from the rest
LEAST_FPS = 4.0  # frames are not dropped below it
LEAST_MOTION = 16  # levels of 255 by which frames must differ to be an animation
READABLE = Limits(frame_pixels=2**20, frames=10_000, total_pixels=2**33)

Rung = Literal["whole", "duplicates dropped", "fewer frames", "fewer pixels", "lowest quality"]


@dataclass(frozen=True)
class Report:
    """What became of a clip.

    Attributes:
        platform: the platform's key.
        format: "webp", "gif", "apng" or "webm".
        suffix: the file name ending that goes with it.
        bytes: the file's size.
        size: width and height in pixels.
        frames: how many are stored.
        seconds: how long one play lasts.
        plays: how often it plays; 0 is for ever.
        quality: in words, such as "lossless", "quality 80", "64 colours", "rounded to 4", "crf 20".
        rung: what had to be given up for the bytes beside quality: nothing ("whole") or everything up to this.
        alpha: the least and the greatest alpha, read from the file.
        time_change: what was done to the time and why, or None.
        cover: the number of the given frame that the file begins with.
    """

    platform: str
    format: str
    suffix: str
    bytes: int
    size: tuple[int, int]
    frames: int
    seconds: float
    plays: int
    quality: str
    rung: Rung
    alpha: tuple[int, int]
    time_change: str | None
    cover: int


class Setting(NamedTuple):
    """One quality of a format, such as ("quality", 80)."""

    kind: Literal["lossless", "quality", "crf", "rounded to", "colours", "dithered colours"]
    value: int = 0

    def __str__(self) -> str:
        if "colours" in self.kind:
            return f"{self.value} {self.kind}"
        return f"{self.kind} {self.value}" if self.value else self.kind


def settings(format: str) -> list[Setting]:
    """The qualities of a format, the best first."""
    if format == "webp":
        return [Setting("lossless"), *(Setting("quality", quality) for quality in range(100, -1, -2))]
    if format == "webm":
        return [Setting("crf", crf) for crf in range(BEST_CRF, WORST_CRF + 1)]
    fewer = [Setting("colours", number) for number in COLOURS]
    if format == "gif":
        return [Setting("dithered colours", MOST_GIF_COLOURS), *fewer]
    return [Setting("lossless"), *(Setting("rounded to", step) for step in STEPS), *fewer]


MOST_COLOURS = Setting("colours", COLOURS[0])


def lowest_good(choices: Sequence[Setting]) -> int:
    """The place of the last setting that still looks good."""
    bounds = {"quality": LOWEST_QUALITY, "colours": FEWEST_COLOURS, "crf": -HIGHEST_CRF}
    good = [
        place
        for place, (kind, value) in enumerate(choices)
        if kind not in bounds or (-value if kind == "crf" else value) >= bounds[kind]
    ]
    return max(good)


@dataclass(frozen=True)
class Job:
    """A clip (F, H, W, 4) in its final size with its final times, to be encoded in one quality or another."""

    clip: np.ndarray
    times: list[int]
    plays: int
    format: str
    palette: bool  # whether the platform takes files with a palette
    description: str

    def pixels(self, setting: Setting) -> tuple[np.ndarray, np.ndarray | None]:
        """What an APNG stores: RGBA frames, or indices and their palette."""
        if setting.kind != "colours":
            return coarsen(self.clip, max(setting.value, 1)), None
        indices, palette = quantise(self.clip, setting.value)
        return (indices, palette) if self.palette else (palette[indices], None)

    def encode(self, setting: Setting) -> bytes:
        if self.format == "webm":
            return encode_webm(self.clip, self.times, crf=setting.value, description=self.description)
        shared = {"loops": self.plays, "description": self.description}
        if self.format == "webp":
            quality = None if setting.kind == "lossless" else setting.value
            return encode_webp(self.clip, self.times, quality=quality, **shared)
        if self.format == "gif":
            dither = COARSE if setting.kind == "dithered colours" else math.inf
            return encode_gif(self.clip, self.times, colours=setting.value, dither=dither, **shared)
        pixels, palette = self.pixels(setting)
        shared = {"loops": self.plays, "exif": exif_block(self.description)}
        return write_apng(pixels, self.times, palette=palette, effort=6, **shared)

    def error(self, setting: Setting) -> float:
        """How far an APNG is from the clip."""
        pixels, palette = self.pixels(setting)
        return squared_error(self.clip, pixels if palette is None else palette[pixels])


def best_within(job: Job, aim: int, choices: Sequence[Setting]) -> tuple[bytes, Setting, bool]:
    """The best of `choices` (the best first) whose file has at most `aim` bytes, by bisection.

    Returns:
        the file, its setting, and True; if none fits, those of the last choice and False.
    """
    fitting, data = len(choices) - 1, job.encode(choices[-1])
    if len(data) > aim:
        return data, choices[-1], False
    if not hopeless(job, aim, choices[0]):  # what fits without loss is found at once
        best = job.encode(choices[0])
        if len(best) <= aim:
            return best, choices[0], True
    too_large = 0
    while fitting - too_large > 1:
        middle = (fitting + too_large) // 2
        attempt = job.encode(choices[middle])
        if len(attempt) <= aim:
            fitting, data = middle, attempt
        else:
            too_large = middle
    setting = choices[fitting]
    if setting.kind == "rounded to" and job.error(MOST_COLOURS) < job.error(setting):
        attempt = job.encode(MOST_COLOURS)  # few colours that are right beat many that are rounded
        if len(attempt) <= aim:
            return attempt, MOST_COLOURS, True
    return data, setting, True


def hopeless(job: Job, aim: int, setting: Setting) -> bool:
    """Whether a lossless WebP cannot fit, told by the fastest one: the best is about a third of it at least."""
    if job.format != "webp" or setting.kind != "lossless":
        return False
    return len(encode_webp(job.clip, job.times, effort=0)) > 3 * aim


class Attempt(NamedTuple):
    """One rung of the ladder: what is encoded, in which size, and how far its quality may go down."""

    rung: Rung
    canvas: tuple[int, int]
    schedule: Schedule
    good_only: bool


def ladder(schedule: Schedule, clip: np.ndarray, platform: Platform) -> Iterator[Attempt]:
    """The rungs for a clip (F, H, W, 4), in the order in which things are given up."""
    size = clip.shape[2], clip.shape[1]
    canvas = platform.canvas(*size)
    yield Attempt("whole", canvas, schedule, True)
    least = max(2, platform.min_frames, math.ceil(LEAST_FPS * sum(schedule.durations) / 1000))
    fewest = schedule
    if len(schedule.order) > least:
        fewest = drop_frames(schedule, clip, least, SAME)
        if len(fewest.order) < len(schedule.order):
            yield Attempt("duplicates dropped", canvas, fewest, True)
        while len(fewest.order) > least:
            fewest = drop_frames(fewest, clip, max(least, len(fewest.order) * 3 // 4))
            yield Attempt("fewer frames", canvas, fewest, True)
    for canvas in platform.smaller_canvases(*size):
        yield Attempt("fewer pixels", canvas, fewest, True)
    yield Attempt("lowest quality", canvas, fewest, False)


def schedule_for(
    clip: np.ndarray,
    durations: Sequence[float],
    platform: Platform,
    cover: Literal["auto", "first"] | int,
    time: Literal["trim", "speed", "refuse"],
) -> Schedule:
    """Times, first frame and number of frames within a platform's rules."""
    schedule = plan_time(durations, platform, time)
    if cover == "auto":
        shown = clip[schedule.order]
        schedule = turn(schedule, schedule.order[telling_frame(shown)] if platform.cover else 0)
    elif cover != "first":
        schedule = turn(schedule, cover)
    if platform.max_frames:
        schedule = drop_frames(schedule, clip, platform.max_frames)
    return at_least(schedule, platform.min_frames) if len(schedule.order) > 1 else schedule


def check_clip(clip: np.ndarray, durations: Sequence[float], platform: Platform) -> None:
    """Refuses what no encoding makes acceptable.

    Raises:
        ValueError: for a still where the platform wants motion, an opaque clip where it wants transparency, and one
            that flashes more often than it allows.
    """
    visible = np.where(clip[..., 3:] > 0, clip, 0).astype(np.int16)
    motion = max(int(np.abs(frame - visible[0]).max()) for frame in visible)
    if motion < LEAST_MOTION and not platform.still:
        raise ValueError(f"`frames` must move for {platform.name}: it takes no still pictures")
    if platform.transparent and clip[..., 3].min() == 255:
        raise ValueError(f"`frames` must have a transparent background for {platform.name}")
    if platform.max_flashes is not None and (flashes := most_flashes(clip, durations)) > platform.max_flashes:
        raise ValueError(
            f"`frames` flash {flashes} times within a second, {platform.name} allows {platform.max_flashes}; "
            "play them more slowly"
        )


def encode_for(
    frames: Sequence[Image.Image] | np.ndarray,
    platform: str | Platform,
    *,
    fps: float = 8.0,
    durations: Sequence[float] | None = None,
    metadata: Mapping[str, object] | None = None,
    cover: Literal["auto", "first"] | int = "auto",
    time: Literal["trim", "speed", "refuse"] = "trim",
) -> tuple[bytes, Report]:
    """A clip as the bytes of a file that a platform accepts, in its preferred format and at the best quality.

    Args:
        frames: PIL pictures, or an array (F, H, W, 3 or 4), straight alpha: uint8, or floating point in [0, 1].
        platform: one of the keys of `PLATFORMS`, or a record.
        fps: frames per second, 0.1 to 50.
        durations: how long each frame stands, in ms, instead of `fps`.
        metadata: anything that JSON can hold, stored inside the file as by `encode`; its bytes count.
        cover: the frame to begin the loop with: "first", a frame's number, or "auto", which is the most telling one
            (see `telling_frame`) where frame 0 plays a part on the platform, and the first elsewhere.
        time: a clip that is too long is cut after a frame ("trim"), sped up ("speed") or refused ("refuse").

    Raises:
        ValueError: if an argument is not as said above, if the clip does not move where a platform wants motion, or
            if it does not fit into the platform's bytes; the message then gives the least size that was reached.
    """
    rules, format = find_platform(platform), find_platform(platform).formats[0]
    clip = np.stack([np.asarray(picture) for picture in to_pictures(frames)])
    if not (cover in ("auto", "first") or (isinstance(cover, int) and 0 <= cover < len(clip))):
        raise ValueError(f"`cover` must be 'auto', 'first' or the number of one of {len(clip)} frames, not {cover!r}")
    if time not in ("trim", "speed", "refuse"):
        raise ValueError(f"`time` must be 'trim', 'speed' or 'refuse', not {time!r}")
    schedule = schedule_for(clip, frame_durations(len(clip), fps, durations), rules, cover, time)
    check_clip(clip[schedule.order], schedule.durations, rules)
    description = json.dumps(metadata) if metadata else ""
    choices = settings(format)
    least = math.inf
    for attempt in ladder(schedule, clip, rules):
        resized = fit_canvas(clip[attempt.schedule.order], *attempt.canvas)
        times = round_times(attempt.schedule.durations, format)
        job = Job(resized, times, schedule.plays, format, rules.palette, description)
        good = choices[: lowest_good(choices) + 1] if attempt.good_only else choices
        data, setting, fits = best_within(job, rules.aim_bytes, good)
        least = min(least, len(data))
        if fits:
            return data, report_on(data, job, setting, attempt, rules)
    raise ValueError(f"`frames` do not fit into {rules.aim_bytes} bytes for {rules.name}: the least was {least} bytes")


def report_on(data: bytes, job: Job, setting: Setting, attempt: Attempt, platform: Platform) -> Report:
    """The report on a file that fits."""
    alphas = [(int(frame[..., 3].min()), int(frame[..., 3].max())) for frame, _ in decode(data, READABLE)]
    return Report(
        platform=platform.key,
        format=job.format,
        suffix=SUFFIXES[job.format],
        bytes=len(data),
        size=attempt.canvas,
        frames=len(job.times),
        seconds=sum(job.times) / 1000,
        plays=job.plays,
        quality=str(setting),
        rung=attempt.rung,
        alpha=(min(low for low, _ in alphas), max(high for _, high in alphas)),
        time_change=attempt.schedule.change,
        cover=attempt.schedule.order[0],
    )
