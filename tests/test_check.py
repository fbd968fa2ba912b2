"""Good files pass, each broken rule is named alone, and broken or hostile files are refused without an exception."""

import io
import struct
import zlib
from dataclasses import replace
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
from PIL import Image

from rdtf_diffusers.stickers.check import MAX_BYTES, Violation, check, count_flashes, describe
from rdtf_diffusers.stickers.platforms import PLATFORMS, SUFFIXES


CASES = [(key, format) for key, platform in PLATFORMS.items() for format in platform.formats]


def draw_clip(width: int, height: int, count: int = 8) -> np.ndarray:
    """A bar that moves over nothing, (F, H, W, 4) uint8."""
    clip = np.zeros((count, height, width, 4), np.uint8)
    for index, frame in enumerate(clip):
        left = index * width // (count + 1)
        frame[height // 4 : 1 + height // 2, left : left + 1 + width // 8] = (40, 90 + 10 * (index % 8), 200, 255)
    return clip


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def apng(clip: np.ndarray, delays: list[tuple[int, int]], plays: int = 0, palette: bool = False) -> bytes:
    """An APNG by hand; delays as numerator and denominator in seconds. A palette has two colours: nothing and red."""
    count, height, width, _ = clip.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3 if palette else 6, 0, 0, 0)
    chunks = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if palette:
        chunks += [chunk(b"PLTE", bytes([0, 0, 0, 255, 0, 0])), chunk(b"tRNS", b"\0\xff")]
    if count > 1:
        chunks.append(chunk(b"acTL", struct.pack(">II", count, plays)))
    sequence = 0
    for index, (frame, delay) in enumerate(zip(clip, delays)):
        rows = (frame[..., 3] > 0).astype(np.uint8) if palette else frame.reshape(height, -1)
        pixels = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes(), 1)
        if count > 1:
            control = struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, *delay, 0, 0)
            chunks.append(chunk(b"fcTL", control))
            sequence += 1
        if index == 0:
            chunks.append(chunk(b"IDAT", pixels))
        else:
            chunks.append(chunk(b"fdAT", struct.pack(">I", sequence) + pixels))
            sequence += 1
    return b"".join([*chunks, chunk(b"IEND", b"")])


def pillow(clip: np.ndarray, format: str, milliseconds: int | list[int] = 120, loop: int | None = 0) -> bytes:
    first, *others = [Image.fromarray(frame) for frame in clip]
    buffer = io.BytesIO()
    options = {"lossless": True, "method": 0} if format == "webp" else {"disposal": 2}
    options |= {} if loop is None else {"loop": loop}
    first.save(buffer, format, save_all=True, append_images=others, duration=milliseconds, **options)
    return buffer.getvalue()


def webm(clip: np.ndarray, fps: int = 8, codec: str = "libvpx-vp9", pixels: str = "yuva420p", sound=False) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream(codec, rate=fps, options={"auto-alt-ref": "0", "cpu-used": "8", "crf": "30"})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], pixels
        voice = container.add_stream("libopus", rate=48000) if sound else None
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgba")))
        container.mux(stream.encode())
        if voice:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
            silence.sample_rate, silence.time_base, silence.pts = 48000, Fraction(1, 48000), 0
            container.mux([*voice.encode(silence), *voice.encode()])
    return buffer.getvalue()


@cache
def good_sticker(key: str, format: str) -> bytes:
    """Eight frames in one second or a little less, as the platform wants them."""
    clip = draw_clip(*PLATFORMS[key].canvas(4, 3))
    if format == "apng":
        return apng(clip, [(1, 8)] * 8, plays=2 if PLATFORMS[key].loops else 0)
    return webm(clip) if format == "webm" else pillow(clip, format)


@pytest.fixture
def save(tmp_path):
    """Writes bytes with the ending of a format."""

    def write(data: bytes, format: str):
        path = tmp_path / f"sticker{SUFFIXES[format]}"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(("key", "format"), CASES)
def test_good_files_pass(key, format, save):
    path = save(good_sticker(key, format), format)
    assert check(path, key) == []
    assert check(str(path), PLATFORMS[key]) == []
    file = describe(path.read_bytes())
    assert (file.format, file.width, file.height) == (format, *PLATFORMS[key].canvas(4, 3))
    assert sum(file.durations) == pytest.approx(1000, abs=40) and len(file.durations) == 8


