# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""At which noise levels a model listens to its words: its error with a clip's own caption and with another's.

    python examples/benchmarks/noise_levels.py --data stickers/static/validation --count 96

Still pictures that the model has not seen are set in motion by code, with words that say how, and hidden in noise.
The network predicts from the noisy clip, the first frame and the words; the error is the mean squared one of what it
is trained to predict, over the other frames (with `--task t2v` no frame is given, and all count). Where wrong words do
no harm, the noisy frames show already what moves how, and training there teaches nothing about words. `share` is the
part of the harm, summed over the levels of the table, that is at this level or above: what `--timestep_bias_begin` of
train_rdtf.py would catch.
"""

import argparse
import sys

import torch
from sampling import true_clips

from rdtf_diffusers import StickerGenerationPipeline, demo_checkpoint
from rdtf_diffusers.training import mask_condition_latents


BATCH = 16  # clips at a time


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
    """Mean squared errors of the hidden frames at a noise level, with the right captions and with others."""
    latents = data["latents"]  # (N, C, F, h, w)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    every_frame = torch.ones(len(latents), latents.shape[2], dtype=torch.bool)
    known = torch.zeros_like(every_frame)
    known[:, 0] = task == "it2v"
    steps = torch.full((len(latents),), level)
    inputs = {
        "sample": pipe.scheduler.add_noise(latents, noise, steps),
        "condition_latents": mask_condition_latents(latents, known, every_frame),
    }
    is_velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    target = pipe.scheduler.get_velocity(latents, noise, steps) if is_velocity else noise
    means = []
    for shift in (0, 1):  # another caption: that of the next clip
        words = {name: text.roll(shift, 0) for name, text in data["text"].items()}
        parts = {name: tensor.split(BATCH) for name, tensor in (inputs | words).items()}
        drawn = [
            pipe.unet(timestep=level, **{name: part[number] for name, part in parts.items()}).sample
            for number in range(len(parts["sample"]))
        ]
        hidden = (torch.cat(drawn) - target).transpose(1, 2)[~known]
        means.append(hidden.square().mean().item())
    return means[0], means[1]


def measure(options: argparse.Namespace) -> None:
    """Prints the table.

    Raises:
        ValueError: the model has no such noise level, or predicts something else than noise or velocity.
    """
    pipe = StickerGenerationPipeline.from_pretrained(options.model or demo_checkpoint())
    schedule = pipe.scheduler.config
    if not all(0 <= level < schedule.num_train_timesteps for level in options.levels):
        raise ValueError(f"noise levels of this model are 0 to {schedule.num_train_timesteps - 1}")
    if schedule.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"a model that predicts {schedule.prediction_type!r} cannot be measured")
    moved = true_clips(pipe, options.data, options.count, options.seed)
    clips = (moved.clips * 2 - 1).transpose(1, 2)  # (N, C, F, H, W)
    every_frame = torch.ones(1, clips.shape[2], dtype=torch.bool)
    latents = [pipe.encode_known_frames(clip[None], every_frame) for clip in clips]
    text, _, text_2, _ = pipe.encode_prompt(moved.captions)
    streams = {"encoder_hidden_states": text, "encoder_hidden_states_2": text_2}
    data = {
        "latents": torch.cat(latents),
        "text": {name: stream for name, stream in streams.items() if stream is not None},
    }
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
