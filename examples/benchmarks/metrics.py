# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Do the measures answer to damage? Real clips are damaged more and more, and every measure is taken each time.

    python examples/benchmarks/metrics.py --data stickers/animated/validation stickers/static/validation \
        --plot damage.png

Pictures of the data are set in motion by code. Half of the clips stay whole and are what the others are compared with
by the Frechet distance and the sharpness; each of the other half is damaged with a strength from 0 to 1:

    blur       Gaussian, sigma up to 3 pixels
    noise      fresh Gaussian noise in every frame, deviation up to 0.3 of black to white
    shuffle    up to all frames change places
    freeze     the last frames, up to all but the first, stand still
    wrong clip another clip of the half stands in, for up to all clips; captions stay

Printed is each measure at each strength, and, for a measure that ought to see a damage, the rank correlation
(Spearman) of the two. What the sticker encoder knows comes first: retrieval of captions, and motions that it names
rightly.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.metrics.clip_measures import flicker, loop_seam, motion_log_ratio
from rdtf_diffusers.metrics.features import extract_features, load_feature_network
from rdtf_diffusers.metrics.frechet import frechet_distance
from rdtf_diffusers.metrics.retrieval import equal_texts, retrieval_accuracy
from rdtf_diffusers.metrics.similarity import load_text_similarity
from rdtf_diffusers.metrics.sticker_encoder import StickerEncoder, load_sticker_encoder
from rdtf_diffusers.metrics.video_quality import Blockiness, Sharpness


STRENGTHS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="folders with metadata.jsonl, or Hub ids")
    parser.add_argument("--count", type=int, default=500, help="clips, half of them to compare with")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--encoder", default=None, help="folder of a sticker encoder; default: the bundled one")
    parser.add_argument("--seed", type=int, default=0, help="of clips, captions and damage")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the curves")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser.parse_args(args)


