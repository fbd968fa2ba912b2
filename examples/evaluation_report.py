"""The results of an evaluation for people and for the Hub: Markdown tables, a model-index block, a page to look at.

    (folder / "results.md").write_text(markdown(results))
    (folder / "model-index.yml").write_text(model_index(results))
    (folder / "index.html").write_text(page(results, [page_clips(asked, rows, folder) for asked, rows in tables]))

`results` is what stands in results.json, a table of it what `evaluation_measures.measure_table` returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from evaluation_cases import (
    EvaluationClip,
    TaskClips,
    clip_to_frames,
    folder_name,
    read_clips,
    real_file,
    sample_file,
    write_clip,
)
from evaluation_measures import TESTED_CLIPS, Row
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index, yaml_dump
from jinja2 import Environment

from rdtf_diffusers.commands.output import slug
from rdtf_diffusers.utils.hub import escape_markdown


Table = dict[str, Any]
GOALS = {"higher": "↑", "lower": "↓", "real": "→ real"}
TASK_TITLES = {
    "it2v": "first frame and words",
    "t2v": "words alone",
    "i2v": "first frame alone",
    "interpolation": "frames between given ones",
    "prediction": "frames after given ones",
    "loop": "first frame and words, as a loop",
}
HUB_TASKS = {
    "it2v": "image-text-to-video",
    "loop": "image-text-to-video",
    "t2v": "text-to-video",
}  # others are "image-to-video"
PAGE_CLIPS = 24  # of each table


def short(value: float) -> str:
    """A figure with three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Cell:
    """A figure of a table.

    Attributes:
        text, interval: what is printed; empty where there is no figure.
        mark: "best": better than every row that it was tested against; "unbeaten": none of these is better; or "".
    """

    text: str = ""
    interval: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a printed table: one measure, with a cell for each row of the results."""

    title: str
    unit: str
    goal: str
    cells: list[Cell]


def marks(table: Table, measure: str) -> dict[str, str]:
    """The marks of a measure's cells, by row; see `Cell`. The paired tests decide, nothing else."""
    beats: dict[str, list[bool | None]] = {}  # None: not told apart
    for test in table["tests"]:
        if test["measure"] == measure:
            better = None if test["low"] <= 0 <= test["high"] else test["difference"] < 0
            beats.setdefault(test["row"], []).append(better)
            beats.setdefault(test["against"], []).append(None if better is None else not better)
    unbeaten = [row for row, results in beats.items() if False not in results]
    alone = len(unbeaten) == 1 and None not in beats[unbeaten[0]]
    return dict.fromkeys(unbeaten, "best" if alone else "unbeaten")


def lines(table: Table) -> list[Line]:
    """A table as it is printed: a line for each measure."""
    names = [row["name"] for row in table["rows"]]
    result = []
    # In the order of a model's figures: what is measured against the real clip stands below what it is made from.
    ordered = sorted(table["figures"], key=lambda figure: figure["row"] != names[-1])
    for measure in dict.fromkeys(figure["measure"] for figure in ordered):
        figures = {figure["row"]: figure for figure in table["figures"] if figure["measure"] == measure}
        marked = marks(table, measure)
        cells = [Cell()] * len(names)
        for place, name in enumerate(names):
            if name in figures:
                figure = figures[name]
                interval = f"{short(figure['low'])} to {short(figure['high'])}"
                cells[place] = Cell(short(figure["value"]), interval, marked.get(name, ""))
        about = next(iter(figures.values()))
        fewer = {figure["n"] for name, figure in figures.items()} - {len(table["clips"])}
        count = f", n = {max(fewer)}" if fewer else ""
        result.append(Line(about["title"], about["unit"] + count, GOALS[about["goal"]], cells))
    return result


