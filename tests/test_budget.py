"""The best quality within a number of bytes: the ways to save them, the search, lossy APNG, and what is alike."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import correlate1d

from rdtf_diffusers.stickers.apng import predictable, write_apng
from rdtf_diffusers.stickers.budget import Job, Search, Setting, best_within, settings
from rdtf_diffusers.stickers.similarity import WINDOW, similarity


def texture(count: int = 4, size: int = 32) -> np.ndarray:
    """A clip of soft texture in a soft-edged disc, (F, H, W, 4) uint8."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:size, :size]
    alpha = np.clip((0.45 * size - np.hypot(x - size / 2, y - size / 2)) * 64, 0, 255).astype(np.uint8)
    return np.stack([np.dstack([np.roll(picture, shift, axis=1), alpha]) for shift in range(count)])


def job(format: str, palette: bool = True, **changes) -> Job:
    whole = Job(texture(), [100] * 4, 0, format, palette, "")
    return replace(whole, **changes)


def test_ways_are_sorted_and_named():
    (webp,) = settings("webp")
    assert [str(setting) for setting in webp[:3]] == ["lossless", "quality 100", "quality 98"]
    assert settings("webp", good_only=True)[0][-1] == Setting("quality", 20)
    assert settings("webm", good_only=True)[0][-1] == Setting("crf", 50)
    assert all(way[-1].value >= 16 for way in settings("gif", good_only=True) if "colours" in way[-1].kind)
    assert str(settings("apng")[0][0]) == "lossless"


@pytest.mark.parametrize("format", ["webp", "webm", "gif", "apng"])
def test_what_fits_is_taken_and_more_bytes_are_never_worse(format):
    clip = texture()
    likeness = []
    for aim in (6_000, 12_000, 24_000):
        encoded = best_within(job(format), aim, settings(format))
        assert len(encoded.data) <= aim
        with Image.open(io.BytesIO(encoded.data)) if format != "webm" else io.BytesIO() as file:
            if format == "webm":
                continue
            frames = []
            for place in range(file.n_frames):
                file.seek(place)
                frames.append(np.asarray(file.convert("RGBA")))
        likeness.append(similarity(clip, np.stack(frames)))
    assert likeness == sorted(likeness)


def test_what_cannot_fit_comes_back_too_large():
    assert len(best_within(job("apng"), 100, settings("apng")).data) > 100


def test_the_search_ends_at_the_best_setting_that_fits():
    (way,) = settings("webp")
    aim = 5_000
    encoded, setting = Search(job("webp"), aim).best(way)
    sizes = [len(job("webp").encode(other).data) for other in way]
    fitting = [place for place, size in enumerate(sizes) if size <= aim]
    assert way.index(setting) in fitting
    close = len(encoded.data) >= 0.98 * aim
    assert close or sizes[way.index(setting) - 1] > aim


@pytest.mark.parametrize("step", [2, 8, 24])
def test_predictable_stays_within_the_step_and_shrinks_the_file(step):
    clip = texture()
    lossy = predictable(clip, step)
    seen = clip[..., 3:] > 0
    assert np.abs(lossy.astype(int) - clip)[np.broadcast_to(seen, clip.shape)].max() <= step
    for end in (0, 255):
        assert ((lossy[..., 3] == end) == (clip[..., 3] == end)).all()
    assert len(write_apng(lossy, [100] * 4)) < len(write_apng(clip, [100] * 4))


def test_similarity_against_filtered_pictures():
    clip = texture(1, 16)
    other = np.clip(clip.astype(int) + np.random.default_rng(1).integers(-30, 30, clip.shape), 0, 255).astype(np.uint8)
    other[..., 3] = clip[..., 3]
    assert similarity(clip, clip) == pytest.approx(1)

    def means(values: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(values, WINDOW, 0, mode="reflect"), WINDOW, 1, mode="reflect")[::2, ::2]

    values = []
    for background in (0.0, 255.0):
        alpha = clip[0, ..., 3] / 255
        for channel in range(3):
            a, b = (picture[0, ..., channel] * alpha + background * (1 - alpha) for picture in (clip, other))
            mean_a, mean_b = means(a), means(b)
            covariance = means(a * b) - mean_a * mean_b
            variances = means(a * a) - mean_a**2 + means(b * b) - mean_b**2
            luminance = (2 * mean_a * mean_b + 6.5025) / (mean_a**2 + mean_b**2 + 6.5025)
            values.append((luminance * (2 * covariance + 58.5225) / (variances + 58.5225)).mean())
    assert similarity(clip, other) == pytest.approx(np.mean(values), abs=1e-4)
