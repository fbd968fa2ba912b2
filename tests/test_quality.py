"""Measures against closed forms, filters at their limits, hashes of copies, and groups against comparing all pairs."""

import inspect
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rdtf_diffusers.data import quality
from rdtf_diffusers.data.animation import Animation, read_animation
from rdtf_diffusers.data.quality import (
    Filters,
    alpha_share,
    aspect_ratio,
    colour_bits,
    motion,
    near_duplicates,
    perceptual_hash,
)


def animation(frames, durations=None) -> Animation:
    frames = np.stack([np.asarray(frame) for frame in frames])
    return Animation(frames, np.full(len(frames), 100.0) if durations is None else np.asarray(durations), "drawn")


def squares(*fills, side=64) -> np.ndarray:
    """Transparent frames (N, side, side, 4), each with a colour in its upper left quarter."""
    frames = np.zeros((len(fills), side, side, 4), np.uint8)
    for frame, fill in zip(frames, fills, strict=True):
        frame[: side // 2, : side // 2] = fill
    return frames


def face(top: int, colour: str = "gold", mouth: str = "smile") -> Image.Image:
    """A face on a canvas of 96 pixels, `top` pixels from above."""
    picture = Image.new("RGBA", (96, 96))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((16, top, 80, top + 64), fill=colour, outline="black", width=2)
    for x in (32, 56):
        draw.ellipse((x, top + 18, x + 8, top + 30), fill="black")
    if mouth == "smile":
        draw.chord((30, top + 26, 66, top + 56), 0, 180, fill="darkred")
    else:
        draw.ellipse((40, top + 36, 56, top + 58), fill="darkred")
    return picture


MAX_DISTANCE = inspect.signature(near_duplicates).parameters["max_distance"].default
BOUNCE = [30, 22, 12, 6, 2, 6, 12, 22]


def distance(a: Animation, b: Animation) -> int:
    return int(np.unpackbits(perceptual_hash(a) ^ perceptual_hash(b)).sum())


def test_motion_is_the_largest_difference_from_the_first_frame():
    assert motion(squares(255)) == 0
    assert motion(squares(0, 255)) == pytest.approx(0.25)
    assert motion(squares(0, (255, 0, 0, 255), (0, 0, 0, 255))) == pytest.approx(0.25 * 2 / 4)  # red and alpha
    assert motion(squares(0, (255, 255, 255, 0))) == 0  # what nobody sees does not move


@pytest.mark.parametrize("side", [16, 64, 90])
def test_motion_does_not_depend_on_duplicated_frames_or_size(side):
    few = squares(0, 255, side=side)
    assert motion(few) == pytest.approx(0.25, abs=0.01)
    assert motion(np.concatenate([few[:1].repeat(20, axis=0), few])) == motion(few)


def test_motion_overlooks_dithering():
    rng = np.random.default_rng(0)
    grey = np.full((2, 128, 128, 4), 255, np.uint8)
    grey[..., :3] = rng.choice([127, 129], (2, 128, 128, 1))
    assert motion(grey) < Filters().min_motion < np.abs(np.diff(grey / 255, axis=0)).mean()


def test_colour_bits_are_the_entropy_of_visible_colours():
    assert colour_bits(squares(0)) == 0
    assert colour_bits(squares((9, 99, 199, 0))) == 0
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert colour_bits(squares(255)) == pytest.approx(quarter)
    assert colour_bits(squares(255, 255)) == pytest.approx(quarter)
    stripes = np.full((1, 64, 64, 4), 255, np.uint8)
    stripes[..., 0] = np.arange(64) // 4 * 16
    assert colour_bits(stripes) == pytest.approx(4)


def test_aspect_ratio_and_alpha_share():
    assert aspect_ratio(np.zeros((3, 20, 50, 4))) == aspect_ratio(np.zeros((3, 50, 20, 4))) == 2.5
    assert alpha_share(squares(255, (9, 9, 9, 254))) == pytest.approx(0.875)


@pytest.mark.parametrize(
    "frames, row, reason",
    [
        (squares(0, 255), {}, None),
        (squares((9, 99, 199, 255)), {}, None),  # a still need not move
        (squares(255, 255), {}, "near-static: motion 0.0000 below 0.0015"),
        (squares(0), {}, "too little colour: 0.00 bits, below 0.2"),
        (squares(255)[:, :16], {}, "too long: 4.0 to 1, above 3"),
        (squares(255), {"ocr": "ha ha ha"}, "too much text: 6 characters, above 5"),
        (squares(255), {"ocr": "haha"}, None),
        (squares(255), {"ocr": None}, None),
    ],
)
def test_filters_say_why(frames, row, reason):
    assert Filters(max_text_characters=5).reason(animation(frames), row) == reason


def test_text_is_kept_by_default_and_limits_can_be_moved():
    assert Filters().reason(animation(squares(255)), {"ocr": "word " * 1000}) is None
    assert Filters(min_motion=0, min_colour_bits=0).reason(animation(squares(0, 0)), {}) is None


def encoded(frames: list[Image.Image], format: str, **options) -> Animation:
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], duration=100, **options)
    return read_animation(file.getvalue())


