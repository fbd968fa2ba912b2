# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which sampler and settings suit a checkpoint: distance to true clips, amount of motion and time, in one table.

    python examples/benchmarks/sampling.py --data stickers/static/validation --count 24
    python examples/benchmarks/sampling.py --data stickers/static/validation --settings 12,2,2,1,0.5 unipc:8,2,2,0

Still pictures that the model has not seen are set in motion by code, with words that say how. The model gets the
first frame and the words; its other frames are held against the true ones (premultiplied RGBA in [0, 1]). `error` is
the mean squared distance, `motion` the mean absolute change from frame to frame as a multiple of the true clips'.
`FVD` is the package's own sticker-FVD of half of the clips from the true ones of the other half, `CLIP` its
sticker-CLIP of clips and words, and `asked` the share of clips in which its classifier sees the motion that the words
ask for, of those with one motion: in-domain proxies, as in evaluate.py. The first row repeats the first frame, the
second are the true clips. Settings are steps, text scale, image scale, eta and, if they are not to count in all steps,
the share of the steps in which the scales do, behind the name of a sampler if it is not to be the checkpoint's own; of
these only ddim knows eta. All see the same clips and noise. The error favours blurred averages over sharp frames that
are a little off, so look at the stickers, too (`--sheet`).
"""

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from PIL import Image

from rdtf_diffusers import StickerGenerationPipeline, demo_checkpoint
from rdtf_diffusers.data.animation import over_white
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.metrics.frechet import split_distances
from rdtf_diffusers.metrics.similarity import StickerTextSimilarity
from rdtf_diffusers.metrics.sticker_encoder import StickerEncoder


SETTINGS = ("12,2,1,1", "12,2,2,1", "12,2,2,0", "12,4,1,1", "12,4,1,1,0.5", "8,4,1,1,0.5", "20,4,1,1")


SAMPLERS = {
    "ddim": diffusers.DDIMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
}
BATCH = 8  # clips that are drawn together
FRECHET_CLIPS = 4  # that a distance needs at least


def parse_settings(text: str) -> dict[str, float | str]:
    """`"12,2,2,1"` or `"unipc:12,2,2,0,0.5"` as a sampler, "" for the checkpoint's own, and a call's arguments."""
    sampler, _, numbers = text.rpartition(":")
    if sampler and sampler not in SAMPLERS:
        raise ValueError(f"no sampler {sampler!r}")
    steps, guidance, image_guidance, eta, *stop = numbers.split(",")
    (stop,) = map(float, stop or ["1"])
    if int(steps) < 1 or not (0 <= float(eta) <= 1 and 0 <= stop <= 1) or (float(eta) and sampler not in ("", "ddim")):
        raise ValueError(f"no such settings: {text}")
    return {
        "sampler": sampler,
        "num_inference_steps": int(steps),
        "guidance_scale": float(guidance),
        "image_guidance_scale": float(image_guidance),
        "eta": float(eta),
        "guidance_stop": stop,
    }


def straight(picture: torch.Tensor) -> torch.Tensor:
    """Premultiplied RGBA (4, H, W) -> straight alpha; RGB stays."""
    colour, alpha = picture[:3], picture[3:]
    if not len(alpha):
        return colour
    return torch.cat([torch.where(alpha > 0, colour / alpha.clamp(min=1e-3), 0).clamp(0, 1), alpha])


def motion(clips: torch.Tensor) -> float:
    return clips.diff(dim=1).abs().mean().item()


def premultiplied(clips: torch.Tensor) -> torch.Tensor:
    """Straight clips (N, F, C, H, W) in [0, 1] -> premultiplied; RGB stays."""
    if clips.shape[2] == 3:
        return clips
    return torch.cat([clips[:, :, :3] * clips[:, :, 3:], clips[:, :, 3:]], dim=2)


def draw(pipe: StickerGenerationPipeline, truth: torch.Tensor, captions: list[str], settings: dict) -> torch.Tensor:
    """What the model makes of first frames and captions, premultiplied (N, F, C, H, W) in [0, 1]."""
    drawn = []
    for start in range(0, len(truth), BATCH):
        part = range(start, min(start + BATCH, len(truth)))
        clips = pipe(
            [captions[number] for number in part],
            image=[straight(truth[number, 0]) for number in part],
            generator=[torch.Generator().manual_seed(number) for number in part],
            output_type="pt",
            **settings,
        ).frames
        drawn.append(premultiplied(clips.float()))
    return torch.cat(drawn)


@dataclass(frozen=True)
class Moved:
    """Pictures set in motion: (N, F, C, H, W) premultiplied in [0, 1], captions, and the names of their motions."""

    clips: torch.Tensor
    captions: list[str]
    motions: list[list[str]]


def asked_share(clips: torch.Tensor, motions: list[list[str]], encoder: StickerEncoder) -> float | None:
    """Of the clips (N, F, C, H, W) in [-1, 1] with one motion, the share in which it is seen; None without any."""
    answers = encoder.classify_motion(clips).argmax(dim=1).tolist()
    seen = [encoder.motions[answer] == asked[0] for answer, asked in zip(answers, motions) if len(asked) == 1]
    return sum(seen) / len(seen) if seen else None


def compare(clips: torch.Tensor, moved: Moved, similarity: StickerTextSimilarity) -> dict[str, float | None]:
    """The figures of clips beside the true ones, both (N, F, C, H, W) premultiplied in [0, 1]."""
    truth = moved.clips
    ours, real = (similarity.encoder.clip_features(x * 2 - 1).double().numpy() for x in (clips, truth))
    return {
        "error": (clips[:, 1:] - truth[:, 1:]).square().mean().item(),
        "motion": motion(clips) / motion(truth),
        "fvd": split_distances(ours, real).mean() if len(clips) >= FRECHET_CLIPS else None,
        "clip": similarity(clips * 2 - 1, moved.captions).mean().item(),
        "asked": asked_share(clips * 2 - 1, moved.motions, similarity.encoder),
    }


def print_row(name: str, row: dict[str, float]) -> None:
    print(f"{name:<40}{row['error']:>9.4f}{row['motion']:>8.2f}", end="")
    fvd, asked = (
        "-" if row[key] is None else format(row[key], spec) for key, spec in (("fvd", ".1f"), ("asked", ".0%"))
    )
    print(f"{fvd:>8}{row['clip']:>7.3f}{asked:>7}", end="")
    print(f"{row['seconds_per_clip']:>8.2f}" if "seconds_per_clip" in row else "", flush=True)


def save_sheet(path: Path, clips: list[torch.Tensor]) -> None:
    """Clips (F, C, S, S) premultiplied in [0, 1] as rows of a PNG over white, frames from left to right."""
    shown = [over_white(clip * 2 - 1).add(1).div(2) if clip.shape[1] == 4 else clip for clip in clips]
    sheet = torch.cat([torch.cat(list(clip), dim=2) for clip in shown], dim=1)  # (3, N*S, F*S)
    Image.fromarray(sheet.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()).save(path)


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="pipeline folder or Hub id; default: the bundled model")
    parser.add_argument("--data", required=True, help="folder of pictures with metadata.jsonl")
    parser.add_argument("--count", type=int, default=24, help="clips")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, motions and captions")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="[SAMPLER:]STEPS,TEXT,IMAGE,ETA[,STOP]")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="also draw true clips and those of the last settings"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(args)
    try:
        options.settings = [parse_settings(text) for text in options.settings]
    except ValueError:
        parser.error(
            f"--settings must look like 12,2,2,1 or 12,2,2,1,0.5, perhaps behind a sampler ({', '.join(SAMPLERS)}) "
            f"and a colon, with eta 0 but for ddim, got {' '.join(options.settings)}"
        )
    return options


def true_clips(pipe: StickerGenerationPipeline, data: str, count: int, seed: int) -> Moved:
    """Pictures of a folder, set in motion in the size of the model; animations are left out.

    Raises:
        ValueError: the folder has no still picture.
    """
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    frames, channels = pipe.unet.config.num_frames, pipe.vae.config.in_channels
    maker = ClipMaker(frames, size, channels, procedural_fraction=1.0, min_keyframes=1, max_keyframes=frames)
    clips = StickerClips([data], maker, seed=seed)
    samples = []
    for number in itertools.count():
        sample = clips[number]
        if "motions" in sample:
            samples.append(sample)
        if len(samples) == count:
            break
        if number >= len(clips) and not samples:
            raise ValueError(f"{data}: no still picture to set in motion")
    return Moved(
        torch.stack([sample["clip"] for sample in samples]).add(1).div(2),
        [sample["caption"] for sample in samples],
        [sample["motions"] for sample in samples],
    )


def main(args: list[str] | None = None) -> int:
    """Prints the table; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    options = parse_args(args)
    try:
        measure(options)
    except (OSError, ValueError) as error:
        print(f"sampling.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(options: argparse.Namespace) -> None:
    """Prints and writes the figures of all settings."""
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    pipe = StickerGenerationPipeline.from_pretrained(options.model or demo_checkpoint(), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    moved = true_clips(pipe, options.data, options.count, options.seed)
    truth, similarity, own = moved.clips, StickerTextSimilarity(), pipe.scheduler

    print(
        f"{options.count} clips of {truth.shape[-1]} pixels from {options.data}, seed {options.seed}, "
        f"{options.dtype}, torch {torch.__version__}"
    )
    print(
        f"{'sampler':<9}{'steps':>7}{'text':>6}{'image':>7}{'eta':>5}{'stop':>6}{'error':>9}{'motion':>8}{'FVD':>8}{'CLIP':>7}"
        f"{'asked':>7}{'s/clip':>8}"
    )
    references = {"first frame repeated": truth[:, :1].expand_as(truth), "true clips": truth}
    rows = [{"name": name, **compare(clips, moved, similarity)} for name, clips in references.items()]
    for row in rows:
        print_row(row["name"], row)
    for setting in options.settings:
        sampler = setting["sampler"]
        pipe.scheduler = SAMPLERS[sampler].from_config(own.config) if sampler else own
        settings = {key: value for key, value in setting.items() if key != "sampler"}
        start = time.perf_counter()
        drawn = draw(pipe, truth, moved.captions, settings)
        seconds = (time.perf_counter() - start) / len(truth)
        rows.append(row := {**setting, **compare(drawn, moved, similarity), "seconds_per_clip": seconds})
        steps, text, image, eta, stop = settings.values()
        print_row(f"{sampler or 'own':<9}{steps:>7}{text:>6g}{image:>7g}{eta:>5g}{stop:>6g}", row)
    if options.sheet is not None:
        save_sheet(options.sheet, [clip for pair in zip(truth, drawn) for clip in pair])
    if options.json is not None:
        options.json.write_text(json.dumps({"dtype": options.dtype, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
