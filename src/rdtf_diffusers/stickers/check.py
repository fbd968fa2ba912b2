"""Does a file keep a platform's rules? Answered from the file alone, whoever wrote it.

    for violation in check("dog.webp", "whatsapp"):
        print(violation)  # pixels: 320x320, allowed: 512x512

Format, sizes, times, frame and loop counts are read block by block as they are stored, because decoders merge, round
and guess them. Pixels are decoded only if the file is no larger than the platform allows.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite
from pathlib import Path

import numpy as np

from ..data.decoders import (
    DECODING_ERRORS,
    Limits,
    Reader,
    decode,
    gif_blocks,
    gif_palette,
    png_chunks,
    webm_number,
    webp_size,
)
from .platforms import SUFFIXES, Platform, find_platform


MAX_BYTES = 32 * 2**20  # larger files are not opened
LIMITS = Limits(frame_pixels=2**22, frames=5000, total_pixels=2**27)  # above them no pixel is decoded
ENDLESS = 0
TOLERANCE_MS = 0.5  # formats round times to whole milliseconds
LEAST_MOTION = 16  # of 255: codecs change a picture that stands still by less
FLASH_CONTRAST, FLASH_DARKER, FLASH_AREA = 0.1, 0.8, 0.25  # see `count_flashes`

# WebM elements (RFC 9559); those in WEBM_PARENTS hold the others
WEBM_PARENTS = {0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0xA0}
WEBM_TRACK, WEBM_TRACK_NUMBER, WEBM_TRACK_TYPE, WEBM_CODEC = 0xAE, 0xD7, 0x83, 0x86
WEBM_WIDTH, WEBM_HEIGHT, WEBM_FRAME_NS = 0xB0, 0xBA, 0x23E383
WEBM_SCALE, WEBM_DURATION, WEBM_CLUSTER_TIME = 0x2AD7B1, 0x4489, 0xE7
WEBM_SIMPLE_BLOCK, WEBM_BLOCK = 0xA3, 0xA1
VIDEO, AUDIO = 1, 2


@dataclass(frozen=True)
class Violation:
    """One broken rule: its name, what the file has, and what the platform allows."""

    rule: str
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.found}, allowed: {self.allowed}"


@dataclass(frozen=True)
class StickerFile:
    """What a file says about itself.

    Attributes:
        format: "webp", "gif", "apng" (a PNG without animation too) or "webm".
        width: of the canvas in pixels.
        height: of the canvas in pixels.
        durations: how long each stored frame stands, in milliseconds; (0,) for a still picture.
        plays: how often the animation plays, 0 for endlessly; a WebM stores none and counts as endless.
        palette: the PNG's pixels refer to a palette.
        codec: of the first video track, such as "V_VP9".
        profile: of the VP9 stream; 0 is 8 bits with 4:2:0 chroma, the pixel formats yuv420p and yuva420p.
        sound: the number of audio tracks.
    """

    format: str
    width: int
    height: int
    durations: tuple[float, ...]
    plays: int
    palette: bool = False
    codec: str = ""
    profile: int = 0
    sound: int = 0


def describe(data: bytes) -> StickerFile:
    """What the blocks of a sticker file say; no pixel is decoded.

    Raises:
        DECODING_ERRORS: the file is none of the four formats, broken, or cut short.
    """
    if re.match(rb"GIF8[79]a", data):
        return _describe_gif(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _describe_png(data)
    if re.match(rb"RIFF.{4}WEBPVP8[ LX]", data, re.DOTALL):
        return _describe_webp(data)
    if data.startswith(b"\x1aE\xdf\xa3") and b"webm" in data[:64]:
        return _describe_webm(data)
    raise ValueError("not a WebP, GIF, PNG or WebM file")


def _describe_gif(data: bytes) -> StickerFile:
    reader = Reader(data, 6)
    width, height, flags, _, _ = reader.take("<HHBBB")
    gif_palette(reader, flags)
    plays, delay, durations = 1, 0, []
    while (kind := reader.bytes(1)) != b";":
        if kind == b"!":
            label, blocks = reader.bytes(1), gif_blocks(reader)
            if label == b"\xf9":
                (delay,) = struct.unpack_from("<H", blocks, 2)
            elif (
                label == b"\xff" and blocks[1:12] in (b"NETSCAPE2.0", b"ANIMEXTS1.0") and blocks[12:14] == b"\x03\x01"
            ):
                (repeats,) = struct.unpack_from("<H", blocks, 14)
                plays = repeats + 1 if repeats else ENDLESS
        elif kind == b",":
            *_, flags = reader.take("<HHHHB")
            gif_palette(reader, flags)
            reader.bytes(1)
            gif_blocks(reader)
            durations.append(10.0 * delay)
            delay = 0
        elif kind != b"\0":
            raise ValueError(f"damaged: no block of a GIF begins with {kind!r}")
    return StickerFile("gif", width, height, tuple(durations), plays)


def _describe_png(data: bytes) -> StickerFile:
    chunks = png_chunks(data)
    kind, header = next(chunks, (b"", b""))
    if kind != b"IHDR":
        raise ValueError("damaged: a PNG begins with its size")
    width, height, _, colour_type = struct.unpack_from(">IIBB", header)
    frames, plays, durations = 1, ENDLESS, []
    for kind, body in chunks:
        if kind == b"acTL":
            frames, plays = struct.unpack(">II", body)
        elif kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", body, 20)
            durations.append(1000 * numerator / (denominator or 100))
    durations = durations or [0.0]
    if len(durations) != frames:
        raise ValueError(f"{frames} frames promised, {len(durations)} found")
    return StickerFile("apng", width, height, tuple(durations), plays, palette=colour_type == 3)


def _describe_webp(data: bytes) -> StickerFile:
    reader = Reader(data, 4)
    (size,) = reader.take("<I")
    reader.bytes(4)
    reader.end = min(reader.end, 8 + size)
    if reader.end < 8 + size:
        raise ValueError("the file is cut short")
    plays, durations = ENDLESS, []
    while reader.position < reader.end:
        kind, length = reader.take("<4sI")
        body = reader.bytes(length)
        reader.bytes(length % 2)
        if kind == b"ANIM":
            (plays,) = struct.unpack_from("<H", body, 4)
        elif kind == b"ANMF":
            durations.append(float(int.from_bytes(body[12:15], "little")))
    return StickerFile("webp", *webp_size(data), tuple(durations) or (0.0,), plays)


def _webm_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Id and contents of every element in the order of the file; of parents only the id."""
    reader = Reader(data)
    while reader.position < reader.end:
        kind, length = int.from_bytes(webm_number(reader)), webm_number(reader)
        if kind in WEBM_PARENTS:  # what is in it comes next
            yield kind, b""
        else:
            yield kind, reader.bytes(int.from_bytes(length) & (1 << 7 * len(length)) - 1)


