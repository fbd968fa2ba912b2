"""What came out of a comparison: the paper's claims with what was measured of them, tables, a plot.

    write_report(folder, evaluation, results, shown)

Claims are tested on the figures that the paper gives, a Frechet distance and the similarity of text and clip.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation_report import heading, markdown, markdown_table, page, short
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rdtf_diffusers.utils.files import write_whole
from rdtf_diffusers.utils.hub import escape_markdown


@dataclass(frozen=True)
class Claim:
    """Something that the paper says.

    Attributes:
        better, worse: names of methods.
        tasks: of which it says so.
        source: where.
    """

    better: str
    worse: str
    tasks: tuple[str, ...]
    source: str


ADAPTERS = ("i2v_adapter", "simda", "customize_a_video")
CLAIMS = (
    *(Claim("rdtf", adapter, ("it2v", "interpolation", "prediction"), "comparison") for adapter in ADAPTERS),
    Claim("sti", "conv3d", ("it2v",), "modules"),
    Claim("dual_mask", "sti", ("it2v",), "modules"),
    Claim("linear", "dual_mask", ("it2v",), "curriculum"),
    Claim("rdtf", "linear", ("it2v",), "curriculum"),
)
CLAIM_MEASURES = ("frechet/", "text_similarity/")  # what the names of the paper's figures begin with
PLOTTED = (*CLAIM_MEASURES, "motion_log_ratio")
PLOT_FILE = "comparison.png"
COLOURS = {
    "real clips": "#1a1a1a",
    "without a model": "#9a9a9a",
    "RDTF": "#0072b2",
    "its ablations, and the base": "#56b4e9",
    "adapters": "#d55e00",
}


def verdicts(tables: Sequence[dict[str, Any]], titles: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Each claim in each table of its tasks and by each of the paper's measures, where both methods were measured.

    "difference" is how much nearer to the goal the method is that the paper calls better, with its interval over
    clips; "seeds_for" for how many seeds the means say so. A claim "holds" where the interval is above 0 and all seeds
    agree, "does not hold" where it is below 0 and all agree on that; else it is "open".

    Args:
        titles: names of rows by the names of methods.
    """
    for claim in CLAIMS:
        pair = titles.get(claim.better), titles.get(claim.worse)
        for table in tables:
            for test in table["tests"] if table["task"] in claim.tasks else ():
                if test["measure"].startswith(CLAIM_MEASURES) and {test["row"], test["against"]} == set(pair):
                    yield {"source": claim.source, **verdict(table, test, *pair)}


def verdict(table: dict[str, Any], test: dict[str, Any], better: str, worse: str) -> dict[str, Any]:
    """What a test says of the claim that `better` is better than `worse`."""
    figures = [find(table, test["measure"], name) for name in (better, worse)]
    sign = -1 if test["row"] == better else 1  # a test says how much farther from the goal `row` is
    low, high = sorted((sign * test["low"], sign * test["high"]))
    goal = 1 if figures[0]["goal"] == "higher" else -1
    gains = [goal * (one - other) for one, other in zip(*(figure["by_seed"] for figure in figures))]
    seeds_for = sum(gain > 0 for gain in gains)
    said = "open"
    if low > 0 and seeds_for == len(gains):
        said = "holds"
    elif high < 0 and seeds_for == 0:
        said = "does not hold"
    return {
        "better": better,
        "worse": worse,
        "set": table["set"],
        "task": table["task"],
        "measure": figures[0]["title"],
        "values": [figure["value"] for figure in figures],
        "difference": sign * test["difference"],
        "low": low,
        "high": high,
        "p_value": test["p_value"],
        "n": test["n"],
        "seeds_for": seeds_for,
        "seeds": len(gains),
        "verdict": said,
    }


def find(table: dict[str, Any], measure: str, row: str) -> dict[str, Any]:
    """A row's figure."""
    return next(figure for figure in table["figures"] if (figure["measure"], figure["row"]) == (measure, row))


def claims_in_markdown(found: Sequence[dict[str, Any]]) -> str:
    rows = [["The paper's claim", "Clips", "Task", "Measure", "Values", "Gain", "p", "Seeds", "Here"], ["---"] * 9]
    for claim in found:
        chance = "< 0.001" if claim["p_value"] < 0.001 else f"{claim['p_value']:.3f}"
        cells = [
            f"{claim['better']} beats {claim['worse']}",
            claim["set"],
            claim["task"],
            claim["measure"],
            " / ".join(map(short, claim["values"])),
            f"{short(claim['difference'])} ({short(claim['low'])} to {short(claim['high'])}), n = {claim['n']}",
            chance,
            f"{claim['seeds_for']} of {claim['seeds']}",
        ]
        rows.append([*map(escape_markdown, cells), f"**{claim['verdict']}**"])
    return markdown_table(rows)


def methods_in_markdown(methods: Sequence[dict[str, Any]]) -> str:
    rows = [["Method", "M parameters", "M trained", "Learning rate", "Clips", "Minutes"], ["---"] + ["---:"] * 5]
    for method in methods:
        minutes = ", ".join("in pieces" if value is None else f"{value:.1f}" for value in method["minutes"])
        counts = (f"{method[name] / 1e6:.3f}" for name in ("parameters", "trained"))
        rows.append([method["title"], *counts, f"{method['learning_rate']:g}", f"{method['clips']:,}", minutes])
    return markdown_table(rows)


