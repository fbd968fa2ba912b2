"""A clip as a file that a platform accepts: its canvas, its times, and the best quality within its bytes.

    data, report = encode_for(frames, "whatsapp", fps=8)

What is given up for bytes, in this order: quality or colours down to what still looks good; frames that look alike;
more frames; pixels, where the platform permits; the last of the quality. Times are kept throughout.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from ..data.decoders import Limits, decode
from .budget import Encoded, Job, best_within, settings
from .check import check_bytes, differ, most_flashes
from .encode import frame_durations, round_times, to_pictures
from .platforms import SUFFIXES, Platform, find_platform
from .resize import fit_canvas
from .similarity import similarity
from .timing import SAME, Schedule, at_least, drop_frames, plan_time, telling_frame, turn


LEAST_FPS = 4.0  # frames are not dropped below it
LEAST_SHARE = 0.9  # bytes per frame do not fall below this share when frames go, as the dull ones go first
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
        quality: in words: "lossless", "quality 80" (WebP), "crf 20" (WEBM), "64 colours", "255 dithered colours",
            "255 colours a frame", "rounded to 4" (values are multiples of 4), "lossy 12" (values are a multiple of 12
            off a prediction).
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
    if cover == "auto" and platform.cover:
        cover = schedule.order[telling_frame(clip[schedule.order])]
    if isinstance(cover, int):
        schedule = turn(schedule, cover)
    if platform.max_frames:
        schedule = drop_frames(schedule, clip, platform.max_frames)
    return at_least(schedule, platform.min_frames) if len(schedule.order) > 1 else schedule


def check_clip(clip: np.ndarray, schedule: Schedule, platform: Platform) -> None:
    """Refuses what no encoding makes acceptable, of a clip (F, H, W, 4) as it is shown.

    Raises:
        ValueError: for a still where the platform wants motion, an opaque clip where it wants transparency, and one
            that flashes more often than it allows.
    """
    if not platform.still and not any(differ(frame, clip[0]) for frame in clip[1:]):
        left = f", and one is left of these, {schedule.change}" if schedule.change else ""
        raise ValueError(f"`frames` must move for {platform.name}: it takes no still pictures{left}")
    if platform.transparent and clip[..., 3].min() == 255:
        raise ValueError(f"`frames` must have a transparent background for {platform.name}")
    if platform.max_flashes is not None and (flashes := most_flashes(clip, schedule.durations)) > platform.max_flashes:
        raise ValueError(
            f"`frames` flash {flashes} times within a second, {platform.name} allows {platform.max_flashes}; "
            "play them more slowly"
        )


class Fitted(NamedTuple):
    """The best file of one format and how it came about."""

    encoded: Encoded
    job: Job
    attempt: Attempt


def fit_bytes(
    clip: np.ndarray,
    attempts: Iterable[Attempt],
    platform: Platform,
    format: str,
    description: str,
    progress: Callable[[str], object] | None,
) -> Fitted | int:
    """The first of the attempts that fits into a platform's bytes; if none does, the least size that was reached."""
    aim, least, per_frame, canvas = platform.aim_bytes, math.inf, 0.0, None
    for attempt in attempts:
        order = attempt.schedule.order
        if attempt.canvas != canvas:
            canvas, per_frame = attempt.canvas, 0.0
            resized = {frame: fit_canvas(clip[[frame]], *canvas)[0] for frame in order}
        if attempt.good_only and LEAST_SHARE * per_frame * len(order) > aim:
            continue
        times = round_times(attempt.schedule.durations, format)
        frames = np.stack([resized[frame] for frame in order])
        job = Job(frames, times, attempt.schedule.plays, format, platform.palette, description, progress)
        encoded = best_within(job, aim, settings(format, attempt.good_only))
        if len(encoded.data) <= aim:
            return Fitted(encoded, job, attempt)
        least, per_frame = min(least, len(encoded.data)), len(encoded.data) / len(order)
    return least


def likeness(fitted: Fitted, clip: np.ndarray, whole: Attempt) -> float:
    """How similar a file stays to the clip (F, H, W, 4), each of whose frames is compared with what is shown then."""
    shown = list(decode(fitted.encoded.data, READABLE))
    ends = np.cumsum([duration for _, duration in shown])
    middles = np.cumsum(whole.schedule.durations) - np.array(whole.schedule.durations) / 2
    values = []
    for frame, place in zip(whole.schedule.order, np.searchsorted(ends[:-1], middles)):
        pair = (fit_canvas(picture[None], *whole.canvas) for picture in (clip[frame], shown[place][0]))
        values.append(similarity(*pair))
    return float(np.mean(values))


