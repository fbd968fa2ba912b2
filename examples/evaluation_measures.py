"""What an evaluation measures of clips that lie in files: figures with intervals, and which differences are real.

    networks = load_networks(["sticker"], ["sticker"], None, None, device, motions=True)
    rows = make_rows(asked, models, seeds=3, folder=folder, nearest={})
    table = measure_table(asked, rows, networks, folder, batch_size=8)

A table is one set of clips under one task. Its rows are the real clips, references that need no model, and models.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation_cases import ClipForm, EvaluatedModel, EvaluationClip, TaskClips, read_clips, real_file, sample_file

from rdtf_diffusers.metrics.clip_measures import (
    SSIM_WINDOW,
    alpha_iou,
    flicker,
    known_frame_error,
    loop_seam,
    motion_energy,
    motion_log_ratio,
    psnr,
    ssim,
)
from rdtf_diffusers.metrics.features import FeatureNetwork, extract_features, load_feature_network
from rdtf_diffusers.metrics.frechet import frechet_interval, real_floor
from rdtf_diffusers.metrics.references import NearestTrainingClip, blend_known_frames, hold_known_frames
from rdtf_diffusers.metrics.similarity import TextSimilarity, load_text_similarity
from rdtf_diffusers.metrics.statistics import Estimate, bootstrap_mean, paired_difference
from rdtf_diffusers.metrics.sticker_encoder import StickerEncoder, load_sticker_encoder
from rdtf_diffusers.metrics.video_quality import Blockiness, DoverQuality, Sharpness, VideoQualityMetric
from rdtf_diffusers.utils.hub import public_name


REAL = "real clips"
FRECHET_CLIPS = 4  # that a distance with an interval needs at least
SHARPNESS_CLIPS = 100  # real ones that say how sharp clips are
BLOCK = 8  # pixels


@dataclass(frozen=True)
class Shown:
    """Clips beside what was asked for.

    Attributes:
        clips: (B, F, C, H, W) in [-1, 1], of a model or reference.
        truth: the real clips, the same shape.
        condition_mask: (B, F) bool, which frames were given.
        asked: B captions and motions.
    """

    clips: torch.Tensor
    truth: torch.Tensor
    condition_mask: torch.Tensor
    asked: Sequence[EvaluationClip]


@dataclass(frozen=True)
class Measure:
    """One figure per clip.

    Attributes:
        name: in results.json.
        title: in tables.
        unit: of the figure.
        goal: "higher" or "lower", where that is better; "real": as near to the real clip's as can be; "none".
        values: (B,) of shown clips, NaN where a clip cannot be measured.
        of_truth: whether it compares with the real clip, so that it says nothing about the real clips themselves.
        of_pixels: whether a clip of another size has another value.
    """

    name: str
    title: str
    unit: str
    goal: str
    values: Callable[[Shown], torch.Tensor]
    of_truth: bool = False
    of_pixels: bool = True


@dataclass(frozen=True)
class Networks:
    """What judges clips beside arithmetic on their pixels.

    Attributes:
        features: for Frechet distances, by the words that named them.
        similarities: of text and clip, likewise.
        encoder: tells motions apart; None where no motion is known.
        dover: rates clips, where the user has it.
    """

    features: dict[str, FeatureNetwork]
    similarities: dict[str, TextSimilarity]
    encoder: StickerEncoder | None
    dover: DoverQuality | None


def load_networks(
    features: Sequence[str],
    similarities: Sequence[str],
    padding: str | None,
    dover: str | None,
    device: torch.device,
    motions: bool,
) -> Networks:
    """All networks that the arguments name.

    Raises:
        ValueError, OSError: one cannot be loaded.
    """
    return Networks(
        {public_spec(spec): load_feature_network(spec, padding, device) for spec in features},
        {public_spec(spec): load_text_similarity(spec, device) for spec in similarities},
        load_sticker_encoder().to(device) if motions else None,
        None if dover is None else DoverQuality(dover, device),
    )


def public_spec(spec: str) -> str:
    """What may be told of "i3d:FILE" and the like: no folders of this machine."""
    kind, colon, source = spec.partition(":")
    return f"{kind}:{public_name(source)}" if colon else kind


def with_alpha(clips: torch.Tensor) -> torch.Tensor:
    """Clips (B, F, 4, H, W): those over white are opaque."""
    return clips if clips.shape[2] == 4 else torch.cat([clips, torch.ones_like(clips[:, :, :1])], dim=2)


def motion_is_seen(encoder: StickerEncoder, shown: Shown) -> torch.Tensor:
    """(B,), 1 where the asked motion is the classifier's first answer, 0 where it is not, NaN where none is known."""
    answers = encoder.classify_motion(with_alpha(shown.clips)).argmax(dim=1).tolist()
    seen = [encoder.motions[answer] == clip.motion for answer, clip in zip(answers, shown.asked)]
    return torch.tensor([math.nan if clip.motion is None else float(s) for s, clip in zip(seen, shown.asked)])


