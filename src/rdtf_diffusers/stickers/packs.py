"""A folder of finished stickers to a set as WhatsApp, Telegram, LINE or Signal want it.

    report = build_pack("cats/", "line", "cats.zip", title="Cats")
    report.files  # ("01.png", ..., "08.png", "main.png", "tab.png")

A pack holds only stickers that pass `check`, and it appears whole or not at all.
"""

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.decoders import decode
from .check import LIMITS, check, describe
from .fit import encode_for
from .platforms import SUFFIXES, Platform, Source, find_platform
from .resize import fit_canvas


STICKER_SUFFIXES = {".webp", ".gif", ".png", ".apng", ".webm", ".jpg", ".jpeg", ".mp4", ".tgs"}
DEFAULT_EMOJI = ("🙂",)
LINE_ZIP_BYTES = 20_000_000
LINE_MAIN, LINE_TAB, WHATSAPP_TRAY = (240, 240), (96, 74), (96, 96)
TRAY_BYTES = 50_000


@dataclass(frozen=True)
class PackReport:
    """What `build_pack` wrote.

    Attributes:
        path: the folder, or LINE's ZIP file.
        stickers: the name in the pack of each given file, in order.
        files: everything in the pack, as paths relative to it.
        notes: what is left to do by hand, and which limits no official source confirms.
    """

    path: Path
    stickers: Mapping[str, str]
    files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Pack:
    """A set under construction: its texts, and each sticker's source, new name and emoji, the cover among them."""

    title: str
    author: str
    names: Mapping[Path, str]
    emojis: Sequence[Sequence[str]]
    cover: Path

    def save_stickers(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for source, name in self.names.items():
            shutil.copyfile(source, folder / name)

    def cover_frames(self) -> np.ndarray:
        """The cover's frames, (F, H, W, 4) uint8 straight RGBA."""
        return np.stack([frame for frame, _ in decode(self.cover.read_bytes(), LIMITS)])


def icon(frame: np.ndarray, size: tuple[int, int]) -> bytes:
    """The visible part of a frame (H, W, 4), straight RGBA uint8, fitted into `size` (width, height), as a PNG."""
    left, top, right, bottom = Image.fromarray(frame[..., 3]).getbbox() or (0, 0, *frame.shape[1::-1])
    buffer = io.BytesIO()
    Image.fromarray(fit_canvas(frame[None, top:bottom, left:right], *size)[0]).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _save_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_whatsapp(pack: _Pack, folder: Path) -> list[str]:
    """The `assets` folder of the WhatsApp/stickers sample apps."""
    pack.save_stickers(folder / "1")
    tray = icon(pack.cover_frames()[0], WHATSAPP_TRAY)
    if len(tray) > TRAY_BYTES:
        raise ValueError(f"the tray icon from {pack.cover.name} has {len(tray)} bytes, allowed: {TRAY_BYTES}")
    (folder / "1" / "tray.png").write_bytes(tray)
    stickers = [{"image_file": name, "emojis": list(emojis)} for name, emojis in zip(pack.names.values(), pack.emojis)]
    contents = {
        "identifier": "1",
        "name": pack.title,
        "publisher": pack.author,
        "tray_image_file": "tray.png",
        "image_data_version": "1",
        "avoid_cache": False,
        "publisher_email": "",
        "publisher_website": "",
        "privacy_policy_website": "",
        "license_agreement_website": "",
        "animated_sticker_pack": True,
        "stickers": stickers,
    }
    links = {"android_play_store_link": "", "ios_app_store_link": ""}
    _save_json(folder / "contents.json", {**links, "sticker_packs": [contents]})
    return ["Copy the folder's contents into the `assets` folder of WhatsApp's sample app and build the app."]


def _write_telegram(pack: _Pack, folder: Path) -> list[str]:
    pack.save_stickers(folder)
    stickers = [
        {"sticker": f"attach://{name}", "format": "video", "emoji_list": list(emojis)}
        for name, emojis in zip(pack.names.values(), pack.emojis)
    ]
    _save_json(folder / "set.json", {"title": pack.title, "stickers": stickers})
    return ["Send the files to @Stickers (/newvideo), or set.json and the files to the Bot API's createNewStickerSet."]


def _write_signal(pack: _Pack, folder: Path) -> list[str]:
    pack.save_stickers(folder)
    stickers = [{"file": name, "emoji": emojis[0]} for name, emojis in zip(pack.names.values(), pack.emojis)]
    cover = pack.names[pack.cover]
    _save_json(
        folder / "manifest.json", {"title": pack.title, "author": pack.author, "cover": cover, "stickers": stickers}
    )
    return ["Drop the PNG files into Signal Desktop's sticker creator; manifest.json says what to enter there."]


def _write_line(pack: _Pack, folder: Path) -> list[str]:
    pack.save_stickers(folder)
    main = replace(find_platform("line"), canvases=(LINE_MAIN,))
    durations = describe(pack.cover.read_bytes()).durations
    data, _ = encode_for(pack.cover_frames(), main, durations=durations, cover="first")
    (folder / "main.png").write_bytes(data)
    (folder / "tab.png").write_bytes(icon(pack.cover_frames()[0], LINE_TAB))
    return [f"Upload the ZIP at creator.line.me; title {pack.title!r} and author {pack.author!r} are entered there."]


@dataclass(frozen=True)
class PackRule:
    """What a platform wants of a set.

    Attributes:
        counts: how many stickers a set may have.
        write: fills a folder with a pack; gives what is left to do by hand.
        source: who says so.
        emoji: the most emoji that stand for a sticker; 0 where they are entered elsewhere.
        characters: the most characters of a title or an author.
        zipped: the set is one ZIP file.
    """

    counts: Sequence[int]
    write: Callable[[_Pack, Path], list[str]]
    source: Source
    emoji: int
    characters: int = 128  # WhatsApp's limit, where none is known
    zipped: bool = False

    def counts_text(self) -> str:
        """The counts in words, such as "3 to 30"."""
        if isinstance(self.counts, range):
            return f"{self.counts[0]} to {self.counts[-1]}"
        return ", ".join(map(str, self.counts[:-1])) + f" or {self.counts[-1]}"


PACK_RULES: Mapping[str, PackRule] = {
    "whatsapp": PackRule(
        counts=range(3, 31),
        write=_write_whatsapp,
        source=Source("github.com/WhatsApp/stickers, README and validators", "2025-11", "official"),
        emoji=3,
    ),
    "telegram": PackRule(
        counts=range(1, 51),  # in one call; a set may grow to 120 afterwards
        write=_write_telegram,
        source=Source("core.telegram.org/bots/api, createNewStickerSet", "2026", "official"),
        emoji=20,
        characters=64,
    ),
    "line": PackRule(
        counts=(8, 16, 24),
        write=_write_line,
        source=Source("creator.line.me/en/guideline/animationsticker", "2026", "official"),
        emoji=0,
        zipped=True,
    ),
    "signal": PackRule(
        counts=range(1, 201),
        write=_write_signal,
        source=Source("guides to Signal stickers", "2026", "third party"),
        emoji=1,
    ),
}


def _sticker_files(stickers: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(stickers, str | Path):
        return [Path(sticker) for sticker in stickers]
    return sorted(path for path in Path(stickers).iterdir() if path.suffix.lower() in STICKER_SUFFIXES)


def _check_stickers(files: Sequence[Path], rules: Platform, pack_rule: PackRule) -> None:
    if len(files) not in pack_rule.counts:
        raise ValueError(f"`stickers` must be {pack_rule.counts_text()} files for {rules.name}s, not {len(files)}.")
    names = [path.name for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`stickers` must have different names, {', '.join(twice)} come more than once.")
    broken = [f"{path.name}: {violation}" for path in files for violation in check(path, rules)]
    if broken:
        raise ValueError("\n".join([f"`stickers` must keep the rules for a {rules.name}:", *broken]))


def _check_texts(pack_rule: PackRule, emojis: Mapping[str, Sequence[str]], **texts: str) -> None:
    for name, text in texts.items():
        if not 1 <= len(text) <= pack_rule.characters:
            raise ValueError(f"`{name}` must be 1 to {pack_rule.characters} characters, not {len(text)}: {text!r}.")
    for name, chosen in emojis.items():
        if not 1 <= len(chosen) <= pack_rule.emoji:
            allowed = f"1 to {pack_rule.emoji} for each sticker" if pack_rule.emoji else "none for this platform"
            raise ValueError(f"`emojis` must be {allowed}, not {len(chosen)} for {name}.")


def _publish(folder: Path, output: Path, zipped: bool) -> None:
    """Move a finished folder to its place, or its files as a ZIP."""
    if not zipped:
        folder.rename(output)
        return
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:  # PNG is compressed already
        for path in sorted(folder.iterdir()):
            pack.write(path, path.name)
    if archive.stat().st_size > LINE_ZIP_BYTES:
        raise ValueError(f"the ZIP has {archive.stat().st_size} bytes, allowed: {LINE_ZIP_BYTES}")
    archive.rename(output)


def build_pack(
    stickers: str | Path | Sequence[str | Path],
    platform: str | Platform,
    output: str | Path,
    *,
    title: str | None = None,
    author: str = "anonymous",
    cover: str | None = None,
    emojis: Mapping[str, Sequence[str]] | None = None,
) -> PackReport:
    """Write a sticker set: numbered stickers, the pictures that stand for the set, and what describes it.

    Args:
        stickers: a folder, whose pictures and videos are taken in the order of their names; or files in order.
        platform: "whatsapp", "telegram", "line" or "signal".
        output: the folder to make; for LINE the ZIP file, to whose name .zip is added if it is missing.
        title: the set's name; the name of `output` by default.
        author: the publisher's name.
        cover: the name of the file that stands for the set; the first one by default.
        emojis: file name to the emoji that a sticker stands for; 🙂 by default.

    Raises:
        ValueError: no sets are built for the platform, the number of stickers is wrong, some break the platform's
            rules (each is named), `cover` or `emojis` name no sticker, a text is empty or too long, or `output`
            exists.
        OSError: a file cannot be read or written.
    """
    rules, output, emojis = find_platform(platform), Path(output), emojis or {}
    if rules.key not in PACK_RULES:
        raise ValueError(f"`platform` must be one of {', '.join(PACK_RULES)} for a pack, not {rules.key!r}.")
    pack_rule = PACK_RULES[rules.key]
    if pack_rule.zipped and output.suffix.lower() != ".zip":
        output = output.with_name(output.name + ".zip")
    if output.exists():
        raise ValueError(f"`output` must be a new path, {str(output)!r} exists.")
    title = title if title is not None else output.name.removesuffix(".zip")
    _check_texts(pack_rule, emojis, title=title, author=author)
    files = _sticker_files(stickers)
    _check_stickers(files, rules, pack_rule)
    by_name = {path.name: path for path in files}
    if unknown := [name for name in [*emojis, cover or files[0].name] if name not in by_name]:
        raise ValueError(f"`cover` and `emojis` must name stickers of the set, not {', '.join(unknown)}.")
    pack = _Pack(
        title=title,
        author=author,
        names={path: f"{number:02d}{SUFFIXES[rules.formats[0]]}" for number, path in enumerate(files, 1)},
        emojis=[emojis.get(name, DEFAULT_EMOJI) for name in by_name],
        cover=by_name[cover or files[0].name],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=output.parent) as workplace:
        folder = Path(workplace) / "pack"
        folder.mkdir()
        notes = pack_rule.write(pack, folder)
        written = tuple(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        _publish(folder, output, pack_rule.zipped)
    if pack_rule.source.grade != "official":
        notes.append(f"No official source says that a set holds {pack_rule.counts_text()} stickers.")
    return PackReport(output, {path.name: name for path, name in pack.names.items()}, written, tuple(notes))
