# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""At which noise levels a model listens to its words: its error with a clip's own caption and with another's.

    python examples/benchmarks/noise_levels.py --data stickers/static/validation --count 96

Still pictures that the model has not seen are set in motion by code, with words that say how, and hidden in noise.
The network predicts from the noisy clip, the first frame and the words; the error is the mean squared one of what it
is trained to predict, over the other frames. Where wrong words do no harm, the noisy frames show already what moves
how, and training there teaches nothing about words. `share` is the part of the harm, summed over the levels of the
table, that is at this level or above: what `--timestep_bias_begin` of train_rdtf.py would catch.
"""

import argparse
import sys

import torch
from sampling import true_clips

from rdtf_diffusers import StickerGenerationPipeline, demo_checkpoint
from rdtf_diffusers.training import draw_condition_mask, mask_condition_latents


BATCH = 16  # clips at a time
SHIFT = 5  # the wrong caption is that of the clip so many places further


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="pipeline folder or Hub id; default: the bundled model")
    parser.add_argument("--data", required=True, help="folder of pictures with metadata.jsonl")
    parser.add_argument("--count", type=int, default=96, help="clips")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, motions, captions and noise")
    parser.add_argument("--levels", type=int, nargs="+", default=[*range(99, 1000, 100)], help="noise levels")
    parser.add_argument("--task", default="it2v", choices=["it2v", "t2v"], help="what the network is given")
    options = parser.parse_args(args)
    if options.count < 2:
        parser.error(f"--count must be at least 2, got {options.count}")
    return options


@torch.no_grad()
def errors(pipe: StickerGenerationPipeline, data: dict, task: str, level: int, seed: int) -> tuple[float, float]:
    """Mean squared errors at a noise level with the right captions and with others."""
    latents, words = data["latents"], data["words"]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(latents.shape, generator=generator)
    every_frame = torch.ones(len(latents), latents.shape[2], dtype=torch.bool)
    known = torch.stack([draw_condition_mask(task, frames, generator) for frames in every_frame])
    condition = mask_condition_latents(latents, known, every_frame)
    steps = torch.full((len(latents),), level)
    noisy = pipe.scheduler.add_noise(latents, noise, steps)
    is_velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    target = pipe.scheduler.get_velocity(latents, noise, steps) if is_velocity else noise
    means = []
    for text in (words, words.roll(SHIFT, 0)):
        parts = [part.split(BATCH) for part in (noisy, text, condition)]
        drawn = [
            pipe.unet(some, level, encoder_hidden_states=said, condition_latents=given).sample
            for some, said, given in zip(*parts)
        ]
        means.append((torch.cat(drawn) - target)[:, :, 1:].square().mean().item())
    return means[0], means[1]


def measure(options: argparse.Namespace) -> None:
    """Prints the table."""
    pipe = StickerGenerationPipeline.from_pretrained(options.model or demo_checkpoint())
    moved = true_clips(pipe, options.data, options.count, options.seed)
    clips = (moved.clips * 2 - 1).transpose(1, 2)  # (N, C, F, H, W)
    every_frame = torch.ones(1, clips.shape[2], dtype=torch.bool)
    latents = [pipe.encode_known_frames(clip[None], every_frame) for clip in clips]
    data = {"latents": torch.cat(latents), "words": pipe.encode_prompt(moved.captions)[0]}
    levels = sorted(options.levels, reverse=True)
    rows = [errors(pipe, data, options.task, level, options.seed) for level in levels]
    harm = torch.tensor([other - right for right, other in rows])
    print(f"{options.count} clips, {options.task}, seed {options.seed}")
    print(f"{'level':>6}{'signal/noise':>14}{'own words':>11}{'others':>9}{'harm':>9}{'share':>7}")
    for number, (level, (right, other)) in enumerate(zip(levels, rows)):
        signal = pipe.scheduler.alphas_cumprod[level].item()
        share = harm[: number + 1].sum() / harm.sum()
        print(f"{level:>6}{signal / (1 - signal):>14.4f}{right:>11.4f}{other:>9.4f}{other - right:>9.4f}{share:>7.0%}")


def main(args: list[str] | None = None) -> int:
    """Prints the table; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    options = parse_args(args)
    try:
        measure(options)
    except (OSError, ValueError) as error:
        print(f"noise_levels.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
