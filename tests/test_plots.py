"""Plots of runs of every kind and length: what they show is read back from the figure's own lines."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rdtf_diffusers.training.curriculum import make_curriculum
from rdtf_diffusers.training.plots import plot_curriculum, plot_losses, printed_shares, running_mean
from rdtf_diffusers.training.tasks import FAMILIES, TASKS


def make_history(kind: str, steps: int, total_steps: int, first: int = 0, weights: dict | None = None):
    """Records of a run whose loss falls, with a validation at its end, and its curriculum."""
    curriculum = make_curriculum(kind, total_steps, task_weights=weights)
    records = []
    for step in range(1, steps + 1):
        task = curriculum.draw(step)
        record = {"step": step, "task": task, "loss": 1 / step}
        curriculum.update(record["loss"])
        record |= {f"task_share/{name}": share for name, share in curriculum.probabilities().items()}
        if kind == "adaptive":
            record |= {f"pid/{name}": value for name, value in curriculum.terms._asdict().items()}
            record["level"] = curriculum.level
        records.append(record)
    return [*records[first:], {"step": steps, "motion": {"a dog": 0.1}}], curriculum


@pytest.fixture
def axes(monkeypatch):
    """The panels of each figure that is saved, while the file is written as ever."""
    saved = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (saved.append(figure.axes), savefig(figure, path)))
    return saved


def labels(panel) -> list[str]:
    return [text.get_text() for text in panel.get_legend().get_texts()]


ONE_TASK = dict.fromkeys(TASKS, 0.0) | {"interpolation": 1.0}


@pytest.mark.parametrize(
    ("kind", "steps", "total_steps", "first", "weights"),
    [
        ("adaptive", 60, 60, 0, None),
        ("adaptive", 1, 1, 0, None),
        ("adaptive", 30, 60, 20, None),
        ("adaptive", 0, 60, 0, None),
        ("linear", 90, 60, 0, ONE_TASK),
        ("uniform", 20, 20, 0, None),
    ],
)
def test_every_run_can_be_drawn(kind, steps, total_steps, first, weights, tmp_path, axes):
    history, curriculum = make_history(kind, steps, total_steps, first, weights)
    plot_losses(history, tmp_path / "losses.png")
    plot_curriculum(history, tmp_path / "curriculum.png", curriculum)
    assert Image.open(tmp_path / "losses.png").size == (1600, 900)
    assert Image.open(tmp_path / "curriculum.png").width == 1600
    (losses,), panels = axes
    drawn = {record["task"] for record in history if "task" in record}
    assert {label.rpartition(": ")[2] for label in labels(losses)} == drawn
    assert [panel.get_ylabel() for panel in panels] == (
        ["probability of being drawn", "level", "PID terms"] if kind == "adaptive" else ["probability of being drawn"]
    )
    assert panels[0].get_xlim() == (0, max(steps, total_steps))


def test_lines_are_running_means_of_the_steps(tmp_path, axes):
    history, curriculum = make_history("adaptive", 200, 200)
    plot_losses(history, tmp_path / "losses.png")
    plot_curriculum(history, tmp_path / "curriculum.png", curriculum)
    steps, losses = np.array([(r["step"], r["loss"]) for r in history if r.get("task") == "t2v"]).T
    (line,) = [line for line in axes[0][0].lines if line.get_label() == "generation: t2v"]
    np.testing.assert_allclose(line.get_xdata(), steps)
    np.testing.assert_allclose(line.get_ydata(), running_mean(losses, max(1, round(0.02 * len(losses)))))
    share = [sum(r[f"task_share/{task}"] for task in FAMILIES["generation"]) for r in history[:-1]]
    (line,) = [line for line in axes[1][0].lines if line.get_label() == "generation, all tasks"]
    np.testing.assert_allclose(line.get_ydata(), running_mean(np.array(share), 4))


def test_running_mean():
    np.testing.assert_allclose(running_mean(np.array([1.0, 2.0, 4.0, 9.0]), 3), [1, 1.5, 7 / 3, 5])
    assert running_mean(np.array([]), 1).shape == (0,)


@pytest.mark.parametrize(
    ("kind", "printed"),
    [
        ("adaptive", [(0, 0.125, 0.375, 0.5), (0.5, 0.5, 0.167, 0.333), (1, 0.75, 0.028, 0.222)]),
        ("linear", [(0, 0.115, 0.346, 0.538), (0.5, 0.5, 0.167, 0.333), (1, 0.794, 0.029, 0.176)]),
        ("uniform", []),
    ],
)
def test_the_papers_values_are_marked(kind, printed, tmp_path, axes):
    points = [(r, *shares.values()) for r, shares in printed_shares(kind)]
    np.testing.assert_allclose(points, printed, atol=6e-4)
    history, curriculum = make_history(kind, 10, 40)
    plot_curriculum(history, tmp_path / "curriculum.png", curriculum)
    (shares, *_) = axes[0]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in shares.lines if line.get_markersize() == 8]
    expected = [(40 * row[0], row[1 + family]) for family in range(3) for row in points]
    np.testing.assert_allclose(marks, expected)