def _unsigned(body: bytes) -> int:
    if len(body) > 8:
        raise ValueError("damaged: a number of more than 64 bits")
    return int.from_bytes(body)


def _describe_webm(data: bytes) -> StickerFile:
    scale, end_time, cluster = 1e6, 0.0, 0  # a tick is 1 ms where the file says nothing else
    tracks: list[dict[int, bytes]] = []
    blocks: list[tuple[int, int, bytes]] = []  # track, time in ticks, the frame's first byte
    for kind, body in _webm_elements(data):
        if kind == WEBM_TRACK:
            tracks.append({})
        elif kind == WEBM_SCALE:
            scale = _unsigned(body)
        elif kind == WEBM_DURATION:
            (end_time,) = struct.unpack(">f" if len(body) == 4 else ">d", body)
        elif kind == WEBM_CLUSTER_TIME:
            cluster = _unsigned(body)
        elif kind in (WEBM_SIMPLE_BLOCK, WEBM_BLOCK):
            reader = Reader(body)
            track = webm_number(reader)
            time, flags = reader.take(">hB")
            if flags & 0x06:
                raise ValueError("several frames in one block are not read")
            blocks.append((int.from_bytes(track) & (1 << 7 * len(track)) - 1, cluster + time, reader.bytes(1)))
        elif tracks and not blocks:
            tracks[-1][kind] = body
    video = next((track for track in tracks if track.get(WEBM_TRACK_TYPE) == bytes([VIDEO])), {})
    number, width, height, default = (
        _unsigned(video.get(key, b"")) for key in (WEBM_TRACK_NUMBER, WEBM_WIDTH, WEBM_HEIGHT, WEBM_FRAME_NS)
    )
    frames = [(time * scale / 1e6, first[0]) for track, time, first in blocks if track == number]
    if not frames or not isfinite(end_time):
        raise ValueError("no video in it, or one without times")
    times = [time for time, _ in frames]
    last = end_time * scale / 1e6 - times[-1] if end_time else default / 1e6
    return StickerFile(
        "webm",
        width,
        height,
        (*(later - earlier for earlier, later in pairwise(times)), max(last, 0.0)),
        ENDLESS,
        codec=video.get(WEBM_CODEC, b"").decode("ascii", "replace"),
        profile=(frames[0][1] >> 5 & 1) | (frames[0][1] >> 3 & 2),
        sound=sum(track.get(WEBM_TRACK_TYPE) == bytes([AUDIO]) for track in tracks),
    )


