"""From the bytes of a sticker file to its frames, one decoder per format, found by content and never by suffix.

A decoder takes the bytes and `Limits`, refuses what is above the limits before it is decoded, and gives pairs of a
frame (H, W, 4), uint8 straight RGBA, and the milliseconds it is shown, 0 where the file does not say. What is broken
raises one of `DECODING_ERRORS` with the reason.

Pillow and FFmpeg get no part of a file that makes no picture: texts, colour profiles, tags and sound are left out,
because a few bytes of them can take minutes to read or fill the memory. WebP alone is given to Pillow whole,
which keeps its texts and profiles as the bytes that they are.
"""

import importlib.util
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


Frames = Iterable[tuple[np.ndarray, float]]

# What Pillow, zlib and `struct` raise for broken files
DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error)
CUT_SHORT = "the file is cut short"
MAX_STEPS = 2**19  # of `Reader`, and samples in the tables of an MP4
MAX_SCANS = 100  # of a JPEG: each goes over the whole picture, and ten are usual
MAX_LOTTIE_BYTES = 4 * 2**20  # of JSON text, which takes up to thirty times as much once it is read
LOTTIE_SECONDS = 0.7  # of processor time for any animation, and more for its pixels,
LOTTIE_PIXELS_PER_SECOND = 8 * 2**20  # at a twentieth of rlottie's usual rate
RENDERER = Path(__file__).with_name("lottie_renderer.py")
VIDEO_CODECS = ("vp8", "vp9", "av1", "libdav1d", "h264", "hevc", "mpeg4")
MP4_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
MP4_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # where a box says how many samples there are
WEBM_SEGMENT = b"\x18\x53\x80\x67"
WEBM_KEPT = (b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
TURNED = {  # EXIF orientations
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """Largest sizes that are decoded: pixels of a frame, frames, pixels of all frames together."""

    frame_pixels: int
    frames: int
    total_pixels: int

    def check(self, width: int, height: int, frames: int = 1) -> None:
        pixels = width * height
        if pixels < 1 or frames < 1:
            raise ValueError(f"{frames} frames of {width}x{height} pixels: nothing that can be shown")
        if pixels > self.frame_pixels:
            raise ValueError(f"{width}x{height} pixels, at most {self.frame_pixels} pixels are read")
        if frames > self.frames:
            raise ValueError(f"more than {self.frames} frames")
        if frames * pixels > self.total_pixels:
            raise ValueError(f"{frames} frames of {width}x{height} are more than {self.total_pixels} pixels")


class Reader:
    """Takes a file apart from front to back in a bounded number of steps, as it may hold millions of empty blocks."""

    def __init__(self, data: bytes, position: int = 0):
        self.data, self.position, self.end, self.steps = data, position, len(data), 0

    def take(self, layout: str) -> tuple:
        """The next values, as `struct` lays them out."""
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))

    def bytes(self, count: int) -> bytes:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS} blocks")
        start, self.position = self.position, self.position + count
        if self.position > self.end:
            raise ValueError(CUT_SHORT)
        return self.data[start : self.position]


def browser_time(milliseconds: float) -> float:
    """Chrome, Firefox and Safari take times of 10 ms and less in GIF, APNG and WebP for a slip and show 100 ms."""
    return milliseconds if milliseconds > 10 else 0


# Stills and WebP, which Pillow composes itself


