"""What a data set holds: counts, times, sizes, bad files, copies, and what the filters would drop.

```python
rows = load_rows("stickers")
report = check("stickers", rows)
print(report.text())
write_whole(Path("report.html"), report.html(rows).encode())
```
"""

import base64
import hashlib
import io
import json
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image
from tqdm.auto import tqdm

from ..utils.processes import end_with_parent
from .animation import AnimationError, evenly_timed
from .quality import Filters, measure, near_duplicates, perceptual_hash
from .rows import read_row, row_name


# Frames of the multi-frame stickers of VSD2M (arXiv 2503.17735); the last share is what is left of 100 %.
VSD2M_FRAMES = {"2-10": 0.250, "11-20": 0.259, "21-30": 0.182, "31-40": 0.101, "41-50": 0.065, "51 or more": 0.143}
FRAME_BINS = (2, 11, 21, 31, 41, 51, np.inf)
# All that is kept of a file, so that a million fit into 250 MB
RECORD = np.dtype(
    [
        ("row", "i8"),
        ("num_frames", "i4"),
        ("seconds", "f4"),
        ("width", "i4"),
        ("height", "i4"),
        ("alpha_share", "f4"),
        ("near_static", "?"),
        ("words", "i4"),
        ("sha256", "u1", (32,)),
        ("hash", "u1", (150,)),
    ]
)
ROWS_PER_WORKER = 64  # below this, starting another process takes longer than it saves
TEXT_LINES = 20
SHEET_STICKERS = 60
SHEET_BAD_FILES = 1000
THUMBNAIL_SIDE = 96
THUMBNAIL_FRAMES = 12


Finding = tuple[tuple | None, str, str | None]  # record, the row's name, a reason


class RowChecks:
    """Each row's record and the reason to drop it, or no record and the reason why it cannot be read."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], filters: Filters):
        self.rows, self.filters = rows, filters

    def __call__(self, index: int) -> Finding:
        row = self.rows[index]
        try:
            animation = read_row(row)
        except AnimationError as error:
            return None, row_name(row), str(error).removeprefix(f"{row_name(row)}: ")
        measures = measure(animation, row)
        record = (
            index,
            measures.num_frames,
            animation.durations.sum() / 1000,
            *animation.frames.shape[2:0:-1],
            measures.alpha_share,
            self.filters.near_static(measures),
            len(row["text"].split()),
            _sha256(row),
            perceptual_hash(animation),
        )
        return record, row_name(row), self.filters.judge(measures)


def _sha256(row: Mapping[str, Any]) -> np.ndarray:
    """(32,) uint8, of the bytes of a row's file."""
    data = row["image"]["bytes"]
    if data is None:
        first, length = row.get("span") or (0, -1)
        with open(row["image"]["path"], "rb") as file:
            file.seek(first)
            data = file.read(length)
    return np.frombuffer(hashlib.sha256(data).digest(), dtype=np.uint8)


_checks: RowChecks  # of a worker process


def _start_worker(checks: RowChecks) -> None:
    global _checks
    _checks = checks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    end_with_parent()


def _check_row(index: int) -> Finding:
    return _checks(index)


def _findings(checks: RowChecks, workers: int) -> Iterator[Finding]:
    """What was found in each row, in their order. Findings are small, so that a slow file stops nobody."""
    indices = range(len(checks.rows))
    if workers <= 1:
        yield from map(checks, indices)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(checks,)) as pool:
        yield from pool.map(_check_row, indices, chunksize=ROWS_PER_WORKER)


