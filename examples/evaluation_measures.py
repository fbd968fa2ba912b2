"""What an evaluation measures of clips that lie in files: figures with intervals, and which differences are real.

    networks = load_networks(["sticker"], ["sticker"], None, None, device, motions=True)
    rows = make_rows(asked, models, seeds=3, folder=folder, nearest={})
    table = measure_table(asked, rows, networks, folder, batch_size=8)

A table is one set of clips under one task. Its rows are the real clips, references that need no model, and models.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
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
    loop_closes,
    loop_seam,
    motion_energy,
    motion_log_ratio,
    psnr,
    ssim,
)
from rdtf_diffusers.metrics.features import FeatureNetwork, StickerFeatures, load_feature_network
from rdtf_diffusers.metrics.frechet import split_difference, split_distances, split_estimate
from rdtf_diffusers.metrics.references import NearestTrainingClip, blend_known_frames, hold_known_frames
from rdtf_diffusers.metrics.retrieval import retrieval_accuracy
from rdtf_diffusers.metrics.similarity import StickerTextSimilarity, TextSimilarity, load_text_similarity
from rdtf_diffusers.metrics.statistics import Estimate, bootstrap_mean, paired_difference
from rdtf_diffusers.metrics.sticker_encoder import StickerEncoder, load_sticker_encoder
from rdtf_diffusers.metrics.video_quality import Blockiness, DoverQuality, Sharpness, VideoQualityMetric
from rdtf_diffusers.utils.hub import public_name


REAL = "real clips"
STILL = "first frame repeated"
HELD = "known frames held"
BLENDED = "known frames blended"
NEAREST = "nearest training clip"
ROW_NAMES = (REAL, STILL, HELD, BLENDED, NEAREST)
FRECHET_CLIPS = 4  # that a distance with an interval needs at least
TESTED_CLIPS = 10  # below, a test hardly tells chance from a difference
SHARPNESS_CLIPS = 100  # real ones that say how sharp clips are
LEAST_SHARPNESS = 2**-6  # share of real clips' at which a blank clip is counted
BLOCK = 8  # pixels
RETRIEVED = 10  # captions that a clip may look at


@dataclass(frozen=True)
class Shown:
    """Clips beside what was asked for.

    Attributes:
        clips: (B, F, C, H, W) in [-1, 1], of a model or reference.
        truth: the real clips, the same shape.
        condition_mask: (B, F) bool, which frames were given.
        requests: B captions and motions.
    """

    clips: torch.Tensor
    truth: torch.Tensor
    condition_mask: torch.Tensor
    requests: Sequence[EvaluationClip]


@dataclass(frozen=True)
class Measure:
    """One figure per clip.

    Attributes:
        name: in results.json.
        title: in tables.
        unit: of the figure.
        goal: "higher" or "lower", where that is better; "real": to be read beside the real clips' figure, not tested.
        values: (B,) of shown clips, NaN where a clip cannot be measured.
        of_truth: whether it compares with the real clip, so that it says nothing about the real clips themselves.
        of_motion: whether clips that stand still are outside of it, and not tested.
        alike: attributes of `ClipForm` that rows must share for their values to be comparable.
    """

    name: str
    title: str
    unit: str
    goal: str
    values: Callable[[Shown], torch.Tensor]
    of_truth: bool = False
    of_motion: bool = False
    alike: tuple[str, ...] = ("size", "channels")


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
    networks = Networks(
        {public_spec(spec): load_feature_network(spec, padding, device) for spec in features},
        {public_spec(spec): load_text_similarity(spec, device) for spec in similarities},
        None,
        None if dover is None else DoverQuality(dover, device),
    )
    return replace(networks, encoder=motion_encoder(networks, device)) if motions else networks


def motion_encoder(networks: Networks, device: torch.device) -> StickerEncoder:
    """A sticker encoder that the networks hold already and that knows motions; else the bundled one."""
    for network in (*networks.similarities.values(), *networks.features.values()):
        if isinstance(network, StickerTextSimilarity | StickerFeatures) and network.encoder.motions:
            return network.encoder
    return load_sticker_encoder().to(device)


def public_spec(spec: str) -> str:
    """What may be told of "i3d:FILE" and the like: no folders of this machine."""
    kind, colon, source = spec.partition(":")
    return f"{kind}:{public_name(source)}" if colon else kind


def motion_is_seen(encoder: StickerEncoder, shown: Shown) -> torch.Tensor:
    """(B,), 1 where the asked motion is the classifier's first answer, 0 where it is not, NaN where none is known."""
    answers = encoder.classify_motion(shown.clips).argmax(dim=1).tolist()
    seen = [encoder.motions[answer] == clip.motion for answer, clip in zip(answers, shown.requests)]
    return torch.tensor([math.nan if clip.motion is None else float(s) for s, clip in zip(seen, shown.requests)])