def to_rgba(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGBA")


def orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 where it says none. Pillow would read all tags, and they may point at the same bytes."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        tags = (struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * tag) for tag in range(count))
        return next((value for tag, _, _, value in tags if tag == 0x0112), 1)
    except struct.error:  # photos with broken EXIF are common, and their pixels are whole
        return 1


def decode_still(picture: Image.Image, exif: bytes) -> np.ndarray:
    frame = to_rgba(picture)
    turn = TURNED.get(orientation(exif))
    return np.asarray(frame if turn is None else frame.transpose(turn))


def decode_jpeg(data: bytes, limits: Limits) -> Frames:
    """One frame, also of files with several pictures. Of the applications' segments only Adobe's is about pixels."""
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")
    reader = Reader(data, 2)
    kept, exif, kind = [data[:2]], b"", 0
    while kind != 0xDA:  # the start of the first scan
        start = reader.position
        mark, kind, length = reader.take(">BBH")
        if mark != 0xFF or length < 2:
            raise ValueError("damaged between its segments")
        body = reader.bytes(length - 2)
        if kind == 0xE1 and body.startswith(b"Exif"):
            exif = exif or body
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", body, 1)
            limits.check(width, height)
        if not 0xE0 <= kind <= 0xEF or kind == 0xEE:
            kept.append(data[start : reader.position])
    kept.append(data[reader.position :])
    with Image.open(io.BytesIO(b"".join(kept)), formats=("JPEG",)) as picture:
        yield decode_still(picture, exif), 0


def webp_size(data: bytes) -> tuple[int, int]:
    kind, reader = data[12:16], Reader(data, 20)
    if kind == b"VP8X":
        _, width, width_high, height, height_high = reader.take("<IHBHB")
        return (width_high << 16 | width) + 1, (height_high << 16 | height) + 1
    if kind == b"VP8L":
        _, bits = reader.take("<BI")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    _, width, height = reader.take("<6sHH")
    return width & 0x3FFF, height & 0x3FFF


def decode_webp(data: bytes, limits: Limits) -> Frames:
    limits.check(*webp_size(data))
    with Image.open(io.BytesIO(data), formats=("WEBP",)) as picture:
        limits.check(picture.width, picture.height, picture.n_frames)
        if picture.n_frames == 1:
            yield decode_still(picture, picture.info.get("exif", b"")), 0
            return
        for index in range(picture.n_frames):
            picture.seek(index)
            picture.load()  # a frame's duration is known only after this
            yield np.asarray(to_rgba(picture)), browser_time(picture.info["duration"])


# GIF and APNG: frames are patches on a canvas


class Patch(NamedTuple):
    """A frame as GIF and APNG store it: a small picture, where it goes and what becomes of its place afterwards."""

    picture: bytes  # a whole file of one frame
    box: tuple[int, int, int, int]  # left, top, right, bottom on the canvas
    milliseconds: float
    disposal: str = "keep"  # or "clear" to transparent, or "restore" what was there
    over: bool = True  # drawn over the canvas; else it replaces what is there


def compose(patches: list[Patch], width: int, height: int) -> Frames:
    """Draw the patches one after the other on a transparent canvas.

    Pillow's own frames are not used: it clears places of a GIF to the background colour where browsers make them
    transparent, and squares the alpha of half-transparent patches of an APNG.
    """
    canvas = Image.new("RGBA", (width, height))
    for patch in patches:
        before = canvas.copy() if patch.disposal == "restore" else None
        with Image.open(io.BytesIO(patch.picture), formats=("GIF", "PNG")) as picture:
            drawn = to_rgba(picture)
        if patch.over:
            canvas.alpha_composite(drawn, patch.box[:2])
        else:
            canvas.paste(drawn, patch.box[:2])
        yield np.asarray(canvas), browser_time(patch.milliseconds)
        if patch.disposal == "clear":
            canvas.paste((0, 0, 0, 0), patch.box)
        elif before is not None:
            canvas = before


def gif_palette(reader: Reader, flags: int) -> bytes:
    """The colour table that comes next, if bit 7 of `flags` says so; bits 0 to 2 are its size."""
    return reader.bytes(3 << (flags & 7) + 1) if flags & 0x80 else b""


def gif_blocks(reader: Reader) -> bytes:
    """A chain of data blocks: each begins with its length, the last one is empty."""
    start = reader.position
    while length := reader.bytes(1)[0]:
        reader.bytes(length)
    return reader.data[start : reader.position]


def gif_picture(reader: Reader, width: int, height: int, flags: int, shared: bytes, transparent: int | None) -> bytes:
    """The frame that comes next as a GIF of its own."""
    palette = gif_palette(reader, flags) or shared
    colours = 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0
    control = b"" if transparent is None else struct.pack("<3sBHBB", b"!\xf9\x04", 1, 0, transparent, 0)
    pixels = reader.bytes(1) + gif_blocks(reader)
    return (
        struct.pack("<6sHHBBB", b"GIF89a", width, height, colours, 0, 0)
        + palette
        + control
        + struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, flags & 0x40)  # bit 6: interlaced
        + pixels
        + b";"
    )


def gif_patches(reader: Reader, width: int, height: int, shared: bytes, limits: Limits) -> Iterator[Patch]:
    control, frames = (0, 0, 0), 0
    while (kind := reader.bytes(1)) != b";":
        if kind == b"!":  # an extension
            label, block = reader.bytes(1), gif_blocks(reader)
            if label == b"\xf9" and len(block) > 4:
                control = struct.unpack_from("<BHB", block, 1)
        elif kind == b",":  # a picture
            left, top, *size, flags = reader.take("<HHHHB")
            frames += 1
            limits.check(max(width, size[0]), max(height, size[1]), frames)
            how, hundredths, transparent = control
            picture = gif_picture(reader, *size, flags, shared, transparent if how & 1 else None)
            disposal = {2: "clear", 3: "restore", 4: "restore"}.get(how >> 2 & 7, "keep")
            yield Patch(picture, (left, top, left + size[0], top + size[1]), 10 * hundredths, disposal)
            control = (0, 0, 0)
        elif kind != b"\0":  # some encoders leave zeros between the blocks
            raise ValueError(f"damaged: no block of a GIF begins with {kind!r}")