def encode_for(
    frames: Sequence[Image.Image] | np.ndarray,
    platform: str | Platform,
    *,
    fps: float = 8.0,
    durations: Sequence[float] | None = None,
    metadata: Mapping[str, object] | None = None,
    cover: Literal["auto", "first"] | int = "auto",
    time: Literal["trim", "speed", "refuse"] = "trim",
    format: Literal["webp", "gif", "apng", "webm"] | None = None,
    progress: Callable[[str], object] | None = None,
) -> tuple[bytes, Report]:
    """A clip as the bytes of a file that a platform accepts, at the best quality.

    Args:
        frames: PIL pictures, or an array (F, H, W, 3 or 4), straight alpha: uint8, or floating point in [0, 1].
        platform: one of the keys of `PLATFORMS`, or a record.
        fps: frames per second, 0.1 to 50.
        durations: how long each frame stands, in ms, instead of `fps`.
        metadata: anything that JSON can hold, stored inside the file as by `encode`; its bytes count.
        cover: the frame to begin the loop with: "first", a frame's number, or "auto", which is the most telling one
            (see `telling_frame`) where frame 0 plays a part on the platform, and the first elsewhere.
        time: a clip that is too long is cut after a frame ("trim"), sped up ("speed") or refused ("refuse").
        format: one of the platform's formats. None is the one it prefers, but where that means to give up frames or
            pixels, the one whose file is most similar to the clip.
        progress: called with each quality, in words, before it is tried.

    Raises:
        ValueError: if an argument is not as said above; if the clip does not fit into the platform's bytes, where the
            message gives the least size that was reached; or if the file would break another of its rules (see
            `check`), such as a clip that does not move where a platform wants motion.
    """
    rules = find_platform(platform)
    clip = np.stack([np.asarray(picture) for picture in to_pictures(frames)])
    if not (cover in ("auto", "first") or (isinstance(cover, int) and 0 <= cover < len(clip))):
        raise ValueError(f"`cover` must be 'auto', 'first' or the number of one of {len(clip)} frames, not {cover!r}")
    if time not in ("trim", "speed", "refuse"):
        raise ValueError(f"`time` must be 'trim', 'speed' or 'refuse', not {time!r}")
    if format is not None and format not in rules.formats:
        raise ValueError(f"`format` must be one of {', '.join(rules.formats)} for {rules.name}, not {format!r}")
    schedule = schedule_for(clip, frame_durations(len(clip), fps, durations), rules, cover, time)
    check_clip(clip[schedule.order], schedule, rules)
    first, *others = [format] if format else rules.formats
    description = json.dumps(metadata) if metadata else ""
    whole, *rest = ladder(schedule, clip, rules)
    fitted = [fit_bytes(clip, [whole, *rest], rules, first, description, progress)]
    if not (isinstance(fitted[0], Fitted) and fitted[0].attempt is whole):
        fitted += [fit_bytes(clip, [whole, *rest], rules, other, description, progress) for other in others]
    found = [one for one in fitted if isinstance(one, Fitted)]
    if not found:
        raise ValueError(
            f"`frames` do not fit into {rules.aim_bytes} bytes for {rules.name}: the least was {min(fitted)} bytes"
        )
    best = found[0] if len(found) == 1 else max(found, key=lambda one: likeness(one, clip, whole))
    report = report_on(best, rules)
    if broken := check_bytes(best.encoded.data, report.suffix, rules):
        raise ValueError(f"`frames` break a rule of {rules.name} as a file: {'; '.join(map(str, broken))}")
    return best.encoded.data, report


def report_on(fitted: Fitted, platform: Platform) -> Report:
    """The report on a file that fits."""
    (data, quality), job, attempt = fitted
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
        quality=quality,
        rung=attempt.rung,
        alpha=(min(low for low, _ in alphas), max(high for _, high in alphas)),
        time_change=attempt.schedule.change,
        cover=attempt.schedule.order[0],
    )