def text_similarity(network: TextSimilarity, shown: Shown) -> torch.Tensor:
    """(B,), NaN where a clip has no caption."""
    scores = network(with_alpha(shown.clips), [clip.caption for clip in shown.asked])
    empty = torch.tensor([not clip.caption.strip() for clip in shown.asked])
    return scores.cpu().masked_fill(empty, math.nan)


def on_clips(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Shown], torch.Tensor]:
    """A function of clips as `Measure.values`."""
    return lambda shown: function(shown.clips)


def on_pairs(function: Callable[..., torch.Tensor]) -> Callable[[Shown], torch.Tensor]:
    """A function of clips, true clips and condition mask as `Measure.values`."""
    return lambda shown: function(shown.clips, shown.truth, shown.condition_mask)


PIXEL_MEASURES = (
    Measure(
        "motion_log_ratio",
        "motion, distance from real",
        "doublings",
        "lower",
        lambda shown: motion_log_ratio(shown.clips, shown.truth),
        of_truth=True,
    ),
    Measure("motion_energy", "motion energy", "share of the range", "none", on_clips(motion_energy)),
    Measure("flicker", "flicker", "levels of 255", "real", on_clips(flicker)),
    Measure("loop_seam", "loop seam", "ratio", "real", on_clips(loop_seam)),
    Measure(
        "known_frame_error",
        "given frames, error",
        "levels of 255",
        "lower",
        on_pairs(known_frame_error),
        of_truth=True,
    ),
    Measure("alpha_iou", "silhouette IoU", "share", "higher", on_pairs(alpha_iou), of_truth=True),
    Measure("psnr", "PSNR", "dB", "higher", on_pairs(psnr), of_truth=True),
    Measure("ssim", "SSIM", "1: identical", "higher", on_pairs(ssim), of_truth=True),
)


def pixel_measures(asked: TaskClips, form: ClipForm) -> list[Measure]:
    """Those of `PIXEL_MEASURES` that say something about a task: none of given frames where none is given, and so on.

    What comes after one frame, or none, can be right without being the truth: no PSNR and SSIM there.
    """
    left_out = set()
    if not asked.known:
        left_out |= {"known_frame_error", "alpha_iou"}
    if form.channels == 3:
        left_out.add("alpha_iou")
    if len(asked.known) < 2:
        left_out |= {"psnr", "ssim"}
    if form.size < SSIM_WINDOW:
        left_out.add("ssim")
    return [measure for measure in PIXEL_MEASURES if measure.name not in left_out]


def text_measures(asked: TaskClips, networks: Networks) -> list[Measure]:
    """Whether a clip shows what its caption says; for tasks that give the caption."""
    if not asked.task.uses_text:
        return []
    found = {
        (f"text_similarity/{spec}", network.name, "cosine"): partial(text_similarity, network)
        for spec, network in networks.similarities.items()
    }
    if asked.procedural:
        found["asked_motion", "asked motion seen", "share"] = partial(motion_is_seen, networks.encoder)
    return [Measure(*about, "higher", values, of_pixels=False) for about, values in found.items()]


def quality_measures(asked: TaskClips, form: ClipForm, networks: Networks, folder: Path) -> list[Measure]:
    """How good clips look without the true ones beside them."""
    places = np.unique(np.linspace(0, len(asked.clips) - 1, SHARPNESS_CLIPS).round().astype(int))
    files = [real_file(folder, form, asked.set_name, asked.clips[place]) for place in places]
    metrics: dict[str, VideoQualityMetric] = {"sharpness": Sharpness(read_clips(files, asked.num_frames, form))}
    if form.size > BLOCK:
        metrics["blockiness"] = Blockiness(BLOCK)
    if networks.dover is not None:
        metrics["dover"] = networks.dover
    return [
        Measure(name, metric.name, "score", "higher" if metric.higher_is_better else "lower", on_clips(metric))
        for name, metric in metrics.items()
    ]


