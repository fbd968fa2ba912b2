"""Train a sticker model from scratch with the dual mask and the curriculum of RDTF (arXiv 2503.17735).

    accelerate launch examples/train_rdtf.py --pretrained_model_name_or_path base --preset tiny \
        --train_data_dir stickers/animated/train stickers/static/train --procedural_fraction 0.9 \
        --resolution 64 --train_batch_size 16 --max_train_steps 5000 --mixed_precision bf16 --output_dir my-model

`--pretrained_model_name_or_path` is a pipeline folder or Hub id that gives the frozen parts: autoencoder, text
encoders, tokenizers and the scheduler's noise levels. The UNet starts from random weights. `--output_dir` ends as a
pipeline that `StickerGenerationPipeline.from_pretrained` loads.

A step: draw one task for all processes -> read clips -> hide frames (condition mask) -> predict the noise of all
frames -> mean squared error over the real frames (loss mask) -> tell the curriculum the loss.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDIMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel, save_sticker
from rdtf_diffusers.checkpoints import SETTINGS_FILE
from rdtf_diffusers.data.animation import read_animation
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips, StreamedClips
from rdtf_diffusers.data.keyframes import KEYFRAME_METHODS, load_features
from rdtf_diffusers.data.latents import LatentClips, fingerprint
from rdtf_diffusers.training import (
    DualMaskCollator,
    dual_mask_loss,
    make_curriculum,
    mask_condition_latents,
    row_generator,
)
from rdtf_diffusers.training.run_state import (
    checkpoint_step,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    warn_if_bf16_is_slow,
)


logger = logging.getLogger("train_rdtf")

# UNet sizes. What follows from the autoencoder, the text encoders and the resolution is filled in by `make_unet`.
PRESETS = {
    "tiny": {
        "block_out_channels": (80, 112),
        "layers_per_block": 1,
        "attention_head_dim": 16,
        "norm_num_groups": 16,
        "sti_num_heads": 4,
        "sti_head_dim": 16,
    },
    "paper": {},
}

PREDICTION_TYPES = ("epsilon", "v_prediction")


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model_name_or_path", required=True, help="Pipeline with the frozen parts.")
    group.add_argument("--preset", choices=list(PRESETS), default="tiny", help="Size of the UNet.")
    group.add_argument("--num_frames", type=int, default=8, help="Frames of a clip.")
    group.add_argument("--temporal_layer", choices=["sti", "conv3d"], default="sti", help="conv3d: the ablation.")
    group.add_argument("--sti_detail", choices=["frame_resnet", "temporal_conv"], default="frame_resnet")
    group.add_argument("--prediction_type", choices=PREDICTION_TYPES, default=None)

    group = parser.add_argument_group("data")
    group.add_argument("--train_data_dir", nargs="+", default=[], help="Folders, JSONL or tar files.")
    group.add_argument("--dataset_name", nargs="+", default=[], help="Hub ids, beside or instead of folders.")
    group.add_argument("--latent_cache", default=None, help="Folder of prepare_dataset.py, instead of files.")
    group.add_argument("--streaming", action="store_true", help="Read Hub data while it downloads.")
    group.add_argument("--caption_column", default=None, help="Default: text, caption or what is usual.")
    group.add_argument("--image_column", default=None, help="Default: image, animation or what is usual.")
    group.add_argument("--resolution", type=int, default=256)
    group.add_argument("--procedural_fraction", type=float, default=0.5, help="Share of pictures set in motion.")
    group.add_argument("--min_keyframes", type=int, default=3, help="Fewest frames drawn from an animation.")
    group.add_argument("--max_keyframes", type=int, default=None, help="Most; by default all --num_frames.")
    group.add_argument("--keyframes", choices=KEYFRAME_METHODS, default="cluster", help="How they are chosen.")
    group.add_argument("--keyframe_features", default="pixels", help='"pixels", "timm:vgg16" or a vision model\'s id.')
    group.add_argument("--dataloader_num_workers", type=int, default=0)

    group = parser.add_argument_group("method")
    group.add_argument("--curriculum", choices=["uniform", "linear", "adaptive"], default="adaptive")
    group.add_argument("--curriculum_steps", type=int, default=None, help="Default: --max_train_steps.")
    group.add_argument("--pid", type=float, nargs=3, default=[5.0, 3.0, 1.3], metavar=("KP", "KI", "KD"))
    group.add_argument("--task_weights", nargs="+", default=[], metavar="TASK=X", help="Factors on tasks' chances.")
    group.add_argument("--loss_reduction", choices=["all", "valid"], default="all")
    group.add_argument("--joint_drop_prob", type=float, default=0.1, help="Text and frames dropped together.")
    group.add_argument("--text_drop_prob", type=float, default=0.0, help="Text dropped, frames kept.")
    group.add_argument("--text_word_drop_prob", type=float, default=0.2)

    group = parser.add_argument_group("optimisation")
    group.add_argument("--train_batch_size", type=int, default=1, help="Clips per process and micro-step.")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1)
    group.add_argument("--max_train_steps", type=int, default=50_000)
    group.add_argument("--learning_rate", type=float, default=1e-5)
    group.add_argument("--lr_scheduler", default="constant", help="A name that diffusers.optimization knows.")
    group.add_argument("--lr_warmup_steps", type=int, default=0)
    group.add_argument("--adam_beta1", type=float, default=0.9)
    group.add_argument("--adam_beta2", type=float, default=0.999)
    group.add_argument("--adam_weight_decay", type=float, default=1e-2)
    group.add_argument("--adam_epsilon", type=float, default=1e-8)
    group.add_argument("--max_grad_norm", type=float, default=1.0)
    group.add_argument("--use_ema", action="store_true")
    group.add_argument("--ema_decay", type=float, default=0.9995)
    group.add_argument("--gradient_checkpointing", action="store_true")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    group.add_argument("--seed", type=int, default=0)

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", default="sticker-model")
    group.add_argument("--checkpointing_steps", type=int, default=500)
    group.add_argument("--checkpoints_total_limit", type=int, default=None)
    group.add_argument("--resume_from_checkpoint", default=None, help='A checkpoint folder, or "latest".')
    group.add_argument("--validation_prompts", nargs="+", default=[], help="One sticker each.")
    group.add_argument("--validation_images", nargs="+", default=[], help="First frames, one per prompt or none.")
    group.add_argument("--validation_steps", type=int, default=500, help="Optimiser steps between validations.")
    group.add_argument("--validation_inference_steps", type=int, default=20)
    group.add_argument("--validation_guidance_scale", type=float, default=3.0, help="For text and for pictures.")
    group.add_argument("--report_to", default="tensorboard", help='A tracker of accelerate, or "none".')
    group.add_argument("--logging_dir", default="logs")
    parsed = parser.parse_args(args)
    check_args(parser, parsed)
    return parsed


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses, in one line, what could only fail later."""
    if bool(args.train_data_dir or args.dataset_name) == bool(args.latent_cache):
        parser.error("give stickers to train on: --train_data_dir or --dataset_name, or else --latent_cache")
    if args.latent_cache and args.streaming:
        parser.error("--latent_cache is read from disk; leave --streaming out")
    steps = ("max_train_steps", "checkpointing_steps", "validation_steps", "validation_inference_steps")
    for name in ("resolution", "num_frames", "train_batch_size", "gradient_accumulation_steps", *steps):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.checkpoints_total_limit is not None and args.checkpoints_total_limit < 1:
        parser.error(f"--checkpoints_total_limit must be at least 1, got {args.checkpoints_total_limit}")
    if not 0.0 <= args.procedural_fraction <= 1.0:
        parser.error(f"--procedural_fraction must be between 0 and 1, got {args.procedural_fraction}")
    args.max_keyframes = args.num_frames if args.max_keyframes is None else args.max_keyframes
    if args.validation_images and len(args.validation_images) != len(args.validation_prompts):
        parser.error(
            f"--validation_images must be as many as --validation_prompts ({len(args.validation_prompts)}), "
            f"got {len(args.validation_images)}"
        )
    if not args.validation_images and not all(prompt.strip() for prompt in args.validation_prompts):
        parser.error("--validation_prompts: an empty prompt needs a picture, --validation_images")
    try:
        args.validation_images = [Image.fromarray(read_animation(file).frames[0]) for file in args.validation_images]
        args.task_weights = {name: float(x) for name, x in (entry.split("=") for entry in args.task_weights)}
    except ValueError as error:
        parser.error(f"--validation_images or --task_weights TASK=X: {error}")


