# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How fast `read_animation` is, and whether any broken or hostile file can crash it, hang it or fill the memory.

    python examples/benchmarks/animation.py
    python examples/benchmarks/animation.py --inputs 200000 --seed 1 --keep failures

Damaged files: one small file of every format is drawn, then damaged in thousands of ways: bytes flipped, cut short,
joined with another format, lengths set to extreme values, parts dropped or repeated; half of the damaged PNGs get new
checksums, and most of the TGS are damaged before they are zipped, so that the damage is not found at the door. Each is
read in a worker process. All must end in frames or an `AnimationError`.

Hostile files: bytes that promise millions of frames, pixels or texts. Each is read in a fresh process and must be read
or refused within `--hostile-seconds` and `--hostile-memory`. Exit code 1 if anything fails. For Linux and macOS.

The rates are files per second on one core, next to the shortest loop that gives the same arrays with the library that
decodes them: Pillow's ImageSequence, PyAV's `decode`, rlottie in this process.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import re
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.connection import Connection, wait
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageSequence

from rdtf_diffusers.data.animation import AnimationError, read_animation
from rdtf_diffusers.data.decoders import PNG_MAGIC, png_chunk


EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
GOOD = ("read", "refused")
NUMBERS = (b"0", b"-1", b"1e9", b"-1e9", b"1e-9", b"1e999", b"99999999999", b"null", b"[]", b"{}", b'"x"', b"true")


# Golden files


