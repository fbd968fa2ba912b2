"""Cards for the export: a sticker fitted to a platform, and which of the platform's rules the file keeps."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from rdtf_diffusers import Animation, read_animation
from rdtf_diffusers.commands.export import notes, visible_frames
from rdtf_diffusers.stickers.check import StickerFile, check, describe
from rdtf_diffusers.stickers.encode import encode_webp, round_times
from rdtf_diffusers.stickers.fit import encode_for
from rdtf_diffusers.stickers.platforms import Platform


PREVIEW_QUALITY = 90  # of the WebP that stands for a WEBM, which not every browser shows with its transparency


@dataclass(frozen=True)
class Rule:
    """One rule of a platform: what it allows, what the file has, and whether that is fine."""

    name: str
    allowed: str
    found: str
    kept: bool


@dataclass(frozen=True)
class Card:
    """What became of a sticker on one platform.

    Attributes:
        platform: its key and its name for people.
        path: the file; None where the platform cannot be served.
        preview: a file that every browser shows, pixel by pixel the same animation.
        size: width and height in pixels.
        rules: all of the platform's rules.
        notes: what was given up for the platform, or why it cannot be served.
    """

    platform: tuple[str, str]
    path: str | None
    preview: str | None
    size: tuple[int, int]
    rules: tuple[Rule, ...]
    notes: tuple[str, ...]


def wanted(platform: Platform, file: StickerFile, size: int) -> Iterator[tuple[str, str, str]]:
    """Name, limit and value of every rule that a platform has, by the names that `check` uses for violations.

    Args:
        file: what the file says of itself.
        size: its bytes.
    """
    seconds, count = sum(file.durations) / 1000, len(file.durations)
    yield "bytes", f"up to {platform.max_bytes:,}", f"{size:,}"
    yield "format", " or ".join(platform.formats), file.format
    yield "pixels", platform.size_rule(), f"{file.width}x{file.height}"
    if platform.max_seconds:
        yield "time", f"up to {platform.max_seconds:g} s", f"{seconds * max(file.plays, 1):.3g} s"
    if platform.whole_seconds:
        yield "whole seconds", "1, 2, 3 ... s a play", f"{seconds:.3g} s a play"
    if platform.min_frames > 1 or platform.max_frames:
        most = f" to {platform.max_frames}" if platform.max_frames else " or more"
        yield "frames", f"{platform.min_frames}{most}", str(count)
    if platform.min_frame_ms:
        yield "frame time", f"{platform.min_frame_ms} ms or more", f"{min(file.durations):g} ms"
    if platform.max_fps:
        yield "frame rate", f"up to {platform.max_fps:g} fps", f"{count / seconds:.3g} fps" if seconds else "still"
    plays = f"{platform.loops[0]} to {platform.loops[1]} plays" if platform.loops else "endless"
    yield "loops", plays, "endless" if file.plays == 0 else f"{file.plays} plays"
    if not platform.palette:
        yield "palette", "RGBA pixels", "palette" if file.palette else "RGBA pixels"
    if file.format == "webm":
        yield "codec", "V_VP9", file.codec
        yield "pixel format", "VP9 profile 0", f"VP9 profile {file.profile}"
        yield "sound", "none", f"{file.sound} audio tracks" if file.sound else "none"
    if not platform.still:
        yield "motion", "an animation", "moves"
    if platform.cover:
        yield "first frame", "shows the sticker", "shows the sticker"
    if platform.transparent:
        yield "alpha", "a transparent background", "transparent"
    if platform.max_flashes is not None:
        yield "flashes", f"up to {platform.max_flashes} a second", "within that"


def judge(path: Path, platform: Platform) -> tuple[Rule, ...]:
    """All rules of a platform and whether a file keeps them."""
    broken = {violation.rule: violation for violation in check(path, platform)}
    if "file" in broken:
        return (Rule("file", broken["file"].allowed, broken["file"].found, False),)
    data = path.read_bytes()
    return tuple(
        Rule(name, allowed, broken[name].found if name in broken else found, name not in broken)
        for name, allowed, found in wanted(platform, describe(data), len(data))
    )


def preview_of(path: Path) -> str:
    """A file that every browser shows with its transparency."""
    if path.suffix != ".webm":
        return str(path)
    shown = read_animation(path)
    data = encode_webp(shown.frames, round_times(shown.durations, "webp"), quality=PREVIEW_QUALITY, effort=2)
    return save_bytes_to_cache(data, f"{path.stem}.webp", get_upload_folder())


def make_card(sticker: Animation, platform: Platform) -> Card:
    """A sticker fitted to a platform; a card without a file where that cannot be done."""
    frames, durations = visible_frames(sticker.frames, sticker.durations)
    names = platform.key, platform.name
    try:
        data, report = encode_for(frames, platform, durations=durations)
    except ValueError as error:
        return Card(names, None, None, (0, 0), (), (str(error).replace("`frames`", "Its frames"),))
    path = Path(save_bytes_to_cache(data, f"{platform.key}{report.suffix}", get_upload_folder()))
    return Card(names, str(path), preview_of(path), report.size, judge(path, platform), tuple(notes(report)))


def report(card: Card) -> dict[str, object]:
    """A card for programs."""
    rules = {rule.name: {"allowed": rule.allowed, "found": rule.found, "kept": rule.kept} for rule in card.rules}
    file = card.path and Path(card.path).name
    return {"platform": card.platform[0], "file": file, "rules": rules, "notes": card.notes}


def pack(cards: list[Card]) -> str | None:
    """The cards' files and a report on them as one ZIP in Gradio's cache; None where there are no files."""
    files = [Path(card.path) for card in cards if card.path]
    if not files:
        return None
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed already
        for path in files:
            archive.write(path, path.name)
        archive.writestr("report.json", json.dumps([report(card) for card in cards], indent=2, ensure_ascii=False))
    return save_bytes_to_cache(buffer.getvalue(), "stickers.zip", get_upload_folder())