def make_unet(args: argparse.Namespace, pipeline: StickerGenerationPipeline) -> UNetDiscreteFrameModel:
    """A UNet with random weights that fits the pipeline's autoencoder and text encoders."""
    channels = pipeline.vae.config.latent_channels
    second = pipeline.text_encoder_2
    return UNetDiscreteFrameModel(
        **PRESETS[args.preset],
        sample_size=args.resolution // pipeline.vae_scale_factor,
        num_frames=args.num_frames,
        in_channels=2 * channels,
        out_channels=channels,
        cross_attention_dim=pipeline.text_encoder.config.hidden_size,
        second_text_dim=None if second is None else second.config.hidden_size,
        temporal_layer=args.temporal_layer,
        sti_detail=args.sti_detail,
    )


def make_pipeline(args: argparse.Namespace) -> StickerGenerationPipeline:
    """The pretrained frozen parts around a new UNet: what is trained, validated and saved."""
    pipeline = StickerGenerationPipeline.from_pretrained(
        args.pretrained_model_name_or_path, unet=None, dtype=torch.float32
    )
    if args.resolution % pipeline.vae_scale_factor:
        raise ValueError(f"`resolution` must be a multiple of {pipeline.vae_scale_factor}, got {args.resolution}.")
    config = dict(pipeline.scheduler.config)
    config["prediction_type"] = args.prediction_type or config["prediction_type"]
    if config["prediction_type"] not in PREDICTION_TYPES:
        raise ValueError(f"The prediction type must be one of {PREDICTION_TYPES}, got {config['prediction_type']!r}.")
    if config["prediction_type"] == "epsilon":  # pure noise says nothing about the noise that it is
        config["rescale_betas_zero_snr"] = False
    pipeline.register_modules(unet=make_unet(args, pipeline), scheduler=DDIMScheduler.from_config(config))
    for frozen in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        if frozen is not None:
            frozen.requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_maker(args: argparse.Namespace, channels: int) -> ClipMaker:
    """How files become clips in this run."""
    return ClipMaker(
        num_frames=args.num_frames,
        size=args.resolution,
        channels=channels,
        procedural_fraction=args.procedural_fraction,
        min_keyframes=args.min_keyframes,
        max_keyframes=args.max_keyframes,
        keyframes=args.keyframes,
        features=load_features(args.keyframe_features),
    )


