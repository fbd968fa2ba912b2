"""Every format gives the frames that were drawn; damaged and hostile files end in an `AnimationError`."""

import gzip
import io
import itertools
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from example_scripts import load_example
from PIL import Image

from rdtf_diffusers.data import decoders
from rdtf_diffusers.data.animation import AnimationError, read_animation


drawing = load_example("benchmarks/animation.py")

RED, GREEN, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 0, 0)
HALF_RED, HALF_BLUE = (255, 0, 0, 128), (0, 0, 255, 128)


@pytest.fixture(scope="module")
def golden():
    return drawing.golden_files()


@pytest.fixture(scope="module")
def hostile(golden):
    return drawing.hostile_files(golden)


def opaque_squares() -> np.ndarray:
    frames = drawing.squares(4, 24, 24)
    frames[..., 3] = np.where(frames[..., 3] > 0, 255, 0)
    return frames


def seen(frames: np.ndarray) -> np.ndarray:
    """Frames with the colour of invisible pixels set to 0."""
    return np.where(frames[..., 3:] > 0, frames, 0)


# Every format


@pytest.mark.parametrize("name", ["apng", "apng, ffmpeg", "webp", "png"])
def test_lossless_files_give_what_was_drawn(golden, name):
    drawn = drawing.squares(4, 24, 24)[: 1 if name == "png" else 4]
    animation = read_animation(golden[name])
    np.testing.assert_array_equal(seen(animation.frames), drawn)
    assert animation.durations.tolist() == [100] * len(drawn)


@pytest.mark.parametrize("name", ["webp, lossy", "webm", "webm, vp8"])
def test_lossy_files_keep_colour_and_transparency(golden, name):
    drawn = drawing.squares(4, 24, 24)
    animation = read_animation(golden[name])
    assert np.abs(animation.frames[..., 3].astype(int) - drawn[..., 3]).mean() < 1
    red = drawn[..., 3] == 255
    assert np.abs(animation.frames[red].astype(int) - RED).mean() < 12  # video halves the resolution of colours
    assert animation.durations.tolist() == [100] * 4


def test_mp4_and_jpeg_are_opaque(golden):
    drawn = drawing.squares(4, 24, 24)
    for name, count in (("mp4", 4), ("jpeg", 1)):
        frames = read_animation(golden[name]).frames
        assert len(frames) == count and (frames[..., 3] == 255).all()
        assert np.abs(frames[..., :3].astype(int) - drawn[:count, ..., :3]).mean() < 8


@pytest.mark.parametrize("suffix", ["gif", "webm", "tgs", "txt"])
def test_suffixes_do_not_matter(golden, suffix, tmp_path):
    path = tmp_path / f"sticker.{suffix}"
    for data in golden.values():
        path.write_bytes(data)
        np.testing.assert_array_equal(read_animation(path).frames, read_animation(data).frames)


def test_formats_that_are_not_read_are_named(golden):
    avif = b"\0\0\0\x1cftypavif" + golden["mp4"][12:]
    for data in (b"", b"PK\3\4", b"<svg/>", avif, golden["webm"][4:]):
        with pytest.raises(AnimationError, match="b: not a GIF, PNG, WebP, JPEG, WebM, MP4, TGS or Lottie file"):
            read_animation(data, source="b")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_times_that_browsers_ignore(kind):
    durations = read_animation(drawing.pillow_file(opaque_squares(), kind, [0, 10, 20, 30])).durations
    assert durations.tolist() == [100, 100, 20, 30]


# GIF


def gif(size: tuple[int, int], *frames: tuple) -> bytes:
    """A GIF of (left, top, width, height, disposal, colours) with red and green as colours 1 and 2, 0 transparent."""
    parts = [
        struct.pack("<6sHHBBB", b"GIF89a", *size, 0x80 | 1, 1, 0),
        bytes([*3 * [0], *RED[:3], *GREEN[:3], *3 * [0]]),
    ]
    for *box, disposal, colours in frames:
        parts.append(struct.pack("<3sBHBB", b"!\xf9\x04", disposal << 2 | 1, 5, 0, 0))
        parts.append(struct.pack("<BHHHHB", 0x2C, *box, 0))
        codes = bytes([128, *colours, 129])  # 7 bits a colour: codes are whole bytes while there are few
        parts.append(bytes([7, len(codes)]) + codes + b"\0")
    return b"".join(parts) + b";"