def blur(clips: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    sigma = 3 * strength
    if not sigma:
        return clips
    places = torch.arange(-9.0, 10.0)
    kernel = (-(places**2) / (2 * sigma**2)).exp()
    kernel /= kernel.sum()
    frames = F.pad(clips.flatten(0, 2)[:, None], (9, 9, 9, 9), value=-1)  # (B*F*C, 1, H + 18, W + 18)
    return F.conv2d(F.conv2d(frames, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(clips)


def noise(clips: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    noisy = (clips + 0.6 * strength * torch.randn(clips.shape, generator=generator)).clamp(-1, 1)
    return torch.minimum(noisy, noisy[:, :, 3:])  # colours stay below alpha, as in any premultiplied picture


def shuffle(clips: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    clips, moved = clips.clone(), round(strength * clips.shape[1])
    for clip in clips:
        places = torch.randperm(clips.shape[1], generator=generator)[:moved]
        clip[places] = clip[places.roll(1)].clone()
    return clips


def freeze(clips: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    last = round((1 - strength) * (clips.shape[1] - 1))
    return clips[:, [min(frame, last) for frame in range(clips.shape[1])]]


def wrong_clip(clips: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    places = torch.randperm(len(clips), generator=generator)[: round(strength * len(clips))]
    clips = clips.clone()
    clips[places] = clips[places.roll(1)]
    return clips


Damage = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]
DAMAGES: dict[str, Damage] = {
    "blur": blur,
    "noise": noise,
    "shuffle": shuffle,
    "freeze": freeze,
    "wrong clip": wrong_clip,
}
# Which damage a measure ought to see, and in which direction it goes then. What is not named here may stay as it is:
# a wrong clip is as sharp as the right one.
EXPECTED: dict[str, dict[str, int]] = {
    "sticker-FVD": {"blur": 1, "noise": 1, "shuffle": 1, "freeze": 1},
    "sticker-CLIP": {"blur": -1, "noise": -1, "shuffle": -1, "freeze": -1, "wrong clip": -1},
    "motion named": {"blur": -1, "noise": -1, "shuffle": -1, "freeze": -1, "wrong clip": -1},
    "motion log ratio": {"freeze": 1, "wrong clip": 1},
    "flicker": {"noise": 1, "shuffle": 1},
    "sharpness": {"blur": -1, "noise": -1},
    "blockiness": {},
    "loop seam": {},
}


class Measures:
    """All measures against the whole half of the clips."""

    def __init__(self, encoder: StickerEncoder, folder: str | None, whole: torch.Tensor):
        spec = "sticker" if folder is None else f"sticker:{folder}"
        self.encoder = encoder
        self.network, self.similarity = load_feature_network(spec), load_text_similarity(spec)
        self.references = extract_features(self.network, whole)
        self.sharpness, self.blockiness = Sharpness(whole), Blockiness()

    def __call__(
        self, clips: torch.Tensor, truth: torch.Tensor, captions: Sequence[str], motions: Sequence[str | None]
    ) -> dict[str, float]:
        """Means over the clips; "motion named" only where motions are known."""
        values = {
            "sticker-FVD": frechet_distance(extract_features(self.network, clips), self.references),
            "sticker-CLIP": self.similarity(clips, captions).mean().item(),
            "motion log ratio": motion_log_ratio(clips, truth).mean().item(),
            "flicker": flicker(clips).mean().item(),
            "sharpness": self.sharpness(clips).mean().item(),
            "blockiness": self.blockiness(clips).mean().item(),
            "loop seam": loop_seam(clips).median().item(),
        }
        if any(motions):
            values["motion named"] = named_share(self.encoder, clips, motions)
        return values


def named_share(encoder: StickerEncoder, clips: torch.Tensor, motions: Sequence[str | None]) -> float:
    """The share of the clips with one known motion that the encoder names rightly."""
    known = [number for number, motion in enumerate(motions) if motion is not None]
    guesses = encoder.classify_motion(clips[known]).argmax(dim=1).tolist()
    return float(np.mean([encoder.motions[guess] == motions[number] for guess, number in zip(guesses, known)]))


def describe_encoder(
    encoder: StickerEncoder, clips: torch.Tensor, captions: Sequence[str], motions: Sequence[str | None]
) -> dict[str, Any]:
    """What the encoder knows of whole clips: retrieval both ways, motions, and which motions it mixes up."""
    similarities, same = encoder.encode_clips(clips) @ encoder.encode_texts(captions).T, equal_texts(captions)
    known = [number for number, motion in enumerate(motions) if motion is not None]
    knowledge = {
        "clips": len(clips),
        "clip to caption, top 1": retrieval_accuracy(similarities, 1, same).float().mean().item(),
        "clip to caption, top 10": retrieval_accuracy(similarities, 10, same).float().mean().item(),
        "caption to clip, top 10": retrieval_accuracy(similarities.T, 10, same).float().mean().item(),
        "clips with one motion": len(known),
    }
    if not known:
        return knowledge
    guesses = [encoder.motions[guess] for guess in encoder.classify_motion(clips[known]).argmax(dim=1)]
    mixed = Counter((motions[number], guess) for number, guess in zip(known, guesses) if motions[number] != guess)
    return knowledge | {
        "motion named": 1 - sum(mixed.values()) / len(known),
        "mixed up most": [f"{true} as {guess} ({count})" for (true, guess), count in mixed.most_common(5)],
    }


def plot(rows: list[dict[str, Any]], expectations: dict[str, dict[str, int]], path: Path) -> None:
    """One panel a measure, one line a damage; what a measure ought to see is drawn solid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(2, 4)
    for axes, (measure, expected) in zip(panels.flat, expectations.items()):
        for damage in DAMAGES:
            line = [row for row in rows if row["damage"] == damage]
            style = "-o" if damage in expected else ":"
            axes.plot([row["strength"] for row in line], [row[measure] for row in line], style, label=damage, ms=3)
        axes.set_title(measure)
        axes.set_xlabel("strength")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False)
    figure.savefig(path)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    encoder = load_sticker_encoder(options.encoder)
    maker = ClipMaker(8, options.size, 4, 1.0, min_keyframes=8, max_keyframes=8, keyframes="uniform")
    stream = StickerClips(options.data, maker, seed=options.seed)
    if not 10 <= options.count <= len(stream):  # with more, a sticker would be compared with itself
        raise SystemExit(f"--count must be from 10 to {len(stream)}, all stickers of --data, got {options.count}")
    samples = [stream[number] for number in range(options.count)]
    clips = torch.stack([sample["clip"] for sample in samples])
    captions = [sample["caption"] for sample in samples]
    named = [sample.get("motions", ()) for sample in samples]
    motions = [names[0] if len(names) == 1 else None for names in named]
    knowledge = describe_encoder(encoder, clips, captions, motions)
    for name, value in knowledge.items():
        print(f"{name:<26}{value:.3f}" if isinstance(value, float) else f"{name:<26}{value}")

    half = len(clips) // 2
    measures = Measures(encoder, options.encoder, clips[half:])
    print(
        f"\n{half} clips of {options.size} pixels, damaged; {len(clips) - half} to compare with; seed {options.seed}"
    )
    expectations = {name: seen for name, seen in EXPECTED.items() if name != "motion named" or any(motions[:half])}
    print(f"{'damage':<12}{'strength':>9}" + "".join(f"{name:>18}" for name in expectations))
    rows: list[dict[str, Any]] = []
    for damage, apply in DAMAGES.items():
        for strength in STRENGTHS:
            damaged = apply(clips[:half], strength, torch.Generator().manual_seed(options.seed))
            values = measures(damaged, clips[:half], captions[:half], motions[:half])
            rows.append({"damage": damage, "strength": strength, **values})
            figures = "".join(f"{values[name]:>18.4g}" for name in expectations)
            print(f"{damage:<12}{strength:>9.3f}{figures}", flush=True)
    print("\nrank correlation with strength, where it ought to be +1 or -1")
    correlations = {}
    for measure, expected in expectations.items():
        for damage, direction in expected.items():
            line = [row[measure] for row in rows if row["damage"] == damage]
            correlation = float(spearmanr(STRENGTHS, line).statistic) if len(set(line)) > 1 else 0.0
            correlations[f"{measure}, {damage}"] = correlation
            print(f"{measure:<20}{damage:<12}{correlation:>6.2f}  ({direction:+d})")
    if options.plot is not None:
        plot(rows, expectations, options.plot)
    if options.json is not None:
        figures = {"encoder": knowledge, "rows": rows, "correlations": correlations}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