def make_clips(
    args: argparse.Namespace, pipeline: StickerGenerationPipeline, accelerator: Accelerator
) -> StickerClips | StreamedClips | LatentClips:
    """The training data: files, a stream, or a latent cache."""
    if args.latent_cache:
        keyframes = args.min_keyframes, args.max_keyframes
        clips = LatentClips(args.latent_cache, args.procedural_fraction, *keyframes, seed=args.seed)
        check_cache(clips, args, pipeline)
        return clips
    maker = make_maker(args, pipeline.vae.config.in_channels)
    source = {"sources": [*args.train_data_dir, *args.dataset_name], "maker": maker, "seed": args.seed}
    source |= {"caption_column": args.caption_column, "image_column": args.image_column}
    if args.streaming:
        return StreamedClips(**source, rank=accelerator.process_index, world_size=accelerator.num_processes)
    return StickerClips(**source)


def check_cache(clips: LatentClips, args: argparse.Namespace, pipeline: StickerGenerationPipeline) -> None:
    """Refuses a latent cache that was prepared for another pipeline or other arguments, and names the differences."""
    made = clips.preparation
    wanted = {"resolution": args.resolution, "num_frames": args.num_frames, "vae": fingerprint(pipeline.vae)}
    if made.text_variants:
        second = pipeline.text_encoder_2
        wanted["text_word_drop_prob"] = args.text_word_drop_prob
        wanted["text_encoder"] = fingerprint(pipeline.text_encoder)
        wanted["text_encoder_2"] = None if second is None else fingerprint(second)
    differences = [f"{k} {getattr(made, k)}, not {v}" for k, v in wanted.items() if getattr(made, k) != v]
    if differences:
        raise ValueError(f"`latent_cache` {args.latent_cache} was prepared for {', '.join(differences)}.")