def squares(count: int = 4, height: int = 20, width: int = 24) -> np.ndarray:
    """(N, H, W, 4): a red square, half of it half transparent, moves over nothing to the right."""
    frames = np.zeros((count, height, width, 4), dtype=np.uint8)
    side = height // 2
    for index, left in enumerate(np.linspace(2, width - side - 2, count).astype(int)):
        frames[index, side // 2 : side // 2 + side, left : left + side] = (255, 0, 0, 255)
        frames[index, side // 2 : side // 2 + side, left : left + side // 2, 3] = 128
    return frames


def pillow_file(frames: np.ndarray, kind: str, durations: int | list[int] = 100, **options) -> bytes:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    stream = io.BytesIO()
    if len(frames) > 1:
        options |= {"save_all": True, "append_images": rest, "duration": durations}
    first.save(stream, kind, **options)
    return stream.getvalue()


def ffmpeg_file(frames: np.ndarray, container: str, codec: str, pixels: str, rate: int = 10, **options: str) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        track = output.add_stream(codec, rate=rate, options=options)
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = pixels
        for index, pixels_of_frame in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_of_frame, format="rgba")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(track.encode(frame))
        output.mux(track.encode())
    return stream.getvalue()


def lottie_file(count: int = 4, size: int = 24, opacity: int = 50) -> bytes:
    """An orange square of half the canvas' side that moves from left to right; 10 frames a second."""

    def still(value) -> dict:
        return {"a": 0, "k": value}

    side = size // 2
    position = {"a": 1, "k": [{"t": 0, "s": [side // 2, side, 0]}, {"t": count, "s": [size, side, 0]}]}
    for key, ease in (("i", 1), ("o", 0)):
        position["k"][0][key] = {"x": ease, "y": ease}
    square = {"ty": "rc", "d": 1, "s": still([side, side]), "p": still([0, 0]), "r": still(0)}
    fill = {"ty": "fl", "c": still([1, 0.5, 0, 1]), "o": still(100), "r": 1}
    origin = {"ty": "tr", "p": still([0, 0]), "a": still([0, 0]), "s": still([100, 100]), "r": still(0)}
    group = {"ty": "gr", "nm": "g", "it": [square, fill, {**origin, "o": still(100)}]}
    moves = {"o": still(opacity), "r": still(0), "p": position, "a": still([0, 0, 0]), "s": still([100, 100, 100])}
    layer = {"ddd": 0, "ind": 1, "ty": 4, "nm": "s", "sr": 1, "ks": moves, "ao": 0, "shapes": [group]}
    layer |= {"ip": 0, "op": count, "st": 0, "bm": 0}
    picture = {"v": "5.5.2", "fr": 10, "ip": 0, "op": count, "w": size, "h": size, "nm": "a", "ddd": 0, "assets": []}
    return json.dumps({**picture, "layers": [layer]}).encode()


def golden_files(count: int = 4, size: int = 24) -> dict[str, bytes]:
    """A whole file of every format, by name."""
    frames = squares(count, size, size)
    fast = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0", "auto-alt-ref": "0"}
    lottie = lottie_file(count, size)
    return {
        "gif": pillow_file(frames, "GIF", disposal=2),
        "gif, ffmpeg": ffmpeg_file(frames, "gif", "gif", "rgb8"),
        "apng": pillow_file(frames, "PNG"),
        "apng, ffmpeg": ffmpeg_file(frames, "apng", "apng", "rgba"),
        "webp": pillow_file(frames, "WEBP", lossless=True),
        "webp, lossy": pillow_file(frames, "WEBP"),
        "webm": ffmpeg_file(frames, "webm", "libvpx-vp9", "yuva420p", **fast),
        "webm, vp8": ffmpeg_file(frames, "webm", "libvpx", "yuva420p", **fast),
        "mp4": ffmpeg_file(frames, "mp4", "h264", "yuv420p"),
        "tgs": gzip.compress(lottie, mtime=0),
        "lottie": lottie,
        "png": pillow_file(frames[:1], "PNG"),
        "jpeg": pillow_file(frames[:1, ..., :3], "JPEG", progressive=True),
    }


# Hostile files


def gif_of_dots(count: int, extra: bytes = b"") -> bytes:
    dot = struct.pack("<BHHHHB", 0x2C, 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return struct.pack("<6sHHBBB", b"GIF89a", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + extra + dot * count + b";"


def png_with(png: bytes, *chunks: bytes) -> bytes:
    return png[:33] + b"".join(chunks) + png[33:]  # after the signature and the first chunk


def webp_of_dots(count: int) -> bytes:
    dots = pillow_file(np.stack([np.full((1, 1, 4), 255 * index, np.uint8) for index in range(2)]), "WEBP")
    start = dots.index(b"ANMF")
    frame = dots[start : start + 8 + int.from_bytes(dots[start + 4 : start + 8], "little")]
    body = dots[8:start] + frame * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif_bomb(tags: int = 5000) -> bytes:
    """A JPEG segment with tags that all claim the same 60,000 bytes, 300 MB together."""
    entries = b"".join(struct.pack(">HHII", tag, 7, 60_000, 0) for tag in range(1, tags))
    body = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, tags - 1) + entries + b"\0\0\0\0"
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def mp4_of_samples(mp4: bytes, count: int) -> bytes:
    """The tables of an MP4 changed to `count` samples of one byte in one chunk."""
    data = bytearray(mp4)
    for box, *numbers in ((b"stsz", 1, count), (b"stts", 1, count, 1), (b"stsc", 1, 1, count, 1)):
        struct.pack_into(f">{len(numbers)}I", data, data.index(box) + 8, *numbers)
    return bytes(data)


def vp9_of_size(webm: bytes, side: int) -> bytes:
    """A WebM whose first frame and its transparency say in their own headers that they are `side` pixels wide."""
    data, start = bytearray(webm), 0
    while (start := data.find(b"\x49\x83\x42", start) + 3) > 2:  # then 4 bits of colours, width and height
        header = int.from_bytes(data[start : start + 5], "big")
        size = (side - 1) << 16 | (side - 1)
        data[start : start + 5] = (header & ~(0xFFFFFFFF << 4) | size << 4).to_bytes(5, "big")
    return bytes(data)


def webm_with_tags(webm: bytes, count: int) -> bytes:
    start = webm.index(b"\x18\x53\x80\x67")  # the segment gets an unknown length
    tags = b"\x12\x54\xc3\x67" + struct.pack(">Q", 1 << 56 | 3 * count) + b"\x73\x73\x80" * count
    return webm[: start + 4] + b"\x01" + b"\xff" * 7 + tags + webm[start + 12 :]


def lottie_with(lottie: bytes, *extra: dict, **changes: object) -> bytes:
    """A Lottie with more shapes and other properties."""
    picture = json.loads(lottie)
    picture["layers"][0]["shapes"] += extra
    return json.dumps({**picture, **changes}).encode()


def precomps(layer: dict, depth: int) -> dict:
    """Compositions that each show the next one twice: 2**depth layers; the last one shows the first for depth 0."""
    use = [{**layer, "ty": 0, "refId": f"c{level}", "w": 24, "h": 24} for level in range(depth + 1)]
    levels = [{"id": f"c{level}", "layers": [use[(level + 1) % len(use)]] * 2} for level in range(depth)]
    return {"assets": [*levels, {"id": f"c{depth}", "layers": [layer if depth else use[0]]}], "layers": [use[0]]}


def hostile_files(golden: dict[str, bytes]) -> dict[str, bytes]:
    """Files, mostly small, that ask for far too much, by name."""
    webp, lottie = golden["webp"], golden["lottie"]
    layer = json.loads(lottie)["layers"][0]
    still = {"a": 0, "k": 0}
    repeat = {"ty": "rp", "c": {"a": 0, "k": 1e9}, "o": still, "m": 1}
    repeat["tr"] = {"ty": "tr", "p": {"a": 0, "k": [1, 0]}, "a": {"a": 0, "k": [0, 0]}, "s": {"a": 0, "k": [100, 100]}}
    repeat["tr"] |= {"r": still, "so": {"a": 0, "k": 100}, "eo": {"a": 0, "k": 100}}
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    profile = png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    header = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 6, 0, 0, 0)
    scan = golden["jpeg"].rindex(b"\xff\xda")
    size = golden["jpeg"].index(b"\xff\xc2") + 5
    return {
        "gif, a million frames": gif_of_dots(10**6),
        "gif, 30 MB of zeros": gif_of_dots(1, bytes(30 * 2**20)),
        "gif, a million comments": gif_of_dots(1, b"!\xfe\0" * 10**6),
        "gif, a huge patch": gif_of_dots(1).replace(struct.pack("<HH", 1, 1) + b"\0\x02", b"\xff\xff\xff\xff\0\x02"),
        "webp, a huge canvas": webp[:24] + b"\xff\x3f\0\xff\x3f\0" + webp[30:],
        "webp, 500,000 frames": webp_of_dots(500_000),
        "png, huge": png_with(PNG_MAGIC + png_chunk(b"IHDR", header), golden["png"][33:]),
        "png, 20 GB of texts": png_with(golden["png"], text * 20_000),
        "png, 20 GB of profiles": png_with(golden["png"], profile * 20_000),
        "png, two million chunks": png_with(golden["png"], png_chunk(b"tEXt", b"") * 2_000_000),
        "apng, a billion promised": png_with(golden["png"], png_chunk(b"acTL", struct.pack(">II", 10**9, 0))),
        "apng, frames missing": png_with(golden["png"], png_chunk(b"acTL", struct.pack(">II", 7, 0))),
        "jpeg, huge": golden["jpeg"][:size] + b"\xff\xdc\xff\xdc" + golden["jpeg"][size + 4 :],
        "jpeg, 300 MB of EXIF": golden["jpeg"][:2] + exif_bomb() * 400 + golden["jpeg"][2:],
        "jpeg, 200,000 scans": golden["jpeg"][:scan] + golden["jpeg"][scan:-2] * 200_000 + b"\xff\xd9",
        "jpeg, 30 MB of zeros": golden["jpeg"][:20] + bytes(30 * 2**20) + golden["jpeg"][20:],
        "webm, a huge frame": vp9_of_size(golden["webm"], 2**16),
        "webm, ten million tags": webm_with_tags(golden["webm"], 10**7),
        "mp4, 30 million samples": mp4_of_samples(golden["mp4"], 30_000_000),
        "tgs, 1 GB of zeros": gzip.compress(bytes(2**30), 1),
        "lottie, huge": lottie_with(lottie, w=10**6, h=10**6),
        "lottie, a million frames": lottie_with(lottie, op=10**6),
        "lottie, nested": b'{"layers":' + b"[" * 10**6,
        "lottie, a billion copies": lottie_with(lottie, repeat),
        "lottie, 2**40 layers": lottie_with(lottie, **precomps(layer, 40)),
        "lottie, shows itself": lottie_with(lottie, **precomps(layer, 0)),
        "lottie, reads other files": lottie_with(lottie, assets=[{"id": "i", "u": "/etc/", "p": "passwd"}]),
    }


# Damage


def put_number(data: bytearray, rng: np.random.Generator) -> bytes:
    """An extreme length, count or size somewhere; in JSON an extreme value in the place of a number."""
    if data[:1] == b"{":
        places = list(re.finditer(rb"-?\d+(\.\d+)?", data))
        place = places[rng.integers(len(places))]
        return bytes(data[: place.start()] + NUMBERS[rng.integers(len(NUMBERS))] + data[place.end() :])
    width = int(2 ** rng.integers(4))
    number = int(EXTREMES[rng.integers(len(EXTREMES))]) & (1 << 8 * width) - 1
    start = int(rng.integers(len(data)))
    data[start : start + width] = number.to_bytes(width, rng.choice(["big", "little"]))
    return bytes(data)


def damage(whole: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(whole)
    start, stop = sorted(rng.integers(len(data), size=2).tolist())
    way = rng.integers(6)
    if way == 0:
        for place in rng.integers(len(data), size=rng.integers(1, 9)):
            data[place] = rng.integers(256)
    elif way == 1:
        del data[stop:]
    elif way == 2:
        data[start:] = other[int(rng.integers(len(other))) :]
    elif way == 3:
        return put_number(data, rng)
    elif way == 4:
        del data[start:stop]
    else:
        data[start:start] = data[start:stop] * int(rng.integers(1, 30))
    return bytes(data)


def with_new_checksums(png: bytes) -> bytes:
    data, position = bytearray(png), 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(data)


def damaged(golden: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """(format, contents) of input `number`, the same for the same seed."""
    rng = np.random.default_rng([seed, number])
    name, other = list(golden)[number % len(golden)], golden[rng.choice(list(golden))]
    if name == "tgs" and rng.random() < 0.75:
        return name, gzip.compress(damage(golden["lottie"], other, rng), mtime=0)
    data = damage(golden[name], other, rng)
    return name, with_new_checksums(data) if "png" in name and rng.random() < 0.5 else data


# Reading in worker processes


def outcome_of(data: bytes) -> str:
    try:
        animation = read_animation(data)
    except AnimationError:
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    whole = animation.frames.ndim == 4 and animation.frames.shape[3] == 4 and animation.frames.dtype == np.uint8
    timed = animation.durations.shape == animation.frames.shape[:1] and (animation.durations > 0).all()
    return "read" if whole and timed and np.isfinite(animation.durations).all() else "read, but not as promised"


def peak_memory() -> int:
    """Bytes that this process ever held; rlottie's own process has a limit of its own (see lottie_renderer.py)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(connection: Connection, golden: dict[str, bytes], inputs: int | bytes) -> None:
    """Read what the other end asks for by number: inputs made from a seed, or the one file given."""
    for data in golden.values():
        read_animation(data)
    before = peak_memory()
    for number in iter(connection.recv, None):
        data = inputs if isinstance(inputs, bytes) else damaged(golden, inputs, number)[1]
        start = time.perf_counter()
        outcome = outcome_of(data)
        connection.send((outcome, time.perf_counter() - start, peak_memory() - before))


class Worker:
    """A process that reads one input after the other; `number` is the one it is at."""

    def __init__(self, golden: dict[str, bytes], inputs: int | bytes):
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, golden, inputs), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, number: int | None) -> None:
        self.number, self.since = number, time.perf_counter()
        self.connection.send(number)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def fuzz(golden: dict[str, bytes], options: argparse.Namespace) -> tuple[list[tuple[str, float]], int]:
    """([(outcome, seconds) by number], largest growth of a worker's memory in bytes)."""
    results, growth = [("", 0.0)] * options.inputs, 0
    numbers = iter(range(options.inputs))
    busy = []

    def give(worker: Worker | None) -> None:
        """The next number to the worker, or to a new one; without numbers it stops."""
        number = next(numbers, None)
        if number is not None:
            worker = worker or Worker(golden, options.seed)
            worker.start(number)
            busy.append(worker)
        elif worker is not None:
            worker.stop()

    for _ in range(options.workers):
        give(None)
    while busy:
        ready = wait([worker.connection for worker in busy], timeout=0.5)
        for worker in list(busy):
            seconds, alive = time.perf_counter() - worker.since, False
            if worker.connection in ready:
                try:
                    outcome, seconds, memory = worker.connection.recv()
                    growth, alive = max(growth, memory), True
                except EOFError:
                    worker.process.join()
                    outcome = f"crashed with exit code {worker.process.exitcode}"
            elif seconds > options.timeout:
                outcome = f"hung for {options.timeout:g} s"
            else:
                continue
            results[worker.number] = (outcome, seconds)
            busy.remove(worker)
            if not alive:
                worker.stop()
            give(worker if alive else None)
    return results, growth


def attack(hostile: dict[str, bytes], options: argparse.Namespace) -> list[dict]:
    """How every hostile file ends, in how many seconds and with how much memory above that of reading whole files."""
    rows = []
    harmless = golden_files()
    print(f"{'hostile files':<27}{'bytes':>10}{'seconds':>9}{'MiB':>6}  outcome")
    for name, data in hostile.items():
        worker = Worker(harmless, data)
        worker.start(0)
        if not worker.connection.poll(options.timeout):
            outcome, seconds, memory = f"hung for {options.timeout:g} s", options.timeout, 0
        else:
            try:
                outcome, seconds, memory = worker.connection.recv()
            except EOFError:
                outcome, seconds, memory = "crashed", 0.0, 0
        worker.stop()
        small = seconds <= options.hostile_seconds and memory <= options.hostile_memory * 2**20
        rows.append({"name": name, "bytes": len(data), "outcome": outcome, "seconds": seconds, "memory": memory})
        rows[-1]["failed"] = outcome not in GOOD or not small
        verdict = f"{outcome}{'  FAILED' if rows[-1]['failed'] else ''}"
        print(f"{name:<27}{len(data):>10}{seconds:>9.2f}{memory / 2**20:>6.0f}  {verdict}", flush=True)
    return rows


def report(
    golden: dict[str, bytes], results: list[tuple[str, float]], growth: int, options: argparse.Namespace
) -> dict:
    names = list(golden)
    counts = {name: Counter() for name in names}
    failures = {}
    for number, (outcome, _) in enumerate(results):
        counts[names[number % len(names)]][outcome if outcome in GOOD else "failed"] += 1
        if outcome not in GOOD:
            failures[number] = outcome
    print(f"{'damaged files':<16}{'read':>8}{'refused':>9}{'failed':>8}")
    for name in names:
        print(f"{name:<16}{counts[name]['read']:>8}{counts[name]['refused']:>9}{counts[name]['failed']:>8}")
    slowest = max(range(len(results)), key=lambda number: results[number][1])
    seconds = results[slowest][1]
    print(f"slowest: number {slowest}, {names[slowest % len(names)]}, {seconds:.2f} s; ", end="")
    print(f"memory grew by {growth / 2**20:.0f} MiB at most")
    for number, outcome in failures.items():
        print(f"FAILED number {number}, {names[number % len(names)]}: {outcome}")
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / str(number)).write_bytes(damaged(golden, options.seed, number)[1])
    figures = {"counts": counts, "slowest": [slowest, seconds], "memory_growth": growth, "failures": failures}
    return {**figures, "inputs": options.inputs, "seed": options.seed}


# Rates


def read_by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.stack([np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(picture)])


def read_by_pyav(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgba") for frame in container.decode(video=0)])


def read_by_rlottie(data: bytes) -> np.ndarray:
    from rlottie_python import LottieAnimation

    text = gzip.decompress(data) if data[:1] == b"\x1f" else data
    animation = LottieAnimation.from_data(text.decode())
    frames = range(animation.lottie_animation_get_totalframe() - 1)
    return np.stack([np.asarray(animation.render_pillow_frame(frame)) for frame in frames])


PEERS = {"webm": read_by_pyav, "mp4": read_by_pyav, "tgs": read_by_rlottie, "lottie": read_by_rlottie}


def rate(read: Callable[[bytes], object], data: bytes, seconds: float = 0.5) -> float:
    """Files per second: the best of three spans."""
    best = 0.0
    for _ in range(3):
        start, count = time.perf_counter(), 0
        while time.perf_counter() < start + seconds / 3:
            read(data)
            count += 1
        best = max(best, count / (time.perf_counter() - start))
    return best


def rates(golden: dict[str, bytes]) -> dict[str, dict[str, float]]:
    table = {}
    print(f"{'files a second':<16}{'bytes':>8}{'ours':>9}{'peer':>9}")
    for name, data in golden.items():
        peer = PEERS.get(name.split(",")[0], read_by_pillow)
        table[name] = {"bytes": len(data), "ours": rate(read_animation, data), "peer": rate(peer, data)}
        print(f"{name:<16}{len(data):>8}{table[name]['ours']:>9.1f}{table[name]['peer']:>9.1f}", flush=True)
    return table


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=26_000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--timeout", type=float, default=20, help="seconds after which a file counts as hung")
    parser.add_argument("--hostile-seconds", type=float, default=1.5, help="most that a hostile file may take")
    parser.add_argument("--hostile-memory", type=int, default=256, help="most that a hostile file may take, in MiB")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the files that failed there")
    parser.add_argument("--size", type=int, default=256, help="pixels of the files whose reading is timed")
    parser.add_argument("--frames", type=int, default=20, help="frames of the files whose reading is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    options = parse_args(args)
    print(f"{options.frames} frames of {options.size} pixels")
    table = rates(golden_files(options.frames, options.size))
    golden = golden_files()
    hostile = attack(hostile_files(golden), options)
    results, growth = fuzz(golden, options)
    figures = report(golden, results, growth, options)
    if options.json is not None:
        options.json.write_text(json.dumps({"rates": table, "hostile": hostile, **figures}, indent=2) + "\n")
    return 1 if figures["failures"] or any(row["failed"] for row in hostile) else 0


if __name__ == "__main__":
    sys.exit(main())
