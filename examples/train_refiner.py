"""Train a KnownFrameRefiner for a pipeline: it puts what the known frames show back into the frames that were drawn.

    accelerate launch examples/train_refiner.py --pretrained_model_name_or_path my-model --mixed_precision bf16 \
        --train_data_dir stickers/static/train stickers/animated/train --output_dir refiner

Clips are those that the UNet learns from. Of each, some frames are known; the others are drawn as the pipeline
samples, with the settings that it comes with, and decoded. The refiner learns to undo what that smears. One known
frame leaves open how a clip goes on, so that there sampling begins with noisy latents of the truth
(`--min_strength`); between several known frames it begins with nothing but noise. Drawing takes most of the time, so
that for every batch that is drawn there are `--updates_per_batch` steps, the others on earlier batches, which lie in
the output folder. The interpolator between several known frames needs no drawing and sees other clips in every step,
which may be mirrored, run backwards or have their colours swapped.
"""

import argparse
import copy
import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from step_trainer import StepTrainer, add_run_arguments, positive_int, run_script
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from training_arguments import WEIGHTS, named_weights

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.checkpoints import ALL_SETTINGS, generation_settings, override_settings
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.data.latents import fingerprint
from rdtf_diffusers.data.rows import fingerprint_rows
from rdtf_diffusers.models.known_frame_refiner import CELL, KnownFrameRefiner, RefinedFrames, hidden_frames
from rdtf_diffusers.pipelines.pipeline_inputs import text_gate
from rdtf_diffusers.training import DualMaskCollator, mask_condition_latents
from rdtf_diffusers.utils.files import write_whole


TASK_SHARES = {"it2v": 0.45, "interpolation": 0.35, "pre_prediction": 0.1, "post_prediction": 0.1}
SMEARED = 1.25  # how much worse an error looks in drawn pixels than in those of known frames, which are crisp
TOLERANCE = 4  # pixels by which a warped frame may be beside the truth, along height and width
KEPT = 64  # batches that are kept
# How often a clip for the interpolator, which is told no words, is mirrored, runs backwards, has its colours swapped.
MIRRORED, BACKWARDS, SWAPPED = 0.5, 0.3, 0.5
DRAWING_ARGUMENTS = (
    "seed",
    "train_batch_size",
    "procedural_fraction",
    "motion_weights",
    "task_weights",
    "min_strength",
    "max_strength",
)  # which decide what is drawn, beside the pipeline and the data
# which frames are known, where a task leaves the choice: mostly those that people give
MASKS = {"first_frame_prob": 0.75, "interpolation_ends_prob": 0.3, "interpolation_gap_prob": 0.3}


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, output_dir="refiner", max_train_steps=2000)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="The pipeline to make a refiner for.")
    parser.add_argument("--refiner_model_name_or_path", help="A refiner to go on with, such as MODEL/refiner.")
    parser.add_argument("--train_batch_size", type=positive_int, default=8, help="Clips per process.")
    parser.add_argument("--procedural_fraction", type=float, default=0.95, help="Share of pictures set in motion.")
    parser.add_argument(
        "--task_weights", **WEIGHTS, metavar="TASK=X", help=f"Of drawings, on {', '.join(TASK_SHARES)}."
    )
    parser.add_argument("--motion_weights", **WEIGHTS, metavar="MOTION=X", help="Factors on chances of motions.")
    parser.add_argument("--trainable_modules", nargs="+", default=[], help="Of a given refiner; by default all.")
    parser.add_argument("--channels", type=positive_int, default=64, help="Width of a new refiner.")
    parser.add_argument("--num_layers", type=positive_int, default=2, help="Layers of a new one's transformer.")
    parser.add_argument("--interpolator_channels", type=positive_int, default=80, help="Width of its interpolator.")
    parser.add_argument("--num_inference_steps", type=positive_int, help="Default: what the pipeline comes with.")
    parser.add_argument(
        "--min_strength", type=float, default=0.6, help="Least share of the steps with one known frame; else all."
    )
    parser.add_argument("--max_strength", type=float, default=0.9, help="Largest share of them.")
    parser.add_argument("--updates_per_batch", type=positive_int, default=8, help="Steps for each that is drawn.")
    parsed = parser.parse_args(args)
    if not 0 <= parsed.procedural_fraction <= 1:
        parser.error(f"--procedural_fraction must be between 0 and 1, got {parsed.procedural_fraction}")
    for name in ("channels", "num_layers", "interpolator_channels") if parsed.refiner_model_name_or_path else ():
        if getattr(parsed, name) != parser.get_default(name):
            parser.error(f"--{name}: a given refiner has its own")
    for name in ("task_weights", "motion_weights"):
        setattr(parsed, name, named_weights(parser, name, getattr(parsed, name)))
    shares = task_shares(parsed.task_weights)
    if parsed.task_weights.keys() - TASK_SHARES or min(shares) < 0 or not any(shares):
        parser.error(f"--task_weights: factors from 0 on, not all 0, on {', '.join(TASK_SHARES)}")
    if parsed.trainable_modules and not parsed.refiner_model_name_or_path:
        parser.error("--trainable_modules: give the refiner whose other modules stay as they are")
    if parsed.motion_weights and not parsed.procedural_fraction:
        parser.error("--motion_weights: with --procedural_fraction 0 no picture is set in motion")
    if not 0 < parsed.min_strength <= parsed.max_strength <= 1:
        bounds = f"{parsed.min_strength} and {parsed.max_strength}"
        parser.error(f"--min_strength and --max_strength must be above 0, at most 1, and in this order, got {bounds}")
    return parsed


