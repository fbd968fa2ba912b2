"""Train a KnownFrameRefiner for a pipeline: it puts what the known frames show back into the frames that were drawn.

    accelerate launch examples/train_refiner.py --pretrained_model_name_or_path my-model --mixed_precision bf16 \
        --train_data_dir stickers/static/train stickers/animated/train --output_dir refiner

Clips are those that the UNet learns from. Of each, some frames are known; the others are drawn by the UNet in a few
steps from their noisy latents, which smears them as sampling does, and decoded. The refiner learns to undo that. Every
batch that is drawn serves `--updates_per_batch` steps, because drawing takes most of the time.
"""

import argparse
import copy
import sys

import numpy as np
import torch
import torch.nn.functional as F
from model_parts import PREDICTION_TYPES
from step_trainer import StepTrainer, add_run_arguments, positive_int, run_script
from torch import nn
from training_arguments import WEIGHTS, named_weights

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.models.known_frame_refiner import CELL, KnownFrameRefiner, RefinedFrames, hidden_frames
from rdtf_diffusers.training import DualMaskCollator, mask_condition_latents


TASK_WEIGHTS = {"it2v": 0.45, "interpolation": 0.35, "pre_prediction": 0.1, "post_prediction": 0.1}
SMEARED = 1.25  # how much worse an error looks in drawn pixels than in those of known frames, which are crisp
TOLERANCE = 4  # pixels by which a warped frame may be beside the truth, along height and width
# which frames are known, where a task leaves the choice: mostly those that people give
MASKS = {"first_frame_prob": 0.75, "interpolation_ends_prob": 0.3, "interpolation_gap_prob": 0.3}


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, output_dir="refiner", max_train_steps=2000)
    parser.add_argument("--pretrained_model_name_or_path", required=True, help="The pipeline to make a refiner for.")
    parser.add_argument("--refiner_model_name_or_path", help="A refiner to go on with, such as MODEL/refiner.")
    parser.add_argument("--train_batch_size", type=positive_int, default=8, help="Clips per process.")
    parser.add_argument("--procedural_fraction", type=float, default=0.95, help="Share of pictures set in motion.")
    parser.add_argument("--motion_weights", **WEIGHTS, metavar="MOTION=X", help="Factors on chances of motions.")
    parser.add_argument("--channels", type=positive_int, default=64, help="Width of a new refiner.")
    parser.add_argument("--num_layers", type=positive_int, default=2, help="Layers of a new one's transformer.")
    parser.add_argument("--min_timestep", type=positive_int, default=400, help="Least noise that is drawn away.")
    parser.add_argument("--max_timestep", type=positive_int, default=950, help="Most noise that is drawn away.")
    parser.add_argument("--drawing_steps", type=positive_int, default=3, help="Passes of the UNet that do it.")
    parser.add_argument("--updates_per_batch", type=positive_int, default=2)
    parsed = parser.parse_args(args)
    if not 0 <= parsed.procedural_fraction <= 1:
        parser.error(f"--procedural_fraction must be between 0 and 1, got {parsed.procedural_fraction}")
    for name in ("channels", "num_layers") if parsed.refiner_model_name_or_path else ():
        if getattr(parsed, name) != parser.get_default(name):
            parser.error(f"--{name}: a given refiner has its own")
    parsed.motion_weights = named_weights(parser, "motion_weights", parsed.motion_weights)
    if parsed.motion_weights and not parsed.procedural_fraction:
        parser.error("--motion_weights: with --procedural_fraction 0 no picture is set in motion")
    if parsed.min_timestep > parsed.max_timestep:
        parser.error(f"--min_timestep {parsed.min_timestep} exceeds --max_timestep {parsed.max_timestep}")
    return parsed


def make_refiner(args: argparse.Namespace, in_channels: int) -> KnownFrameRefiner:
    """A new refiner, or that of `--refiner_model_name_or_path`.

    Raises:
        ValueError: the given one is for other channels.
    """
    if args.refiner_model_name_or_path is None:
        return KnownFrameRefiner(in_channels, args.channels, args.num_layers)
    refiner = KnownFrameRefiner.from_pretrained(args.refiner_model_name_or_path, dtype=torch.float32)
    if refiner.config.in_channels != in_channels:
        name, channels = args.refiner_model_name_or_path, refiner.config.in_channels
        raise ValueError(f"The refiner of {name} is for {channels} channels, not {in_channels}.")
    return refiner


