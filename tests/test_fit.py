"""Clips fitted to platforms: sizes, times, covers, the ladder under a byte budget, and what is refused."""

import dataclasses

import numpy as np
import pytest

from rdtf_diffusers.stickers.check import check
from rdtf_diffusers.stickers.fit import Attempt, encode_for, ladder
from rdtf_diffusers.stickers.platforms import PLATFORMS
from rdtf_diffusers.stickers.resize import fit_canvas
from rdtf_diffusers.stickers.timing import (
    Schedule,
    at_least,
    at_most_fps,
    drop_frames,
    plan_time,
    telling_frame,
    turn,
)


def draw_clip(count: int = 8, size: int = 32) -> np.ndarray:
    """A soft-edged disc that moves over nothing, (F, H, W, 4) uint8."""
    y, x = np.mgrid[:size, :size] / size
    frames = []
    for phase in 2 * np.pi * np.arange(count) / count:
        alpha = np.clip((0.3 - np.hypot(x - 0.5 - 0.15 * np.sin(phase), y - 0.5)) * size + 0.5, 0, 1)
        frames.append(np.stack([0.9 + 0 * x, 0.3 + 0.3 * x, 0.2 + 0 * x, alpha], axis=2))
    return np.rint(255 * np.stack(frames)).astype(np.uint8)


@pytest.mark.parametrize("key", list(PLATFORMS))
def test_every_platform_accepts_what_is_encoded_for_it(tmp_path, key):
    data, report = encode_for(draw_clip(3), key, metadata={"prompt": "a ball"})
    path = tmp_path / f"sticker{report.suffix}"
    path.write_bytes(data)
    assert check(path, key) == []
    assert (report.bytes, report.platform) == (len(data), key)
    assert report.alpha == (0, 255) and report.rung == "whole"


def test_report_of_a_budget_that_is_met_by_quality(tmp_path):
    clip = draw_clip(4)
    clip[..., :3] = np.random.default_rng(0).integers(0, 256, clip[..., :3].shape)
    tight = dataclasses.replace(PLATFORMS["discord-emoji"], aim_bytes=20_000)
    data, report = encode_for(clip, tight)
    assert len(data) <= 20_000 and report.quality.startswith("quality") and report.rung == "whole"
    path = tmp_path / "a.webp"
    path.write_bytes(data)
    assert check(path, tight) == []


def test_ladder_gives_up_frames_then_pixels_then_quality():
    clip = draw_clip(32)
    rules = PLATFORMS["imessage"]
    schedule = plan_time([62.5] * 32, rules, "trim")
    rungs = list(ladder(schedule, clip, rules))
    assert [rung.rung for rung in rungs[:1] + rungs[-2:]] == ["whole", "fewer pixels", "lowest quality"]
    assert [rung.canvas for rung in rungs[-3:]] == [(408, 408), (300, 300), (300, 300)]
    counts = [len(rung.schedule.order) for rung in rungs]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 8  # 4 frames a second
    assert all(sum(rung.schedule.durations) == pytest.approx(2000) for rung in rungs)
    assert isinstance(rungs[0], Attempt) and rungs[0].good_only and not rungs[-1].good_only


def test_formats_are_those_of_the_platform_the_preferred_one_first():
    assert encode_for(draw_clip(3), "kakaotalk")[1].format == "gif"
    data, report = encode_for(draw_clip(3), "kakaotalk", format="webp")
    assert (report.format, report.suffix, report.quality) == ("webp", ".webp", "lossless") and data[:4] == b"RIFF"


def test_another_format_is_taken_where_it_keeps_more():
    clip = draw_clip(8, 64)
    noise = np.random.default_rng(0).normal(0, 9, (8, 64, 64, 1))
    clip[..., :3] = np.clip(clip[..., :3] + noise, 0, 255)
    tight = dataclasses.replace(PLATFORMS["kakaotalk"], canvases=((64, 64),), aim_bytes=5_000)
    gif, webp, best = (encode_for(clip, tight, format=format) for format in ("gif", "webp", None))
    assert (gif[1].rung, webp[1].rung) == ("fewer frames", "whole") and best == webp
    roomy = dataclasses.replace(tight, aim_bytes=10_000)
    assert encode_for(clip, roomy)[1].format == "gif"  # as the platform prefers, since no frame is given up