def test_copies_have_nearly_the_same_hash():
    frames = [face(top) for top in BOUNCE]
    original = animation(frames)
    copies = {
        "larger": animation([frame.convert("RGBa").resize((150, 150)).convert("RGBA") for frame in frames]),
        "smaller": animation([frame.convert("RGBa").resize((64, 64)).convert("RGBA") for frame in frames]),
        "lossy": encoded(frames, "WEBP", quality=30),
        "palette": encoded(frames, "GIF", disposal=2),
        "rounded times": animation(frames, [120, 130] * 4),
    }
    distances = {name: distance(original, copy) for name, copy in copies.items()}
    assert max(distances.values()) <= MAX_DISTANCE, distances
    split = animation([frame for frame in frames for _ in range(2)], [50] * 16)
    assert distance(original, split) == 0


@pytest.mark.parametrize(
    "frames",
    [
        [face(top) for top in reversed(BOUNCE)],
        [face(top) for top in (2, 12, 22, 30, 2, 12, 22, 30)],
        [face(top, colour="skyblue") for top in BOUNCE],
        [face(top, mouth="open") for top in BOUNCE],
    ],
    ids=["shifted", "other motion", "other colour", "other face"],
)
def test_another_motion_colour_or_face_is_no_copy(frames):
    assert distance(animation([face(top) for top in BOUNCE]), animation(frames)) > MAX_DISTANCE


def linked(hashes: np.ndarray, max_distance: int) -> list[list[int]]:
    """Groups by comparing all pairs, slowly."""
    label = np.arange(len(hashes))
    for i, j in np.ndindex(len(hashes), len(hashes)):
        if np.unpackbits(hashes[i] ^ hashes[j]).sum() <= max_distance:
            label[label == label[j]] = label[i]
    groups = (np.flatnonzero(label == value).tolist() for value in np.unique(label))
    return sorted(group for group in groups if len(group) > 1)


@pytest.mark.parametrize("max_distance", [0, 1, 5, 9])
def test_groups_are_those_of_comparing_all_pairs(max_distance):
    rng = np.random.default_rng(max_distance)
    hashes = rng.integers(0, 256, (6, 10), dtype=np.uint8)[rng.integers(0, 6, 60)]
    hashes ^= np.packbits(rng.random((60, 80)) < 0.05, axis=1)
    hashes[7] = hashes[3] = 0  # bytes of 0 at the end count, too
    assert near_duplicates(hashes, max_distance) == linked(hashes, max_distance)


def test_large_buckets_are_compared_with_neighbours_only(monkeypatch):
    hashes = np.zeros((256, 8), np.uint8)
    hashes[:, 7] = np.arange(256)
    assert near_duplicates(hashes, 3) == [list(range(256))]
    monkeypatch.setattr(quality, "BUCKET_WINDOW", 2)
    # 15 and 16, 15 and 17, 14 and 16 differ in more than 3 bits
    assert near_duplicates(hashes, 3) == np.arange(256).reshape(16, 16).tolist()


def test_no_hashes_and_too_large_a_distance():
    assert near_duplicates(np.zeros((0, 8), np.uint8), 3) == []
    with pytest.raises(ValueError, match="`max_distance` must be from 0 to 7 bits, got 8"):
        near_duplicates(np.zeros((2, 8), np.uint8), 8)