def check(
    source: str, rows: Sequence[Mapping[str, Any]], filters: Filters | None = None, workers: int = 1
) -> "Report":
    """Read every file once and report what was found. The number of processes does not change the report.

    A progress bar is shown where stderr is a terminal.

    Args:
        source: what the data set is called in the report.
        rows: as `load_rows` returns them.
        filters: what would be dropped; by default `Filters()`.
        workers: processes that read files.

    Raises:
        OSError: a worker process died, of a file that crashes a decoder or of too little memory.
    """
    workers = min(workers, -(-len(rows) // ROWS_PER_WORKER))
    checks = RowChecks(rows, filters or Filters())
    records, bad, dropped = np.zeros(len(rows), dtype=RECORD), [], []
    readable = np.zeros(len(rows), dtype=bool)
    index = 0
    try:
        with closing(_findings(checks, workers)) as findings:
            progress = tqdm(findings, total=len(rows), unit=" stickers", leave=False, disable=None)
            for index, (record, name, reason) in enumerate(progress):
                if record is None:
                    bad.append((name, reason))
                    continue
                records[index], readable[index] = record, True
                if reason is not None:
                    dropped.append((index, name, reason))
    except BrokenProcessPool as error:
        raise OSError(
            f"a process died while reading one of the files after {row_name(rows[index])}: {error}"
        ) from error
    records = records[readable]
    exact = near_duplicates(records["sha256"], 0)
    copies = [place for group in exact for place in group[1:]]
    different = np.delete(np.arange(len(records)), copies)
    near = [different[group].tolist() for group in near_duplicates(records["hash"][different])]
    exact, near = ([records["row"][group].tolist() for group in groups] for groups in (exact, near))
    return Report(source, len(rows), records, bad, dropped, exact, near)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / max(whole, 1):.1%})"


