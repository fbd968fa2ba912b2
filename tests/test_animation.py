import io

import numpy as np
import pytest
import torch
from PIL import Image

from rdtf_diffusers.data.animation import (
    INTERPOLATION_MODES,
    AnimationError,
    frames_to_clip,
    over_white,
    read_animation,
    resize_premultiplied,
)


def squares(count=4, height=20, width=24):
    """Opaque red squares on nothing, one pixel further right in every frame."""
    frames = np.zeros((count, height, width, 4), dtype=np.uint8)
    for index in range(count):
        frames[index, 5:15, 2 + index : 12 + index] = (255, 0, 0, 255)
    return frames


def encode(frames, kind, durations=100, **options):
    pictures = [Image.fromarray(frame) for frame in frames]
    stream = io.BytesIO()
    if kind == "WEBP":
        options["lossless"] = True
    if kind == "GIF":
        options["disposal"] = 2
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:], duration=durations, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_reads_every_frame_with_its_timing(kind, tmp_path):
    frames = squares()
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encode(frames, kind, [100, 200, 50, 150]))
    for animation in (read_animation(path), read_animation(path.read_bytes(), source="bytes")):
        np.testing.assert_array_equal(animation.frames[..., 3], frames[..., 3])
        np.testing.assert_array_equal(animation.frames * (frames[..., 3:] > 0), frames)
        assert animation.durations.tolist() == [100, 200, 50, 150]
    assert read_animation(path).source == str(path)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_zero_durations_become_100_ms(kind):
    assert read_animation(encode(squares(), kind, 0)).durations.tolist() == [100] * 4


def test_picks_by_time_where_the_encoder_merged_equal_frames():
    frames = squares()[[0, 1, 1, 1, 1, 1, 2, 3]]
    animation = read_animation(encode(frames, "WEBP"))
    assert len(animation.frames) == 4
    np.testing.assert_array_equal(animation.pick(8)[..., 3], frames[..., 3])
    np.testing.assert_array_equal(animation.pick(4)[..., 3], frames[::2][..., 3])
    np.testing.assert_array_equal(animation.pick(1), animation.frames[:1])
    with pytest.raises(ValueError, match="`count` must be at least 1, got 0"):
        animation.pick(0)


def test_the_still_before_an_apng_is_no_frame():
    animation = read_animation(encode(squares(3), "PNG", default_image=True))
    np.testing.assert_array_equal(animation.frames[..., 3], squares(3)[1:, ..., 3])


def test_sixteen_bits_are_scaled_and_line_ends_after_a_gif_allowed():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 2**15, dtype=np.uint16)).save(buffer, format="PNG")
    assert (read_animation(buffer.getvalue()).frames[..., :3] == 128).all()
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, format="GIF")
    assert len(read_animation(buffer.getvalue() + b"\r\n").frames) == 1


