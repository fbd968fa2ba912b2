"""Sticker sets: what is in them, what is refused, and that nothing is left behind when something is."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_check import apng, draw_clip, good_sticker

from rdtf_diffusers.stickers.check import check, describe
from rdtf_diffusers.stickers.packs import PACK_RULES, build_pack
from rdtf_diffusers.stickers.platforms import PLATFORMS, SUFFIXES


NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of good stickers for a platform, with a note that is none."""

    def make(key: str, count: int = 8):
        path = tmp_path / "stickers"
        path.mkdir()
        format = PLATFORMS[key].formats[0]
        data = good_sticker(key, format)
        for name in NAMES[:count]:
            (path / f"{name}{SUFFIXES[format]}").write_bytes(data)
        (path / "ant.json").write_text("{}")
        return path

    return make


def test_whatsapp(folder, tmp_path):
    output = tmp_path / "app/assets"
    emojis = {"bee.webp": ["🐝", "🌼"]}
    report = build_pack(folder("whatsapp", 3), "whatsapp", output, title="Animals", author="Zoo", emojis=emojis)
    assert report.path == output
    assert report.stickers == {"ant.webp": "01.webp", "bee.webp": "02.webp", "cat.webp": "03.webp"}
    assert report.files == ("1/01.webp", "1/02.webp", "1/03.webp", "1/tray.png", "contents.json")
    (pack,) = json.loads((output / "contents.json").read_text(encoding="utf-8"))["sticker_packs"]
    assert (pack["name"], pack["publisher"], pack["animated_sticker_pack"]) == ("Animals", "Zoo", True)
    assert pack["stickers"][:2] == [
        {"image_file": "01.webp", "emojis": ["🙂"]},
        {"image_file": "02.webp", "emojis": ["🐝", "🌼"]},
    ]
    tray = output / pack["identifier"] / pack["tray_image_file"]
    with Image.open(tray) as picture:
        assert picture.size == (96, 96) and picture.mode == "RGBA"
        assert picture.getchannel("A").getextrema() == (0, 255)
    assert tray.stat().st_size <= 50_000
    assert all(check(output / "1" / sticker["image_file"], "whatsapp") == [] for sticker in pack["stickers"])


def test_telegram(folder, tmp_path):
    report = build_pack(folder("telegram", 2), "telegram", tmp_path / "set")
    assert report.files == ("01.webm", "02.webm", "set.json")
    content = json.loads((tmp_path / "set/set.json").read_text(encoding="utf-8"))
    assert content["title"] == "set"
    assert content["stickers"][1] == {"sticker": "attach://02.webm", "format": "video", "emoji_list": ["🙂"]}


def test_line(folder, tmp_path):
    report = build_pack(folder("line"), "line", tmp_path / "animals", cover="cat.png")
    assert report.path == tmp_path / "animals.zip"
    assert report.files == (*(f"{number:02d}.png" for number in range(1, 9)), "main.png", "tab.png")
    with zipfile.ZipFile(report.path) as pack:
        assert sorted(pack.namelist()) == sorted(report.files) and pack.testzip() is None
        main, tab = describe(pack.read("main.png")), describe(pack.read("tab.png"))
        tab_picture = Image.open(io.BytesIO(pack.read("tab.png")))
    assert (main.width, main.height, main.plays, len(main.durations), sum(main.durations)) == (240, 240, 4, 8, 1000)
    assert (tab.width, tab.height, len(tab.durations)) == (96, 74, 1)
    assert tab_picture.getchannel("A").getextrema() == (0, 255)


def test_main_picture_of_line_is_made_to_fit(folder, tmp_path):
    """A cover of noise in two colours, which get many more when it is made smaller; 6 frames of 166.7 ms."""
    path, random = folder("line"), np.random.default_rng(0)
    noise = 255 * random.integers(0, 2, (6, 270, 270, 4), np.uint8)
    (path / "ant.png").write_bytes(apng(noise, [(1, 6)] * 6, plays=1, palette=True))
    assert check(path / "ant.png", "line") == []
    report = build_pack(path, "line", tmp_path / "noise.zip")
    with zipfile.ZipFile(report.path) as pack:
        data = pack.read("main.png")
    main = describe(data)
    assert len(data) <= 300_000
    assert (len(main.durations), sum(main.durations)) == (6, 1000)


