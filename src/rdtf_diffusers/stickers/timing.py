"""When frames stand and for how long: rules for time, frames that can go, and the frame to begin with."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from .palette import to_features
from .platforms import Platform


LEAST_MS = 20  # viewers slow down frames that stand for less
SAME = 1.0  # mean squared difference in levels of 255 up to which two frames count as one
LONGEST_MS = 60_000  # APNG and GIF count in 16 bits
SLACK_MS = 0.3  # what is short by no more than that is not after rounding to whole milliseconds


class Schedule(NamedTuple):
    """Which frames are shown in which order, how long each stands (ms), how often all play (0: for ever), and in words
    what was done to the time, or None."""

    order: list[int]
    durations: list[float]
    plays: int = 0
    change: str | None = None


def small_features(clip: np.ndarray) -> np.ndarray:
    """A clip (F, H, W, 4) uint8 as (F, N, 4) colours of about 64 x 64 of its pixels, to compare its frames by."""
    step = max(1, max(clip.shape[1:3]) // 64)
    small = clip[:, ::step, ::step]
    return to_features(small.reshape(-1, 4)).reshape(len(clip), -1, 4)


def within_cap(durations: Sequence[float], seconds: float, time: Literal["trim", "speed", "refuse"]) -> Schedule:
    """A clip that is longer than `seconds`, made to last no longer.

    Raises:
        ValueError: if `time` is "refuse".
    """
    total, cap = sum(durations) / 1000, 1000 * seconds
    if time == "refuse":
        raise ValueError(
            f"`frames` last {total:.3f} s, longer than the platform's {seconds:g} s; trim or speed them up"
        )
    if time == "speed":
        faster = [duration * cap / sum(durations) for duration in durations]
        return Schedule(list(range(len(durations))), faster, 0, f"sped up from {total:.3f} s to {seconds:g} s")
    kept = [duration for duration, end in zip(durations, np.cumsum(durations)) if end <= cap + SLACK_MS] or [cap]
    return Schedule(list(range(len(kept))), kept, 0, f"trimmed from {total:.3f} s to {sum(kept) / 1000:.3f} s")


def at_most_fps(schedule: Schedule, least_ms: float) -> Schedule:
    """Lets every frame stand for `least_ms` at least: one that comes too early waits, or is left out if it would miss
    half its time. The total time stays.
    """
    order, starts, now = [], [], 0.0
    for frame, duration in zip(schedule.order, schedule.durations):
        start = max(now, starts[-1] + least_ms) if starts else now
        if start - now < duration / 2:
            order.append(frame)
            starts.append(start)
        now += duration
    if len(order) > 1 and len(order) * least_ms > now + SLACK_MS:  # no time is left for the last one
        order.pop()
        starts.pop()
    latest = now - least_ms * np.arange(len(order), 0, -1)
    starts = np.maximum(np.minimum(starts, latest), 0)
    return schedule._replace(order=order, durations=np.diff(starts, append=now).tolist())


def plan_time(durations: Sequence[float], platform: Platform, time: Literal["trim", "speed", "refuse"]) -> Schedule:
    """A clip's frames and times within a platform's rules for length, whole seconds and frame rate.

    Raises:
        ValueError: if it is too long and `time` is "refuse".
    """
    schedule = Schedule(list(range(len(durations))), list(durations))
    if len(durations) == 1:
        return schedule
    if platform.max_seconds and sum(durations) > 1000 * platform.max_seconds + SLACK_MS:
        schedule = within_cap(durations, platform.max_seconds, time)
    if platform.whole_seconds:
        seconds = sum(schedule.durations) / 1000
        whole = max(1, int(seconds + 0.5))
        plays = max(platform.loops[0], min(platform.loops[1], int(platform.max_seconds // whole)))
        change = schedule.change
        if abs(seconds - whole) > SLACK_MS / 1000:
            change = "; ".join(filter(None, [change, f"stretched from {seconds:.3f} s to {whole} s"]))
        stretched = [duration * whole / seconds for duration in schedule.durations]
        schedule = Schedule(schedule.order, stretched, plays, change)
    least_ms = max(LEAST_MS, platform.min_frame_ms, 1000 / platform.max_fps if platform.max_fps else 0)
    return at_most_fps(schedule, least_ms)


def drop_frames(schedule: Schedule, clip: np.ndarray, most: int, same: float = np.inf) -> Schedule:
    """Leaves out the frames that are missed least until `most` are left; the frame before each stands longer.

    What is missed is the difference to the frame before, times how long it is not shown. Frames that differ by more
    than `same` from the one before stay, and none comes to stand for more than a minute.
    """
    features = small_features(clip)
    order, durations = list(schedule.order), list(schedule.durations)

    def missed(place: int) -> float:
        difference = features[order[place]] - features[order[place - 1]]
        error = float(np.einsum("nc,nc->", difference, difference)) / len(difference)
        too_long = durations[place - 1] + durations[place] > LONGEST_MS
        return np.inf if error > same or too_long else error * durations[place]

    losses = [np.inf] + [missed(place) for place in range(1, len(order))]
    while len(order) > most and min(losses) < np.inf:
        place = int(np.argmin(losses))
        durations[place - 1] += durations[place]
        del order[place], durations[place], losses[place]
        for neighbour in (place - 1, place):
            if 0 < neighbour < len(order):
                losses[neighbour] = missed(neighbour)
    return schedule._replace(order=order, durations=durations)


def at_least(schedule: Schedule, count: int) -> Schedule:
    """Shows the frames that stand longest twice, each half as long, until there are `count`."""
    order, durations = list(schedule.order), list(schedule.durations)
    while len(order) < count:
        longest = int(np.argmax(durations))
        durations[longest] /= 2
        durations.insert(longest, durations[longest])
        order.insert(longest, order[longest])
    return schedule._replace(order=order, durations=durations)


def telling_frame(clip: np.ndarray) -> int:
    """The frame (of (F, H, W, 4) uint8) to stand for the clip: large, opaque, detailed and in the middle.

    Three measures, each as a share of the clip's best: the mean alpha; the contrast of neighbouring pixels over
    grey; and how near the visible part's centre is to the middle of the canvas. The frame with the greatest sum is
    taken, but the first one if it comes within 10 % of that: a clip is not turned for nothing.
    """
    step = max(1, max(clip.shape[1:3]) // 128)
    small = clip[:, ::step, ::step].astype(np.float32) / 255
    alpha = small[..., 3]
    grey = (small[..., :3].mean(axis=3) - 0.5) * alpha
    area = alpha.mean(axis=(1, 2))
    detail = sum(np.abs(np.diff(grey, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))
    height, width = alpha.shape[1:]
    weights = alpha / np.maximum(alpha.sum(axis=(1, 2), keepdims=True), 1e-6)
    y = (weights.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / height - 0.5
    x = (weights.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / width - 0.5
    score = sum(measure / max(measure.max(), 1e-6) for measure in (area, detail, 1 - np.hypot(x, y)))
    return 0 if score[0] >= 0.9 * score.max() else int(score.argmax())


def turn(schedule: Schedule, first: int) -> Schedule:
    """The same loop, begun at the frame `first` of the clip, or at the one that is shown in its place."""
    start = max((place for place, frame in enumerate(schedule.order) if frame <= first), default=0)
    order = schedule.order[start:] + schedule.order[:start]
    return schedule._replace(order=order, durations=schedule.durations[start:] + schedule.durations[:start])
