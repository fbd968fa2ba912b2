"""Saved stickers, read anew: pixels, alpha, timing, looping, metadata; and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageSequence

from rdtf_diffusers.stickers.apng import compress
from rdtf_diffusers.stickers.encode import encode, save_sticker


FORMATS = ["webp", "gif", "apng"]


def draw_clip(num_frames: int = 8, size: int = 48) -> np.ndarray:
    """A soft-edged disc that moves over nothing, (F, H, W, 4) uint8; the fourth frame is empty."""
    frames = []
    for index in range(num_frames):
        large = Image.new("RGBA", (4 * size, 4 * size), (230, 60, 20 * index, 0))
        left = 8 + 10 * index
        ImageDraw.Draw(large).ellipse((left, 40, left + 80, 120), fill=(230, 60, 20 * index, 255))
        frames.append(np.asarray(large.resize((size, size), Image.Resampling.BOX)))
    clip = np.stack(frames)
    if num_frames > 3:
        clip[3] = 0
    return clip


def read_back(data: bytes) -> tuple[np.ndarray, list[float], Image.Image]:
    picture = Image.open(io.BytesIO(data))
    frames, durations = [], []
    for frame in ImageSequence.Iterator(picture):
        frames.append(np.asarray(frame.convert("RGBA")))
        durations.append(frame.info.get("duration"))
    return np.stack(frames), durations, picture


def visible(clip: np.ndarray) -> np.ndarray:
    """The clip without the colours that nobody can see."""
    return np.where(clip[..., 3:] > 0, clip, 0)


@pytest.mark.parametrize("format", ["webp", "apng"])
def test_webp_and_apng_keep_every_visible_pixel(format):
    clip = draw_clip()
    assert 0 < np.mean((clip[..., 3] > 0) & (clip[..., 3] < 255))  # soft edges are at stake
    frames, durations, picture = read_back(encode(clip, format))
    np.testing.assert_array_equal(visible(frames), visible(clip))
    assert durations == [125] * 8
    assert picture.info["loop"] == 0


def test_gif_keeps_colours_hard_edges_and_the_total_time():
    clip = draw_clip()
    data = encode(clip, "gif")
    frames, durations, picture = read_back(data)
    np.testing.assert_array_equal(frames[..., 3], np.where(clip[..., 3] >= 128, 255, 0))
    solid = frames[..., 3] > 0
    assert np.abs(frames[solid].astype(int) - clip[solid]).max(axis=0)[:3].max() <= 4
    assert durations == [130, 120] * 4
    assert picture.info["loop"] == 0
    assert data.count(b"GIF89a") == 1  # the empty frame starts no second file


def test_gif_palette_is_exact_when_the_colours_fit_and_shared_when_not():
    rng = np.random.default_rng(0)
    clip = np.full((2, 32, 32, 4), 255, np.uint8)
    clip[..., :3] = rng.integers(0, 256, (100, 3))[rng.integers(0, 100, (2, 32, 32))]
    np.testing.assert_array_equal(read_back(encode(clip, "gif"))[0], clip)
    clip[..., :3] = rng.integers(0, 256, (2, 32, 32, 3))
    frames = read_back(encode(clip, "gif"))[0]
    assert len(np.unique(frames.reshape(-1, 4), axis=0)) <= 255


@pytest.mark.parametrize("format", FORMATS)
def test_total_time_survives_equal_neighbours(format):
    clip = draw_clip()
    clip[5] = clip[6] = clip[4]
    clip[1] = clip[0]
    assert sum(read_back(encode(clip, format))[1]) == 1000


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("fps", [3, 7, 12.5, 30, 50])
def test_rounding_of_times_does_not_add_up(format, fps):
    clip = draw_clip(7)
    unit = 10 if format == "gif" else 1
    durations = read_back(encode(clip, format, fps=fps))[1]
    assert abs(sum(durations) - 7000 / fps) <= unit / 2
    assert all(abs(duration - 1000 / fps) <= unit for duration in durations)


@pytest.mark.parametrize("format", FORMATS)
def test_given_durations_are_kept(format):
    assert read_back(encode(draw_clip(3), format, durations=[100, 250, 40]))[1] == [100, 250, 40]


@pytest.mark.parametrize("format", FORMATS)
def test_one_frame_and_a_fully_empty_clip(format):
    clip = draw_clip(1)
    assert read_back(encode(clip, format))[0].shape == clip.shape
    assert read_back(encode(np.zeros_like(clip), format))[0][..., 3].max() == 0


def test_pictures_and_arrays_of_any_kind_give_the_same_file():
    clip = draw_clip()
    expected = encode(clip, "webp")
    assert encode([Image.fromarray(frame) for frame in clip], "webp") == expected
    assert encode(clip.astype(np.float32) / 255, "webp") == expected
    assert read_back(encode(clip[..., :3], "apng"))[0][..., 3].min() == 255


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_is_stored_and_absent_unless_asked_for(format):
    metadata = {"prompt": 'a "dög" 跳 ' + 300 * "x", "seed": 7}
    with_metadata, without = (read_back(encode(draw_clip(), format, metadata=m))[2] for m in (metadata, None))
    if format == "gif":
        assert json.loads(with_metadata.info["comment"]) == metadata
        assert "comment" not in without.info
    else:
        assert json.loads(with_metadata.getexif()[0x010E]) == metadata
        assert not without.getexif()


@pytest.mark.parametrize("suffix, kind", [("webp", "WEBP"), ("gif", "GIF"), ("png", "PNG"), ("apng", "PNG")])
def test_save_sticker_picks_the_format_by_suffix(tmp_path, suffix, kind):
    path = save_sticker(draw_clip(), tmp_path / f"a.{suffix.upper()}")
    with Image.open(path) as picture:
        assert (picture.format, picture.n_frames) == (kind, 8)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_behind_when_saving_fails(tmp_path):
    (tmp_path / "taken.webp").mkdir()
    with pytest.raises(OSError):
        save_sticker(draw_clip(), tmp_path / "taken.webp")
    with pytest.raises(ValueError, match="fps"):
        save_sticker(draw_clip(), tmp_path / "a.webp", fps=0)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.webp"]


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"format": "mp4"}, "`format`.*'mp4'"),
        ({"fps": 0}, "`fps`.*0"),
        ({"fps": float("nan")}, "`fps`.*nan"),
        ({"fps": 51}, "`fps`.*51"),
        ({"durations": [100]}, "`durations`.*8 numbers"),
        ({"durations": [0] * 8}, "`durations`.*20 to 60000"),
        ({"frames": []}, "`frames`.*at least one"),
        ({"frames": np.zeros((0, 4, 4, 4), np.uint8)}, "`frames`.*at least one"),
        ({"frames": np.zeros((4, 4, 4), np.uint8)}, r"`frames`.*\(4, 4, 4\)"),
        ({"frames": np.full((1, 4, 4, 4), 1.5)}, "`frames`.*float64"),
        ({"frames": [Image.new("RGBA", (4, 4)), Image.new("RGBA", (5, 4))]}, "`frames`.*one size"),
    ],
)
def test_bad_arguments_are_named(changes, match):
    arguments = {"frames": draw_clip(), "format": "webp", **changes}
    with pytest.raises(ValueError, match=match):
        encode(arguments.pop("frames"), arguments.pop("format"), **arguments)


def test_unknown_suffix_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"\.webp.*'.*a\.mp4'"):
        save_sticker(draw_clip(), tmp_path / "a.mp4")


def test_a_png_of_few_colours_is_as_small_as_pillows():
    """Stripes of 32 colours in RGBA: runs of bytes find nothing in them, and a search finds nearly everything."""
    y, x = np.mgrid[:128, :128]
    palette = np.random.default_rng(0).integers(0, 256, (32, 4)).astype(np.uint8)
    palette[:, 3] = 255
    picture = palette[(2 * x + 3 * y) // 4 % 32]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    assert len(compress(picture, 8)) <= len(buffer.getvalue())