def choose_measures(asked: TaskClips, form: ClipForm, networks: Networks, folder: Path) -> list[Measure]:
    """Everything that says something about clips of a size under a task."""
    measures = [*text_measures(asked, networks), *pixel_measures(asked, form)]
    return measures + quality_measures(asked, form, networks, folder)


@dataclass(frozen=True)
class Row:
    """One row of a table: where its clips come from.

    Attributes:
        name: unique in the table.
        kind: "real", "reference" or "model".
        form: size and channels of its clips.
        seeds: tries per clip.
        clips: asked clips, real clips (B, F, C, S, S), condition mask (B, F), number of the try -> (B, F, C, S, S).
    """

    name: str
    kind: str
    form: ClipForm
    seeds: int
    clips: Callable[[Sequence[EvaluationClip], torch.Tensor, torch.Tensor, int], torch.Tensor]


def make_rows(
    asked: TaskClips,
    models: Sequence[EvaluatedModel],
    seeds: int,
    folder: Path,
    nearest: dict[ClipForm, NearestTrainingClip],
) -> list[Row]:
    """Real clips, what needs no model, and the models; the former once for each size that models have."""
    forms = list(dict.fromkeys(model.form for model in models))
    rows = []
    for form in forms:
        suffix = f", {form.name}" if len(forms) > 1 else ""
        rows.append(Row(REAL + suffix, "real", form, 1, lambda part, truth, mask, seed: truth))
        for name, make in references(asked, nearest.get(form)).items():
            rows.append(Row(name + suffix, "reference", form, 1, make))
    for model in models:

        def read(part, truth, mask, seed, model=model):
            files = [sample_file(folder, model.name, asked, clip, seed) for clip in part]
            return read_clips(files, asked.num_frames, model.form)

        rows.append(Row(model.name, "model", model.form, seeds, read))
    return rows


def references(asked: TaskClips, nearest: NearestTrainingClip | None) -> dict[str, Callable[..., torch.Tensor]]:
    """Answers to a task that need no model, as `Row.clips`."""
    known, made = asked.known, {}
    if known:
        name = "first frame repeated" if known == [0] else "known frames held"
        made[name] = lambda part, truth, mask, seed: hold_known_frames(truth, mask)
    if len(known) > 1 and known[-1] - known[0] >= len(known):  # else nothing is hidden between them
        made["known frames blended"] = lambda part, truth, mask, seed: blend_known_frames(truth, mask)
    if nearest is not None:
        made["nearest training clip"] = lambda part, truth, mask, seed: nearest(
            truth, mask, [clip.caption for clip in part]
        )
    return made


def shown_clips(row: Row, asked: TaskClips, seed: int, folder: Path, batch_size: int) -> Iterator[Shown]:
    """All clips of a row at one try, `batch_size` at a time."""
    for start in range(0, len(asked.clips), batch_size):
        part = asked.clips[start : start + batch_size]
        files = [real_file(folder, row.form, asked.set_name, clip) for clip in part]
        truth = read_clips(files, asked.num_frames, row.form)
        mask = asked.condition_mask.expand(len(part), -1)
        yield Shown(row.clips(part, truth, mask, seed), truth, mask, part)


@dataclass(frozen=True)
class Measured:
    """What was measured of a row.

    Attributes:
        measures: by name.
        values: (clips, seeds) by measure.
        features: for each try (clips, D), by network.
    """

    measures: dict[str, Measure]
    values: dict[str, np.ndarray]
    features: dict[str, list[np.ndarray]]


def measure_row(
    row: Row, asked: TaskClips, measures: dict[str, Measure], networks: Networks, folder: Path, batch_size: int
) -> Measured:
    """All that is measured of a row."""
    values: dict[str, list[torch.Tensor]] = {name: [] for name in measures}
    features: dict[str, list[np.ndarray]] = {spec: [] for spec in networks.features}
    for seed in range(row.seeds):
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in measures}
        for shown in shown_clips(row, asked, seed, folder, batch_size):
            for name, measure in measures.items():
                parts[name].append(measure.values(shown).cpu())
        for name, found in parts.items():
            values[name].append(torch.cat(found))
        for spec, network in networks.features.items():
            batches = shown_clips(row, asked, seed, folder, batch_size)
            clips = (clip for shown in batches for clip in with_alpha(shown.clips))
            features[spec].append(extract_features(network, clips, batch_size))
    stacked = {name: torch.stack(tries, dim=1).double().numpy() for name, tries in values.items()}
    return Measured(measures, stacked, features)