@pytest.mark.parametrize(("key", "format"), CASES)
def test_each_limit_is_named_alone(key, format, save, tmp_path):
    platform, path = PLATFORMS[key], save(good_sticker(key, format), format)
    size, file = path.stat().st_size, describe(path.read_bytes())

    def rules(**changes) -> list[str]:
        return [violation.rule for violation in check(path, replace(platform, **changes))]

    assert rules(max_bytes=size) == [] and rules(max_bytes=size - 1) == ["bytes"]
    assert rules(canvases=((77, 77),)) == ["pixels"]
    assert rules(min_frames=9, max_frames=None) == ["frames"]
    assert rules(min_frames=1, max_frames=7) == ["frames"]
    assert rules(max_seconds=0.9) == ["time"]
    assert rules(min_frame_ms=121 + 5 * (format in ("apng", "webm"))) == ["frame time"]
    assert rules(max_fps=7, min_frame_ms=0) == ["frame rate"]
    assert rules(loops=(5, 6), max_seconds=None) == ["loops"]
    assert rules(formats=("tgs",)) == ["format"]
    misnamed = path.rename(tmp_path / "sticker.bin")
    (violation,) = check(misnamed, key)
    assert violation == Violation("file name", "ends in '.bin'", SUFFIXES[file.format])


@pytest.mark.parametrize(("key", "format"), CASES)
def test_stills_are_refused_where_motion_is_wanted(key, format, save):
    platform = PLATFORMS[key]
    clip = np.repeat(draw_clip(*platform.canvas(1, 1), 2)[:1], 8, axis=0)
    expected = [] if platform.still else ["motion"]
    if format == "apng":
        frozen = apng(clip, [(1, 8)] * 8, plays=2 if platform.loops else 0)
        still = apng(clip[:1], [(0, 1)])
    elif format == "webm":
        frozen, still = webm(clip), webm(clip[:1])
    else:
        frozen = still = pillow(clip[:1], format)  # Pillow merges equal frames by itself
    for data in (frozen, still):
        assert [violation.rule for violation in check(save(data, format), key)] == expected


def gif_loops(data: bytes, count: int | None) -> bytes:
    start = data.index(b"!\xff\x0bNETSCAPE2.0")
    block = b"" if count is None else b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", count) + b"\0"
    return data[:start] + block + data[start + 19 :]


@pytest.mark.parametrize(("stored", "plays"), [(None, 1), (0, 0), (1, 2), (65535, 65536)])
def test_loop_count_of_gif(stored, plays, save):
    data = gif_loops(good_sticker("twitch", "gif"), stored)
    assert describe(data).plays == plays
    found = [str(violation) for violation in check(save(data, "gif"), "twitch")]
    assert found == ([f"loops: {plays} plays, allowed: endless"] if plays else [])


def test_loop_count_of_webp_and_apng(save):
    data = good_sticker("whatsapp", "webp")
    start = data.index(b"ANIM") + 12
    data = data[:start] + struct.pack("<H", 3) + data[start + 2 :]
    assert [violation.rule for violation in check(save(data, "webp"), "whatsapp")] == ["loops"]
    for plays, found in {0: ["loops"], 1: [], 4: [], 5: ["time", "loops"]}.items():
        data = apng(draw_clip(270, 270), [(1, 8)] * 8, plays)
        assert describe(data).plays == plays
        assert [violation.rule for violation in check(save(data, "apng"), "line")] == found
    data = apng(draw_clip(512, 512), [(1, 8)] * 8, plays=1)
    assert [str(violation) for violation in check(save(data, "apng"), "signal")] == [
        "loops: 1 plays, allowed: endless"
    ]


def test_palette_is_refused_by_signal_alone(save):
    for key in ("signal", "discord", "imessage"):
        path = save(apng(draw_clip(*PLATFORMS[key].canvas(1, 1)), [(1, 8)] * 8, palette=True), "apng")
        assert [violation.rule for violation in check(path, key)] == (["palette"] if key == "signal" else [])


@pytest.mark.parametrize(
    ("delays", "plays", "found"),
    [
        ([(1, 8)] * 8, 4, []),
        ([(1, 12)] * 12, 4, []),
        ([(1, 7)] * 7, 4, []),  # not a whole number of milliseconds, and yet exactly one second
        ([(83, 1000)] * 8 + [(84, 1000)] * 4, 2, []),
        ([(1, 10)] * 12, 1, ["whole seconds: 1.200 s a play, allowed: 1, 2, 3 ... s"]),
        ([(1, 5)] * 20, 1, []),
        ([(1, 5)] * 20, 2, ["time: 8.000 s, allowed: up to 4 s"]),
        ([(1, 4)] * 4, 1, ["frames: 4, allowed: 5 to 20"]),
        ([(1, 21)] * 21, 1, ["frames: 21, allowed: 5 to 20"]),
        ([(1, 0)] * 10, 1, ["whole seconds: 0.100 s a play, allowed: 1, 2, 3 ... s"]),  # a denominator of 0 is 100
    ],
)
def test_timing_of_line(delays, plays, found, save):
    path = save(apng(draw_clip(270, 60, len(delays)), delays, plays), "apng")
    assert [str(violation) for violation in check(path, "line")] == found


