"""Stickers that a training run draws on the way: one case per family of tasks, and how much they move.

cases = make_cases(prompts, animations, num_frames=8)
for case in cases:
    frames = draw(pipeline, case, seed=0, guidance_scale=3.0)
"""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.data.animation import Animation, evenly_timed
from rdtf_diffusers.data.quality import Filters, motion
from rdtf_diffusers.stickers.encode import encode


logger = logging.getLogger("train_rdtf")


@dataclass(frozen=True)
class ValidationCase:
    """One sticker to draw.

    Attributes:
        name: number of the prompt and family of tasks, such as "0-prediction".
        prompt: the words, or "".
        frames: F pictures, None where a frame is not given.
        truth: the F true pictures, where there are any.
    """

    name: str
    prompt: str
    frames: tuple[Image.Image | None, ...]
    truth: tuple[Image.Image, ...] = ()


def make_cases(prompts: Sequence[str], animations: Sequence[Animation], num_frames: int) -> list[ValidationCase]:
    """The cases of a run: every prompt as generation, animations as interpolation and prediction, too.

    Args:
        prompts: one per case.
        animations: one per prompt, or none at all; a still gives its prompt a first frame and nothing else.
        num_frames: F, frames of a clip.
    """
    cases = []
    for index, prompt in enumerate(prompts):
        if not animations:
            cases.append(ValidationCase(f"{index}-generation", prompt, (None,) * num_frames))
            continue
        animation = animations[index]
        pictures = [Image.fromarray(frame) for frame in animation.frames]
        clip = tuple(pictures[number] for number in evenly_timed(animation.durations, num_frames))
        known = {"generation": [0]}
        if len(pictures) > 1:
            known["interpolation"] = range(0, num_frames, 3)
            known["prediction"] = range((num_frames + 1) // 2)
        truth = clip if len(pictures) > 1 else ()
        for family, numbers in known.items():
            frames = tuple(frame if number in numbers else None for number, frame in enumerate(clip))
            cases.append(ValidationCase(f"{index}-{family}", prompt, frames, truth))
    return cases


def draw(pipeline: StickerGenerationPipeline, case: ValidationCase, seed: int, **settings: float) -> list[Image.Image]:
    """The sticker of a case; known frames are the ones given, resized."""
    known = any(frame is not None for frame in case.frames)
    clip = {"frames": list(case.frames)} if known else {"num_frames": len(case.frames)}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(case.prompt or None, generator=generator, **clip, **settings).frames[0]


def motion_scores(cases: Sequence[ValidationCase], stickers: Sequence[Sequence[Image.Image]]) -> dict[str, float]:
    """Mean motion of the frames that were not given, by family, and of the true ones; warns if all stand still.

    Static stickers are how video models fail most often, and the loss does not show it. The measure is
    `rdtf_diffusers.data.quality.motion`.
    """
    scores: dict[str, list[float]] = {}
    for case, sticker in zip(cases, stickers, strict=True):
        family = case.name.partition("-")[2]
        for name, frames in ((family, sticker), ("real", case.truth)):
            drawn = [np.asarray(f.convert("RGBA")) for f, known in zip(frames, case.frames) if known is None]
            if drawn:
                scores.setdefault(name, []).append(motion(np.stack(drawn)))
    drawn = [score for family, values in scores.items() if family != "real" for score in values]
    threshold = Filters().min_motion
    if drawn and max(drawn) < threshold:
        logger.warning(
            "The validation stickers stand still: their motion is %.4f at most, and below %g a sticker counts as "
            "static. More --procedural_fraction, other data or more steps may help.",
            max(drawn),
            threshold,
        )
    return {family: float(np.mean(values)) for family, values in scores.items()}


def log_animation(tracker: GeneralTracker, name: str, frames: list[Image.Image], step: int) -> None:
    """Shows a sticker, moving, in TensorBoard or wandb; on white, as both have dark and light pages."""
    white = [Image.alpha_composite(Image.new("RGBA", f.size, "white"), f.convert("RGBA")) for f in frames]
    gif = encode(white, "gif")
    if tracker.name == "tensorboard":
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = frames[0].size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary: Any = Summary(value=[Summary.Value(tag=name, image=image)])
        tracker.writer.file_writer.add_summary(summary, step)
    elif tracker.name == "wandb":
        import wandb

        tracker.log({name: wandb.Video(io.BytesIO(gif), format="gif")}, step=step)