@pytest.mark.parametrize(
    ("disposal", "left_over"), [(0, GREEN), (1, GREEN), (2, CLEAR), (3, RED), (4, RED)]
)  # 4 is what some encoders write for 3
def test_gif_disposal(disposal, left_over):
    data = gif((3, 1), (0, 0, 2, 1, 1, [1, 1]), (1, 0, 1, 1, disposal, [2]), (2, 0, 1, 1, 1, [1]))
    animation = read_animation(data)
    expected = [[RED, RED, CLEAR], [RED, GREEN, CLEAR], [RED, left_over, RED]]
    np.testing.assert_array_equal(animation.frames[:, 0], expected)
    assert animation.durations.tolist() == [50, 50, 50]


def test_gif_transparency_and_edges():
    # Colour 0 lets through what is below; what lies outside the canvas is cut off
    data = gif((2, 1), (0, 0, 2, 1, 1, [1, 0]), (0, 0, 2, 1, 1, [0, 2]), (1, 0, 2, 1, 1, [1, 2]))
    expected = [[RED, CLEAR], [RED, GREEN], [RED, RED]]
    np.testing.assert_array_equal(seen(read_animation(data).frames)[:, 0], expected)


@pytest.mark.parametrize(
    ("disposal", "transparent"), [(0, True), (1, True), (2, True), (3, True), (0, False), (1, False), (2, False)]
)
def test_gifs_look_as_ffmpeg_shows_them(disposal, transparent):
    frames = opaque_squares()
    frames[..., 3] |= 0 if transparent else 255
    data = drawing.pillow_file(frames, "GIF", disposal=disposal)
    np.testing.assert_array_equal(seen(read_animation(data).frames), seen(drawing.read_by_pyav(data)))


def test_gifs_of_ffmpeg():
    frames = opaque_squares()
    frames[..., 3] = 255
    animation = read_animation(drawing.ffmpeg_file(frames, "gif", "gif", "rgb4_byte"))
    np.testing.assert_array_equal(animation.frames, frames)


# APNG


def apng(*frames: tuple) -> bytes:
    """An APNG of 2x1 pixels of (left, disposal, blend, colours)."""
    header = struct.pack(">IIBBBBB", 2, 1, 8, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"acTL", struct.pack(">II", len(frames), 0))]
    number = itertools.count()
    for index, (left, disposal, blend, colours) in enumerate(frames):
        control = struct.pack(">IIIIIHHBB", next(number), len(colours), 1, left, 0, 1, 8, disposal, blend)
        pixels = zlib.compress(b"\0" + b"".join(map(bytes, colours)))
        chunks += [(b"fcTL", control)]
        chunks += [(b"fdAT", struct.pack(">I", next(number)) + pixels) if index else (b"IDAT", pixels)]
    return decoders.PNG_MAGIC + b"".join(decoders.png_chunk(*chunk) for chunk in [*chunks, (b"IEND", b"")])


@pytest.mark.parametrize(("disposal", "left_over"), [(0, GREEN), (1, CLEAR), (2, RED)])
def test_apng_disposal(disposal, left_over):
    animation = read_animation(apng((0, 0, 0, [RED, RED]), (1, disposal, 0, [GREEN]), (0, 0, 0, [RED])))
    np.testing.assert_array_equal(animation.frames[:, 0], [[RED, RED], [RED, GREEN], [RED, left_over]])
    assert animation.durations.tolist() == [125] * 3


def test_apng_blending():
    animation = read_animation(apng((0, 0, 0, [HALF_RED, CLEAR]), (0, 0, 1, [HALF_BLUE] * 2), (0, 0, 0, [HALF_RED])))
    alpha = 128 / 255
    both = alpha + alpha * (1 - alpha)  # blue over red, by the "over" rule for straight alpha
    mixed = [255 * alpha * (1 - alpha) / both, 0, 255 * alpha / both, 255 * both]
    np.testing.assert_allclose(animation.frames[1, 0, 0], mixed, atol=1)
    np.testing.assert_array_equal(animation.frames[1, 0, 1], HALF_BLUE)
    np.testing.assert_array_equal(animation.frames[2, 0, 0], HALF_RED)