def test_what_cannot_fit_is_refused_with_the_least_size():
    tiny = dataclasses.replace(PLATFORMS["slack"], aim_bytes=400)
    with pytest.raises(ValueError, match=r"`frames` do not fit into 400 bytes.*the least was \d+ bytes"):
        encode_for(draw_clip(3), tiny)


@pytest.mark.parametrize("time, seconds, frames", [("trim", 3, 24), ("speed", 3, 32)])
def test_too_long_clips(time, seconds, frames):
    schedule = plan_time([125] * 32, PLATFORMS["telegram"], time)
    assert sum(schedule.durations) == pytest.approx(1000 * seconds) and len(schedule.order) == frames
    assert "4.000 s" in schedule.change
    with pytest.raises(ValueError, match=r"`frames` last 4\.000 s.*3 s"):
        plan_time([125] * 32, PLATFORMS["telegram"], "refuse")


@pytest.mark.parametrize(
    "durations, total, plays, stretched",
    [([125] * 8, 1, 4, False), ([125] * 10, 1, 4, True), ([125] * 13, 2, 2, True), ([100] * 4, 1, 4, True)],
)
def test_line_takes_whole_seconds(durations, total, plays, stretched):
    schedule = plan_time(durations, PLATFORMS["line"], "trim")
    assert sum(schedule.durations) == pytest.approx(1000 * total) and schedule.plays == plays
    assert bool(schedule.change) == stretched


def test_frame_rates_fall_by_leaving_frames_out():
    schedule = at_most_fps(Schedule(list(range(10)), [20.0] * 10), 1000 / 30)
    assert schedule.order == [0, 2, 4, 6, 8] and schedule.durations == [40.0] * 5


@pytest.mark.parametrize(
    "durations", [[33] * 20, [30, 30, 40] * 6, [25] * 16, [20] * 15, [33, 33, 34, 20, 60], [35, 40, 20]]
)
def test_frame_rates_are_kept_whichever_frame_comes_first(tmp_path, durations):
    schedule = at_most_fps(Schedule(list(range(len(durations))), durations), 1000 / 30)
    assert min(schedule.durations) >= 33 and sum(schedule.durations) == pytest.approx(sum(durations))
    starts, shown = np.cumsum([0, *durations]), np.cumsum([0, *schedule.durations])
    for frame, start in zip(schedule.order, shown):
        assert abs(start - starts[frame]) <= 1000 / 60
    clip = draw_clip(2 * len(durations))[: len(durations)]
    for cover in ("first", schedule.order[-1]):
        data, report = encode_for(clip, "telegram-emoji", durations=durations, cover=cover)
        (tmp_path / "a.webm").write_bytes(data)
        assert check(tmp_path / "a.webm", "telegram-emoji") == [] and report.frames == len(schedule.order)


def test_most_frames_of_an_uneven_clip_stay():
    thirty = at_most_fps(Schedule(list(range(9)), [30.0, 30.0, 40.0] * 3), 1000 / 30)  # a GIF's 30 frames a second
    assert thirty.order == list(range(9)) and thirty.durations == pytest.approx([1000 / 30] * 9)
    sixty = at_most_fps(Schedule(list(range(30)), [34.0, 33.0, 33.0] * 10), 1000 / 30)  # of 60 frames every other one
    assert sixty.order == list(range(30)) and sixty.durations == pytest.approx([1000 / 30] * 30)
    forty = at_most_fps(Schedule(list(range(40)), [25.0] * 40), 1000 / 30)
    assert len(forty.order) == 27


def test_frames_that_are_missed_least_go_first_and_time_stays():
    clip = draw_clip(8)
    clip[3] = clip[2]
    schedule = drop_frames(Schedule(list(range(8)), [100.0] * 8), clip, 2, same=1.0)
    assert schedule.order == [0, 1, 2, 4, 5, 6, 7] and schedule.durations[2] == 200
    few = drop_frames(schedule, clip, 3)
    assert len(few.order) == 3 and few.order[0] == 0 and sum(few.durations) == 800
    slow = drop_frames(Schedule([2, 3], [40_000.0] * 2), clip, 1)
    assert slow.order == [2, 3]  # no file can say that a frame stands for 80 s
    more = at_least(Schedule([0, 1], [300.0, 100.0]), 5)
    assert more.order == [0, 0, 0, 0, 1] and sum(more.durations) == 400