def notes(table: Table) -> list[str]:
    """What has to be known to read a table."""
    seeds = next(row["seeds"] for row in table["rows"] if row["kind"] == "model")
    result = [
        f"{len(table['clips'])} clips, of a model {seeds} samples each, averaged before anything else. A figure has "
        "its 95 % bootstrap interval over clips.",
        "↑ more is better, ↓ less is better, → real: to be read beside the figure of the real clips; how far from the "
        "real clip's it is, clip by clip, has a line of its own where that is asked for, and that is tested.",
    ]
    if table["skipped"]:
        result.append(f"Files of {table['dataset']} that could not be read and are left out: {table['skipped']}.")
    if table["tests"]:
        result.append(
            "Bold: better than every row that it was tested against, clip by clip (paired tests, 95 %, not corrected "
            "for the number of tests). ≈: none of these is better. Models are tested against references and each "
            f"other, where at least {TESTED_CLIPS} clips have the figure; for flicker and loops not against clips "
            "that stand still."
        )
    else:
        result.append(f"Nothing is tested or marked: that takes at least {TESTED_CLIPS} clips.")
    distances = {figure["title"]: figure for figure in table["figures"] if figure["measure"].startswith("frechet/")}
    for title, figure in distances.items():
        padding = f'frames padded by the rule "{figure["padding"]}"' if figure["padding"] else "no padding"
        result.append(
            f"{title}: {padding}; mean over random splits of the clips into two halves, one half against the real "
            f"clips of the other, {figure['n'] // 2} each, so that no clip meets the real one that it was made from. "
            "Each sample of a clip on its own, then averaged. The figure of the real clips is what real clips reach."
        )
    models = [row["name"] for row in table["rows"] if row["kind"] == "model"]
    errors = [figure for figure in table["figures"] if figure["measure"] == "known_frame_error"]
    changed = [figure["row"] for figure in errors if figure["row"] in models and figure["value"] > 0]
    return result + [f"{name} does not give back the given frames exactly as they were." for name in changed]


def heading(table: Table) -> str:
    return f"{table['set']}: {table['task']}, {TASK_TITLES[table['task']]}"


def header(results: dict[str, Any]) -> list[str]:
    """With what all figures were made: versions, machine, models and their settings."""
    made = [f"{name} {version}" for name, version in results["versions"].items()]
    models = []
    for model in results["models"]:
        settings = ", ".join(f"{name} {value}" for name, value in model["settings"].items())
        about = f"{model['form']}, {model['dtype']}; {settings or 'settings of the pipeline'}"
        models.append(f"{model['name']}: {about}.")
    return [f"{', '.join(made)}; {results['hardware']}.", *models]


def markdown(results: dict[str, Any]) -> str:
    """All tables with their notes and paired tests."""
    parts = ["# Evaluation", markdown_list(header(results))]
    for table in results["tables"]:
        names = [escape_markdown(row["name"]) for row in table["rows"]]
        rows = [["", *names], ["---"] * (len(names) + 1)]
        for line in lines(table):
            title = " ".join([escape_markdown(line.title), *filter(None, [line.goal]), f"({line.unit})"])
            rows.append([title, *map(markdown_cell, line.cells)])
        parts += [f"## {escape_markdown(heading(table))}", markdown_table(rows), markdown_list(notes(table))]
        parts += [tests_in_markdown(table)] if table["tests"] else []
    return "\n\n".join(parts) + "\n"


def markdown_list(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(item)}" for item in items)


def markdown_cell(cell: Cell) -> str:
    bold, tie = "**" if cell.mark == "best" else "", "≈ " if cell.mark == "unbeaten" else ""
    return f"{tie}{bold}{cell.text}{bold} ({cell.interval})" if cell.text else ""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tests_in_markdown(table: Table) -> str:
    """The paired tests, folded."""
    titles = {figure["measure"]: figure["title"] for figure in table["figures"]}
    rows = [["measure", "model", "against", "difference", "interval", "p", "n"], ["---"] * 7]
    for test in table["tests"]:
        names = (escape_markdown(name) for name in (titles[test["measure"]], test["row"], test["against"]))
        interval = f"{short(test['low'])} to {short(test['high'])}"
        chance = "< 0.001" if test["p_value"] < 0.001 else f"{test['p_value']:.3f}"
        rows.append([*names, short(test["difference"]), interval, chance, str(test["n"])])
    summary = "Paired tests: how much farther from the goal the model is; below 0 it is nearer"
    return f"<details><summary>{summary}</summary>\n\n{markdown_table(rows)}\n\n</details>"