def test_texts_and_profiles_do_not_matter(golden):
    data = drawing.png_with(golden["png"], decoders.png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**22))))
    np.testing.assert_array_equal(read_animation(data).frames, read_animation(golden["png"]).frames)
    exif = Image.Exif()
    exif[0x0112] = 3
    stream = io.BytesIO()
    Image.open(io.BytesIO(golden["jpeg"])).save(stream, "JPEG", exif=exif, comment="x", icc_profile=b"y" * 100)
    turned = read_animation(stream.getvalue()).frames[0, ::-1, ::-1].astype(int)
    assert np.abs(turned - read_animation(golden["jpeg"]).frames[0]).mean() < 5


# Video


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_transparency_of_webm_is_that_of_libvpx(golden, codec):
    data = golden["webm" if codec == "libvpx-vp9" else "webm, vp8"]
    with av.open(io.BytesIO(data)) as container:
        decoder = av.CodecContext.create(codec, "r")
        frames = [frame for packet in container.demux(video=0) for frame in decoder.decode(packet)]
    reformatter = VideoReformatter()  # with several threads the pixels of a frame are not always the same
    expected = np.stack([reformatter.reformat(frame, format="rgba", threads=1).to_ndarray() for frame in frames])
    assert expected[..., 3].min() == 0 and expected[..., 3].max() == 255
    np.testing.assert_array_equal(read_animation(data).frames, expected)


