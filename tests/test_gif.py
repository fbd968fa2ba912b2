"""Palettes, dithering and edges of GIF and APNG files; transparency and times of WEBM."""

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageSequence

from rdtf_diffusers.data.animation import read_animation
from rdtf_diffusers.stickers import apng
from rdtf_diffusers.stickers.apng import changed_box, coarsen, filtered_lines, predictable, write_apng
from rdtf_diffusers.stickers.encode import encode
from rdtf_diffusers.stickers.gif import best_colours, encode_gif, harden, own_colours, write_gif
from rdtf_diffusers.stickers.palette import cells, cluster, count_colours, nearest, quantise, squared_error, thresholds
from rdtf_diffusers.stickers.webm import bleed


def read_back(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as file:
        return np.stack([np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(file)])


def disc(size: int = 48, colour=(230, 60, 20)) -> np.ndarray:
    """A soft-edged disc over nothing, (H, W, 4) uint8."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.clip(size / 3 - np.hypot(x, y) + 0.5, 0, 1)
    return np.concatenate([np.broadcast_to(colour, (size, size, 3)), 255 * alpha[..., None]], axis=2).astype(np.uint8)


def gradient(size: int = 64) -> np.ndarray:
    """A moving gradient of many colours, (4, H, W, 4) uint8."""
    y, x = np.mgrid[:size, :size] / size
    frames = [np.stack([x, (y + shift) / 2, 1 - x * y, np.ones_like(x)], axis=2) for shift in (0, 0.3, 0.6, 0.9)]
    return np.rint(255 * np.stack(frames)).astype(np.uint8)


@pytest.mark.parametrize("background", [0, 255, (0, 200, 80)])
def test_gif_edges_have_the_colour_of_the_picture_over_any_background(background):
    frame = read_back(encode_gif(disc()[None], [100]))[0]
    solid = frame[..., 3] == 255
    assert set(np.unique(frame[..., 3])) == {0, 255}
    over = np.where(solid[..., None], frame[..., :3], background)
    np.testing.assert_array_equal(over[solid], np.broadcast_to((230, 60, 20), over[solid].shape))


def test_flat_art_is_exact_and_never_dithered():
    clip = np.stack([disc(), np.roll(disc(), 5, axis=1)])
    np.testing.assert_array_equal(read_back(encode_gif(clip, [100, 100])), harden(clip))
    noise = np.random.default_rng(0).integers(0, 256, clip.shape, np.uint8)
    noise[:, :24] = (12, 200, 99, 255)  # as flat as half of a picture full of other colours
    noise[..., 3] = 255
    indices, palette, _ = quantise(noise, 16, dither=0)
    assert (palette[indices][:, :24] == (12, 200, 99, 255)).all()


def test_palette_is_closer_than_median_cut():
    clip = gradient()
    indices, palette, _ = quantise(clip, 64)
    tall = Image.fromarray(clip[..., :3].reshape(-1, 64, 3))
    reduced = tall.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGBA")
    assert squared_error(clip, palette[indices]) < 0.8 * squared_error(clip, np.asarray(reduced).reshape(clip.shape))


@pytest.mark.parametrize("number", [1, 3, 4, 31, 32, 255])
@pytest.mark.parametrize("own", [False, True])
def test_gif_colour_tables_are_as_small_as_they_can_be(number, own):
    rng = np.random.default_rng(0)
    colours = np.insert(rng.integers(0, 256, (number, 3), np.uint8), 3, 255, axis=1)
    clip = colours[rng.integers(0, number, (2, 20, 24))]
    clip[:, 5:9, 2:9] = 0
    parts = own_colours(clip, 255) if own else [quantise(clip, 255)]
    data = write_gif(parts, [100, 200])
    entries = max(4, 2 ** math.ceil(math.log2(len(parts[0].palette))))  # "nothing here" has one of them
    assert (data[10] & 7, data[11]) == (math.log2(entries) - 1, len(parts[0].palette) - 1)
    np.testing.assert_array_equal(read_animation(data).frames, clip)


def test_dithering_removes_bands_and_stands_still():
    x = np.linspace(0, 255, 256)
    ramp = np.broadcast_to(x[None, None, :, None], (2, 64, 256, 4)).astype(np.uint8).copy()
    ramp[..., 3] = 255
    errors = {}
    for dither in (math.inf, 2.5):
        indices, palette, _ = quantise(ramp, 8, dither=dither)
        shown = palette[indices].astype(float)
        np.testing.assert_array_equal(shown[0], shown[1])
        blocks = (shown - ramp)[0, :, :, 0].reshape(8, 8, 32, 8).mean(axis=(1, 3))  # as seen from afar
        errors[dither] = np.sqrt((blocks**2).mean())
    assert errors[2.5] < 0.5 * errors[math.inf]


def test_thresholds_are_an_even_mixture():
    pattern = thresholds(8, 8)
    np.testing.assert_allclose(np.sort(pattern.ravel()), (np.arange(64) + 0.5) / 64)
    np.testing.assert_array_equal(thresholds(16, 20)[8:, :8], pattern)


def test_clusters_of_a_known_mixture():
    rng = np.random.default_rng(0)
    centres = np.array([[20, 30, 40, 255], [220, 30, 40, 255], [20, 230, 40, 255], [20, 30, 240, 128]])
    points = (centres[:, None] + rng.integers(-3, 4, (4, 50, 4)) * [1, 1, 1, 0]).reshape(-1, 4).astype(np.float32)
    palette = cluster(points, np.ones(len(points), int), 4)
    order = [np.abs(palette.astype(int) - centre).sum(axis=1).argmin() for centre in centres]
    assert sorted(order) == [0, 1, 2, 3]
    assert np.abs(palette[order].astype(int) - centres).max() <= 2


def test_apng_keeps_equal_frames_and_stores_only_what_changed():
    clip = np.stack([disc(), disc(), disc()])
    clip[2, 10:20, 30:33] = (1, 2, 3, 255)
    assert changed_box(clip[0], clip[1]) == (0, 0, 1, 1)
    assert changed_box(clip[1], clip[2]) == (30, 10, 33, 20)
    data = write_apng(clip, [100, 50, 70], loops=3)
    with Image.open(io.BytesIO(data)) as file:
        assert (file.n_frames, file.info["loop"]) == (3, 3)
    np.testing.assert_array_equal(
        np.where(clip[..., 3:] > 0, read_back(data), 0), np.where(clip[..., 3:] > 0, clip, 0)
    )


def test_apng_with_a_palette_keeps_soft_edges():
    clip = np.stack([disc(), np.roll(disc(), 3, axis=0)])
    indices, palette, _ = quantise(clip, 255)
    frames = read_back(write_apng(indices, [100, 100], palette=palette))
    np.testing.assert_array_equal(frames[..., 3], clip[..., 3])
    np.testing.assert_array_equal(frames, np.where(clip[..., 3:] > 0, clip, 0))


def test_coarsen_keeps_the_ends():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(4, axis=3)
    coarse = coarsen(values, 6)[0, ..., 0].ravel()
    assert (coarse[0], coarse[255]) == (0, 255)
    assert np.abs(coarse.astype(int) - np.arange(256)).max() <= 3


def noisy_disc(count: int = 3) -> np.ndarray:
    """Texture inside a soft-edged disc that moves, (count, 48, 48, 4) uint8."""
    clip = np.stack([np.roll(disc(), 2 * index, axis=1) for index in range(count)])
    clip[..., :3] = np.random.default_rng(0).normal(128, 25, clip[..., :3].shape)
    return clip


@pytest.mark.parametrize("step, smooth_step", [(2, None), (9, None), (40, None), (24, 6)])
def test_lossy_apng_is_a_few_steps_off_its_own_prediction(step, smooth_step):
    clip = noisy_disc()
    lossy = predictable(clip, step, smooth_step)
    near, first = np.abs(lossy.astype(int) - clip), lossy[0].astype(int)
    assert near[clip[..., 3] > 0].max() <= 0.65 * step + 1
    for ends in (0, 255):
        np.testing.assert_array_equal(lossy[..., 3] == ends, clip[..., 3] == ends)
    prediction = (np.pad(first, ((0, 0), (1, 0), (0, 0)))[:, :-1] + np.pad(first, ((1, 0), (0, 0), (0, 0)))[:-1]) >> 1
    inside = (clip[0, ..., 3] == 255)[..., None] & (first > 0) & (first < 255)
    inside[..., 3] = False
    assert not ((first - prediction)[inside] % (smooth_step or step)).any()
    np.testing.assert_array_equal(read_back(write_apng(lossy, [50, 50, 50])), lossy)


def test_lossy_apng_changes_only_what_changed():
    clip = noisy_disc(1).repeat(3, axis=0)
    clip[1:, 20:30, 15:25, :3] = 60
    lossy = predictable(clip, 16)
    differs = (lossy[1] != lossy[0]).any(axis=2)
    assert differs[20:30, 15:25].any() and not differs[:20].any() and not differs[:, 25:].any()
    np.testing.assert_array_equal(lossy[2], lossy[1])


def test_lossy_apng_of_texture_takes_fewer_bytes_than_rounding_by_as_much():
    small = np.random.default_rng(1).integers(60, 200, (40, 40, 3), np.uint8)
    clip = np.asarray(Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).convert("RGBA"))[None]
    rounded, lossy = coarsen(clip, 12), predictable(clip, 12)
    assert len(write_apng(lossy, [100])) < 0.9 * len(write_apng(rounded, [100]))
    assert squared_error(clip, lossy) < 1.1 * squared_error(clip, rounded)


def test_filters_are_those_of_png():
    import zlib

    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 4), np.uint8)
    for number, lines in enumerate(filtered_lines(picture)):
        data = np.pad(lines, ((0, 0), (1, 0)), constant_values=number)
        whole = write_apng(picture[None], [100])
        start = whole.index(b"IDAT") - 4
        stream = zlib.compress(data.tobytes())
        chunk = len(stream).to_bytes(4, "big") + b"IDAT" + stream + zlib.crc32(b"IDAT" + stream).to_bytes(4, "big")
        with Image.open(io.BytesIO(whole[:start] + chunk + whole[-12:])) as file:
            np.testing.assert_array_equal(np.asarray(file), picture)


def test_cells_are_halved_while_they_are_few():
    colours = np.random.default_rng(0).integers(0, 256, (500, 4), np.uint8)
    colours[:100, 3], colours[100:200, 3] = 255, 0
    for most in (3, 60, 10_000):
        cell, number = cells(colours, most)
        assert number <= max(most, 3) and set(np.unique(cell)) == set(range(number))
        states = np.sign(colours[:, 3].astype(int)) + (colours[:, 3] == 255)
        assert all(len(set(states[cell == one])) == 1 for one in range(number))
    assert number == len({tuple(colour) if colour[3] else None for colour in colours.tolist()})  # all are told apart
    points, counts, inverse = count_colours(colours.reshape(1, 20, 25, 4), 10_000)
    np.testing.assert_array_equal(points[inverse].reshape(-1, 4), np.where(colours[:, 3:] > 0, colours, 0))
    assert counts.sum() == 500


def test_nearest_is_nearest():
    rng = np.random.default_rng(0)
    points, centres = rng.normal(0, 50, (3000, 4)).astype("f4"), rng.normal(0, 50, (37, 4)).astype("f4")
    distances = ((points[:, None] - centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(nearest(points, centres), distances.argmin(axis=1))


def test_only_what_was_dithered_is_said_to_be():
    assert not quantise(disc()[None], 4, dither=5).dithered
    assert quantise(gradient(), 16, dither=5).dithered and not quantise(gradient(), 16).dithered
    assert not any(one.dithered for one in best_colours(harden(disc()[None]), 2.5))
    assert len(best_colours(gradient(), 2.5)) == 4  # palettes of their own


def test_bleed_fills_what_is_invisible_from_nearby():
    frame = np.zeros((9, 12, 4), np.uint8)
    frame[:, :2] = (200, 0, 0, 255)
    frame[:, 10:] = (0, 0, 200, 255)
    filled = bleed(frame[None])[0]
    np.testing.assert_array_equal(filled[..., 3], frame[..., 3])
    np.testing.assert_array_equal(filled[:, :2], frame[:, :2])
    assert (filled[:, 2, 0] > 150).all() and (filled[:, 9, 2] > 150).all()


def test_webm_keeps_transparency_times_and_colours(tmp_path):
    clip = np.stack([disc(51), np.roll(disc(51), 4, axis=1), np.roll(disc(51), 8, axis=1)])
    (tmp_path / "a.webm").write_bytes(encode(clip, "webm", durations=[100, 250, 40]))
    animation = read_animation(tmp_path / "a.webm")
    np.testing.assert_allclose(animation.durations, [100, 250, 40])
    assert np.abs(animation.frames[..., 3].astype(int) - clip[..., 3]).max() <= 24
    inside = clip[..., 3] == 255
    assert np.abs(animation.frames[inside].astype(int) - clip[inside]).mean() < 4


@pytest.mark.parametrize("step", [2, 8, 24])
def test_lossy_apng_is_smaller(step):
    clip = noisy_disc()
    assert len(write_apng(predictable(clip, step), [100] * 3)) < len(write_apng(clip, [100] * 3))


def test_lossy_apng_of_many_frames_is_made_piece_by_piece(monkeypatch):
    clip = noisy_disc(5)
    whole = predictable(clip, 8, 2)
    monkeypatch.setattr(apng, "FRAMES", 2)
    np.testing.assert_array_equal(predictable(clip, 8, 2), whole)