def count_flashes(luminance: np.ndarray, milliseconds: np.ndarray) -> int:
    """The most flashes that a looping clip has within one second.

    After WCAG 2.2's general flash: a pair of opposing changes of the relative luminance by at least 0.1, the darker
    state below 0.8, of a quarter of the picture at once.

    Args:
        luminance: (F, H, W), relative luminance of each pixel in [0, 1].
        milliseconds: (F,), how long each frame stands; 10 and less are shown as 100, as browsers do.
    """
    shown = np.where(np.asarray(milliseconds) > 10, milliseconds, 100)
    rounds = 1 + ceil(1000 / shown.sum())  # from every moment of the loop, a full second follows
    low = high = luminance[0]
    direction = np.zeros(low.shape, np.int8)  # of each pixel's last change
    now, last, changes = 0.0, 0, []
    for frame, length in zip([*luminance] * rounds, [*shown] * rounds):
        low, high = np.minimum(low, frame), np.maximum(high, frame)
        up = (direction <= 0) & (frame - low >= FLASH_CONTRAST) & (low < FLASH_DARKER)
        down = (direction >= 0) & (high - frame >= FLASH_CONTRAST) & (frame < FLASH_DARKER)
        direction = np.where(up, 1, np.where(down, -1, direction))
        low, high = np.where(up | down, frame, low), np.where(up | down, frame, high)
        opposing = [way for way, area in ((1, up), (-1, down)) if way != last and area.mean() >= FLASH_AREA]
        if opposing:
            last = opposing[0]
            changes.append(now)
        now += length
    times = np.array(changes)
    return max((np.count_nonzero((times >= time) & (times < time + 1000)) // 2 for time in changes), default=0)


def _relative_luminance(frame: np.ndarray, background: float) -> np.ndarray:
    """Straight RGBA (H, W, 4) uint8 over a grey of the linear value `background` -> (H, W); sRGB as in WCAG 2.2."""
    values = frame / np.float32(255)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    alpha = values[..., 3]
    return alpha * (linear[..., :3] @ np.array([0.2126, 0.7152, 0.0722], np.float32)) + (1 - alpha) * background


def most_flashes(frames: Sequence[np.ndarray], durations: Sequence[float]) -> int:
    """The most flashes in one second of frames (H, W, 4) over black or over white, whichever has more.

    Args:
        frames: straight RGBA uint8.
        durations: how long each stands, in ms.
    """
    counts = []
    for background in (0, 1):
        luminance = np.stack([_relative_luminance(frame, background) for frame in frames])
        counts.append(count_flashes(luminance, np.array(durations)))
    return max(counts)


def _check_format(file: StickerFile, rules: Platform, suffix: str) -> Iterator[Violation]:
    if file.format not in rules.formats:
        yield Violation("format", file.format, " or ".join(rules.formats))
    elif suffix.lower() != SUFFIXES[file.format]:
        yield Violation("file name", f"ends in {suffix!r}", SUFFIXES[file.format])
    if not rules.fits(file.width, file.height):
        yield Violation("pixels", f"{file.width}x{file.height}", rules.size_rule())
    if file.palette and not rules.palette:
        yield Violation("palette", "colours from a palette", "RGBA pixels")
    if file.format == "webm":
        if file.codec != "V_VP9":
            yield Violation("codec", file.codec, "V_VP9")
        elif file.profile != 0:
            yield Violation("pixel format", f"VP9 profile {file.profile}", "profile 0 (yuv420p or yuva420p)")
        if file.sound:
            yield Violation("sound", f"{file.sound} audio tracks", "none")


def _check_timing(file: StickerFile, rules: Platform) -> Iterator[Violation]:
    """Rules for animations; that a still is none is said elsewhere."""
    count, shortest = len(file.durations), min(file.durations)
    if count < 2:
        return
    if count < rules.min_frames or count > (rules.max_frames or count):
        most = f" to {rules.max_frames}" if rules.max_frames else " or more"
        yield Violation("frames", str(count), f"{rules.min_frames}{most}")
    play = sum(file.durations)
    total = play * max(file.plays, 1) if rules.loops else play
    if rules.max_seconds and total > 1000 * rules.max_seconds + TOLERANCE_MS:
        yield Violation("time", f"{total / 1000:.3f} s", f"up to {rules.max_seconds:g} s")
    if rules.whole_seconds and (play < 500 or abs(play - 1000 * round(play / 1000)) > TOLERANCE_MS):
        yield Violation("whole seconds", f"{play / 1000:.3f} s a play", "1, 2, 3 ... s")
    if shortest < rules.min_frame_ms:
        yield Violation("frame time", f"{shortest:g} ms", f"{rules.min_frame_ms} ms or more")
    elif rules.max_fps:
        # With times rounded to milliseconds, no frame starts more than a millisecond before its turn
        mean = sum(file.durations[:-1]) / (count - 1)
        if shortest <= 1000 / rules.max_fps - 1 or mean <= 1000 / rules.max_fps - 1 / (count - 1):
            fastest = mean if mean < 1000 / rules.max_fps else shortest
            yield Violation("frame rate", f"{1000 / max(fastest, 1):.4g} fps", f"up to {rules.max_fps:g} fps")
    fewest, most = rules.loops or (ENDLESS, ENDLESS)
    if not fewest <= file.plays <= most:
        found = "endless" if file.plays == ENDLESS else f"{file.plays} plays"
        yield Violation("loops", found, f"{fewest} to {most} plays" if rules.loops else "endless")


def differ(frame: np.ndarray, other: np.ndarray) -> bool:
    """Whether two frames (H, W, 4), straight RGBA uint8, visibly differ; a transparent pixel's colour is not seen."""
    seen, others = (np.where(picture[..., 3:] > 0, picture, 0).astype(np.int16) for picture in (frame, other))
    return bool(np.abs(seen - others).max() >= LEAST_MOTION)


def _check_pixels(frames: Iterable[np.ndarray], file: StickerFile, rules: Platform) -> Iterator[Violation]:
    step = max(1, max(file.width, file.height) // 128)  # the area of a flash needs no finer look
    first, moves, transparent, small = None, False, False, []
    for frame in frames:
        first = frame if first is None else first
        moves = moves or differ(frame, first)
        transparent = transparent or bool(frame[..., 3].min() < 255)
        if rules.max_flashes is not None:
            small.append(frame[::step, ::step].copy())
    if not (moves or rules.still):
        found = "a still picture" if len(file.durations) == 1 else f"{len(file.durations)} frames of one picture"
        yield Violation("motion", found, "an animation")
    if rules.cover and not first[..., 3].any():
        yield Violation("first frame", "empty", "a picture that stands for the sticker")
    if rules.transparent and not transparent:
        yield Violation("alpha", "no transparent pixel", "a transparent background")
    if rules.max_flashes is not None and (flashes := most_flashes(small, file.durations)) > rules.max_flashes:
        yield Violation("flashes", f"{flashes} in one second", f"up to {rules.max_flashes}")


def check(path: str | Path, platform: str | Platform) -> list[Violation]:
    """What a platform would refuse about a sticker file; empty if nothing.

    A file that is larger than the platform allows is judged without a look at its pixels. One that is broken, of an
    unknown format or too large to look at gives a single violation.

    Args:
        path: the file. Its format is told by its bytes; the name must have the ending that goes with it.
        platform: one of the keys of `PLATFORMS`, or a record.

    Raises:
        ValueError: if there is no such platform.
        OSError: if the file cannot be opened.
    """
    rules, path = find_platform(platform), Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        return [Violation("bytes", str(size), f"up to {rules.max_bytes}")]
    return check_bytes(path.read_bytes(), path.suffix, rules)


def check_bytes(data: bytes, suffix: str, rules: Platform) -> list[Violation]:
    """The same for a file's contents and the ending of its name."""
    too_large = [Violation("bytes", str(len(data)), f"up to {rules.max_bytes}")] if len(data) > rules.max_bytes else []
    try:
        file = describe(data)
        LIMITS.check(file.width, file.height, len(file.durations))
        violations = [*too_large, *_check_format(file, rules, suffix), *_check_timing(file, rules)]
        if not too_large:
            violations += _check_pixels((frame for frame, _ in decode(data, LIMITS)), file, rules)
        return violations
    except DECODING_ERRORS as error:
        return [Violation("file", f"not readable ({error})", "a whole " + " or ".join(rules.formats))]