def model_index(results: dict[str, Any]) -> str:
    """The `model-index` block of a model card, with an entry for each model; a card takes its own."""
    entries, hub_ids = [], {dataset["name"]: dataset["hub_id"] for dataset in results["datasets"]}
    about = ("low", "high", "n", "seeds", "unit", "goal", "padding")
    for model in results["models"]:
        made_with = {name: model[name] for name in ("form", "dtype", "settings")} | {"versions": results["versions"]}
        found = [
            EvalResult(
                task_type=HUB_TASKS.get(table["task"], "image-to-video"),
                task_name=TASK_TITLES[table["task"]],
                dataset_type=hub_ids[table["dataset"]] or slug(table["dataset"]),
                dataset_name=table["set"],
                # the Hub puts results of one type and config together, whatever their names
                dataset_config=f"{table['task']}, set in motion" if table["procedural"] else table["task"],
                dataset_args=made_with,  # of all its figures
                metric_type=figure["measure"],
                metric_name=figure["title"],
                metric_value=figure["value"],
                metric_args={name: figure[name] for name in about},
            )
            for table in results["tables"]
            for figure in table["figures"]
            if figure["row"] == model["name"]
        ]
        entries += eval_results_to_model_index(model["name"], found)
    return yaml_dump({"model-index": entries})


def page_clips(asked: TaskClips, rows: Sequence[Row], folder: Path) -> list[dict[str, Any]]:
    """Up to `PAGE_CLIPS` clips of a table for the page, evenly spread; writes those pictures that no one else needs.

    Returns:
        For each clip its caption, motion, the strip of given frames (or None), and for each row its name, kind and
        files; all files relative to `folder`, as addresses.
    """
    places = np.unique(np.linspace(0, len(asked.clips) - 1, PAGE_CLIPS).round().astype(int))
    mask = asked.condition_mask[None]
    shown = []
    for clip in (asked.clips[place] for place in places):
        truths = {
            row.form: read_clips([real_file(folder, row.form, asked.set_name, clip)], asked.num_frames, row.form)
            for row in rows
        }
        files: dict[str, list[Path]] = {}
        for row in rows:
            match row.kind:
                case "real":
                    files[row.name] = [real_file(folder, row.form, asked.set_name, clip)]
                case "model":
                    files[row.name] = [sample_file(folder, row.name, asked, clip, seed) for seed in range(row.seeds)]
                case _:
                    made = row.clips([clip], truths[row.form], mask, 0)[0]
                    files[row.name] = [place_of(folder / "references" / folder_name(row.name), asked, clip)]
                    write_clip(files[row.name][0], clip_to_frames(made))
        strip = place_of(folder / "given", asked, clip) if asked.known else None
        if strip is not None:
            write_clip(strip, given_strip(truths[rows[0].form][0], asked.condition_mask))
        found = [
            {"name": row.name, "kind": row.kind, "files": [address(file, folder) for file in files[row.name]]}
            for row in rows
        ]
        strip = strip and address(strip, folder)
        shown.append({"caption": clip.caption, "motion": clip.motion, "strip": strip, "rows": found})
    return shown


def place_of(folder: Path, asked: TaskClips, clip: EvaluationClip) -> Path:
    return folder / folder_name(asked.set_name) / asked.task.name / f"{clip.number:05d}.webp"


def address(file: Path, folder: Path) -> str:
    return quote(file.relative_to(folder).as_posix())


def given_strip(truth: torch.Tensor, condition_mask: torch.Tensor) -> np.ndarray:
    """The frames of a clip (F, C, S, S) side by side as one picture (1, S, F * S, 4), hidden ones transparent."""
    frames = clip_to_frames(truth)
    alpha = np.full_like(frames[..., :1], 255)
    frames = np.concatenate([frames, alpha], axis=-1) if frames.shape[-1] == 3 else frames
    frames = frames * condition_mask.numpy().astype(np.uint8)[:, None, None, None]
    return np.concatenate(frames, axis=1)[None]


def page(results: dict[str, Any], shown: Sequence[Sequence[dict[str, Any]]]) -> str:
    """One page with, for each table, its figures and its clips side by side; it opens from the disk.

    Args:
        shown: `page_clips` of each table.
    """
    sections = [
        {
            "id": f"table-{place}",
            "heading": heading(table),
            "rows": table["rows"],
            "lines": lines(table),
            "notes": notes(table),
            "total": len(table["clips"]),
            "known": [frame in table["known_frames"] for frame in range(results["settings"]["num_frames"])],
            "clips": clips,
        }
        for place, (table, clips) in enumerate(zip(results["tables"], shown, strict=True))
    ]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return template.render(results=results, header=header(results), sections=sections)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {{ results.models | map(attribute="name") | join(", ") }}</title>