def mp4(times: list[int], rotation: int = 0, sound: bool = False) -> bytes:
    """Squares shown from each of `times` on, in milliseconds."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as output:
        track = output.add_stream("h264", rate=10)
        track.width, track.height, track.pix_fmt = 32, 24, "yuv420p"
        track.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            track.set_display_rotation(rotation)
        if sound:
            noise = output.add_stream("aac", rate=48000)
        for time, pixels in zip(times, drawing.squares(len(times), 24, 32)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(track.encode(frame))
        output.mux(track.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="stereo")
            silence.rate = 48000
            output.mux(noise.encode(silence))
            output.mux(noise.encode())
    return stream.getvalue()


def test_durations_of_a_video_come_from_its_times():
    for sound in (False, True):
        assert read_animation(mp4([0, 40, 240, 300], sound=sound)).durations.tolist()[:3] == [40, 200, 60]


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_videos_are_turned_upright(rotation):
    plain, turned = read_animation(mp4([0, 100])).frames, read_animation(mp4([0, 100], rotation)).frames
    np.testing.assert_array_equal(turned, np.rot90(plain, rotation // 90, axes=(1, 2)))


def test_packets_with_other_sizes_are_refused(golden):
    data = drawing.vp9_of_size(golden["webm"], 2**13)
    with pytest.raises(AnimationError):
        read_animation(data)


# Lottie


def test_lottie_frames(golden):
    animation = read_animation(golden["tgs"])
    np.testing.assert_array_equal(animation.frames, read_animation(golden["lottie"]).frames)
    assert animation.frames.shape == (4, 24, 24, 4) and animation.durations.tolist() == [100] * 4
    for frame, left in zip(animation.frames, (0, 4.5, 9, 13.5)):
        inside = frame[6:18, int(left) + 1 : int(left) + 12]
        np.testing.assert_allclose(inside, np.broadcast_to([255, 127.5, 0, 127.5], inside.shape), atol=3)  # straight
        assert not frame[:, int(left) + 13 :].any() and not frame[:, : int(left)].any()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"w": None}, "no Lottie animation"),
        ({"w": -5}, "nothing that can be shown"),
        ({"w": 1e999}, "no Lottie animation"),
        ({"op": 0}, "0 frames of 24x24"),
        ({"op": 1001}, "more than 1000 frames"),
        ({"w": 2**13, "h": 2**13}, "at most 16777216 pixels"),
        ({"fr": 0}, "0 frames a second"),
        ({"assets": [{"id": "i", "p": "data:image/png;base64,"}]}, "picture files"),
        ({"assets": 3}, "no Lottie animation"),
    ],
)
def test_lottie_is_checked_before_it_is_drawn(golden, changes, reason, monkeypatch):
    monkeypatch.setattr(decoders, "draw_lottie", None)
    with pytest.raises(AnimationError, match=reason):
        read_animation(drawing.lottie_with(golden["lottie"], **changes))


def test_other_json_is_named():
    for data in (b"{}", b'{"a": 1}', b"{", b'{"w": 1'):
        with pytest.raises(AnimationError, match="no Lottie animation, or a broken one"):
            read_animation(data)


def test_a_missing_rlottie_says_how_to_get_it(golden, monkeypatch):
    monkeypatch.setattr(decoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AnimationError, match=r"pip install rdtf_diffusers\[lottie\]"):
        read_animation(golden["tgs"])


@pytest.mark.parametrize(
    "program", ["import os; os.kill(os.getpid(), 11)", "import time; time.sleep(60)", "print('x')", "1 / 0"]
)
def test_a_crash_or_hang_of_rlottie_is_an_error(golden, program, tmp_path, monkeypatch):
    (tmp_path / "renderer.py").write_text(program)
    monkeypatch.setattr(decoders, "RENDERER", tmp_path / "renderer.py")
    monkeypatch.setattr(decoders, "LOTTIE_SECONDS", 0.02)
    with pytest.raises(AnimationError, match=r"rlottie cannot draw it within 0\.0 s \(exit code -?\d+\)"):
        read_animation(golden["tgs"])


def test_tgs_is_unzipped_within_bounds(golden):
    with pytest.raises(AnimationError, match="cut short"):
        read_animation(golden["tgs"][:-3])
    with pytest.raises(AnimationError, match="more than 4194304 bytes of JSON"):
        read_animation(gzip.compress(bytes(2**23)))


# Files that nobody should have to wait for


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gif, a million frames", "more than 1000 frames"),
        ("gif, a huge patch", "65535x65535 pixels"),
        ("gif, a million comments", "blocks"),
        ("webp, a huge canvas", "16384x16384 pixels"),
        ("webp, 500,000 frames", "more than 1000 frames"),
        ("png, huge", "65000x65000 pixels"),
        ("png, two million chunks", "blocks"),
        ("apng, a billion promised", "more than 1000 frames"),
        ("apng, frames missing", "7 frames promised, 0 found"),
        ("jpeg, huge", "65500x65500 pixels"),
        ("jpeg, 200,000 scans", "more than 100 scans"),
        ("jpeg, 30 MB of zeros", "damaged between its segments"),
        ("webm, a huge frame", "nothing that can be shown"),
        ("mp4, 30 million samples", "30000000 samples"),
        ("lottie, nested", "nested too deeply"),
        ("lottie, shows itself", "rlottie cannot draw it"),
    ],
)
def test_hostile_files_are_refused(hostile, name, reason):
    with pytest.raises(AnimationError, match=f"^f: .*{reason}"):
        read_animation(hostile[name], source="f")


@pytest.mark.parametrize(
    "name", ["png, 20 GB of texts", "png, 20 GB of profiles", "jpeg, 300 MB of EXIF", "webm, ten million tags"]
)
def test_what_makes_no_picture_is_passed_over(hostile, golden, name):
    expected = read_animation(golden[name.split(",")[0]])
    np.testing.assert_array_equal(read_animation(hostile[name]).frames, expected.frames)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_cut_files_are_refused(golden, share):
    for name, data in golden.items():
        with pytest.raises(AnimationError, match=f"^{name}: .") as caught:
            read_animation(data[: int(share * len(data))], source=name)
        assert str(caught.value) != f"{name}: "


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(golden):
    outcomes = {drawing.outcome_of(drawing.damaged(golden, 7, number)[1]) for number in range(208)}
    assert outcomes == {"read", "refused"}


def test_the_benchmark_counts_failures(golden, capsys, tmp_path):
    options = drawing.parse_args(["--inputs", "4", "--keep", str(tmp_path)])
    results = [("read", 0.1), ("refused", 0.3), ("hung for 20 s", 20.0), ("KeyError: 'x'", 0.2)]
    figures = drawing.report(golden, results, 2**20, options)
    assert figures["failures"] == {2: "hung for 20 s", 3: "KeyError: 'x'"} and figures["slowest"] == [2, 20.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert "FAILED number 2, apng: hung" in capsys.readouterr().out