def test_the_loop_turns_to_the_most_telling_frame_where_frame_0_counts():
    clip = draw_clip(6)
    clip[0, ..., 3] = 0
    clip[1, ..., 3] //= 2
    best = telling_frame(clip)
    assert best not in (0, 1)
    assert telling_frame(draw_clip(6)) == 0  # one as good as any is not turned
    assert encode_for(clip, "line")[1].cover == best
    assert encode_for(clip, "slack")[1].cover == 0
    assert encode_for(clip, "line", cover=4)[1].cover == 4
    assert turn(Schedule([0, 2, 4], [1.0, 2.0, 3.0]), 3) == Schedule([2, 4, 0], [2.0, 3.0, 1.0])


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"frames": draw_clip(1)}, "`frames` must move for WhatsApp"),
        ({"frames": draw_clip(1).repeat(3, axis=0)}, "`frames` must move for WhatsApp"),
        ({"platform": "icq"}, "`platform`.*'icq'"),
        ({"cover": 9}, "`cover`.*9"),
        ({"time": "cut"}, "`time`.*'cut'"),
        ({"format": "gif"}, "`format` must be one of webp for WhatsApp sticker, not 'gif'"),
        ({"durations": [9000] * 3}, r"`frames` must move.*one is left of these, trimmed from 27.000 s to 9.000 s"),
        (
            {"frames": np.pad(draw_clip(2), [(1, 0), (0, 0), (0, 0), (0, 0)]), "cover": "first"},
            "WhatsApp.*first frame: empty",
        ),
        ({"platform": "line", "frames": np.arange(2 * 48, dtype=np.uint8).reshape(2, 4, 4, 3)}, "transparent"),
    ],
)
def test_bad_arguments_are_named(changes, match):
    arguments = {"frames": draw_clip(3), "platform": "whatsapp", **changes}
    with pytest.raises(ValueError, match=match):
        encode_for(**arguments)


def test_motion_that_is_too_small_for_the_canvas_is_refused():
    clip = draw_clip(1, 400).repeat(2, axis=0)
    clip[1, 200, 200, :3] ^= 24
    with pytest.raises(ValueError, match="`frames` break a rule of Telegram video emoji as a file: motion: 2 frames"):
        encode_for(clip, "telegram-emoji")


def test_a_single_column_has_a_telling_frame_too():
    column = np.zeros((2, 9, 1, 4), np.uint8)
    column[1, 2:7] = 255
    assert telling_frame(column) == 1


def test_a_still_is_taken_where_the_platform_takes_one(tmp_path):
    data, report = encode_for(draw_clip(1), "discord")
    (tmp_path / "a.png").write_bytes(data)
    assert report.frames == 1 and check(tmp_path / "a.png", "discord") == []


def test_growing_keeps_edges_crisper_than_lanczos_and_inverts_shrinking():
    from PIL import Image

    large = draw_clip(1, 256)
    small = fit_canvas(large, 32, 32)
    grown = fit_canvas(small, 256, 256)
    lanczos = Image.fromarray(small[0]).convert("RGBa").resize((256, 256), Image.Resampling.LANCZOS).convert("RGBA")

    def error(clip: np.ndarray) -> float:
        return np.square(clip[..., 3].astype(float) - large[..., 3]).mean()

    assert error(grown) < 0.5 * error(np.asarray(lanczos)[None])
    assert np.abs(fit_canvas(grown, 32, 32).astype(int)[..., 3] - small[..., 3]).max() <= 24


def test_fitting_keeps_the_shape_with_transparent_margins_and_no_fringe():
    clip = np.full((1, 20, 40, 4), (10, 200, 30, 255), np.uint8)
    fitted = fit_canvas(clip, 100, 100)[0]
    assert (fitted[25:75] == (10, 200, 30, 255)).all()
    assert not fitted[:25].any() and not fitted[75:].any()
    soft = np.zeros((1, 16, 16, 4), np.uint8)
    soft[:, 4:12, 4:12] = (250, 250, 250, 255)  # the invisible pixels are black
    grown = fit_canvas(soft, 50, 50)
    assert grown[grown[..., 3] > 8][:, :3].min() >= 245


def test_a_clip_that_flashes_is_refused_where_flashes_are():
    clip = np.zeros((8, 32, 32, 4), np.uint8)
    clip[..., 3] = 255
    clip[::2, ..., :3] = 255
    with pytest.raises(ValueError, match="flash 4 times within a second, Twitch"):
        encode_for(clip, "twitch", fps=8)
    assert encode_for(clip, "twitch", fps=5)[1].seconds == pytest.approx(1.6)