def decode_gif(data: bytes, limits: Limits) -> Frames:
    reader = Reader(data, 6)
    width, height, flags, _, _ = reader.take("<HHBBB")
    patches = list(gif_patches(reader, width, height, gif_palette(reader, flags), limits))
    limits.check(width, height, len(patches))
    return compose(patches, width, height)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and contents of every chunk before the end chunk, checked against its checksum."""
    reader = Reader(data, len(PNG_MAGIC))
    while True:
        length, kind = reader.take(">I4s")
        body = reader.bytes(length)
        if reader.take(">I")[0] != zlib.crc32(body, zlib.crc32(kind)):
            raise ValueError(f"chunk {kind!r} is damaged")
        if kind == b"IEND":
            return
        yield kind, body


def apng_patch(control: bytes, pixels: list[bytes], header: bytes, shared: list[bytes]) -> Patch:
    _, width, height, left, top, numerator, denominator, disposal, blend = struct.unpack(">IIIIIHHBB", control)
    canvas = struct.unpack_from(">II", header)
    if left + width > canvas[0] or top + height > canvas[1] or disposal > 2:
        raise ValueError(f"damaged: {width}x{height} at {left}, {top} with disposal {disposal} is no frame")
    picture = png_file(control[4:12] + header[8:], shared, pixels)
    box = (left, top, left + width, top + height)
    disposal = ("keep", "clear", "restore")[disposal]
    return Patch(picture, box, 1000 * numerator / (denominator or 100), disposal, blend == 1)


def png_file(header: bytes, shared: list[bytes], pixels: list[bytes]) -> bytes:
    return b"".join(
        [PNG_MAGIC, png_chunk(b"IHDR", header), *shared, png_chunk(b"IDAT", b"".join(pixels)), png_chunk(b"IEND", b"")]
    )


def decode_png(data: bytes, limits: Limits) -> Frames:
    """A PNG's picture, or an APNG's frames; a picture outside the animation is for old readers and left out."""
    chunks = png_chunks(data)
    kind, header = next(chunks, (b"", b""))
    if kind != b"IHDR" or len(header) != 13:
        raise ValueError("damaged: a PNG begins with its size")
    width, height = struct.unpack_from(">II", header)
    limits.check(width, height)
    exif, expected = b"", None
    shared, still, frames = [], [], []  # frames: [(control, pieces of pixels)]
    for kind, body in chunks:
        if kind in (b"PLTE", b"tRNS"):
            shared.append(png_chunk(kind, body))
        elif kind == b"eXIf":
            exif = body
        elif kind == b"acTL" and not still:
            (expected,) = struct.unpack_from(">I", body)
            limits.check(width, height, expected)
        elif kind == b"fcTL" and expected is not None:
            frames.append((body, []))
            limits.check(width, height, len(frames))
        elif kind == b"IDAT":
            (frames[-1][1] if frames else still).append(body)
        elif kind == b"fdAT" and frames:
            frames[-1][1].append(body[4:])
    if expected is not None:
        if len(frames) != expected:
            raise ValueError(f"{expected} frames promised, {len(frames)} found")
        return compose([apng_patch(*frame, header, shared) for frame in frames], width, height)
    with Image.open(io.BytesIO(png_file(header, shared, still)), formats=("PNG",)) as picture:
        return [(decode_still(picture, exif), 0)]


# Video through FFmpeg


def webm_number(reader: Reader) -> bytes:
    """An id or a length: as many bytes follow the first one as it has leading zeros."""
    first = reader.bytes(1)
    return first + reader.bytes(8 - first[0].bit_length())


def webm_pictures(data: bytes) -> bytes:
    """A WebM with nothing but its header, tracks and frames."""
    reader, kept = Reader(data), []
    while reader.position < reader.end:
        start = reader.position
        kind, length = webm_number(reader), webm_number(reader)
        size = int.from_bytes(length, "big") & (unknown := (1 << 7 * len(length)) - 1)
        end = reader.end if size == unknown else reader.position + size  # of live streams no length is known
        if end > reader.end:
            raise ValueError(CUT_SHORT)
        if kind == WEBM_SEGMENT:  # holds all that follows
            reader.end = end
            kept.append(WEBM_SEGMENT + b"\x01" + 7 * b"\xff")
            continue
        reader.bytes(end - reader.position)
        if kind in WEBM_KEPT:
            kept.append(data[start:end])
    return b"".join(kept)


def mp4_pictures(data: bytes) -> bytes:
    """An MP4 whose tracks of sound and text are marked as free space.

    Its tables can promise any number of samples in a few bytes, and FFmpeg would make room for all of them.
    """
    reader, kept = Reader(data), bytearray(data)
    track, hidden, samples = None, False, 0
    while reader.position < reader.end:
        start = reader.position
        size, kind = reader.take(">I4s")
        if size == 1:
            (size,) = reader.take(">Q")
        end = start + size if size else reader.end
        if not reader.position <= end <= reader.end:
            raise ValueError(CUT_SHORT)
        if kind == b"trak":
            track, hidden = start, False
        if kind in MP4_CONTAINERS:  # what is in it comes next
            continue
        body = reader.bytes(end - reader.position)
        if kind == b"hdlr" and track is not None:
            if hidden := body[8:12] != b"vide":
                kept[track + 4 : track + 8] = b"free"
            track = None
        elif kind in MP4_COUNTS and not hidden:
            samples += struct.unpack_from(">I", body, MP4_COUNTS[kind])[0]
            if samples > MAX_STEPS:
                raise ValueError(f"{samples} samples, at most {MAX_STEPS} are read")
    return bytes(kept)


class AlphaDecoder:
    """VP8's and VP9's transparency: the brightness of a second video, whose packets ride on those of the first.

    libvpx joins the two by itself, but FFmpeg cannot tell it how many pixels are allowed, and a packet of 200 KB makes
    it fill 6 GB. FFmpeg's own decoders give the same pixels and obey `max_pixels`.
    """

    def __init__(self, codec: str, options: dict[str, str]):
        import av

        self.new_packet = av.Packet
        self.decoder = av.CodecContext.create(codec, "r")
        self.decoder.thread_count, self.decoder.options = 1, options

    def __call__(self, packet: Any) -> np.ndarray | int:
        """The plane (H, W) that belongs to a packet's frame; 255 where it has none, 0 where its frame is not shown."""
        if not packet.has_sidedata("matroska_block_additional"):
            return 255
        coded = bytes(packet.get_sidedata("matroska_block_additional"))[8:]  # 8 bytes say which addition it is
        for frame in self.decoder.decode(self.new_packet(coded)):
            if frame.format.name != "yuv420p":
                raise ValueError("transparency of more than 8 bits is not read")
            lines = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)
            return lines[: frame.height, : frame.width]
        return 0