def task_shares(weights: dict[str, float]) -> list[float]:
    """How often each task comes, by `--task_weights`."""
    return [share * weights.get(task, 1.0) for task, share in TASK_SHARES.items()]


def make_refiner(args: argparse.Namespace, in_channels: int) -> KnownFrameRefiner:
    """A new refiner, or that of `--refiner_model_name_or_path`.

    Raises:
        ValueError: the given one is for other channels, or lacks one of `--trainable_modules`.
    """
    if args.refiner_model_name_or_path is None:
        return KnownFrameRefiner(
            in_channels, args.channels, args.num_layers, interpolator_channels=args.interpolator_channels
        )
    refiner = KnownFrameRefiner.from_pretrained(args.refiner_model_name_or_path, dtype=torch.float32)
    if refiner.config.in_channels != in_channels:
        name, channels = args.refiner_model_name_or_path, refiner.config.in_channels
        raise ValueError(f"The refiner of {name} is for {channels} channels, not {in_channels}.")
    modules = dict(refiner.named_children())
    if unknown := [name for name in args.trainable_modules if name not in modules]:
        raise ValueError(f"`trainable_modules` {unknown}: a refiner has {', '.join(modules)}.")
    if args.trainable_modules:
        refiner.requires_grad_(False)
        for name in args.trainable_modules:
            modules[name].requires_grad_(True)
    return refiner