def _spread(values: np.ndarray) -> dict[str, float] | None:
    """Least, median and largest value, the median being one of the values; None if there is none."""
    if not len(values):
        return None
    ordered = np.sort(values)
    return {"min": ordered[0].item(), "median": ordered[len(ordered) // 2].item(), "max": ordered[-1].item()}


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        source: the data set's name.
        num_rows: of the data set, good and bad.
        records: (readable rows,) of `RECORD`, in the order of the rows.
        bad: (file, reason) of each row that cannot be read.
        dropped: (row number, file, reason) of each row that the filters would drop.
        exact: groups of row numbers with the same bytes.
        near: groups of row numbers that look alike, one of each exact group being looked at.
    """

    source: str
    num_rows: int
    records: np.ndarray
    bad: list[tuple[str, str]]
    dropped: list[tuple[int, str, str]]
    exact: list[list[int]]
    near: list[list[int]]

    def dropped_kinds(self) -> Counter[str]:
        """How many files would be dropped, by the kind of reason."""
        return Counter(reason.partition(":")[0] for _, _, reason in self.dropped)

    def frame_counts(self) -> dict[str, int]:
        """How many animations have how many frames, in the classes of `VSD2M_FRAMES`."""
        counts = np.histogram(self.records["num_frames"], FRAME_BINS)[0]
        return dict(zip(VSD2M_FRAMES, counts.tolist(), strict=True))

    def json(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Everything, files by name, as a JSON object."""
        records = self.records
        moving = records[records["num_frames"] > 1]
        names = {"exact_duplicates": self.exact, "near_duplicates": self.near}
        report = {
            "source": self.source,
            "rows": self.num_rows,
            "readable": len(records),
            "stills": len(records) - len(moving),
            "animations": len(moving),
            "frame_counts": self.frame_counts(),
            "seconds": _spread(moving["seconds"]),
            "width": _spread(records["width"]),
            "height": _spread(records["height"]),
            "alpha_share": float(records["alpha_share"].mean()) if len(records) else None,
            "opaque": int((records["alpha_share"] == 0).sum()),
            "near_static": int(moving["near_static"].sum()),
            "caption_words": _spread(records["words"]),
            "empty_captions": int((records["words"] == 0).sum()),
            "bad": [{"file": name, "reason": reason} for name, reason in self.bad],
            "dropped": [{"file": name, "reason": reason} for _, name, reason in self.dropped],
        }
        report |= {name: [[row_name(rows[i]) for i in group] for group in groups] for name, groups in names.items()}
        return json.dumps(report, indent=1, ensure_ascii=False) + "\n"

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much), for people."""
        records, readable = self.records, len(self.records)
        lines = [("rows", f"{self.num_rows:,}"), ("bad files", _share(len(self.bad), self.num_rows))]
        if not readable:
            return lines
        moving = records[records["num_frames"] > 1]
        lines += [("stills", _share(readable - len(moving), readable)), ("animations", _share(len(moving), readable))]
        if len(moving):
            near_static = _share(moving["near_static"].sum(), len(moving))
            lines += [
                ("duration", "{min:.2f} to {max:.2f} s, median {median:.2f} s".format(**_spread(moving["seconds"]))),
                ("near-static", f"{near_static} of the animations"),
            ]
        by_area = records[np.argsort(records["width"].astype(np.int64) * records["height"], kind="stable")]
        sizes = [f"{by_area['width'][i]}x{by_area['height'][i]}" for i in (0, -1, readable // 2)]
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.dropped_kinds().most_common())
        opaque = _share((records["alpha_share"] == 0).sum(), readable)
        return lines + [
            ("size", "{} to {} pixels, median {}".format(*sizes)),
            (
                "transparency",
                f"{records['alpha_share'].mean():.1%} of a file's pixels on average; {opaque} opaque files",
            ),
            ("exact copies", _surplus(self.exact)),
            ("near copies", _surplus(self.near)),
            ("captions", "{min} to {max} words, median {median}".format(**_spread(records["words"]))),
            ("no caption", _share((records["words"] == 0).sum(), readable)),
            ("filters drop", _share(len(self.dropped), readable) + (kinds and f": {kinds}")),
        ]

    def frame_shares(self) -> list[tuple[str, float, float]]:
        """(number of frames, share of the animations here, share in VSD2M); nothing if there are no animations."""
        counts = self.frame_counts()
        total = sum(counts.values())
        return [(frames, counts[frames] / total, share) for frames, share in VSD2M_FRAMES.items()] if total else []

    def text(self) -> str:
        """The report as lines of text, with the first bad files by name."""
        lines = [self.source, *(f"  {what:<13} {how_much}" for what, how_much in self.lines())]
        if shares := self.frame_shares():
            lines += ["", f"  {'frames':<13} {'here':>7} {'VSD2M':>7}"]
            lines += [f"  {frames:<13} {here:>7.1%} {published:>7.1%}" for frames, here, published in shares]
        if self.bad:
            lines += ["", "bad files", *(f"  {name}: {reason}" for name, reason in self.bad[:TEXT_LINES])]
        if len(self.bad) > TEXT_LINES:
            lines.append(f"  and {len(self.bad) - TEXT_LINES:,} more")
        return "\n".join(lines)

    def html(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The report as one self-contained page with contact sheets of at most 60 stickers each.

        The files that are shown, a few hundred, are read again.
        """
        records = self.records
        step = max(1, -(-len(records) // SHEET_STICKERS))
        title = "All stickers" if step == 1 else f"One sticker in {step}"
        sections = [(title, [[index] for index in records["row"][::step].tolist()])]
        for kind in self.dropped_kinds():
            indices = [index for index, _, reason in self.dropped if reason.partition(":")[0] == kind]
            sections.append((f"Dropped by the filters: {kind}", [[index] for index in indices]))
        sections += [("Exact copies", self.exact), ("Near copies", self.near)]
        reasons = {index: reason for index, _, reason in self.dropped}
        page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
        return page.render(
            report=self,
            sections=[_sheet(title, groups, rows, reasons) for title, groups in sections if groups],
            bad=self.bad[:SHEET_BAD_FILES],
            side=THUMBNAIL_SIDE,
        )


def _surplus(groups: list[list[int]]) -> str:
    return f"{sum(len(group) - 1 for group in groups):,} more than needed; groups: {len(groups):,}"


def _thumbnail(row: Mapping[str, Any]) -> str:
    """A small animated WebP of a row's file as a data URI; the time of the whole animation is kept."""
    animation = read_row(row)
    count = min(len(animation.frames), THUMBNAIL_FRAMES)
    pictures = []
    for index in evenly_timed(animation.durations, count):
        picture = Image.fromarray(animation.frames[index]).convert("RGBa")  # premultiplied, for clean edges
        picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        pictures.append(picture.convert("RGBA"))
    duration = round(animation.durations.sum() / count)
    file = io.BytesIO()
    pictures[0].save(
        file, "WEBP", save_all=True, append_images=pictures[1:], duration=duration, loop=0, quality=60, method=2
    )
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _sheet(
    title: str, groups: list[list[int]], rows: Sequence[Mapping[str, Any]], reasons: Mapping[int, str]
) -> dict[str, Any]:
    """A section of the page: the first stickers, in their groups, up to `SHEET_STICKERS` of them."""
    shown, room = [], SHEET_STICKERS
    for group in groups:
        stickers = []
        for index in group[:room]:
            row = rows[index]
            note = reasons.get(index, "")
            stickers.append({"image": _thumbnail(row), "file": row_name(row), "text": row["text"], "note": note})
        room -= len(stickers)
        if stickers:
            shown.append(stickers)
    return {"title": title, "total": sum(map(len, groups)), "shown": SHEET_STICKERS - room, "groups": shown}


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.source }}: data report</title>
<style>
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #626a73; --page: #f6f7f8; --card: #fff; --line: #dfe2e6;
  --here: #2f6fdb; --there: #b3bac3; --bad: #b3261e; --check: #e9ebee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa2ab; --page: #15181c; --card: #1e2227;
  --line: #343a41; --here: #7aa7f5; --there: #5b646e; --bad: #f2867d; --check: #2a2f35; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .7rem; }
h2 small { color: var(--soft); font-weight: normal; margin-left: .5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem; }
.panel h2 { margin-top: 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .22rem .8rem .22rem 0; }
th { font-weight: normal; color: var(--soft); white-space: nowrap; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.share { white-space: nowrap; text-align: right; }
.bar { height: .5rem; border-radius: 3px; background: var(--here); margin: .2rem 0; }
.bar.there { background: var(--there); }
.key { color: var(--soft); font-size: .85rem; }
.key i { display: inline-block; width: .7rem; height: .7rem; border-radius: 3px; margin: 0 .3rem 0 .8rem; }
.bad th { color: var(--bad); white-space: normal; overflow-wrap: anywhere; }
.sheet { display: flex; flex-wrap: wrap; gap: .8rem; }
.group { display: flex; flex-wrap: wrap; gap: .5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .6rem; }
figure { margin: 0; width: {{ side }}px; }
figure div { width: {{ side }}px; height: {{ side }}px; display: grid; place-items: center; border-radius: 6px;
  background: repeating-conic-gradient(var(--check) 0 25%, transparent 0 50%) 0 0 / 16px 16px; }
figcaption { font-size: .72rem; line-height: 1.3; margin-top: .3rem; overflow-wrap: anywhere; }
figcaption span { display: block; max-height: 3.9em; overflow: hidden; }
figcaption b { color: var(--bad); font-weight: normal; }
</style>
</head>
<body>
<h1>{{ report.source }}</h1>
<div class="panels">
<section class="panel">
<table>
{% for what, how_much in report.lines() %}
<tr><th>{{ what }}</th><td>{{ how_much }}</td></tr>
{% endfor %}
</table>
</section>
{% if report.frame_shares() %}
<section class="panel">
<h2>Frames of the animations</h2>
<table>
{% for frames, here, published in report.frame_shares() %}
<tr><th>{{ frames }}</th>
<td style="width: 100%"><div class="bar" style="width: {{ "%.1f" % (100 * here) }}%"></div>
<div class="bar there" style="width: {{ "%.1f" % (100 * published) }}%"></div></td>
<td class="share">{{ "%.1f" % (100 * here) }}%</td>
<td class="share key">{{ "%.1f" % (100 * published) }}%</td></tr>
{% endfor %}
</table>
<div class="key"><i style="background: var(--here)"></i>here<i style="background: var(--there)"></i>VSD2M</div>
</section>
{% endif %}
</div>
{% if bad %}
<h2>Bad files<small>{{ bad | length }} of {{ report.bad | length }}</small></h2>
<section class="panel bad">
<table>
{% for name, reason in bad %}
<tr><th>{{ name }}</th><td>{{ reason }}</td></tr>
{% endfor %}
</table>
</section>
{% endif %}
{% for section in sections %}
<h2>{{ section.title }}<small>{{ section.shown }} of {{ section.total }}</small></h2>
<div class="sheet">
{% for group in section.groups %}
<div class="group">
{% for sticker in group %}
<figure title="{{ sticker.file }}">
<div><img src="{{ sticker.image }}" alt="{{ sticker.text }}" loading="lazy"></div>
<figcaption><span>{{ sticker.text }}</span>{% if sticker.note %}<b>{{ sticker.note }}</b>{% endif %}</figcaption>
</figure>
{% endfor %}
</div>
{% endfor %}
</div>
{% endfor %}
</body>
</html>
"""