def text_similarity(network: TextSimilarity, shown: Shown) -> torch.Tensor:
    """(B,), NaN where a clip has no caption."""
    scores = network(shown.clips, [clip.caption for clip in shown.requests])
    empty = torch.tensor([not clip.caption.strip() for clip in shown.requests])
    return scores.cpu().masked_fill(empty, math.nan)


def caption_is_found(encoder: StickerEncoder, captions: Sequence[str]) -> Callable[[Shown], torch.Tensor]:
    """(B,) of shown clips, 1 where a clip finds its caption in the first ten of all, NaN where it has none."""
    texts = encoder.encode_texts(captions)

    def found(shown: Shown) -> torch.Tensor:
        own = [clip.caption for clip in shown.requests]
        right = torch.tensor([[caption == text for text in captions] for caption in own])
        known = right.any(dim=1)
        result = torch.full((len(own),), math.nan)
        if known.any():
            similarities = encoder.encode_clips(shown.clips)[known] @ texts.T
            result[known] = retrieval_accuracy(similarities, RETRIEVED, right[known]).float()
        return result

    return found


def on_clips(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Shown], torch.Tensor]:
    """A function of clips as `Measure.values`."""
    return lambda shown: function(shown.clips)


def on_pairs(function: Callable[..., torch.Tensor]) -> Callable[[Shown], torch.Tensor]:
    """A function of clips, true clips and condition mask as `Measure.values`."""
    return lambda shown: function(shown.clips, shown.truth, shown.condition_mask)


def beside_real(
    name: str, title: str, unit: str, function: Callable[[torch.Tensor], torch.Tensor], of_motion: bool = False
) -> tuple[Measure, Measure]:
    """A figure that should be as that of the real clips, and how far from the real clip's it is, clip by clip."""

    def distance(shown: Shown) -> torch.Tensor:
        return (function(shown.clips) - function(shown.truth)).abs()

    far = (f"{name}_distance", f"{title}, distance from real", unit, "lower", distance)
    return Measure(name, title, unit, "real", on_clips(function)), Measure(*far, of_truth=True, of_motion=of_motion)