def vary(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A clip (F, C, H, W) as it is, or mirrored, backwards, in other colours: there are few animations."""
    mirrored, backwards, swapped = torch.rand(3, generator=generator).tolist()
    if mirrored < MIRRORED:
        clip = clip.flip(3)
    if backwards < BACKWARDS:
        clip = clip.flip(0)
    if swapped < SWAPPED:
        order = torch.randperm(3, generator=generator)
        clip = torch.cat([clip[:, order], clip[:, 3:]], dim=1)
    return clip


def draw_masks(
    collator: DualMaskCollator, shares: Sequence[float], count: int, generator: torch.Generator
) -> torch.Tensor:
    """(count, F) bool, the known frames of clips of one task."""
    task = list(TASK_SHARES)[torch.multinomial(torch.tensor(shares), 1, generator=generator).item()]
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    frames = torch.ones(collator.num_frames, dtype=torch.bool)
    return torch.stack([collator.draw_condition({"seed": seed, "caption": ""}, task, frames)[1] for seed in seeds])


class Refinement(nn.Module):
    """The hidden frames of batches, in one forward, so that it can be wrapped for several processes."""

    def __init__(self, refiner: KnownFrameRefiner):
        super().__init__()
        self.refiner = refiner

    def forward(
        self,
        drawings: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        clips: torch.Tensor | None,
        condition_mask: torch.Tensor | None,
    ) -> tuple[RefinedFrames | None, torch.Tensor | None]:
        """Drawings, if any, refined, and the hidden frames of `clips`, if any, interpolated."""
        hidden = None if drawings is None else self.refiner.refine_hidden(*drawings)
        if clips is None:
            return hidden, None
        clip, frame = hidden_frames(condition_mask)
        known = (clips.transpose(1, 2) + 1) / 2
        return hidden, self.refiner.interpolate(known, clip, frame, condition_mask[clip], soft=True)


def reconstruction_loss(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """L1, and L1 between the image gradients, without which a blur would do."""
    error = output.float() - truth
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def tolerant_error(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How far frames (N, C, H, W) are from the truth around every second pixel, (N, 1, H / 2, W / 2).

    L1 of pixels and of their gradients, at half the size, after the best of all shifts by up to `TOLERANCE` pixels. By
    the plain L1 a smear in the right place is as good as the picture itself a little beside it. People see it
    otherwise.
    """
    ours, theirs = (with_gradients(F.avg_pool2d(frames.float(), 2)) for frames in (output, truth))
    reach, best = TOLERANCE // 2, None
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            error = local_error(ours.roll((down, right), dims=(2, 3)), theirs)
            best = error if best is None else torch.minimum(best, error)
    return best


def interpolation_error(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """One minus the structural similarity, and L1."""
    return 1 - structural_similarity_index_measure(output, truth, data_range=1.0) + (output - truth).abs().mean()


def with_gradients(frames: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, 3 C, H, W): the pixels, and the differences to their neighbours."""
    across = F.pad(frames.diff(dim=3), (0, 1))
    return torch.cat([frames, across, F.pad(frames.diff(dim=2), (0, 0, 0, 1))], dim=1)


def local_error(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """L1 of what `with_gradients` returns, (N, 1, H, W), a mean over 5x5 pixels and over the channels of frames."""
    error = (ours - theirs).abs().sum(dim=1, keepdim=True) / (ours.shape[1] // 3)
    return F.avg_pool2d(error, 5, stride=1, padding=2)


def to_bytes(clips: torch.Tensor) -> torch.Tensor:
    """Clips in [-1, 1] as uint8."""
    return clips.clamp(-1, 1).add(1).mul(127.5).round().byte().cpu().contiguous()


def drawn_like_this(file: Path, drawn_by: str) -> bool:
    """Whether a batch is there, and was drawn by what `drawn_by` stands for."""
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata().get("drawn_by") == drawn_by
    except (OSError, SafetensorError):  # not there, or damaged
        return False


def call_settings(args: argparse.Namespace) -> dict[str, float | None]:
    """Steps, scales, their end and eta of the pipeline's calls."""
    parameters = inspect.signature(StickerGenerationPipeline.__call__).parameters
    given = {} if args.num_inference_steps is None else {"num_inference_steps": args.num_inference_steps}
    own = override_settings(generation_settings(args.pretrained_model_name_or_path), given)
    return {name: own.get(name, parameters[name].default) for name in ALL_SETTINGS}


def hidden_truth(clips: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The hidden frames (N, C, H, W) in [0, 1] of clips (B, C, F, H, W) in [-1, 1]."""
    return ((clips.transpose(1, 2) + 1) / 2)[hidden_frames(masks)]


def refinement_loss(hidden: RefinedFrames, truth: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What is lost by moving the known frames and by choosing at every pixel, and what it is made of."""
    warping, moving = (reconstruction_loss(x, truth) for x in (hidden.warped, hidden.moved))
    with torch.no_grad():
        errors = torch.cat([tolerant_error(x, truth) for x in (hidden.warped, hidden.moved, hidden.drawn)], dim=1)
    factors = torch.tensor([1.0, 1.0, SMEARED], device=truth.device)[:, None, None]
    shares = F.avg_pool2d(hidden.shares, 2)
    choice = (shares * factors * errors).sum(dim=1).mean()
    logs = {"warping": warping, "moving": moving, "choice": choice}
    for number, name in enumerate(("warped", "moved", "drawn")):
        logs |= {name: errors[:, number].mean(), f"{name}_share": shares[:, number].mean()}
    logs["trusted"] = hidden.trusted.float().mean()
    return warping + moving + 2 * choice, logs


class Trainer(StepTrainer):
    """One training run: clips, the frozen pipeline, the refiner and its moving average."""

    name = "train_refiner"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
        self.pipeline = StickerGenerationPipeline.from_pretrained(
            args.pretrained_model_name_or_path, dtype=dtype, refiner=None
        )
        self.pipeline.to(self.accelerator.device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = call_settings(args)
        config = self.pipeline.unet.config
        frames, channels = config.num_frames, self.pipeline.vae.config.in_channels
        size = config.sample_size * self.pipeline.vae_scale_factor
        maker = ClipMaker(
            frames,
            size,
            channels,
            args.procedural_fraction,
            min_keyframes=frames,
            max_keyframes=frames,
            keyframes="uniform",  # as frames are given to a model; clusters of them would move more
            motion_weights=args.motion_weights,
        )
        self.clips = StickerClips(args.train_data_dir, maker, seed=args.seed)
        self.clips.check()
        if size % CELL:
            raise ValueError(f"Pictures of {size} pixels: the size must be a multiple of {CELL} for a refiner.")
        self.refiner = make_refiner(args, channels)
        self.collator = DualMaskCollator(frames, joint_drop_prob=0.0, **MASKS)
        self.drawn_by = self.drawing_facts()
        if frames < 3:  # none lies between two others
            self.refiner.interpolator.requires_grad_(False)
        trained = {name for name, part in self.refiner.named_children() for w in part.parameters() if w.requires_grad}
        self.interpolates, self.refines = "interpolator" in trained, bool(trained - {"interpolator"})
        if not trained:
            raise ValueError(f"Clips of {frames} frames have nothing to interpolate.")
        self.prepare(Refinement(self.refiner))

    def save_model(self) -> dict[str, float]:
        """Saves the moving average."""
        model = copy.deepcopy(self.refiner)
        self.ema.copy_to([weight for weight in model.parameters() if weight.requires_grad])
        model.save_pretrained(self.output_dir)
        return {}

    def drawing_facts(self) -> str:
        """Stands for all that decides what is drawn."""
        pipe, maker = self.pipeline, self.clips.maker
        facts = [getattr(self.args, name) for name in DRAWING_ARGUMENTS], self.settings, MASKS, TASK_SHARES
        models = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
        parts = [None if model is None else fingerprint(model) for model in models], dict(pipe.scheduler.config)
        rows = [fingerprint_rows(rows) for rows in self.clips.sources], maker.keyframes, maker.size
        text = json.dumps([facts, parts, rows, str(pipe.dtype), self.accelerator.num_processes], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def batch(
        self, number: int, shares: Sequence[float]
    ) -> tuple[torch.Tensor, list[str], torch.Tensor, torch.Generator]:
        """This process's share of a batch: clips (B, C, F, H, W), captions, known frames (B, F), randomness.

        It depends on the seed and the number alone. A picture that is not set in motion is a clip that stands still.
        """
        size, frames = self.args.train_batch_size, self.pipeline.unet.config.num_frames
        first = (number * self.accelerator.num_processes + self.accelerator.process_index) * size
        samples = [self.clips[index] for index in range(first, first + size)]
        clips = torch.stack([sample["clip"].expand(frames, -1, -1, -1) for sample in samples]).transpose(1, 2)
        seed = np.random.SeedSequence([self.args.seed, first]).generate_state(1).item()
        generator = torch.Generator().manual_seed(seed)
        masks = draw_masks(self.collator, shares, size, generator)
        return clips, [sample["caption"] for sample in samples], masks, generator

    @torch.no_grad()
    def draw(
        self, clips: torch.Tensor, captions: list[str], masks: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """What the pipeline makes of the hidden frames, decoded (B, C, F, H, W), before a refiner.

        It begins with nothing but noise if any of the clips has several known frames.
        """
        pipe, settings, device = self.pipeline, self.settings, clips.device
        continues, steps = masks.sum(dim=1) > 1, settings["num_inference_steps"]
        strength = torch.empty(()).uniform_(self.args.min_strength, self.args.max_strength, generator=generator)
        first = 0 if continues.any() else steps - max(1, round(steps * strength.item()))
        latents = pipe.encode_known_frames(clips, torch.ones_like(masks) if first else masks)
        noisy = torch.randn(latents.shape, generator=generator).to(latents)
        if first:
            pipe.scheduler.set_timesteps(steps, device=device)
            timestep = pipe.scheduler.timesteps[first * pipe.scheduler.order]
            noisy = pipe.scheduler.add_noise(latents, noisy, timestep.expand(len(clips)))
        drawn = pipe.denoise(
            noisy,
            mask_condition_latents(latents, masks, torch.ones_like(masks)),
            continues,
            embeds=pipe.prepare_embeds(len(clips), *pipe.encode_prompt(captions)),
            text_gates=(torch.zeros(len(clips), device=device), text_gate(captions, None).to(device)),
            image_embeds=[],
            scales=(
                settings["guidance_scale"],
                settings["image_guidance_scale"],
                (settings["continuation_guidance_scale"], settings["continuation_image_guidance_scale"]),
            ),
            num_inference_steps=steps,
            guidance_stop=settings["guidance_stop"],
            eta=settings["eta"],
            generator=generator,
            first_step=first,
        )
        return pipe.decode_latents(drawn)

    def drawing_of_step(self, step: int) -> int:
        """The number of a step's batch: a new one in turn, or one of the latest `KEPT`."""
        latest, repeated = divmod(step - 1, self.args.updates_per_batch)
        if not repeated:
            return latest
        generator = np.random.default_rng([self.args.seed, step])
        return int(generator.integers(max(0, latest + 1 - KEPT), latest + 1))

    def drawings(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A batch as it was drawn, and its clips, both (B, C, F, H, W) in [-1, 1], and which frames are known (B, F).

        It is read from its file; one that is not there yet, or was drawn otherwise, is drawn first.
        """
        folder, process = self.output_dir / "drawings", self.accelerator.process_index
        file = folder / f"{number}-{process}.safetensors"
        if not drawn_like_this(file, self.drawn_by):
            clips, captions, masks, generator = self.batch(number, task_shares(self.args.task_weights))
            clips, masks = clips.to(self.accelerator.device), masks.to(self.accelerator.device)
            drawn = self.draw(clips, captions, masks, generator)
            tensors = {"drawn": to_bytes(drawn), "clips": to_bytes(clips), "masks": masks.cpu()}
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, save(tensors, {"drawn_by": self.drawn_by}))
        tensors = {name: tensor.to(self.accelerator.device) for name, tensor in load_file(file).items()}
        return *(tensors[name].float() / 127.5 - 1 for name in ("drawn", "clips")), tensors["masks"]

    def remove_drawings(self, last: int) -> None:
        """Removes this process's batches up to a number."""
        for file in (self.output_dir / "drawings").glob(f"*-{self.accelerator.process_index}.safetensors"):
            if int(file.name.partition("-")[0]) <= last:
                file.unlink()

    def clips_to_interpolate(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips (B, C, F, H, W) of a step, and which frames are known (B, F): several, but not all."""
        shares = [0.0 if task == "it2v" else share for task, share in TASK_SHARES.items()]
        clips, _, masks, generator = self.batch(step, shares)
        clips = torch.stack([vary(clip, generator) for clip in clips.transpose(1, 2)]).transpose(1, 2)
        ends = torch.zeros_like(masks[0])
        ends[[0, -1]] = True
        masks = torch.where(masks.sum(dim=1, keepdim=True) > 1, masks, ends)  # prediction may show one frame alone
        return clips.to(self.accelerator.device), masks.to(self.accelerator.device)

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its losses."""
        drawings, moving = None, (None, None)
        if self.refines:
            number = self.drawing_of_step(step)
            drawings = self.drawings(number)
            if (step - 1) % self.args.updates_per_batch == 0:
                self.remove_drawings(number - KEPT)
        if self.interpolates:
            moving = self.clips_to_interpolate(step)
        with self.accelerator.autocast():
            hidden, interpolated = self.model(drawings, *moving)
        loss, logs = torch.zeros((), device=self.accelerator.device), {}
        if self.interpolates:
            logs["interpolation"] = interpolation_error(interpolated, hidden_truth(*moving))
            loss = loss + logs["interpolation"]
        if self.refines:
            refinement, more = refinement_loss(hidden, hidden_truth(*drawings[1:]))
            loss, logs = loss + refinement, logs | more
        self.optimise(loss)
        return {name: value.detach() for name, value in logs.items()}


def main(args: list[str] | None = None) -> int:
    """Train; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    return run_script(Trainer, parse_args, args)


if __name__ == "__main__":
    sys.exit(main())