def sample_numbers(args: argparse.Namespace, accelerator: Accelerator, first_step: int) -> Iterator[list[int]]:
    """The numbers of this process's samples, micro-step by micro-step, from optimiser step `first_step` on.

    The run is one long row of samples. Which of them are seen, and how, depends on the seed alone, so a resumed run
    goes on where it stopped, and the number of processes only divides the work.
    """
    per_process, processes = args.train_batch_size, accelerator.num_processes
    first = first_step * args.gradient_accumulation_steps
    for micro_step in range(first, args.max_train_steps * args.gradient_accumulation_steps):
        start = (micro_step * processes + accelerator.process_index) * per_process
        yield list(range(start, start + per_process))


class Trainer:
    """One training run: what is trained, with which data, and how far it is."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            log_with=None if args.report_to == "none" else args.report_to,
            project_config=ProjectConfiguration(args.output_dir, str(self.output_dir / args.logging_dir)),
        )
        set_seed(args.seed)  # for the UNet's first weights; everything later is seeded sample by sample
        self.pipeline = make_pipeline(args)
        warn_if_bf16_is_slow(self.accelerator)
        self.clips = make_clips(args, self.pipeline, self.accelerator)
        self.collator = DualMaskCollator(
            args.num_frames,
            args.joint_drop_prob,
            args.text_drop_prob,
            args.text_word_drop_prob,
            padding=self.clips.padding if args.latent_cache else None,
        )
        if args.latent_cache:
            self._drop_frozen_parts()
        self.curriculum = make_curriculum(
            args.curriculum, args.curriculum_steps or args.max_train_steps, tuple(args.pid), args.task_weights
        )
        self._prepare()

    def _drop_frozen_parts(self) -> None:
        """Frees the memory of what the cache stands in for."""
        self.pipeline.register_modules(vae=None, image_encoder=None)
        if self.clips.preparation.text_variants:
            self.pipeline.register_modules(text_encoder=None, text_encoder_2=None)

    def whole_pipeline(self) -> StickerGenerationPipeline:
        """What validation and saving need: with a latent cache the frozen parts are loaded for as long as they do."""
        if not self.args.latent_cache:
            return self.pipeline
        whole = StickerGenerationPipeline.from_pretrained(
            self.args.pretrained_model_name_or_path,
            unet=self.pipeline.unet,
            scheduler=self.pipeline.scheduler,
            dtype=torch.float32,
        )
        whole.set_progress_bar_config(disable=True)
        return whole.to(self.accelerator.device)

    def _prepare(self) -> None:
        """Puts model, optimiser, schedule and average where accelerate wants them."""
        args, unet = self.args, self.pipeline.unet
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        # stepped once per optimiser step by `step`, so it is not handed to accelerate, which would count processes
        self.lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
        self.pipeline.to(self.accelerator.device)
        if self.pipeline.vae is not None:
            self.pipeline.vae.to(memory_format=torch.channels_last)
        self.unet, self.optimizer = self.accelerator.prepare(unet.train(), optimizer)
        self.ema = EMAModel(unet.parameters(), decay=args.ema_decay) if args.use_ema else None
        stateful = [self.curriculum, self.lr_scheduler, self.ema]
        self.accelerator.register_for_checkpointing(*(item for item in stateful if item is not None))

    def encode(self, batch: dict, rows: list[dict]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Clean latents (B, C, F, h, w) of a collated batch and the network's text inputs, cached or made here."""
        device = self.accelerator.device
        if "latents" in batch:
            latents = batch["latents"].to(device)
        else:
            every_frame = torch.ones_like(batch["frame_mask"])  # padding goes through the autoencoder too
            latents = self.pipeline.encode_known_frames(batch["pixel_values"].to(device), every_frame.to(device))
        names = ("encoder_hidden_states", "encoder_hidden_states_2")
        if names[0] in rows[0]:
            text = {name: torch.stack([row[name] for row in rows]).to(device) for name in names if name in rows[0]}
        else:
            embeds, _, embeds_2, _ = self.pipeline.encode_prompt(batch["captions"])
            text = dict(zip(names, (embeds, embeds_2)))
        return latents, text | {"text_mask": batch["text_mask"].to(device)}

    def loss(self, rows: list[dict], task: str) -> torch.Tensor:
        """The loss mask's loss of one micro-batch under `task`."""
        batch = self.collator(rows, task)
        with torch.no_grad(), self.accelerator.autocast():
            latents, text = self.encode(batch, rows)
        latents = latents.float()
        device, scheduler = latents.device, self.pipeline.scheduler
        generators = [row_generator(row["seed"], "noise") for row in rows]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        steps = scheduler.config.num_train_timesteps
        timesteps = [torch.randint(steps, (), generator=row_generator(row["seed"], "timestep")) for row in rows]
        noise, timesteps = noise.to(device), torch.stack(timesteps).to(device)

        noisy = scheduler.add_noise(latents, noise, timesteps)
        frame_mask = batch["frame_mask"].to(device)
        condition = mask_condition_latents(latents, batch["condition_mask"].to(device), frame_mask)
        prediction = self.unet(noisy, timesteps, condition_latents=condition, **text).sample
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        return dual_mask_loss(prediction, target, frame_mask, self.args.loss_reduction)

    def step(self, step: int, batches: Iterator[list[dict]]) -> dict[str, float]:
        """One optimiser step over all processes and micro-steps; returns what is logged."""
        args = self.args
        task = self.curriculum.draw(args.seed * args.max_train_steps + step)
        total = torch.zeros((), device=self.accelerator.device)
        for _ in range(args.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.unet):
                loss = self.loss(next(batches), task)
                self.accelerator.backward(loss)
                total += loss.detach() / args.gradient_accumulation_steps
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.pipeline.unet.parameters())
        mean_loss = self.accelerator.reduce(total, "mean").item()
        self.curriculum.update(mean_loss)
        logs = {"loss": mean_loss, f"loss/{task}": mean_loss, "grad_norm": float(norm)}
        logs |= {f"task_share/{name}": share for name, share in self.curriculum.probabilities().items()}
        if args.curriculum == "adaptive":
            logs |= {f"pid/{name}": value for name, value in self.curriculum.terms._asdict().items()}
            logs["pid/level"] = self.curriculum.level
        return logs | {"lr": self.lr_scheduler.get_last_lr()[0]}

    def resume(self) -> int:
        """Loads the checkpoint that was asked for; returns the optimiser steps done."""
        folder = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint)
        if folder is None:
            return 0
        logger.info("Resuming from %s", folder)
        load_checkpoint(self.accelerator, folder)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        return checkpoint_step(folder)

    def run(self) -> None:
        """Trains to `--max_train_steps` and saves the pipeline."""
        first = self.resume()
        settings = {name: str(value) for name, value in vars(self.args).items()}
        self.accelerator.init_trackers("train_rdtf", config=settings)
        # The sequences are short and many: on a CPU plain matrix products beat fused attention.
        on_cpu = self.accelerator.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            self.train(first)
        self.save()
        self.accelerator.end_training()

    def batches(self, first: int) -> Iterator[list[dict]]:
        """This process's micro-batches of samples from optimiser step `first` on."""
        args, workers = self.args, self.args.dataloader_num_workers
        if args.streaming:
            self.clips.first_epoch = first  # a resumed run reads on in a new order, not the same beginning again
            workers = min(workers, self.clips.rows.num_shards)
            return iter(DataLoader(self.clips, args.train_batch_size, collate_fn=list, num_workers=workers))
        numbers = list(sample_numbers(args, self.accelerator, first))
        return iter(DataLoader(self.clips, batch_sampler=numbers, collate_fn=list, num_workers=workers))

    def train(self, first: int) -> None:
        """Optimiser steps `first` + 1 to `--max_train_steps`, with checkpoints and validations between them."""
        args, accelerator = self.args, self.accelerator
        batches = self.batches(first)
        progress = tqdm(total=args.max_train_steps, initial=first, disable=not accelerator.is_local_main_process)
        for step in range(first + 1, args.max_train_steps + 1):
            logs = self.step(step, batches)
            accelerator.log(logs, step=step)
            progress.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            progress.update()
            if step % args.checkpointing_steps == 0 or step == args.max_train_steps:
                save_checkpoint(accelerator, self.output_dir, step, args.checkpoints_total_limit)
            if accelerator.is_main_process and (step % args.validation_steps == 0 or step == args.max_train_steps):
                self.validate(step)
        progress.close()

    def generation_settings(self) -> dict[str, float]:
        """How validation stickers are drawn, and what is written into `generation.json` beside the weights."""
        scale = self.args.validation_guidance_scale
        return {
            "num_inference_steps": self.args.validation_inference_steps,
            "guidance_scale": scale,
            "image_guidance_scale": scale,
            "eta": 0.0,
        }

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Makes a sticker for every validation prompt with the averaged weights."""
        args, unet = self.args, self.pipeline.unet
        if not args.validation_prompts:
            return
        if self.ema is not None:
            self.ema.store(unet.parameters())
            self.ema.copy_to(unet.parameters())
        unet.eval()
        pipeline = self.whole_pipeline()
        folder = self.output_dir / "validation" / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        for index, prompt in enumerate(args.validation_prompts):
            with self.accelerator.autocast():
                frames = pipeline(
                    prompt or None,
                    image=args.validation_images[index] if args.validation_images else None,
                    generator=torch.Generator().manual_seed(args.seed),
                    **self.generation_settings(),
                ).frames[0]
            save_sticker(frames, folder / f"{index}.webp")
            self.log_frames(f"validation/{index} {prompt}", frames, step)
        unet.train()
        if self.ema is not None:
            self.ema.restore(unet.parameters())

    def log_frames(self, name: str, frames: list[Image.Image], step: int) -> None:
        """Shows a clip on white in TensorBoard."""
        white = [Image.alpha_composite(Image.new("RGBA", f.size, "white"), f.convert("RGBA")) for f in frames]
        pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in white])  # (F, H, W, 3)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels}, step=step, dataformats="NHWC")

    def save(self) -> None:
        """Writes the pipeline, averaged weights included, into `--output_dir`."""
        if not self.accelerator.is_main_process:
            return
        if self.ema is not None:
            self.ema.copy_to(self.pipeline.unet.parameters())
        self.whole_pipeline().save_pretrained(self.output_dir)
        settings = json.dumps(self.generation_settings(), indent=2)
        (self.output_dir / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")


def main(args: list[str] | None = None) -> int:
    """Trains; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    for library in (diffusers_logging, transformers_logging):  # which would report every caption that is cut
        library.set_verbosity_error()
        library.disable_progress_bar()
    parsed = parse_args(args)
    try:
        Trainer(parsed).run()
    except (OSError, ValueError) as error:
        print(f"train_rdtf.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