PIXEL_MEASURES = (
    Measure("motion_energy", "motion energy", "share of the range", "real", on_clips(motion_energy)),
    Measure(
        "motion_log_ratio",
        "motion, distance from real",
        "doublings",
        "lower",
        lambda shown: motion_log_ratio(shown.clips, shown.truth),
        of_truth=True,
    ),
    *beside_real("flicker", "flicker", "levels of 255", flicker, of_motion=True),
    *beside_real("loop_seam", "loop seam", "ratio", loop_seam, of_motion=True),
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
# what a clip that is to loop is asked for
LOOP_MEASURES = (
    Measure(
        "loop_seam_excess",
        "loop seam above 1",
        "ratio",
        "lower",
        on_clips(lambda clips: (loop_seam(clips) - 1).clamp(min=0)),
        of_motion=True,
    ),
    Measure("loop_closes", "seam at most the median step", "share", "higher", on_clips(loop_closes), of_motion=True),
)


def pixel_measures(asked: TaskClips, form: ClipForm) -> list[Measure]:
    """Those of `PIXEL_MEASURES` that say something about a task: none of given frames where none is given, and so on.

    What comes after one frame, or none, can be right without being the truth: no PSNR, SSIM and silhouettes there.
    """
    left_out = set() if asked.task.loop else {measure.name for measure in LOOP_MEASURES}
    if not asked.known:
        left_out.add("known_frame_error")
    if form.channels == 3:
        left_out.add("alpha_iou")
    if len(asked.known) < 2:
        left_out |= {"psnr", "ssim", "alpha_iou"}
    if form.size < SSIM_WINDOW:
        left_out.add("ssim")
    if asked.task.loop:  # real clips need not be loops, and those that are may have another seam
        left_out |= {"loop_seam", "loop_seam_distance"}
    return [measure for measure in (*PIXEL_MEASURES, *LOOP_MEASURES) if measure.name not in left_out]


def text_measures(asked: TaskClips, networks: Networks) -> list[Measure]:
    """Whether a clip shows what its caption says; for tasks that give the caption.

    The sticker encoder sees transparency, so that the same sticker over white is another one to it; other networks are
    shown everything over white.
    """
    if not asked.task.uses_text:
        return []
    found = []
    for spec, network in networks.similarities.items():
        about = (f"text_similarity/{spec}", network.name, "cosine", "higher", partial(text_similarity, network))
        is_ours = isinstance(network, StickerTextSimilarity)
        found.append(Measure(*about, alike=("channels",) if is_ours else ()))
        captions = [clip.caption for clip in asked.clips if clip.caption.strip()]
        if is_ours and len(captions) >= 2 * RETRIEVED:
            title = f"caption among the first {RETRIEVED} of {len(captions)}"
            finds = caption_is_found(network.encoder, captions)
            found.append(Measure(f"retrieval/{spec}", title, "share", "higher", finds, alike=("channels",)))
    if asked.procedural:
        seen = partial(motion_is_seen, networks.encoder)
        found.append(Measure("asked_motion", "asked motion seen", "share", "higher", seen, alike=("channels",)))
    return found


def quality_measures(asked: TaskClips, form: ClipForm, networks: Networks, folder: Path) -> list[Measure]:
    """How good clips look without the true ones beside them."""
    places = np.unique(np.linspace(0, len(asked.clips) - 1, SHARPNESS_CLIPS).round().astype(int))
    files = [real_file(folder, form, asked.set_name, asked.clips[place]) for place in places]
    sharpness = Sharpness(read_clips(files, asked.num_frames, form))

    def doublings(clips: torch.Tensor) -> torch.Tensor:
        return sharpness.ratio(clips).clamp(min=LEAST_SHARPNESS).log2()

    metrics: dict[str, VideoQualityMetric] = {"blockiness": Blockiness(BLOCK)} if form.size > BLOCK else {}
    metrics |= {} if networks.dover is None else {"dover": networks.dover}
    return [*beside_real("sharpness", "sharpness", "doublings of the median real clip's", doublings)] + [
        Measure(name, metric.name, "score", "higher" if metric.higher_is_better else "lower", on_clips(metric))
        for name, metric in metrics.items()
    ]


def choose_measures(asked: TaskClips, form: ClipForm, networks: Networks, folder: Path) -> list[Measure]:
    """Everything that says something about clips of a size under a task."""
    measures = [*text_measures(asked, networks), *pixel_measures(asked, form)]
    return measures + quality_measures(asked, form, networks, folder)


def try_measures(tables: Sequence[TaskClips], forms: Sequence[ClipForm], networks: Networks, folder: Path) -> None:
    """Measures two real clips of each table in each form: what does not work is better known before hours of drawing.

    Raises:
        ValueError, OSError: a measure or a network does not take the clips.
    """
    for asked in tables:
        for form in forms:
            row = Row(REAL, "real", form, 1, lambda part, truth, mask, seed: truth)
            first = replace(asked, clips=asked.clips[:2])
            measures = {measure.name: measure for measure in choose_measures(asked, form, networks, folder)}
            measure_row(row, first, measures, networks, folder, batch_size=2)


@dataclass(frozen=True)
class Row:
    """One row of a table: where its clips come from.

    Attributes:
        name: unique in the table.
        kind: "real", "reference" or "model".
        form: size and channels of its clips.
        seeds: tries per clip.
        clips: requests, real clips (B, F, C, S, S), condition mask (B, F), number of the try -> (B, F, C, S, S).
        is_still: whether nothing moves in its clips, by their making.
    """

    name: str
    kind: str
    form: ClipForm
    seeds: int
    clips: Callable[[Sequence[EvaluationClip], torch.Tensor, torch.Tensor, int], torch.Tensor]
    is_still: bool = False


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
            rows.append(Row(name + suffix, "reference", form, 1, make, is_still=name == STILL))
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
        made[STILL if known == [0] else HELD] = lambda part, truth, mask, seed: hold_known_frames(truth, mask)
    if len(known) > 1 and known[-1] - known[0] >= len(known):  # else nothing is hidden between them
        made[BLENDED] = lambda part, truth, mask, seed: blend_known_frames(truth, mask)
    if nearest is not None:
        made[NEAREST] = lambda part, truth, mask, seed: nearest(truth, mask, [clip.caption for clip in part])
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
    """All that is measured of a row.

    Raises:
        ValueError: a network gives features that are not finite.
    """
    values: dict[str, list[torch.Tensor]] = {name: [] for name in measures}
    features: dict[str, list[np.ndarray]] = {spec: [] for spec in networks.features}
    for seed in range(row.seeds):
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in (*measures, *features)}
        for shown in shown_clips(row, asked, seed, folder, batch_size):
            for name, measure in measures.items():
                parts[name].append(measure.values(shown).cpu())
            for spec, network in networks.features.items():
                parts[spec].append(network(shown.clips).cpu())
                if not parts[spec][-1].isfinite().all():
                    raise ValueError(f"{network.name} gives features of {row.name} that are not finite.")
        for name in measures:
            values[name].append(torch.cat(parts[name]))
        for spec in features:
            features[spec].append(torch.cat(parts[spec]).double().numpy())
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
    distances = frechet_distances(measured)
    return {
        "set": asked.set_name,
        "dataset": asked.dataset,
        "skipped": asked.skipped,
        "procedural": asked.procedural,
        "task": asked.task.name,
        "known_frames": asked.known,
        "clips": [asdict(clip) for clip in asked.clips],
        "rows": [{"name": row.name, "kind": row.kind, "form": row.form.name, "seeds": row.seeds} for row in rows],
        "figures": [*frechet_figures(distances, networks, len(asked.clips)), *mean_figures(measured)],
        "tests": [*frechet_tests(distances, len(asked.clips)), *paired_tests(measured)],
        "values": {
            row.name: {name: to_lists(values) for name, values in found.values.items()}
            for row, found in measured.items()
        },
    }


