"""Pictures of a run: how the loss of each task fell, and what the curriculum did.

    records = read_history("my-model/history.jsonl")
    plot_losses(records, "my-model/losses.png")
    plot_curriculum(records, "my-model/curriculum.png", curriculum)

Families are told apart by colour (blue, orange, green, which colour-blind readers tell apart too), the tasks of a
family by shade and by dashes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from .curriculum import MAX_LEVEL, Curriculum, PIDTerms, make_curriculum
from .tasks import FAMILIES


LOSSES_FILE = "losses.png"
CURRICULUM_FILE = "curriculum.png"

DPI = 200  # twice the pixels that a page shows
SMOOTHING = 0.02  # running means go over this share of a line's points

FAMILY_COLOURS = {"generation": "#0072b2", "interpolation": "#d55e00", "prediction": "#009e73"}
TASK_STYLES: dict[str, dict[str, Any]] = {
    "i2v": {"color": "#003f6b", "linestyle": "-"},
    "t2v": {"color": "#0072b2", "linestyle": (0, (5, 1.5))},
    "it2v": {"color": "#56b4e9", "linestyle": (0, (1.5, 1))},
    "interpolation": {"color": "#d55e00", "linestyle": "-"},
    "pre_prediction": {"color": "#00614a", "linestyle": "-"},
    "post_prediction": {"color": "#2fc596", "linestyle": (0, (5, 1.5))},
}
PID_STYLES: dict[str, dict[str, Any]] = {
    "proportional": {"color": "#1a1a1a", "linestyle": "-"},
    "integral": {"color": "#b0508c", "linestyle": (0, (5, 1.5))},
    "derivative": {"color": "#7a7a7a", "linestyle": "-"},
}


def plot_losses(history: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draws the training loss of each task over optimiser steps: single steps faint, their running mean as a line.

    Args:
        history: Records of `read_history`; tasks without a step are left out.
        path: PNG to write.
    """
    records = [record for record in history if "loss" in record]
    figure = Figure(figsize=(8, 4.5), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    handles: list[Line2D] = []
    for family, tasks in FAMILIES.items():
        for task in tasks:
            steps, losses = _column([record for record in records if record["task"] == task], "loss")
            if len(steps):
                label = task if task == family else f"{family}: {task}"
                handles.append(_draw(axes, steps, losses, label, TASK_STYLES[task]))
    _name_axes(axes, "training loss", records, 1)
    axes.set_xlabel("optimiser step")
    if records:  # a few wild steps must not flatten the rest
        losses = [record["loss"] for record in records]
        axes.set_ylim(0, 1.15 * np.percentile(losses, 99))
    _legend(axes, handles)
    figure.savefig(path)


def plot_curriculum(history: Sequence[Mapping[str, Any]], path: str | os.PathLike, curriculum: Curriculum) -> None:
    """Draws the probability of each family and task over optimiser steps, with the values that the paper prints.

    Below stand, for the adaptive curriculum, its level and the three terms of its PID signal. RDTF (arXiv
    2503.17735), section on curriculum learning.

    Args:
        history: Records of `read_history`.
        path: PNG to write.
        curriculum: That of the run; the axis goes up to its last step, also if the run has not come so far.
    """
    records = [record for record in history if "loss" in record]
    heights = [3.6, 1.5, 1.8] if curriculum.kind == "adaptive" else [3.6]
    figure = Figure(figsize=(8, sum(heights) + 0.7), dpi=DPI, layout="constrained", facecolor="white")
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_shares(panels[0], records, curriculum)
    if curriculum.kind == "adaptive":
        _draw(panels[1], *_column(records, "level"), "level", {"color": "#1a1a1a"}, faint=False)
        panels[1].set(ylim=(-0.3, MAX_LEVEL + 0.3), yticks=range(MAX_LEVEL + 1))
        _name_axes(panels[1], "level", records, curriculum.total_steps)
        terms = [
            _draw(panels[2], *_column(records, f"pid/{term}"), term, PID_STYLES[term]) for term in PIDTerms._fields
        ]
        _name_axes(panels[2], "PID terms", records, curriculum.total_steps)
        _legend(panels[2], terms)
    panels[-1].set_xlabel("optimiser step")
    figure.savefig(path)


def printed_shares(kind: str) -> list[tuple[float, dict[str, float]]]:
    """The family probabilities that RDTF (arXiv 2503.17735) gives for r = 0, 1/2, 1 (and for levels 0, 2, 4).

    Args:
        kind: Of curriculum; "uniform" has none.

    Returns:
        r and the probability of each family, three times.
    """
    if kind == "uniform":
        return []
    curriculum = make_curriculum(kind, total_steps=2)
    points = []
    for step in range(3):
        curriculum.step = step  # without signals the level follows the step: 0, 2, 4
        shares = curriculum.probabilities()
        points.append((curriculum.progress, {name: sum(shares[t] for t in tasks) for name, tasks in FAMILIES.items()}))
    return points


def _draw_shares(axes: Axes, records: Sequence[Mapping[str, Any]], curriculum: Curriculum) -> None:
    """The first panel of `plot_curriculum`."""
    printed = printed_shares(curriculum.kind)
    handles: list[Line2D] = []
    for family, tasks in FAMILIES.items():
        columns = {task: _column(records, f"task_share/{task}") for task in tasks}
        steps, total = columns[tasks[0]][0], np.sum([shares for _, shares in columns.values()], axis=0)
        style = {"color": FAMILY_COLOURS[family], "linewidth": 3.0}
        handles.append(_draw(axes, steps, total, f"{family}, all tasks" if len(tasks) > 1 else family, style))
        if len(tasks) > 1:
            for task, column in columns.items():
                handles.append(_draw(axes, *column, task, TASK_STYLES[task] | {"linewidth": 1.2}, faint=False))
        places = [(r * curriculum.total_steps, shares[family]) for r, shares in printed]
        for place in places:
            axes.plot(*place, "o", ms=8, mfc="white", mec=FAMILY_COLOURS[family], mew=1.8, zorder=5, clip_on=False)
    if printed:
        level = f", level 0, {MAX_LEVEL // 2}, {MAX_LEVEL}" if curriculum.kind == "adaptive" else ""
        label = f"RDTF's values for\nr = 0, ½, 1{level}"
        handles.append(Line2D([], [], ls="", marker="o", ms=8, mfc="white", mec="#1a1a1a", mew=1.8, label=label))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _name_axes(axes, "probability of being drawn", records, curriculum.total_steps)
    _legend(axes, handles)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, (N,) each, of the records that have `name`."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    return tuple(np.array(pairs, dtype=float).reshape(-1, 2).T)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the `window` - 1 before it, of fewer at the start; (N,) to (N,)."""
    sums = np.cumsum(np.concatenate([[0.0], values]))  # (N + 1,)
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (sums[end] - sums[start]) / (end - start)


def _draw(
    axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, style: dict[str, Any], faint: bool = True
) -> Line2D:
    """One running mean, over the single values if they are to be seen; a lone point is drawn as one."""
    if faint:
        # the more points, the fainter and finer each
        alpha, size = float(np.clip(300 / (len(values) + 1), 0.03, 0.35)), 3.5 if len(values) < 2000 else 1.2
        axes.plot(steps, values, "o", ms=size, mew=0, color=style["color"], alpha=alpha, zorder=1, rasterized=True)
    smooth = running_mean(values, max(1, round(SMOOTHING * len(values))))
    lone = {"marker": "o", "markersize": 4, "clip_on": False} if len(values) == 1 else {}
    (line,) = axes.plot(steps, smooth, label=label, zorder=3, **({"linewidth": 1.8} | lone | style))
    return line


def _name_axes(axes: Axes, name: str, records: Sequence[Mapping[str, Any]], total_steps: int) -> None:
    """Limits, ticks, grid and the vertical axis's name."""
    last = max([total_steps, *(record["step"] for record in records[-1:])])
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylabel(name)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, handles: list[Line2D]) -> None:
    """A legend to the right of the panel, where it hides nothing."""
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=2.4)
