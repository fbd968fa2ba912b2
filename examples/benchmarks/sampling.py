# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which sampling settings suit a checkpoint: distance to true clips, amount of motion and time, in one table.

    python examples/benchmarks/sampling.py --data stickers/static/validation --count 24
    python examples/benchmarks/sampling.py --data stickers/static/validation --settings 12,2,2,1 20,3,2,0

Still pictures that the model has not seen are set in motion by code, with words that say how. The model gets the
first frame and the words; its other frames are held against the true ones (premultiplied RGBA in [0, 1]). `error` is
the mean squared distance, `motion` the mean absolute change from frame to frame as a multiple of the true clips'. The
first row repeats the first frame. Settings are steps, text scale, image scale and eta; all see the same clips
and noise. The error favours blurred averages over sharp frames that are a little off, so look at the stickers, too.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from rdtf_diffusers import StickerGenerationPipeline, demo_checkpoint
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips


SETTINGS = ("12,1,1,1", "12,2,1,1", "12,2,2,1", "12,2,2,0", "12,3,2,1", "20,2,2,1", "20,3,2,1")


def parse_settings(text: str) -> dict[str, float]:
    """`"12,2,2,1"` as arguments of the pipeline."""
    steps, guidance, image_guidance, eta = text.split(",")
    return {
        "num_inference_steps": int(steps),
        "guidance_scale": float(guidance),
        "image_guidance_scale": float(image_guidance),
        "eta": float(eta),
    }


def straight(picture: torch.Tensor) -> torch.Tensor:
    """Premultiplied RGBA (4, H, W) -> straight alpha; RGB stays."""
    colour, alpha = picture[:3], picture[3:]
    if not len(alpha):
        return colour
    return torch.cat([torch.where(alpha > 0, colour / alpha.clamp(min=1e-3), 0).clamp(0, 1), alpha])


def motion(clips: torch.Tensor) -> float:
    return clips.diff(dim=1).abs().mean().item()


def measure(pipe: StickerGenerationPipeline, truth: torch.Tensor, captions: list[str], settings: dict) -> dict:
    """One row of the table; `truth` is (N, F, C, H, W), premultiplied in [0, 1]."""
    start = time.perf_counter()
    drawn = pipe(
        captions,
        image=[straight(clip[0]) for clip in truth],
        generator=[torch.Generator().manual_seed(number) for number in range(len(truth))],
        output_type="pt",
        **settings,
    ).frames.float()
    seconds = (time.perf_counter() - start) / len(truth)
    if drawn.shape[2] == 4:
        drawn = torch.cat([drawn[:, :, :3] * drawn[:, :, 3:], drawn[:, :, 3:]], dim=2)
    error = (drawn[:, 1:] - truth[:, 1:]).square().mean().item()
    return {**settings, "error": error, "motion": motion(drawn) / motion(truth), "seconds_per_clip": seconds}


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="pipeline folder or Hub id; default: the bundled model")
    parser.add_argument("--data", required=True, help="folder of pictures with metadata.jsonl")
    parser.add_argument("--count", type=int, default=24, help="clips")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, motions and captions")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="STEPS,TEXT,IMAGE,ETA")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(args)
    try:
        options.settings = [parse_settings(text) for text in options.settings]
    except ValueError:
        parser.error(f"--settings must look like 12,2,2,1, got {' '.join(options.settings)}")
    return options


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    torch.set_num_threads(options.threads)
    pipe = StickerGenerationPipeline.from_pretrained(options.model or demo_checkpoint(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    frames, channels = pipe.unet.config.num_frames, pipe.vae.config.in_channels
    maker = ClipMaker(frames, size, channels, procedural_fraction=1.0, min_keyframes=1, max_keyframes=frames)
    clips = StickerClips([options.data], maker, seed=options.seed)
    samples = [clips[number] for number in range(options.count)]
    truth = torch.stack([sample["clip"] for sample in samples]).add(1).div(2)
    captions = [sample["caption"] for sample in samples]

    still = (truth[:, :1] - truth[:, 1:]).square().mean().item()
    print(
        f"{options.count} clips of {size} pixels from {options.data}, seed {options.seed}, torch {torch.__version__}"
    )
    print(f"{'steps':>6}{'text':>6}{'image':>6}{'eta':>5}{'error':>9}{'motion':>8}{'s/clip':>8}")
    print(f"{'first frame repeated':<23}{still:>9.4f}{0:>8.2f}")
    rows = []
    for setting in options.settings:
        rows.append(row := measure(pipe, truth, captions, setting))
        steps, text, image, eta, error, moved, seconds = row.values()
        print(f"{steps:>6}{text:>6g}{image:>6g}{eta:>5g}{error:>9.4f}{moved:>8.2f}{seconds:>8.2f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"still_error": still, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