def draw_mask(collator: DualMaskCollator, generator: torch.Generator) -> torch.Tensor:
    """(F,) bool, the known frames of a clip."""
    weights = torch.tensor(list(TASK_WEIGHTS.values()))
    task = list(TASK_WEIGHTS)[torch.multinomial(weights, 1, generator=generator).item()]
    row = {"seed": int(torch.randint(2**62, (), generator=generator)), "caption": ""}
    _, mask, _ = collator.draw_condition(row, task, torch.ones(collator.num_frames, dtype=torch.bool))
    return mask


class Refinement(nn.Module):
    """The hidden frames of a batch, refined, in one forward, so that it can be wrapped for several processes."""

    def __init__(self, refiner: KnownFrameRefiner):
        super().__init__()
        self.refiner = refiner

    def forward(self, drawn: torch.Tensor, clips: torch.Tensor, condition_mask: torch.Tensor) -> RefinedFrames:
        return self.refiner.refine_hidden(drawn, clips, condition_mask)


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


def still_error(hidden: RefinedFrames, truth: torch.Tensor) -> torch.Tensor:
    """How far the frames are from the truth, a scalar, for the choice between `still` and `mixed`, all that it moves.

    L1 of pixels and of their gradients, without a tolerance: by that a frame that stands still would be as good as one
    that moves a little.
    """
    truth = with_gradients(truth)
    still, mixed = (local_error(with_gradients(x), truth) for x in (hidden.still, hidden.mixed.detach()))
    return torch.lerp(mixed, still, hidden.still_share).mean()