def comparison_in_markdown(results: dict[str, Any]) -> str:
    """Methods, claims and plot, then the tables as evaluate.py prints them."""
    count = dict.fromkeys(("holds", "does not hold", "open"), 0)
    for claim in results["claims"]:
        count[claim["verdict"]] += 1
    seeds = results["settings"]["seeds"]
    parts = [
        "# RDTF and adapters",
        f"`{results['command']}`",
        f"Each method is trained with {f'{seeds} seeds' if seeds > 1 else 'one seed'}. Minutes are of one training, "
        f"{results['settings']['jobs']} at a time.",
        methods_in_markdown(results["methods"]),
        "## Claims",
        f"Of {len(results['claims'])} comparisons {count['holds']} come out as the paper says, "
        f"{count['does not hold']} the other way round, and {count['open']} stay open. Values are means, those of the "
        "method first that the paper calls better; its gain is above 0 where that is so, with a 95 % interval over "
        "clips. A claim holds where the interval is above 0 and the means of all seeds agree; p is of one comparison "
        "among many.",
        claims_in_markdown(results["claims"]),
        f"![what was measured]({PLOT_FILE})",
        markdown(results).replace("# Evaluation", "# Figures", 1),
    ]
    return "\n\n".join(parts)


def plot(results: dict[str, Any], path: Path) -> None:
    """A panel for each table and measure: means with their intervals, and below them those of each seed."""
    tables = results["tables"]
    found = [figure["measure"] for table in tables for figure in table["figures"]]
    measures = [measure for measure in dict.fromkeys(found) if measure.startswith(PLOTTED)]
    adapters = {method["title"] for method in results["methods"] if method["trained"] < method["parameters"]}
    height = sum(0.24 * len(table["rows"]) + 0.7 for table in tables) + 0.4
    canvas = Figure(figsize=(4 * len(measures) + 2.5, height), dpi=100, layout="constrained", facecolor="white")
    heights = [len(table["rows"]) + 3 for table in tables]
    grid = canvas.subplots(len(tables), len(measures), squeeze=False, height_ratios=heights)
    for axes_row, table in zip(grid, tables):
        for axes, measure in zip(axes_row, measures):
            plot_panel(axes, table, measure, adapters)
            axes.set_yticklabels([row["name"] for row in table["rows"]] if axes is axes_row[0] else [])
    handles = [Line2D([], [], marker="o", color=colour, label=kind) for kind, colour in COLOURS.items()]
    handles.append(Line2D([], [], marker="|", linestyle="", color="#8a8a8a", label="single seeds"))
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    canvas.savefig(path)


def plot_panel(axes: Axes, table: dict[str, Any], measure: str, adapters: set[str]) -> None:
    """A measure of all rows of a table, the first one on top."""
    figures = {figure["row"]: figure for figure in table["figures"] if figure["measure"] == measure}
    for place, row in enumerate(table["rows"]):
        if figure := figures.get(row["name"]):
            colour = COLOURS[kind_of(row, adapters)]
            axes.plot([figure["low"], figure["high"]], [place, place], color=colour, linewidth=1.5)
            axes.plot(figure["value"], place, "o", color=colour, markersize=5)
            if row["seeds"] > 1:
                axes.plot(figure["by_seed"], [place + 0.3] * row["seeds"], "|", color=colour, markersize=5)
    axes.set_yticks(range(len(table["rows"])))
    axes.set_ylim(len(table["rows"]) - 0.3, -0.7)
    axes.grid(color="#e8e8e8", linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    about = next(iter(figures.values()), {"title": measure, "goal": "real"})
    better = {"lower": ", less is better", "higher": ", more is better"}.get(about["goal"], "")
    axes.set_title(f"{heading(table)}\n{about['title']}{better}", fontsize=8, loc="left")


def kind_of(row: dict[str, Any], adapters: set[str]) -> str:
    """A key of `COLOURS`."""
    if row["kind"] != "model":
        return "real clips" if row["kind"] == "real" else "without a model"
    if row["name"] in adapters:
        return "adapters"
    return "RDTF" if row["name"] == "RDTF" else "its ablations, and the base"


def write_report(folder: Path, evaluation: str, results: dict[str, Any], shown: Sequence[Sequence[dict]]) -> None:
    """Writes results.json, results.md, comparison.png into `folder`, and the page beside the samples.

    Args:
        evaluation: the folder of samples in `folder`.
        results: as of evaluate.py, with "methods".
        shown: `page_clips` of each table.
    """
    results["claims"] = list(verdicts(results["tables"], {m["name"]: m["title"] for m in results["methods"]}))
    plot(results, folder / PLOT_FILE)
    files = {
        "results.json": json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "results.md": comparison_in_markdown(results),
        f"{evaluation}/index.html": page(results, shown),
    }
    for name, text in files.items():
        write_whole(folder / name, text.encode())