def test_stills_are_one_frame_turned_as_exif_says():
    picture = Image.fromarray(squares(1)[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for kind in ("JPEG", "PNG"):
        stream = io.BytesIO()
        picture.save(stream, kind, exif=exif)
        animation = read_animation(stream.getvalue())
        assert animation.frames.shape == (1, 24, 20, 4)
        assert (animation.frames[..., 3] == 255).all()
        assert animation.durations.tolist() == [100]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_cut_files_are_refused_by_name(kind, share, tmp_path):
    data = encode(squares(), kind)
    path = tmp_path / "cut.bin"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(AnimationError, match=r"cut\.bin: ."):
        read_animation(path)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_frames_or_an_animation_error(kind):
    data = encode(squares(), kind)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = np.frombuffer(data, dtype=np.uint8).copy()
        damaged[rng.integers(len(damaged), size=3)] = rng.integers(256, size=3)
        try:
            animation = read_animation(damaged.tobytes())
        except AnimationError:
            continue
        assert len(animation.frames) == len(animation.durations) and (animation.durations > 0).all()


def test_other_things_are_refused_by_name(tmp_path):
    (tmp_path / "note.txt").write_text("no picture")
    for name, reason in [
        ("none.gif", "No such file"),
        ("note.txt", "not a GIF, PNG, WebP, JPEG"),
        ("", "directory"),
    ]:
        with pytest.raises(AnimationError, match=reason) as caught:
            read_animation(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_bytes": 50}, "more than 50 bytes"),
        ({"max_frame_pixels": 479}, "24x20 pixels, at most 479"),
        ({"max_frames": 3}, "more than 3 frames"),
        ({"max_total_pixels": 1919}, "4 frames of 24x20 are more than 1919 pixels"),
    ],
)
def test_sizes_are_bounded(limit, reason):
    with pytest.raises(AnimationError, match=reason):
        read_animation(encode(squares(), "WEBP"), **limit)
    assert len(read_animation(encode(squares(), "WEBP"), **{name: value * 50 for name, value in limit.items()}).frames)


def test_clips_are_premultiplied_and_padded_to_a_square():
    frames = np.zeros((2, 4, 8, 4), dtype=np.uint8)
    frames[...] = (255, 51, 0, 102)
    clip = frames_to_clip(frames, size=8)
    assert clip.shape == (2, 4, 8, 8)
    assert (clip[:, :, :2] == -1).all() and (clip[:, :, 6:] == -1).all()
    expected = torch.tensor([0.4, 0.08, 0.0, 0.4]) * 2 - 1
    torch.testing.assert_close(clip[:, :, 2:6], expected.view(1, 4, 1, 1).expand(2, 4, 4, 8))


@pytest.mark.parametrize("size", [5, 16, 61])
def test_resized_clips_have_no_fringe(size):
    frames = squares(2, 20, 20)
    frames[frames[..., 3] == 0] = (0, 255, 0, 0)  # green that nobody may see
    clip = (frames_to_clip(frames, size) + 1) / 2
    assert clip.min() >= 0 and clip.max() <= 1 + 1e-6
    assert (clip[:, 1:3] == 0).all()
    torch.testing.assert_close(clip[:, 0], clip[:, 3])
    assert clip[:, 3].mean() == pytest.approx(100 / 400, rel=0.05)


def test_three_channels_are_over_white():
    frames = squares(1)
    frames[..., 3] = frames[..., 3] // 255 * 102
    clip = frames_to_clip(frames, 24, channels=3)
    torch.testing.assert_close(clip, over_white(frames_to_clip(frames, 24)))
    assert clip.shape == (1, 3, 24, 24) and (clip[0, :, 0, 0] == 1).all()
    torch.testing.assert_close(clip[0, :, 12, 5], torch.tensor([1.0, 0.2, 0.2]))
    with pytest.raises(ValueError, match=r"`channels` must be 4 .* or 3 .*, got 2"):
        frames_to_clip(frames, 24, channels=2)


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4)])
def test_cropped_clips_are_the_central_square(height, width):
    frames = np.random.default_rng(0).integers(256, size=(2, height, width, 4), dtype=np.uint8)
    top, left = (height - 4) // 2, (width - 4) // 2
    square = frames[:, top : top + 4, left : left + 4]
    for size in (4, 7):
        torch.testing.assert_close(frames_to_clip(frames, size, center_crop=True), frames_to_clip(square, size))


# Closed forms of the filters and how far they reach, in pixels of the smaller picture.
FILTERS = {
    "box": (lambda x: ((-0.5 < x) & (x <= 0.5)) * 1.0, 0.5),
    "bilinear": (lambda x: 1 - abs(x), 1),
    "hamming": (lambda x: np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 1),
    "bicubic": (
        lambda x: np.where(
            abs(x) < 1, 1.5 * abs(x) ** 3 - 2.5 * x**2 + 1, -0.5 * abs(x) ** 3 + 2.5 * x**2 - 4 * abs(x) + 2
        ),
        2,
    ),
    "lanczos": (lambda x: np.sinc(x) * np.sinc(x / 3), 3),
}


@pytest.mark.parametrize(("source", "size"), [(20, 8), (7, 20)])
@pytest.mark.parametrize("mode", INTERPOLATION_MODES)
def test_resizing_is_what_the_filters_say(mode, source, size):
    pixels = torch.rand(2, 4, source, source, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    pixels[:, 3] = 1
    centres = (np.arange(size) + 0.5) * source / size
    if mode == "nearest":
        weights = np.eye(source)[centres.astype(int)]
    else:
        kernel, reach = FILTERS[mode]
        offsets = (np.arange(source) + 0.5 - centres[:, None]) / max(source / size, 1)
        weights = np.where(abs(offsets) <= reach, kernel(offsets), 0)
        weights /= weights.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(weights).float()
    expected = weights @ pixels @ weights.T
    torch.testing.assert_close(resize_premultiplied(pixels, size, mode), expected, atol=1e-5, rtol=0)


def test_unknown_filters_are_refused():
    with pytest.raises(ValueError, match=r"`interpolation` must be one of bicubic, .*, got 'cubic'"):
        frames_to_clip(squares(1), 8, interpolation="cubic")


def test_frames_of_several_sizes_are_refused(monkeypatch):
    """As of a film that changes its size on the way."""
    frames = [(np.zeros((size, size, 4), np.uint8), 100) for size in (4, 5)]
    monkeypatch.setattr("rdtf_diffusers.data.animation.decode", lambda data, limits: frames)
    with pytest.raises(AnimationError, match="film: its frames differ in size"):
        read_animation(b"", "film")