def measure_table(
    asked: TaskClips, rows: Sequence[Row], networks: Networks, folder: Path, batch_size: int
) -> dict[str, Any]:
    """Everything about one set of clips under one task, ready for results.json.

    Returns:
        "figures" for each row and measure, with interval, n and what it is; the paired "tests"; the "values" per clip
        and try that they were made of (null where a clip cannot be measured); and which clips and rows these are.
    """
    chosen = {form: choose_measures(asked, form, networks, folder) for form in {row.form for row in rows}}
    measured = {}
    for row in rows:
        measures = {m.name: m for m in chosen[row.form] if row.kind != "real" or not m.of_truth}
        measured[row] = measure_row(row, asked, measures, networks, folder, batch_size)
    return {
        "set": asked.set_name,
        "procedural": asked.procedural,
        "task": asked.task.name,
        "known_frames": asked.known,
        "clips": [asdict(clip) for clip in asked.clips],
        "rows": [{"name": row.name, "kind": row.kind, "form": row.form.name, "seeds": row.seeds} for row in rows],
        "figures": [*frechet_figures(measured, networks), *mean_figures(measured)],
        "tests": paired_tests(measured),
        "values": {
            row.name: {name: to_lists(values) for name, values in found.values.items()}
            for row, found in measured.items()
        },
    }


def to_lists(values: np.ndarray) -> list[list[float | None]]:
    """(clips, seeds) for JSON, which knows no NaN."""
    return [[None if math.isnan(value) else value for value in tries] for tries in values.tolist()]


def frechet_figures(measured: dict[Row, Measured], networks: Networks) -> Iterator[dict[str, Any]]:
    """Frechet distances to the real clips of the same size; of the real clips themselves, that of two halves.

    A distance depends on the number of clips. So tries are not put together: each is measured alone, and the figure
    is the mean over the tries.
    """
    real = {row.form: found.features for row, found in measured.items() if row.kind == "real"}
    for row, found in measured.items():
        for spec, network in networks.features.items():
            truth = real[row.form][spec][0]
            if len(truth) < FRECHET_CLIPS:
                continue
            estimate = real_floor(truth) if row.kind == "real" else frechet_interval(found.features[spec], truth)
            about = {"measure": f"frechet/{spec}", "title": f"Frechet, {network.name}", "unit": "features squared"}
            yield figure(row, estimate, **about, goal="lower", padding=network.padding)


def mean_figures(measured: dict[Row, Measured]) -> Iterator[dict[str, Any]]:
    """Means over clips."""
    for row, found in measured.items():
        for name, measure in found.measures.items():
            usable = found.values[name][~np.isnan(found.values[name]).any(axis=1)]
            if len(usable) > 1:
                about = {"measure": name, "title": measure.title, "unit": measure.unit, "goal": measure.goal}
                yield figure(row, bootstrap_mean(usable), **about, padding=None)


def figure(row: Row, estimate: Estimate, **about: str | None) -> dict[str, Any]:
    """An entry of results.json."""
    return {"row": row.name, **about, **asdict(estimate), "seeds": row.seeds}


def paired_tests(measured: dict[Row, Measured]) -> list[dict[str, Any]]:
    """Each model against each reference and each other model, clip by clip, in every measure that has a goal.

    What is compared is how far a clip is from the goal, so a difference below 0 speaks for `row`. Measures of pixels
    are compared between clips of one size only.
    """
    tests = []
    real = {row.form: found.values for row, found in measured.items() if row.kind == "real"}
    contestants = [row for row in measured if row.kind != "real"]
    models = [row for row in contestants if row.kind == "model"]
    pairs = [(row, other) for row in models for other in contestants if other.kind != "model"]
    pairs += [(row, other) for place, row in enumerate(models) for other in models[place + 1 :]]
    for row, other in pairs:
        for name, measure in measured[row].measures.items():
            comparable = row.form == other.form or not measure.of_pixels
            if measure.goal == "none" or not comparable or name not in measured[other].measures:
                continue
            distances = [
                distance_from_goal(measure, measured[one].values[name], real[one.form].get(name)).mean(axis=1)
                for one in (row, other)
            ]
            usable = ~np.isnan(distances).any(axis=0)
            if usable.sum() > 1:
                difference = paired_difference(distances[0][usable], distances[1][usable])
                tests.append({"row": row.name, "against": other.name, "measure": name, **asdict(difference)})
    return tests


def distance_from_goal(measure: Measure, values: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """How much worse than it could be each value (clips, seeds) is, up to a constant."""
    match measure.goal:
        case "higher":
            return -values
        case "lower":
            return values
        case _:
            return np.abs(values - real)