def video_frames(container: Any, options: dict[str, str], limits: Limits) -> Iterator[tuple[np.ndarray, Any, Any]]:
    """(RGBA, start, length) of every frame of the first video track; start and length in seconds, None if unknown."""
    from av.stream import Discard
    from av.video.reformatter import VideoReformatter

    stream = next(iter(container.streams.video), None)
    codec = stream and stream.codec_context
    if codec is None or codec.name not in VIDEO_CODECS:
        raise ValueError(f"no video of a kind that is read: {', '.join(VIDEO_CODECS)}")
    limits.check(codec.width, codec.height, stream.frames or 1)
    for other in container.streams:
        other.discard = Discard.default if other is stream else Discard.all
    codec.thread_count, codec.options = 1, options  # with more threads frames come later than their packets
    alpha = AlphaDecoder(codec.name, options) if stream.metadata.get("alpha_mode") == "1" else None
    reformatter = VideoReformatter()
    for number, packet in enumerate(container.demux(stream)):
        limits.check(codec.width, codec.height, max(number, 1))  # a packet is a frame, the last packet is empty
        plane = None if alpha is None else alpha(packet)
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            pixels = reformatter.reformat(frame, format="rgba", threads=1).to_ndarray()
            if plane is not None:
                if np.shape(plane) not in ((), pixels.shape[:2]):
                    raise ValueError(f"frame {number} and its transparency differ in size")
                pixels[..., 3] = plane
            length = frame.duration * frame.time_base if frame.duration else None
            yield np.rot90(pixels, frame.rotation // 90), frame.time, length


def decode_video(container_format: str, data: bytes, limits: Limits) -> Frames:
    import av

    options = {"max_pixels": str(limits.frame_pixels), "err_detect": "explode"}  # what is broken is not patched up
    arguments = {"format": container_format, "options": options, "metadata_errors": "replace"}
    try:
        with av.open(io.BytesIO(data), **arguments) as container:
            found = list(video_frames(container, options, limits))
            rate = container.streams.video[0].average_rate
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from error
    if not found:
        raise ValueError("no frames in it")
    frames, starts, lengths = zip(*found)
    end = (starts[-1] or 0) + (lengths[-1] or (1 / rate if rate else 0))
    seconds = np.diff(np.array(starts, dtype=np.float64), append=float(end))
    return zip(frames, np.nan_to_num(seconds * 1000).round(3))


# Lottie through rlottie


def decode_lottie(text: bytes, limits: Limits) -> Frames:
    """Every frame of a Lottie animation, drawn in its own size and at its own rate.

    rlottie itself counts one frame too many: the one at the end point, where the loop begins anew.
    """
    if len(text) > MAX_LOTTIE_BYTES:
        raise ValueError(f"more than {MAX_LOTTIE_BYTES} bytes of JSON")
    try:
        lottie = json.loads(text)
        width, height, rate = (float(lottie[name]) for name in ("w", "h", "fr"))
        count = round(float(lottie["op"]) - float(lottie["ip"]))
        pictures = [asset for asset in lottie.get("assets", []) if "p" in asset]
        text = json.dumps(lottie, allow_nan=False).encode()  # rlottie reads what was checked, and nothing else
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"no Lottie animation, or a broken one ({error})") from error
    if pictures:
        raise ValueError("it refers to picture files, which are not read")
    if not 0 < rate <= 1000:
        raise ValueError(f"{rate:g} frames a second")
    size = round(width), round(height)
    limits.check(*size, count)
    return ((frame, 1000 / rate) for frame in draw_lottie(text, *size, count))


