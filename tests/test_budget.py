"""The best quality within a number of bytes, and how similar clips are."""

import dataclasses

import numpy as np
import pytest

from rdtf_diffusers.stickers.budget import Job, Search, Setting, best_within, settings
from rdtf_diffusers.stickers.similarity import WINDOW, similarity, window_means


def texture(count: int = 6, size: int = 40) -> np.ndarray:
    """Texture that moves behind a round window, (F, H, W, 4) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size // 4, size // 2, 3)).repeat(4, axis=0).repeat(4, axis=1)
    picture = np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    alpha = 255 * np.clip((0.45 - np.hypot(x - 0.5, y - 0.5)) * size + 0.5, 0, 1)
    frames = [np.concatenate([picture[:, left : left + size], alpha[..., None]], axis=2) for left in range(count)]
    return np.stack(frames).astype(np.uint8)


def job(format: str, count: int = 6, palette: bool = True) -> Job:
    return Job(texture(count), [100] * count, 0, format, palette, "")


@pytest.mark.parametrize("format", ["webp", "gif", "apng", "webm"])
def test_qualities_fall_and_so_do_bytes(format):
    clip = job(format, 3)
    for way in settings(format):
        few = [way[0], way[len(way) // 2], way[-1]]
        sizes = [len(clip.encode(setting).data) for setting in few]
        assert sizes == sorted(sizes, reverse=True)
        good = next(good for good in settings(format, good_only=True) if good[0] == way[0])
        assert way[: len(good)] == good
    assert [str(way[0]) for way in settings("apng")] == [
        "lossless",
        "lossy 2",
        "lossy 2, finer where smooth",
        "255 colours",
        "255 colours a frame",
    ]
    assert [str(settings("webp", good_only=True)[0][place]) for place in (0, -1)] == ["lossless", "quality 20"]
    assert str(settings("webm", good_only=True)[0][-1]) == "crf 50"


@pytest.mark.parametrize("format", ["webp", "apng", "webm"])
def test_short_clips_get_the_best_quality_that_fits(format):
    clip, way = job(format, 2), settings(format)[0][:: 1 if format == "apng" else 9]
    sizes = [len(clip.encode(setting).data) for setting in way]
    best = best_within(clip, (sizes[3] + sizes[4]) // 2, [way])
    assert (best.quality, len(best.data)) == (str(way[4]), sizes[4])
    assert len(best_within(clip, 50, [way]).data) == sizes[-1]  # nothing fits: the smallest


def test_long_clips_are_encoded_two_or_three_times():
    clip, way = job("webp", 40), settings("webp")[0]
    for aim in (18_000, 30_000, 60_000):
        search, encoded = Search(clip, aim), []
        search.encode = lambda setting, encoded=encoded: encoded.append(setting) or clip.encode(setting)
        file, setting = search.best(way)
        assert len(encoded) <= 4
        better = clip.encode(way[way.index(setting) - 1])
        assert len(file.data) <= aim and (len(better.data) > aim or len(file.data) >= 0.98 * aim)


def test_the_way_that_keeps_most_is_taken():
    textured, flat = job("apng"), job("apng")
    flat.clip[:] = np.random.default_rng(1).integers(0, 9, (6, 40, 40, 1)) * [20, 10, 5, 0] + [0, 0, 0, 255]
    lossless = len(textured.encode(Setting("lossless")).data)
    assert best_within(textured, 2 * lossless, settings("apng")).quality == "lossless"
    exact = best_within(flat, len(flat.encode(Setting("lossless")).data) - 1, settings("apng"))
    assert exact.quality == "9 colours"


@pytest.mark.parametrize(
    "palette, noise, share, taken",
    [(True, 0, 0.7, "rounded"), (True, 0, 0.4, "160"), (False, 0, 0.4, "112"), (False, 30, 0.5, "lossy")],
)
def test_no_other_way_keeps_more_of_texture(palette, noise, share, taken):
    clip = job("apng", 2, palette)
    colours = clip.clip[..., :3]
    colours[:] = np.clip(colours + np.random.default_rng(1).normal(0, noise, colours.shape), 0, 255)
    aim = int(share * len(clip.encode(Setting("lossless")).data))
    likeness = {}
    for way in settings("apng"):
        search = Search(clip, aim)
        file, setting = search.best(way)
        if len(file.data) <= aim:
            likeness[file.quality] = search.likeness(setting)
    best = best_within(clip, aim, settings("apng")).quality
    assert best == max(likeness, key=likeness.get) and best.startswith(taken)


def test_every_try_is_told():
    told = []
    clip = dataclasses.replace(job("webp", 2), progress=told.append)
    best = best_within(clip, len(clip.encode(Setting("quality", 50)).data), settings("webp"))
    assert best.quality in told and "lossless" not in told[-1]


@pytest.mark.parametrize(
    "palette, setting, shared", [(True, "colours", True), (False, "colours", False), (True, "colours a frame", False)]
)
def test_only_shared_colours_make_palette_files(palette, setting, shared):
    data = job("apng", 2, palette).encode(Setting(setting, 16)).data
    assert (data[25] == 3) == shared  # the colour type


def test_quality_says_what_was_done():
    smooth = np.zeros((2, 32, 32, 4), np.uint8)
    smooth[..., 3] = 255
    smooth[..., :3] = np.arange(32)[None, :, None, None] * 7 + np.arange(32)[None, None, :, None] * [0.9, 0.3, 0.6]
    best = settings("gif")[0][0]
    plain = Job(smooth // 64 * 64, [100, 100], 0, "gif", True, "")
    number = len(np.unique(plain.clip.reshape(-1, 4), axis=0))
    assert plain.encode(best).quality == f"{number} colours"
    assert job("gif").encode(Setting("colours a frame", 8)).quality == "8 colours a frame"
    few = dataclasses.replace(plain, clip=smooth).in_colours(8)
    assert few.part(slice(0, 1)).pixels().shape == (1, 32, 32, 4)


def test_window_means_are_weighted_means():
    values = np.random.default_rng(2).normal(size=(9, 6, 2))
    padded = np.pad(values, ((3, 3), (3, 3), (0, 0)), mode="symmetric")
    window = np.outer(WINDOW, WINDOW)[..., None]
    expected = [[(window * padded[y : y + 7, x : x + 7]).sum(axis=(0, 1)) for x in (0, 2, 4)] for y in (0, 2, 4, 6, 8)]
    np.testing.assert_allclose(window_means(values), expected, rtol=1e-6)


def test_similarity_of_plain_clips():
    clips = np.zeros((3, 1, 8, 8, 4), np.uint8)
    clips[:2, ..., 3] = 255
    clips[0, ..., :3], clips[1, ..., :3] = 100, 50
    luminance = (2 * 100 * 50 + 6.5025) / (100**2 + 50**2 + 6.5025)
    assert similarity(clips[0], clips[1]) == pytest.approx(luminance, abs=1e-4)
    over_black, over_white = ((2 * 100 * ground + 6.5025) / (100**2 + ground**2 + 6.5025) for ground in (0, 255))
    assert similarity(clips[0], clips[2]) == pytest.approx((over_black + over_white) / 2, abs=1e-4)
    assert similarity(texture(2), texture(2)) == pytest.approx(1)
