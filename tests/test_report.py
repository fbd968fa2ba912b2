"""Reports on drawn data sets: what is counted, named, compared and shown."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

from rdtf_diffusers.data import report as report_module
from rdtf_diffusers.data.quality import Filters
from rdtf_diffusers.data.report import VSD2M_FRAMES, check
from rdtf_diffusers.data.rows import load_rows
from rdtf_diffusers.stickers import save_sticker


def ball(colour: str, count: int, size: int = 48) -> list[Image.Image]:
    """A ball that rolls to the right."""
    frames = [Image.new("RGBA", (size, size)) for _ in range(count)]
    for index, frame in enumerate(frames):
        ImageDraw.Draw(frame).ellipse((index, 8, index + 24, 32), fill=colour)
    return frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four animations, two of them copies, two stills, two files that no one can read."""
    folder = tmp_path_factory.mktemp("stickers")
    save_sticker(ball("red", 4), folder / "red.webp", fps=8)
    save_sticker(ball("blue", 12), folder / "blue.gif", fps=8)
    save_sticker([frame.resize((96, 96), Image.Resampling.NEAREST) for frame in ball("red", 4)], folder / "large.png")
    shutil.copy(folder / "red.webp", folder / "same.webp")
    Image.new("RGB", (30, 60), "white").save(folder / "<b>white.png")
    Image.effect_noise((40, 40), 90).save(folder / "noise.png")
    (folder / "cut.webp").write_bytes((folder / "red.webp").read_bytes()[:60])
    captions = {
        "red.webp": "a red ball",
        "blue.gif": "a blue ball rolling away",
        "large.png": "red & <i>large</i>",
        "same.webp": "",
        "<b>white.png": "nothing",
        "noise.png": "<script>alert(1)</script>",
        "cut.webp": "cut",
        "gone.gif": "gone",
    }
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return load_rows(folder)


@pytest.fixture(scope="module")
def report(rows):
    return check("my <stickers>", rows)


def test_everything_is_counted(report, rows, folder):
    content = json.loads(report.json(rows))
    bad = content.pop("bad")
    assert [entry["file"] for entry in bad] == [f"{folder}/cut.webp", f"{folder}/gone.gif"]
    assert bad[1]["reason"] == "No such file or directory"
    assert content.pop("alpha_share") == pytest.approx(report.records["alpha_share"].mean())
    assert content == {
        "source": "my <stickers>",
        "rows": 8,
        "readable": 6,
        "stills": 2,
        "animations": 4,
        "frame_counts": {"2-10": 3, "11-20": 1, "21-30": 0, "31-40": 0, "41-50": 0, "51 or more": 0},
        "seconds": {"min": 0.5, "median": 0.5, "max": 1.5},
        "width": {"min": 30, "median": 48, "max": 96},
        "height": {"min": 40, "median": 48, "max": 96},
        "opaque": 2,
        "near_static": 0,
        "caption_words": {"min": 0, "median": 3, "max": 5},
        "empty_captions": 1,
        "dropped": [{"file": f"{folder}/<b>white.png", "reason": "too little colour: 0.00 bits, below 0.2"}],
        "exact_duplicates": [[f"{folder}/red.webp", f"{folder}/same.webp"]],
        "near_duplicates": [[f"{folder}/red.webp", f"{folder}/large.png"]],
    }


def test_text_says_the_same(report, folder):
    text = report.text()
    for part in [
        r"my <stickers>\n",
        r"rows +8\n",
        r"bad files +2 \(25.0%\)\n",
        r"stills +2 \(33.3%\)\n",
        r"duration +0.50 to 1.50 s, median 0.50 s\n",
        r"size +40x40 to 96x96 pixels, median 48x48\n",
        r"exact copies +1 more than needed; groups: 1\n",
        r"near copies +1 more than needed; groups: 1\n",
        r"no caption +1 \(16.7%\)\n",
        r"filters drop +1 \(16.7%\): 1 too little colour\n",
        r"2-10 +75.0% +25.0%\n",
        rf"{re.escape(str(folder))}/gone.gif: No such file or directory$",
    ]:
        assert re.search(part, text), part


def test_the_published_shares_add_up():
    assert sum(VSD2M_FRAMES.values()) == pytest.approx(1)


def test_other_filters_drop_others(rows):
    report = check("stickers", rows, Filters(min_motion=0.9, min_colour_bits=0, max_aspect_ratio=1.5))
    assert report.dropped_kinds() == {"near-static": 4, "too long": 1}


def test_processes_do_not_change_the_report(rows, report, monkeypatch):
    monkeypatch.setattr(report_module, "ROWS_PER_WORKER", 1)
    others = check("my <stickers>", rows, workers=2)
    assert others.json(rows) == report.json(rows) and others.text() == report.text()


def die(animation, row):
    os._exit(1)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="what is patched here must reach the worker")
def test_a_file_that_kills_its_reader_ends_in_one_error(tmp_path, monkeypatch):
    for name in "abcd":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(report_module, "ROWS_PER_WORKER", 1)
    monkeypatch.setattr(report_module, "measure", die)
    with pytest.raises(OSError, match=r"a process died while reading one of the files after .*a\.png"):
        check("stickers", load_rows(tmp_path), workers=2)


CHECKS_SLOWLY = """
import os, sys, time
from rdtf_diffusers.data import report
from rdtf_diffusers.data.rows import load_rows
report.ROWS_PER_WORKER, report.measure = 1, lambda animation, row: os.write(1, b"reading ") and time.sleep(600)
report.check("stickers", load_rows(sys.argv[1]), workers=2)
"""


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="what is patched here must reach the worker")
def test_readers_end_with_the_process_that_started_them(tmp_path):
    for name in "abcd":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    command = [sys.executable, "-c", CHECKS_SLOWLY, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        started = running.stdout.read(8)
        running.kill()
        running.stdout.read()  # ends when the last process that could write has ended
    assert started == "reading "  # of one worker or the other


def test_the_page_stands_alone_and_escapes_text(report, rows):
    page = report.html(rows)
    assert "my &lt;stickers&gt;" in page and "red &amp; &lt;i&gt;large&lt;/i&gt;" in page
    assert not re.search(r"<script|<b>white|<i>large|https?:", page)
    assert set(re.findall(r'(?:src|href)="([^",]+)', page)) == {"data:image/webp;base64"}
    titles = re.findall(r"<h2>([^<]+)<small>([^<]+)", page)
    assert titles == [
        ("Bad files", "2 of 2"),
        ("All stickers", "6 of 6"),
        ("Dropped by the filters: too little colour", "1 of 1"),
        ("Exact copies", "2 of 2"),
        ("Near copies", "2 of 2"),
    ]


def test_the_page_is_bounded(report, rows, monkeypatch):
    monkeypatch.setattr(report_module, "SHEET_STICKERS", 3)
    monkeypatch.setattr(report_module, "SHEET_BAD_FILES", 1)
    page = report.html(rows)
    assert "Bad files<small>1 of 2" in page
    assert "One sticker in 2<small>3 of 3" in page


def test_nothing_readable(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    rows = load_rows(tmp_path)
    report = check("a", rows)
    assert report.text().splitlines()[:3] == ["a", "  rows          1", "  bad files     1 (100.0%)"]
    assert json.loads(report.json(rows))["seconds"] is None
    assert "a.gif" in report.html(rows)