def decode_tgs(data: bytes, limits: Limits) -> Frames:
    unzip = zlib.decompressobj(wbits=31)
    text = unzip.decompress(data, MAX_LOTTIE_BYTES + 1)
    if not unzip.eof and len(text) <= MAX_LOTTIE_BYTES:
        raise ValueError(CUT_SHORT)
    return decode_lottie(text, limits)


def draw_lottie(text: bytes, width: int, height: int, count: int) -> Iterator[np.ndarray]:
    """Frames (H, W, 4), straight RGBA, drawn in another process (see lottie_renderer.py) within a bounded time."""
    module = importlib.util.find_spec("rlottie_python")
    if module is None:
        raise ValueError("Lottie and TGS need rlottie-python: pip install rdtf_diffusers[lottie]")
    folder = Path(module.origin).parents[1]
    seconds = LOTTIE_SECONDS + width * height * count / LOTTIE_PIXELS_PER_SECOND
    command = [sys.executable, "-I", "-S", RENDERER, folder, *map(str, (seconds, width, height, count))]
    with tempfile.TemporaryFile() as script:
        script.write(text)
        script.seek(0)
        with subprocess.Popen(command, stdin=script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            # The process stops itself after `seconds` of processor time; the alarm is for one that waits for ever
            alarm = threading.Timer(10 * seconds, process.kill)
            alarm.start()
            try:
                for _ in range(count):
                    pixels = process.stdout.read(4 * width * height)
                    if len(pixels) < 4 * width * height:
                        raise ValueError(f"rlottie cannot draw it within {seconds:.1f} s (exit code {process.wait()})")
                    picture = Image.frombuffer("RGBA", (width, height), pixels, "raw", "BGRa")  # "a": premultiplied
                    yield np.asarray(picture)
            finally:
                alarm.cancel()
                process.kill()


DECODERS = {
    rb"GIF8[79]a": decode_gif,
    rb"\x89PNG\r\n\x1a\n": decode_png,
    rb"\xff\xd8\xff": decode_jpeg,
    rb"RIFF.{4}WEBPVP8[ LX]": decode_webp,
    rb"\x1aE\xdf\xa3": lambda data, limits: decode_video("matroska", webm_pictures(data), limits),
    rb".{4}ftyp(?!avi[fs]|hei[cfsx]|mif1|msf1)": lambda data, limits: decode_video("mov", mp4_pictures(data), limits),
    rb"\x1f\x8b": decode_tgs,
    rb"(\xef\xbb\xbf)?\s*\{": decode_lottie,
}


def decode(data: bytes, limits: Limits) -> Frames:
    """Frames and milliseconds of a file of any format.

    Raises:
        DECODING_ERRORS: the file is of no known format, broken, cut short, or above the limits.
    """
    for beginning, decoder in DECODERS.items():
        if re.match(beginning, data, re.DOTALL):
            return decoder(data, limits)
    raise ValueError("not a GIF, PNG, WebP, JPEG, WebM, MP4, TGS or Lottie file, or a broken one")