def to_lists(values: np.ndarray) -> list[list[float | None]]:
    """(clips, seeds) for JSON, which knows no NaN."""
    return [[None if math.isnan(value) else value for value in tries] for tries in values.tolist()]


def frechet_distances(measured: dict[Row, Measured]) -> dict[Row, dict[str, np.ndarray]]:
    """By row and network, the Frechet distances of one half of the clips from the other half of the real ones.

    All rows have the same splits, see `split_distances`. A distance depends on the number of clips, so tries are not
    put together.

    Returns:
        (tries, splits) each.
    """
    real = {row.form: found.features for row, found in measured.items() if row.kind == "real"}
    distances: dict[Row, dict[str, np.ndarray]] = {}
    for row, found in measured.items():
        truths = {spec: tries[0] for spec, tries in real[row.form].items() if len(tries[0]) >= FRECHET_CLIPS}
        distances[row] = {
            spec: np.stack([split_distances(features, truth) for features in found.features[spec]])
            for spec, truth in truths.items()
        }
    return distances


def frechet_figures(
    distances: dict[Row, dict[str, np.ndarray]], networks: Networks, n: int
) -> Iterator[dict[str, Any]]:
    """The means of `frechet_distances` over splits; that of the real clips is what real clips reach."""
    for row, found in distances.items():
        for spec, draws in found.items():
            network = networks.features[spec]
            about = {"measure": f"frechet/{spec}", "title": f"Frechet, {network.name}", "unit": "features squared"}
            about |= {"goal": "lower", "padding": network.padding}
            yield figure(row, split_estimate(draws.mean(axis=0), n), draws.mean(axis=1), **about)


def frechet_tests(distances: dict[Row, dict[str, np.ndarray]], n: int) -> Iterator[dict[str, Any]]:
    """Each model against each reference and each other model of its form, split by split."""
    for row, other in pairs_to_test(distances) if n >= TESTED_CLIPS else ():
        for spec in distances[row] if row.form == other.form else ():
            draws, others = (distances[one][spec].mean(axis=0) for one in (row, other))
            difference = split_difference(draws, others, n)
            yield {"row": row.name, "against": other.name, "measure": f"frechet/{spec}", **asdict(difference)}


def mean_figures(measured: dict[Row, Measured]) -> Iterator[dict[str, Any]]:
    """Means over clips."""
    for row, found in measured.items():
        for name, measure in found.measures.items():
            usable = found.values[name][~np.isnan(found.values[name]).any(axis=1)]
            if len(usable) > 1:
                about = {"measure": name, "title": measure.title, "unit": measure.unit, "goal": measure.goal}
                yield figure(row, bootstrap_mean(usable), usable.mean(axis=0), **about, padding=None)


def figure(row: Row, estimate: Estimate, by_seed: np.ndarray, **about: str | None) -> dict[str, Any]:
    """An entry of results.json; `by_seed` (tries,) is the figure of each try."""
    return {"row": row.name, **about, **asdict(estimate), "seeds": row.seeds, "by_seed": by_seed.tolist()}


def pairs_to_test(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Each model with each reference and, once, with each other model."""
    rows = list(rows)
    models = [row for row in rows if row.kind == "model"]
    pairs = [(row, other) for row in models for other in rows if other.kind == "reference"]
    return pairs + list(combinations(models, 2))


def paired_tests(measured: dict[Row, Measured]) -> Iterator[dict[str, Any]]:
    """`pairs_to_test` clip by clip, in every measure that has a better and a worse, where at least 10 clips have it.

    What is compared is how much worse a clip is, so a difference below 0 speaks for `row`.
    """
    for row, other in pairs_to_test(measured):
        for name, measure in measured[row].measures.items():
            alike = all(getattr(row.form, part) == getattr(other.form, part) for part in measure.alike)
            still = measure.of_motion and other.is_still
            if measure.goal == "real" or still or not alike or name not in measured[other].measures:
                continue
            sign = -1 if measure.goal == "higher" else 1
            worse, others = (sign * measured[one].values[name].mean(axis=1) for one in (row, other))
            usable = ~np.isnan(worse + others)
            if usable.sum() >= TESTED_CLIPS:
                difference = paired_difference(worse[usable], others[usable])
                yield {"row": row.name, "against": other.name, "measure": name, **asdict(difference)}