def with_gradients(frames: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, 3 C, H, W): the pixels, and the differences to their neighbours."""
    across = F.pad(frames.diff(dim=3), (0, 1))
    return torch.cat([frames, across, F.pad(frames.diff(dim=2), (0, 0, 0, 1))], dim=1)


def local_error(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """L1 of what `with_gradients` returns, (N, 1, H, W), a mean over 5x5 pixels and over the channels of frames."""
    error = (ours - theirs).abs().sum(dim=1, keepdim=True) / (ours.shape[1] // 3)
    return F.avg_pool2d(error, 5, stride=1, padding=2)


def check_noise_levels(args: argparse.Namespace, pipeline: StickerGenerationPipeline) -> None:
    """Refuses a pipeline that does not know the noise levels, or predicts something else than noise or velocity."""
    schedule = pipeline.scheduler.config
    if args.max_timestep >= schedule.num_train_timesteps:
        last = schedule.num_train_timesteps - 1
        raise ValueError(f"`max_timestep` {args.max_timestep}: the last noise level of the pipeline is {last}.")
    if schedule.prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"The pipeline must predict one of {PREDICTION_TYPES}, got {schedule.prediction_type!r}.")


class Trainer(StepTrainer):
    """One training run: clips, the frozen pipeline, the refiner and its moving average."""

    name = "train_refiner"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision, torch.float32)
        self.pipeline = StickerGenerationPipeline.from_pretrained(args.pretrained_model_name_or_path, dtype=dtype)
        self.pipeline.to(self.accelerator.device)
        check_noise_levels(args, self.pipeline)
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
            motion_weights=args.motion_weights,
        )
        self.clips = StickerClips(args.train_data_dir, maker, seed=args.seed)
        self.clips.check()
        if size % CELL:
            raise ValueError(f"Pictures of {size} pixels: the size must be a multiple of {CELL} for a refiner.")
        self.refiner = make_refiner(args, channels)
        self.collator = DualMaskCollator(frames, joint_drop_prob=0.0, **MASKS)
        self.drawn_batch, self.drawn = -1, None
        self.prepare(Refinement(self.refiner))

    def save_model(self) -> dict[str, float]:
        """Saves the moving average."""
        model = copy.deepcopy(self.refiner)
        self.ema.copy_to(model.parameters())
        model.save_pretrained(self.output_dir)
        return {}

    def batch(self, number: int) -> tuple[torch.Tensor, list[str], torch.Tensor, torch.Generator]:
        """This process's share of a batch: clips (B, C, F, H, W), captions, known frames (B, F), randomness.

        It depends on the seed and the number alone. A picture that is not set in motion is a clip that stands still.
        """
        size, frames = self.args.train_batch_size, self.pipeline.unet.config.num_frames
        first = (number * self.accelerator.num_processes + self.accelerator.process_index) * size
        samples = [self.clips[index] for index in range(first, first + size)]
        clips = torch.stack([sample["clip"].expand(frames, -1, -1, -1) for sample in samples]).transpose(1, 2)
        seed = np.random.SeedSequence([self.args.seed, first]).generate_state(1).item()
        generator = torch.Generator().manual_seed(seed)
        masks = torch.stack([draw_mask(self.collator, generator) for _ in samples])
        return clips, [sample["caption"] for sample in samples], masks, generator

    def predict_clean(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, **conditions: torch.Tensor | None
    ) -> torch.Tensor:
        """The UNet's idea of the clean latents behind noisy ones (B, C, F, h, w), noise levels (B,)."""
        scheduler, unet = self.pipeline.scheduler, self.pipeline.unet
        output = unet(noisy.to(unet.dtype), timesteps, **conditions).sample.float()
        signal, noise = self.levels(timesteps)
        if scheduler.config.prediction_type == "v_prediction":
            return signal * noisy - noise * output
        return (noisy - noise * output) / signal

    def levels(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of signal and noise, (B, 1, 1, 1, 1)."""
        signal = self.pipeline.scheduler.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
        return signal.sqrt(), (1 - signal).sqrt()

    @torch.no_grad()
    def draw(
        self, clips: torch.Tensor, captions: list[str], masks: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """What the UNet makes of the hidden frames from their noisy latents (DDIM), decoded (B, C, F, H, W)."""
        pipe, args = self.pipeline, self.args
        latents = pipe.encode_known_frames(clips, torch.ones_like(masks))
        text, _, text_2, _ = pipe.encode_prompt(captions)
        conditions = {
            "encoder_hidden_states": text,
            "encoder_hidden_states_2": text_2,
            "text_mask": torch.tensor([float(bool(caption.strip())) for caption in captions], device=clips.device),
            "condition_latents": mask_condition_latents(latents, masks, torch.ones_like(masks)),
        }
        clean = latents.float()
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        first = torch.randint(args.min_timestep, args.max_timestep + 1, (len(clips),), generator=generator)
        for step in range(args.drawing_steps):
            timesteps = (first * (args.drawing_steps - step) // args.drawing_steps).to(clean.device)
            signal_level, noise_level = self.levels(timesteps)
            noisy = signal_level * clean + noise_level * noise
            clean = self.predict_clean(noisy, timesteps, **conditions)
            noise = (noisy - signal_level * clean) / noise_level
        return pipe.decode_latents(clean.to(pipe.unet.dtype))

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its losses."""
        number = (step - 1) // self.args.updates_per_batch
        if number != self.drawn_batch:
            clips, captions, masks, generator = self.batch(number)
            clips, masks = clips.to(self.accelerator.device), masks.to(self.accelerator.device)
            self.drawn = self.draw(clips, captions, masks, generator), clips, masks
            self.drawn_batch = number
        drawn, clips, masks = self.drawn
        with self.accelerator.autocast():
            hidden = self.model(drawn, clips, masks)
        clip, frame = hidden_frames(masks)
        truth = ((clips.transpose(1, 2) + 1) / 2)[clip, frame]
        warping, moving = (reconstruction_loss(x, truth) for x in (hidden.warped, hidden.moved))
        with torch.no_grad():
            errors = torch.cat([tolerant_error(x, truth) for x in (hidden.warped, hidden.moved, hidden.drawn)], dim=1)
        factors = torch.tensor([1.0, 1.0, SMEARED], device=truth.device)[:, None, None]
        shares = F.avg_pool2d(hidden.shares, 2)
        choice, stillness = (shares * factors * errors).sum(dim=1).mean(), still_error(hidden, truth)
        self.optimise(warping + moving + 2 * (choice + stillness))
        logs = {"warping": warping, "moving": moving, "choice": choice, "stillness": stillness}
        for number, name in enumerate(("warped", "moved", "drawn")):
            logs |= {name: errors[:, number].mean(), f"{name}_share": shares[:, number].mean()}
        logs["still_share"] = hidden.still_share.mean()
        return {name: value.detach() for name, value in logs.items()}


def main(args: list[str] | None = None) -> int:
    """Train; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    return run_script(Trainer, parse_args, args)


if __name__ == "__main__":
    sys.exit(main())