<style>
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #626a73; --page: #f6f7f8; --card: #fff; --line: #dfe2e6;
  --model: #2f6fdb; --check: #e9ebee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa2ab; --page: #15181c; --card: #1e2227;
  --line: #343a41; --model: #7aa7f5; --check: #2a2f35; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 80rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 3rem 0 .8rem; }
h2 small, .soft { color: var(--soft); font-weight: normal; }
p.soft { margin: 0 0 .3rem; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 0 0 .6rem; overflow-wrap: anywhere; }
nav a { display: inline-block; margin-right: 1.2rem; color: var(--model); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem;
  margin-bottom: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0; }
th { font-weight: normal; color: var(--soft); }
thead th { border-bottom: 1px solid var(--line); }
.best { font-weight: bold; }
.unbeaten::before { content: "≈ "; }
td small { display: block; color: var(--soft); white-space: nowrap; }
ul { color: var(--soft); font-size: .85rem; padding-left: 1.2rem; margin: .8rem 0 0; }
.clip { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(8.5rem, 42%), 1fr)); gap: .8rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; border-radius: 6px; }
.checked { background: repeating-conic-gradient(var(--check) 0 25%, var(--card) 0 50%) 0 0 / 16px 16px; }
.model img { outline: 2px solid var(--model); }
figcaption { font-size: .78rem; line-height: 1.3; margin-top: .35rem; overflow-wrap: anywhere; }
.strip { grid-column: 1 / -1; max-width: 34rem; }
.frames { display: grid; grid-template-columns: repeat({{ results.settings.num_frames }}, 1fr); position: relative; }
.frames img { position: absolute; inset: 0; height: 100%; border-radius: 0; }
.frames i { aspect-ratio: 1; border: 1px dashed var(--line); display: grid; place-items: center; color: var(--soft);
  font-style: normal; }
.frames i.known { border: 2px solid var(--ink); }
</style>
</head>
<body>
<h1>Evaluation of {{ results.models | map(attribute="name") | join(", ") }}</h1>
{% for fact in header %}
<p class="soft">{{ fact }}</p>
{% endfor %}
<nav>
{% for section in sections %}
<a href="#{{ section.id }}">{{ section.heading }}</a>
{% endfor %}
</nav>
{% for section in sections %}
<h2 id="{{ section.id }}">{{ section.heading }}
<small>{{ section.clips | length }} of {{ section.total }} clips</small></h2>
<div class="card">
<div class="wide">
<table>
<thead><tr><th></th>{% for row in section.rows %}<th>{{ row.name }}</th>{% endfor %}</tr></thead>
{% for line in section.lines %}
<tr><th>{{ line.title }} {{ line.goal }} <small>({{ line.unit }})</small></th>
{% for cell in line.cells %}
<td><span class="{{ cell.mark }}">{{ cell.text }}</span><small>{{ cell.interval }}</small></td>
{% endfor %}
</tr>
{% endfor %}
</table>
</div>
<ul>
{% for note in section.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</div>
{% for clip in section.clips %}
<div class="card">
<h3>{{ clip.caption or "no caption" }}
{% if clip.motion %}
<span class="soft">asked motion: {{ clip.motion }}</span>
{% endif %}
</h3>
<div class="clip">
{% if clip.strip %}
<figure class="strip">
<div class="frames checked">
{% for known in section.known %}
<i{% if known %} class="known"{% endif %}>{{ "" if known else "?" }}</i>
{% endfor %}
<img src="{{ clip.strip }}" alt="the given frames" loading="lazy">
</div>
<figcaption>given frames</figcaption>
</figure>
{% endif %}
{% for row in clip.rows %}
{% for file in row.files %}
<figure class="{{ row.kind }}">
<img class="checked" src="{{ file }}" alt="{{ row.name }}: {{ clip.caption }}" loading="lazy">
<figcaption>{{ row.name }}{% if row.files | length > 1 %}, sample {{ loop.index }}{% endif %}</figcaption>
</figure>
{% endfor %}
{% endfor %}
</div>
</div>
{% endfor %}
{% endfor %}
</body>
</html>
"""