def test_line_wants_a_transparent_background_and_a_first_frame(save):
    clip = draw_clip(270, 270)
    opaque, empty = clip.copy(), clip.copy()
    opaque[..., 3] = 255
    empty[0] = 0
    for broken, found in ((opaque, ["alpha"]), (empty, ["first frame"])):
        path = save(apng(broken, [(1, 8)] * 8, plays=1), "apng")
        assert [violation.rule for violation in check(path, "line")] == found
    path = save(pillow(empty[:, :112, :112], "gif"), "gif")
    assert [violation.rule for violation in check(path, "twitch")] == ["first frame"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"codec": "libvpx", "pixels": "yuv420p"}, ["codec: V_VP8, allowed: V_VP9"]),
        ({}, []),
        ({"pixels": "yuv420p"}, []),
        ({"pixels": "yuv444p"}, ["pixel format: VP9 profile 1, allowed: profile 0 (yuv420p or yuva420p)"]),
        ({"sound": True}, ["sound: 1 audio tracks, allowed: none"]),
        ({"fps": 30}, []),
        ({"fps": 31}, ["frame rate: 31.02 fps, allowed: up to 30 fps"]),
        ({"fps": 60}, ["frame rate: 60.04 fps, allowed: up to 30 fps"]),  # a WebM stores whole milliseconds
        ({"fps": 2}, ["time: 15.000 s, allowed: up to 3 s"]),
    ],
    ids=str,
)
def test_video_of_telegram(options, found, save):
    path = save(webm(draw_clip(100, 100, 30), **{"fps": 10} | options), "webm")
    assert [str(violation) for violation in check(path, "telegram-emoji")] == found


def test_flashes_are_refused_by_twitch(save):
    clip = draw_clip(112, 112)
    clip[::2, 20:] = (255, 255, 255, 255)
    clip[1::2, 20:] = (0, 0, 0, 255)
    for milliseconds, found in ((250, []), (120, ["flashes: 4 in one second, allowed: up to 3"])):
        path = save(pillow(clip, "gif", milliseconds), "gif")
        assert [str(violation) for violation in check(path, "twitch")] == found


@pytest.mark.parametrize(
    ("levels", "milliseconds", "flashes"),
    [
        ([0, 1], 125, 4),
        ([0, 1], 250, 2),
        ([0, 1], 10, 5),  # shown as 100 ms
        ([0.5, 0.59], 125, 0),  # too little contrast
        ([0.85, 1.0], 125, 0),  # both are bright
        ([0, 0.05, 0.1, 0.05], 50, 5),  # small steps that add up
        ([0, 0, 0, 1], 125, 2),
        ([0.3], 100, 0),
    ],
)
def test_count_of_flashes(levels, milliseconds, flashes):
    luminance = np.broadcast_to(np.array(levels)[:, None, None], (len(levels), 4, 4))
    assert count_flashes(luminance, np.full(len(levels), milliseconds)) == flashes
    corner = np.zeros((len(levels), 4, 4))
    corner[:, :2, :1] = luminance[:, :2, :1]  # an eighth of the picture
    assert count_flashes(corner, np.full(len(levels), milliseconds)) == 0


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBPVP8X", b"\x1aE\xdf\xa3", b"hi"])
@pytest.mark.parametrize("key", PLATFORMS)
def test_unreadable_files_give_one_violation(key, data, save):
    (violation,) = check(save(data, PLATFORMS[key].formats[0]), key)
    assert violation.rule == "file" and "not readable" in violation.found


@pytest.mark.parametrize("key", ["whatsapp", "telegram-emoji", "discord", "twitch"])
def test_cut_and_damaged_files_never_raise(key, save):
    platform, random = PLATFORMS[key], np.random.default_rng(0)
    format = platform.formats[0]
    data = good_sticker(key, format)
    for end in np.linspace(1, len(data) - 1, 12).astype(int):
        assert [violation.rule for violation in check(save(data[:end], format), key)] == ["file"], end
    for _ in range(25):
        damaged = bytearray(data)
        for position in random.integers(0, min(len(data), 400), 3):
            damaged[position] = random.integers(256)
        assert all(isinstance(violation, Violation) for violation in check(save(damaged, format), key))


def test_hostile_sizes_are_refused_before_anything_is_decoded(save, tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )
    gif = struct.pack("<6sHHBBB", b"GIF89a", 65_535, 65_535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x01\0\0;"
    for data, format, key in ((bomb, "apng", "signal"), (gif, "gif", "slack")):
        (violation,) = check(save(data, format), key)
        assert violation.rule == "file" and "pixels" in violation.found
    huge = tmp_path / "huge.gif"
    with open(huge, "wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert [violation.rule for violation in check(huge, "slack")] == ["bytes"]


def test_missing_files_and_platforms_raise(tmp_path):
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "nothing.gif", "slack")
    with pytest.raises(ValueError, match="`platform` must be one of"):
        check(tmp_path / "nothing.gif", "icq")