def test_signal(folder, tmp_path):
    report = build_pack(folder("signal", 2), "signal", tmp_path / "set", author="Zoo", cover="bee.png")
    assert report.files == ("01.png", "02.png", "manifest.json")
    assert json.loads((tmp_path / "set/manifest.json").read_text(encoding="utf-8")) == {
        "title": "set",
        "author": "Zoo",
        "cover": "02.png",
        "stickers": [{"file": "01.png", "emoji": "🙂"}, {"file": "02.png", "emoji": "🙂"}],
    }
    assert any("No official source" in note for note in report.notes)


def test_stickers_that_break_the_rules_are_named_and_nothing_is_left(folder, tmp_path):
    path = folder("line")
    (path / "bee.png").write_bytes(apng(draw_clip(100, 100), [(1, 8)] * 8, plays=1))
    (path / "cat.png").rename(path / "cat.gif")
    with pytest.raises(ValueError, match=r"`stickers` must keep the rules") as error:
        build_pack(path, "line", tmp_path / "out/animals")
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "bee.png: pixels: 100x100, allowed: within 320x270, longer side at least 270",
        "cat.gif: file name: ends in '.gif', allowed: .png",
    ]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["stickers"]


def test_a_pack_that_fails_on_the_way_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("rdtf_diffusers.stickers.packs.LINE_ZIP_BYTES", 1000)
    with pytest.raises(ValueError, match=r"the ZIP has \d+ bytes, allowed: 1000"):
        build_pack(folder("line"), "line", tmp_path / "out/animals")
    assert list((tmp_path / "out").iterdir()) == []


def test_counts(folder, tmp_path):
    counts = {key: rule.counts_text() for key, rule in PACK_RULES.items()}
    assert counts == {"whatsapp": "3 to 30", "telegram": "1 to 50", "line": "8, 16 or 24", "signal": "1 to 200"}
    path = folder("line", 7)
    with pytest.raises(ValueError, match="must be 8, 16 or 24 files for LINE animated stickers, not 7"):
        build_pack(path, "line", tmp_path / "animals")
    files = [path / "ant.png"] * 8
    with pytest.raises(ValueError, match=r"different names, ant\.png come more than once"):
        build_pack(files, "line", tmp_path / "animals")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"platform": "slack"}, "`platform` must be one of whatsapp, telegram, line, signal for a pack, not 'slack'"),
        ({"output": "stickers"}, "`output` must be a new path"),
        ({"title": ""}, "`title` must be 1 to 128 characters"),
        ({"author": "x" * 129}, "`author` must be 1 to 128 characters"),
        ({"cover": "yak.webp"}, r"must name stickers of the set, not yak\.webp"),
        ({"emojis": {"yak.webp": ["🐂"]}}, r"must name stickers of the set, not yak\.webp"),
        ({"emojis": {"ant.webp": ["🐜"] * 4}}, r"must be 1 to 3 for each sticker, not 4 for ant\.webp"),
        ({"emojis": {"ant.webp": []}}, r"must be 1 to 3 for each sticker, not 0 for ant\.webp"),
    ],
)
def test_bad_arguments_are_refused(options, message, folder, tmp_path):
    arguments = {"stickers": folder("whatsapp", 3), "platform": "whatsapp", "output": "new"} | options
    arguments["output"] = tmp_path / arguments["output"]
    with pytest.raises(ValueError, match=message):
        build_pack(**arguments)
    assert not (tmp_path / "new").exists()


def test_line_takes_no_emojis(folder, tmp_path):
    with pytest.raises(ValueError, match=r"`emojis` must be none for this platform, not 1 for ant\.png"):
        build_pack(folder("line"), "line", tmp_path / "new", emojis={"ant.png": ["🐜"]})
