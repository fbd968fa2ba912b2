"""`rdtf-diffusers export | check | preview | platforms | pack`: files within platforms' rules."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..stickers.platforms import PLATFORMS, SUFFIXES, Platform
from ..utils.files import write_whole
from .output import report


if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..stickers.fit import Report

SHORTEST_MS = 20.0  # for which a frame may stand


def chosen_platforms(key: str) -> list[Platform]:
    """The platform of a key, or all of them."""
    return list(PLATFORMS.values()) if key == "all" else [PLATFORMS[key]]


def place_for(path: Path, platform: Platform, suffix: str, several: bool) -> Path:
    """Where a platform's file goes: `path` itself with the suffix the platform wants, or with its key in the name."""
    stem = f"{path.stem}-{platform.key}" if several else path.stem
    return path.with_name(stem + suffix)


def export_frames(
    frames: "Sequence[Image.Image] | np.ndarray",
    args: argparse.Namespace,
    path: Path,
    metadata: dict[str, Any] | None,
    named: bool = False,
    source: Path | None = None,
    **timing: Any,
) -> Iterator[dict[str, Any]]:
    """Writes a clip for the platforms of `--platform`; what was written, for `report`.

    With "all", a platform that cannot be served is named and the others are written; alone it is an error. Files are
    `path` with the suffix that the platform wants, and with its key if there are several or they shall be `named`.

    Raises:
        ValueError: the only platform cannot be served, or a file would take the place of its `source`.
    """
    from tqdm import tqdm

    from ..stickers.fit import encode_for

    platforms = chosen_platforms(args.platform)
    bar = tqdm(platforms, unit="file", leave=False, disable=None)  # None: shown where stderr is a terminal
    options = {"metadata": metadata, "cover": args.cover, "time": args.time, "format": args.format, **timing}
    for platform in bar:
        try:
            data, made = encode_for(frames, platform, progress=bar.set_postfix_str, **options)
        except ValueError as error:
            if len(platforms) == 1:
                raise
            bar.clear()
            print(f"{platform.name}: {error}", file=sys.stderr)
            continue
        place = place_for(path, platform, made.suffix, named or len(platforms) > 1)
        if source is not None and place.resolve() == source.resolve():
            raise ValueError(f"--output: {place} is the file that is read; give another name or folder")
        write_whole(place, data)
        bar.clear()  # before the path is printed
        yield {"path": str(place), **asdict(made), "notes": notes(made)}


def notes(made: "Report") -> list[str]:
    """What a person should know of how a clip was fitted."""
    size = f"{made.size[0]}x{made.size[1]}"
    said = [f"{made.bytes:,} bytes, {size}, {made.frames} frames, {made.seconds:g} s, {made.quality}"]
    said += [made.time_change] if made.time_change else []
    said += [f"given up for the bytes: {made.rung}"] if made.rung != "whole" else []
    said += [f"begins with frame {made.cover}"] if made.cover else []
    return said


def visible_frames(frames: "np.ndarray", durations: "np.ndarray") -> "tuple[np.ndarray, list[float]]":
    """Frames that stand for 20 ms at least, which is as fast as viewers go: shorter ones give their time to the next.

    Args:
        frames: (N, H, W, 4) uint8.
        durations: (N,) in ms.
    """
    order, times, waiting = [], [], 0.0
    for number, duration in enumerate(durations):
        waiting += float(duration)
        if waiting >= SHORTEST_MS:
            order.append(number)
            times.append(waiting)
            waiting = 0.0
    if not order:
        order, times = [0], [SHORTEST_MS]
    times[-1] += waiting
    return frames[order], times


def export(args: argparse.Namespace) -> int:
    """Writes a finished animation for one platform or all; 1 if some of them could not be served."""
    from ..data.animation import read_animation

    animation = read_animation(args.file)
    path = args.output
    if path is None:
        path = args.file
    elif path.suffix.lower() not in SUFFIXES.values():
        path.mkdir(exist_ok=True)
        path = path / args.file.name
    elif args.platform == "all":
        raise ValueError(f"--output {path} is one file, but there will be several: name a folder")
    frames, durations = visible_frames(animation.frames, animation.durations)
    results = export_frames(frames, args, path, None, named=args.output is None, source=args.file, durations=durations)
    return 0 if report(results, args.json) == len(chosen_platforms(args.platform)) else 1


def check(args: argparse.Namespace) -> int:
    """Says which rules of a platform a file breaks; 1 if there are any."""
    from ..stickers.check import check as violations_of

    found = {platform.key: violations_of(args.file, platform) for platform in chosen_platforms(args.platform)}
    if args.json:
        broken = {key: [asdict(violation) for violation in violations] for key, violations in found.items()}
        print(json.dumps(broken, indent=2, ensure_ascii=False))
    else:
        for key, violations in found.items():
            print(f"{PLATFORMS[key].name}: {'fine' if not violations else ''}".rstrip())
            for violation in violations:
                print(f"  {violation}")
    return 1 if any(found.values()) else 0


def platforms(args: argparse.Namespace) -> int:
    """Prints what every platform wants."""
    if args.json:
        print(json.dumps({key: asdict(platform) for key, platform in PLATFORMS.items()}, indent=2, ensure_ascii=False))
        return 0
    rows = [("key", "format", "pixels", "bytes", "seconds", "frames")]
    for platform in PLATFORMS.values():
        seconds = "" if platform.max_seconds is None else f"{platform.max_seconds:g}"
        frames = f"{platform.min_frames}-{platform.max_frames or ''}"
        formats = ", ".join(platform.formats)
        rows.append((platform.key, formats, platform.size_rule(), f"{platform.max_bytes:,}", seconds, frames))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def preview(args: argparse.Namespace) -> int:
    """Writes a contact sheet of an animation's frames."""
    import io

    from ..data.animation import read_animation
    from ..stickers.preview import contact_sheet

    output = args.output or args.file.with_suffix(".preview.png")
    buffer = io.BytesIO()
    contact_sheet(read_animation(args.file), args.size).save(buffer, "PNG")
    write_whole(output, buffer.getvalue())
    print(output)
    return 0


def pack(args: argparse.Namespace) -> int:
    """Builds a set of stickers as a platform wants it."""
    from ..stickers.packs import build_pack

    output = args.output or args.folder.with_name(f"{args.folder.resolve().name}-{args.platform}")
    made = build_pack(args.folder, args.platform, output, title=args.title, author=args.author)
    print(made.path)
    for note in made.notes:
        print(note, file=sys.stderr)
    return 0
