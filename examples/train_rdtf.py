"""Train a sticker model from scratch with the dual mask and the curriculum of RDTF (arXiv 2503.17735).

    accelerate launch examples/train_rdtf.py --preset tiny --train_data_dir stickers --procedural_fraction 0.9 \
        --train_batch_size 16 --max_train_steps 5000 --use_ema --output_dir my-model

The frozen parts (autoencoder, text encoders, tokenizers, noise levels) are those of the preset, or of the pipeline
that `--pretrained_model_name_or_path` names. The UNet starts from random weights. `--output_dir` ends as a pipeline
that `StickerGenerationPipeline.from_pretrained` loads, with a model card.

A step: draw one task for all processes -> read clips -> hide frames (condition mask) -> predict the noise of all
frames -> mean squared error over the real frames (loss mask) -> tell the curriculum the loss.

Exit codes: 0; 2 after one line about what the user has to put right; 128 + number of the signal that stopped the run,
which has saved a checkpoint then.
"""

import argparse
import json
import logging
import math
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import ModelCard
from model_parts import load_frozen_parts, make_scheduler, make_unet
from PIL import Image
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from training_arguments import DEFAULT_STEPS, check_args, make_parser, parse_with_preset
from training_data import make_clips, sample_numbers
from transformers.utils import logging as transformers_logging
from validation_stickers import ValidationCase, draw, log_animation, make_cases, motion_scores

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel, save_sticker
from rdtf_diffusers.checkpoints import SETTINGS_FILE
from rdtf_diffusers.training import (
    PRESETS,
    DualMaskCollator,
    Muon,
    dual_mask_loss,
    make_curriculum,
    mask_condition_latents,
    min_snr_weights,
    row_generator,
    timestep_chances,
)
from rdtf_diffusers.training.history import HISTORY_FILE, RunHistory, final_losses, read_history
from rdtf_diffusers.training.plots import CURRICULUM_FILE, LOSSES_FILE, plot_curriculum, plot_losses
from rdtf_diffusers.training.run_state import (
    check_facts,
    check_processes,
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_facts,
    save_checkpoint,
    warn_if_bf16_is_slow,
)
from rdtf_diffusers.training.signals import StopSignal, leave_signals_to_trainer
from rdtf_diffusers.utils.hub import (
    NOT_PUBLISHED,
    copy_attribution,
    environment,
    make_repository,
    model_card,
    public_name,
    push_to_hub,
)
from rdtf_diffusers.utils.memory import is_out_of_memory


logger = logging.getLogger("train_rdtf")

WEIGHT_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__.split("\n")[0])
    parsed = parse_with_preset(parser, args)
    check_args(parser, parsed)
    return parsed


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Accelerate as the arguments ask for it, with as many processes as were launched."""
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(args.output_dir, str(Path(args.output_dir) / args.logging_dir)),
        # others wait while the main process draws validation stickers and checks what it saved
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
    )
    check_processes(accelerator)
    if args.report_to not in ("none", "all") and not accelerator.log_with:
        raise ValueError(f"`report_to`: {args.report_to} is not installed.")
    warn_if_bf16_is_slow(accelerator)
    # accelerate's launcher puts its own number into the environment, which would go before the argument
    accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
    if accelerator.state.deepspeed_plugin is not None:  # which has no DataLoader to see the batch size
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = args.train_batch_size
        config["gradient_accumulation_steps"] = args.gradient_accumulation_steps
        config["gradient_clipping"] = args.max_grad_norm
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


def make_optimizer(unet: torch.nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """What `--optimizer` names, on the trainable weights.

    Raises:
        ValueError: trainable weights are not float32, in which small updates would be lost.
    """
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    if others := {str(parameter.dtype) for parameter in trainable} - {"torch.float32"}:
        raise ValueError(f"Trainable weights must be torch.float32, got {', '.join(sorted(others))}.")
    if args.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trainable, **optimizer_settings(args))
    if args.optimizer == "muon":
        return Muon(trainable, **optimizer_settings(args))
    # fused: the default on GPUs makes a copy of all second moments in each step
    return torch.optim.AdamW(trainable, fused=True, **optimizer_settings(args))


def optimizer_settings(args: argparse.Namespace) -> dict:
    """What the arguments say about every group of weights."""
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "weight_decay": args.adam_weight_decay,
        "eps": args.adam_epsilon,
    }


def make_timestep_chances(args: argparse.Namespace, levels: int) -> torch.Tensor | None:
    """What `--timestep_bias_*` say about `levels` noise levels; nothing if all are alike."""
    if args.timestep_bias_multiplier == 1:
        return None
    try:
        return timestep_chances(
            levels, args.timestep_bias_multiplier, args.timestep_bias_begin or 0, args.timestep_bias_end
        )
    except ValueError as error:
        raise ValueError(f"`timestep_bias_begin` and `timestep_bias_end`: {error}.") from error


class Trainer:
    """One training run: what is trained, with which data, and how far it is.

    Attributes:
        first_step: optimiser steps that were done when this process began.
        samples: samples that all processes together have seen.
        stopping: whether a signal ended the run before its last step.
    """

    lasting_facts = ("unet", "prediction_type", "optimizer", "use_ema", "curriculum")  # which a resumed run must share

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = make_accelerator(args)
        self.first_step, self.samples, self.stopping = 0, 0, False
        self.signal = StopSignal()
        self.check_output_dir()
        # a latent cache is compared with the parts as they are saved, which are dropped then
        dtype = torch.float32 if args.latent_cache else WEIGHT_DTYPES[self.accelerator.mixed_precision]
        self.pipeline = load_frozen_parts(args, dtype)
        self.pipeline.register_modules(scheduler=make_scheduler(args, self.pipeline))
        self.timestep_chances = make_timestep_chances(args, self.pipeline.scheduler.config.num_train_timesteps)
        self.clips = make_clips(args, self.pipeline, self.accelerator)
        self.plan_steps()
        set_seed(args.seed)  # for the UNet's first weights; everything later is seeded sample by sample
        self.pipeline.register_modules(unet=self.make_unet())
        self.collator = DualMaskCollator(
            args.num_frames,
            args.joint_drop_prob,
            args.text_drop_prob,
            args.text_word_drop_prob,
            padding=self.clips.padding if args.latent_cache else None,
            interpolation_ends_prob=args.interpolation_ends_prob,
            interpolation_gap_prob=args.interpolation_gap_prob,
            first_frame_prob=args.first_frame_prob,
        )
        if args.latent_cache:
            self._drop_frozen_parts()
        self.curriculum = make_curriculum(
            args.curriculum, args.curriculum_steps or args.max_train_steps, tuple(args.pid), args.task_weights
        )
        self.cases = make_cases(args.validation_prompts, args.validation_animations, args.num_frames)
        self._prepare()
        self.reserve_repository()

    def make_unet(self) -> UNetDiscreteFrameModel:
        """What is trained."""
        return make_unet(self.args, self.pipeline)

    def check_output_dir(self) -> None:
        """Refuses to mix a new run with the checkpoints of an old one."""
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"`output_dir` {self.output_dir} is a file.")
        found = list_checkpoints(self.output_dir)
        if found and not self.args.resume_from_checkpoint:
            raise ValueError(
                f"`output_dir` {self.output_dir} holds {found[-1].name} of an earlier run: go on with "
                "--resume_from_checkpoint latest, or give another folder."
            )
        self.output_dir.mkdir(parents=True, exist_ok=True)

    def reserve_repository(self) -> None:
        """Makes the repository of `--push_to_hub` now: a token that is not valid is better known before training."""
        args = self.args
        args.hub_model_id = args.hub_model_id or self.output_dir.absolute().name
        if args.push_to_hub and self.accelerator.is_main_process:
            args.hub_model_id = make_repository(args.hub_model_id, token=args.hub_token)

    def plan_steps(self) -> None:
        """Checks the amount of data; turns epochs into steps, and scales the learning rate."""
        args = self.args
        together = args.train_batch_size * self.accelerator.num_processes
        per_step = together * args.gradient_accumulation_steps
        if not args.streaming:
            if len(self.clips) < together:
                raise ValueError(
                    f"`train_batch_size`, {together} on all processes, exceeds {len(self.clips)} stickers."
                )
            if args.num_train_epochs:
                args.max_train_steps = -(-args.num_train_epochs * len(self.clips) // per_step)
            if args.validation_epochs:
                args.validation_steps = -(-args.validation_epochs * len(self.clips) // per_step)
        args.max_train_steps = args.max_train_steps or DEFAULT_STEPS
        if args.scale_lr:
            args.learning_rate *= per_step

    def _drop_frozen_parts(self) -> None:
        """Frees the memory of what the cache stands in for."""
        self.pipeline.register_modules(vae=None, image_encoder=None)
        if self.clips.preparation.text_variants:
            self.pipeline.register_modules(text_encoder=None, text_encoder_2=None)

    @property
    def weights_are_sharded(self) -> bool:
        """Whether no process has the whole UNet, so that drawing and saving take all of them."""
        state = self.accelerator.state
        zero_3 = state.deepspeed_plugin is not None and state.deepspeed_plugin.zero_stage == 3
        return state.distributed_type == DistributedType.FSDP or zero_3

    def _prepare(self) -> None:
        """Puts model, optimiser and average where accelerate wants them."""
        args, unet = self.args, self.pipeline.unet
        if args.use_ema and self.weights_are_sharded:
            raise ValueError("`use_ema` needs whole weights on every process: use DDP or DeepSpeed stage 2.")
        if args.optimizer == "muon" and (self.weights_are_sharded or self.accelerator.state.deepspeed_plugin):
            raise ValueError("`optimizer` muon needs whole weights on every process: use DDP, not FSDP or DeepSpeed.")
        if args.gradient_checkpointing:
            # diffusers' own function makes torch.compile compile every block anew
            unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
        self.pipeline.to(self.accelerator.device)
        if self.pipeline.vae is not None:
            self.pipeline.vae.to(memory_format=torch.channels_last)
        if args.compile:
            unet.compile()
        optimizer = make_optimizer(unet, args)
        schedule = get_scheduler(
            args.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate),
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
        self.lr_factor = schedule.lr_lambdas[0]  # of the optimiser steps done
        self.ema = None
        if args.use_ema:
            self.ema = EMAModel(self.trainable_weights(), decay=args.ema_decay, foreach=args.foreach_ema)
            self.place_ema()
        self.unet, self.optimizer = self.accelerator.prepare(unet.train(), optimizer)
        self.accelerator.register_save_state_pre_hook(self.save_weights)
        self.accelerator.register_load_state_pre_hook(self.load_weights)
        self.accelerator.register_for_checkpointing(self.curriculum, *([self.ema] if self.ema else []))

    def trainable_weights(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.pipeline.unet.parameters() if parameter.requires_grad]

    def save_weights(self, models: list, weights: list[dict], folder: str) -> None:
        """Puts what is trained into a checkpoint, so that it can be loaded from there.

        Where the weights are sharded, both lists are empty and accelerate has saved them its own way.
        """
        if weights:
            weights.clear()
            if self.accelerator.is_main_process:
                self.save_trained(Path(folder))

    def load_weights(self, models: list, folder: str) -> None:
        """The reverse of `save_weights`."""
        if models:
            models.clear()
            self.load_trained(Path(folder))

    def save_trained(self, folder: Path) -> None:
        """Writes the UNet as diffusers saves it."""
        self.pipeline.unet.save_pretrained(folder / "unet")

    def load_trained(self, folder: Path) -> None:
        """Reads what `save_trained` wrote, in place."""
        saved = UNetDiscreteFrameModel.from_pretrained(folder, subfolder="unet")
        self.pipeline.unet.load_state_dict(saved.state_dict())

    def place_ema(self) -> None:
        """Keeps the average where it is updated, or in main memory with `--offload_ema`."""
        self.ema.to("cpu" if self.args.offload_ema else self.accelerator.device)
        if self.args.offload_ema and self.accelerator.device.type == "cuda":
            self.ema.pin_memory()

    def update_ema(self) -> None:
        """One step of the moving average; an offloaded one visits the device, where there are no gradients now."""
        kept = self.ema.shadow_params
        self.ema.to(self.accelerator.device, non_blocking=True)
        self.ema.step(self.trainable_weights())
        if self.args.offload_ema:
            for place, average in zip(kept, self.ema.shadow_params):
                place.copy_(average)
            self.ema.shadow_params = kept

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The UNet as it will be used: with the moving average of its weights, where there is one."""
        if self.ema is not None:
            self.ema.store(self.trainable_weights())
            self.ema.copy_to(self.trainable_weights())
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.trainable_weights())

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says about its run, beside the state of everything."""
        args = self.args
        return {
            "unet": {key: value for key, value in self.pipeline.unet.config.items() if not key.startswith("_")},
            "prediction_type": self.pipeline.scheduler.config.prediction_type,
            "optimizer": args.optimizer,
            "use_ema": args.use_ema,
            "curriculum": args.curriculum,
            "processes": self.accelerator.num_processes,
            "workers": args.dataloader_num_workers,
            "batch_size": args.train_batch_size,
            "samples": self.samples,
        }

    def resume(self) -> None:
        """Goes on from the checkpoint that was asked for, if there is one.

        What the command line says holds, not what it said when the checkpoint was made: rates, decays, schedules.
        """
        folder = find_checkpoint(self.output_dir, self.args.resume_from_checkpoint, self.accelerator)
        if folder is None:
            return
        logger.info("Resuming from %s", folder)
        same = self.lasting_facts
        if self.args.streaming:  # whose parts each go on with rows of their own
            same += ("processes", "workers", "batch_size")
        check_facts(folder, {name: self.facts()[name] for name in same})
        self.first_step, self.samples = checkpoint_step(folder), read_facts(folder)["samples"]
        if self.first_step > self.args.max_train_steps:
            raise ValueError(f"`max_train_steps` {self.args.max_train_steps}: {folder.name} has gone further.")
        load_checkpoint(self.accelerator, folder)
        self.accelerator.step = 0  # micro-steps: accelerate would go on in the middle of an optimiser step
        if self.ema is not None:
            self.ema.decay = self.args.ema_decay
            self.place_ema()

    def batches(self) -> Iterator[list[dict]]:
        """This process's micro-batches of samples from the place in the data on that the run has reached."""
        args, processes = self.args, self.accelerator.num_processes
        options = {
            "collate_fn": list,
            "num_workers": args.dataloader_num_workers,
            "worker_init_fn": leave_signals_to_trainer,
            "generator": torch.Generator(),  # else each start of a run draws a seed from the global one
        }
        if args.streaming:
            self.clips.resume(self.samples // processes, args.train_batch_size)
            return iter(DataLoader(self.clips, args.train_batch_size, **options))
        numbers = sample_numbers(args, self.accelerator, self.samples)
        return iter(DataLoader(self.clips, batch_sampler=numbers, **options))

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
            text = {name: value for name, value in zip(names, (embeds, embeds_2)) if value is not None}
        return latents.float(), text | {"text_mask": batch["text_mask"].to(device)}

    def draw_timesteps(self, rows: list[dict]) -> torch.Tensor:
        """Noise levels (B,) of clips, every clip's by its own seed."""
        generators = [row_generator(row["seed"], "timestep") for row in rows]
        if self.timestep_chances is None:
            levels = self.pipeline.scheduler.config.num_train_timesteps
            return torch.stack([torch.randint(levels, (), generator=generator) for generator in generators])
        chances = self.timestep_chances
        return torch.cat([torch.multinomial(chances, 1, generator=generator) for generator in generators])

    def draw_noise(self, rows: list[dict], stream: str, shape: torch.Size) -> torch.Tensor:
        """Standard normal (B, *shape), every clip's by its own seed."""
        generators = [row_generator(row["seed"], stream) for row in rows]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return noise.to(self.accelerator.device)

    def add_noise(
        self, latents: torch.Tensor, rows: list[dict], timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents, and what the network is to predict of them; both as `latents` (B, C, F, h, w)."""
        args, scheduler, shape = self.args, self.pipeline.scheduler, latents.shape[1:]
        noise = self.draw_noise(rows, "noise", shape)
        if args.noise_offset:
            noise += args.noise_offset * self.draw_noise(rows, "noise_offset", (shape[0], 1, 1, 1))
        added = noise
        if args.input_perturbation:
            added = noise + args.input_perturbation * self.draw_noise(rows, "input_perturbation", shape)
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        return scheduler.add_noise(latents, added, timesteps), target

    def network_input(
        self, noisy: torch.Tensor, latents: torch.Tensor, condition_mask: torch.Tensor, frame_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network sees of `noisy` (B, C, F, h, w), and which of its frames (B, F) are in the loss."""
        return noisy, frame_mask

    def loss(self, rows: list[dict], task: str, real_frames: float | None = None) -> torch.Tensor:
        """The loss mask's loss of one micro-batch under `task`; `real_frames` as in `dual_mask_loss`."""
        args, scheduler, device = self.args, self.pipeline.scheduler, self.accelerator.device
        batch = self.collator(rows, task)
        with torch.no_grad(), self.accelerator.autocast():
            latents, text = self.encode(batch, rows)
        timesteps = self.draw_timesteps(rows).to(device)
        noisy, target = self.add_noise(latents, rows, timesteps)
        condition_mask, frame_mask = batch["condition_mask"].to(device), batch["frame_mask"].to(device)
        condition = mask_condition_latents(latents, condition_mask, frame_mask)
        noisy, loss_mask = self.network_input(noisy, latents, condition_mask, frame_mask)
        dtype = self.pipeline.unet.dtype  # float32, but for DeepSpeed, which knows no autocast
        inputs = {name: tensor.to(dtype) for name, tensor in (text | {"condition_latents": condition}).items()}
        prediction = self.unet(noisy.to(dtype), timesteps, **inputs).sample
        weights = min_snr_weights(scheduler, timesteps, args.snr_gamma) if args.snr_gamma else None
        return dual_mask_loss(prediction, target, loss_mask, args.loss_reduction, weights, real_frames)

    def real_frames(self, micro_batches: list[list[dict]]) -> float:
        """Real frames of a micro-batch, on average over those of one optimiser step on all processes."""
        source = "latents" if self.args.latent_cache else "clip"
        frames = sum(len(row[source]) for rows in micro_batches for row in rows)
        frames = torch.tensor(float(frames), device=self.accelerator.device)
        return self.accelerator.reduce(frames, "mean").item() / len(micro_batches)

    def step(self, step: int, batches: Iterator[list[dict]]) -> dict[str, Any]:
        """One optimiser step over all processes and micro-steps; returns what is logged."""
        args, accelerator = self.args, self.accelerator
        task = self.curriculum.draw((args.seed << 32) + step)
        micro_batches = [next(batches) for _ in range(args.gradient_accumulation_steps)]
        real_frames = self.real_frames(micro_batches) if args.loss_reduction == "valid" else None
        for group in self.optimizer.param_groups:
            group.update(optimizer_settings(args), lr=args.learning_rate * self.lr_factor(step - 1))
        total = torch.zeros((), device=accelerator.device)
        for rows in micro_batches:
            with accelerator.accumulate(self.unet):
                loss = self.loss(rows, task, real_frames)
                accelerator.backward(loss)
                total += loss.detach() / len(micro_batches)
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(self.unet.parameters(), args.max_grad_norm))
                    if accelerator.scaler is None and not math.isfinite(norm):  # with fp16 the scaler skips the step
                        raise ValueError(f"The gradient of step {step} is {norm}: try a lower --learning_rate.")
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.ema is not None:
            self.update_ema()
        self.samples += args.train_batch_size * len(micro_batches) * accelerator.num_processes
        mean_loss = accelerator.reduce(total, "mean").item()
        if not math.isfinite(mean_loss):
            raise ValueError(f"The loss of step {step} is {mean_loss}: try a lower --learning_rate.")
        self.curriculum.update(mean_loss)
        return self.logs(task, mean_loss, norm) | {"lr": self.optimizer.param_groups[0]["lr"]}

    def logs(self, task: str, loss: float, norm: float) -> dict[str, Any]:
        """The figures of an optimiser step: what it was, and what the curriculum makes of it."""
        logs = {"task": task, "loss": loss, f"loss/{task}": loss}
        logs |= {"grad_norm": norm} if math.isfinite(norm) else {}  # with fp16, the first steps
        logs |= {f"task_share/{name}": share for name, share in self.curriculum.probabilities().items()}
        if self.args.curriculum == "adaptive":
            logs |= {f"pid/{name}": value for name, value in self.curriculum.terms._asdict().items()}
            logs["level"] = self.curriculum.level
        return logs

    def run(self) -> int:
        """Trains to `--max_train_steps` and saves the pipeline; returns the exit code."""
        self.resume()
        settings = {
            name: str(value)
            for name, value in vars(self.args).items()
            if name not in ("hub_token", "validation_animations")
        }
        purge = {"tensorboard": {"purge_step": self.first_step + 1}} if self.first_step else {}
        self.accelerator.init_trackers(self.args.tracker_project_name, config=settings, init_kwargs=purge)
        # The sequences are short and many: on a CPU plain matrix products beat fused attention. Despite its place the
        # flag is for any device, and lets them stay in bfloat16.
        on_cpu = self.accelerator.device.type == "cpu"
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(on_cpu)
        with self.signal, sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
            self.train()
        if not self.stopping:
            self.save()
        self.accelerator.end_training()
        if not self.stopping:
            self.publish()
        return 128 + self.signal.number if self.stopping else 0

    def train(self) -> None:
        """The optimiser steps that are left, with checkpoints and validations between them."""
        args, accelerator = self.args, self.accelerator
        batches = self.batches()
        history = RunHistory(self.output_dir / HISTORY_FILE, self.first_step) if accelerator.is_main_process else None
        steps = range(self.first_step + 1, args.max_train_steps + 1)
        options = {"initial": self.first_step, "disable": not accelerator.is_local_main_process}
        with tqdm(total=args.max_train_steps, **options) as progress:
            for step in steps:
                logs = self.step(step, batches)
                last = step == args.max_train_steps
                if self.cases and (step % args.validation_steps == 0 or last):
                    logs |= self.validate(step)
                if history is not None:
                    history.append(step, logs)
                accelerator.log({name: value for name, value in logs.items() if name != "task"}, step=step)
                shown = {"task": logs["task"], "loss": f"{logs['loss']:.4f}", "lr": f"{logs['lr']:.1e}"}
                progress.set_postfix(shown, refresh=False)
                progress.update()
                self.stopping = self.signal.received(accelerator) and not last
                if step % args.checkpointing_steps == 0 or last or self.stopping:
                    self.check_weights(step)
                    limit = args.checkpoints_total_limit
                    save_checkpoint(accelerator, self.output_dir, step, limit, self.facts())
                if self.stopping:
                    break
        if history is not None:
            history.close()
        if self.stopping:
            logger.info("Stopped by %s; checkpoint-%d is whole.", signal.Signals(self.signal.number).name, step)

    def check_weights(self, step: int) -> None:
        """Refuses to save weights with which a run could not go on."""
        if not self.weights_are_sharded and not all(torch.isfinite(w).all() for w in self.trainable_weights()):
            raise ValueError(f"The weights after step {step} are not finite: try a lower --learning_rate.")

    def generation_settings(self) -> dict[str, float]:
        """How validation stickers are drawn, and what is written into `generation.json` beside the weights."""
        scale = self.args.validation_guidance_scale
        return {
            "num_inference_steps": self.args.validation_inference_steps,
            "guidance_scale": scale,
            "image_guidance_scale": scale,
            "eta": self.args.validation_eta,
        }

    def drawing_pipeline(self) -> StickerGenerationPipeline:
        """What validation needs: with a latent cache the frozen parts are loaded for as long as it does."""
        if not self.args.latent_cache:
            return self.pipeline
        whole = load_frozen_parts(self.args, WEIGHT_DTYPES[self.accelerator.mixed_precision])
        whole.register_modules(unet=self.pipeline.unet, scheduler=self.pipeline.scheduler)
        return whole.to(self.accelerator.device)

    def draw(self, pipeline: StickerGenerationPipeline, case: ValidationCase) -> list[Image.Image]:
        """One validation sticker."""
        return draw(pipeline, case, self.args.seed, **self.generation_settings())

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Draws the validation stickers with the averaged weights; returns how much they move, by family."""
        if not (self.accelerator.is_main_process or self.weights_are_sharded):
            return {}
        unet = self.pipeline.unet.eval()
        with self.averaged_weights(), self.accelerator.autocast():
            pipeline = self.drawing_pipeline()
            stickers = [self.draw(pipeline, case) for case in self.cases]
        unet.train()
        folder = self.output_dir / "validation" / f"step-{step}"
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            for case, frames in zip(self.cases, stickers):
                save_sticker(frames, folder / f"{case.name}.webp")
                for tracker in self.accelerator.trackers:
                    log_animation(tracker, f"validation/{case.name} {case.prompt}", frames, step)
        return {f"motion/{family}": score for family, score in motion_scores(self.cases, stickers).items()}

    def save(self) -> None:
        """Writes what was trained, with averaged weights, into `--output_dir`, with plots and card."""
        with self.averaged_weights():
            self.save_model()
        if self.accelerator.is_main_process:
            history = read_history(self.output_dir / HISTORY_FILE)
            plot_losses(history, self.output_dir / LOSSES_FILE)
            plot_curriculum(history, self.output_dir / CURRICULUM_FILE, self.curriculum)
            self.save_card(final_losses(history))

    def save_model(self) -> None:
        """Writes the pipeline with its settings. Call on every process: sharded weights are gathered."""
        weights = self.accelerator.get_state_dict(self.unet)
        if not self.accelerator.is_main_process:
            return
        unet = UNetDiscreteFrameModel.from_config(self.pipeline.unet.config)
        unet.load_state_dict(weights)
        pipeline = load_frozen_parts(self.args)
        pipeline.register_modules(unet=unet, scheduler=self.pipeline.scheduler)
        try:
            pipeline.save_pretrained(self.output_dir)
        except SafetensorError as error:
            raise OSError(f"The pipeline could not be written to {self.output_dir}: {error}") from error
        settings = json.dumps(self.generation_settings(), indent=2)
        (self.output_dir / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")

    def save_card(self, losses: dict[str, float]) -> None:
        """The card, with the last validation sticker as its preview, and the data's attribution."""
        preview = self.output_dir / "preview.webp"
        preview.unlink(missing_ok=True)  # of an earlier end of this run
        drawn = sorted((self.output_dir / "validation" / f"step-{self.args.max_train_steps}").glob("*.webp"))
        if drawn:
            shutil.copy(drawn[0], preview)
        copy_attribution(self.data_sources(), self.output_dir)
        self.card(losses).save(self.output_dir / "README.md")

    def data_sources(self) -> list[str]:
        """Folders and Hub ids of the training data."""
        if self.args.latent_cache:
            return self.clips.preparation.sources
        return [*self.args.train_data_dir, *self.args.dataset_name]

    def card(self, losses: dict[str, float]) -> ModelCard:
        """What is told of the model; `losses` are the final ones, by task."""
        args = self.args
        frozen = PRESETS[args.preset].parts.values() or ["the model that comes with rdtf_diffusers"]
        if args.pretrained_model_name_or_path:
            frozen = [args.pretrained_model_name_or_path]
        start = [args.unet_model_name_or_path] if args.unet_model_name_or_path else []
        return model_card(
            self.output_dir,
            repo_id=args.hub_model_id,
            prompt=self.cases[0].prompt if self.cases else None,
            base_models=[*frozen, *start],
            data=self.data_sources(),
            training=self.training_facts(),
            final_losses=losses,
        )

    def training_facts(self) -> dict[str, Any]:
        """The rows of the card's training table."""
        args, processes = self.args, self.accelerator.num_processes
        started = args.unet_model_name_or_path
        return {
            "parameters": f"{self.pipeline.unet.num_parameters() / 1e6:.1f} M",
            "started from": public_name(started) if started else f"random weights, preset {args.preset}",
            "optimiser steps": args.max_train_steps,
            "clips a step": args.train_batch_size * args.gradient_accumulation_steps * processes,
            "resolution": args.resolution,
            "frames": args.num_frames,
            "keyframes": f"{args.min_keyframes} to {args.max_keyframes}, {args.keyframes}",
            "pictures set in motion": args.procedural_fraction,
            "motion weights": args.motion_weights,
            "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler}, warm-up {args.lr_warmup_steps}",
            "noise levels": self.noise_levels(),
            "curriculum": args.curriculum,
            "task weights": args.task_weights,
            "loss": f"{self.pipeline.scheduler.config.prediction_type}, mean over {args.loss_reduction} frames",
            "text and frames dropped": args.joint_drop_prob,
            "text dropped": args.text_drop_prob,
            "words dropped": args.text_word_drop_prob,
            "interpolations between two ends": args.interpolation_ends_prob,
            "interpolations over one gap": args.interpolation_gap_prob,
            "first frame given": args.first_frame_prob,
            "moving average": args.ema_decay if args.use_ema else "none",
            "mixed precision": self.accelerator.mixed_precision,
            "seed": args.seed,
        } | environment(processes)

    def noise_levels(self) -> str:
        """Which noise levels are trained how often, for the card."""
        args, levels = self.args, self.pipeline.scheduler.config.num_train_timesteps
        if self.timestep_chances is None:
            return "all alike"
        begin, end = args.timestep_bias_begin or 0, args.timestep_bias_end or levels
        return f"{begin} to {end - 1} of {levels}, {args.timestep_bias_multiplier:g} times as often"

    def publish(self) -> None:
        """Uploads what the run leaves with `--push_to_hub`."""
        args = self.args
        if args.push_to_hub and self.accelerator.is_main_process:
            ignore = (*NOT_PUBLISHED, f"{args.logging_dir}/*")
            address = push_to_hub(self.output_dir, args.hub_model_id, token=args.hub_token, ignore=ignore)
            logger.info("Published: %s", address)


def run_script(name: str, trainer: Callable[[argparse.Namespace], Trainer], args: argparse.Namespace) -> int:
    """Trains with what `trainer` makes of the arguments; returns the exit code of the script `name`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    logging.getLogger("rdtf_diffusers.pipelines").setLevel(logging.ERROR)  # which would report every text it cuts
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        return trainer(args).run()
    except KeyboardInterrupt:  # before training, or the second one
        print(f"{name}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (OSError, ValueError) as error:
        logger.debug("Where it happened:", exc_info=True)
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("Where it happened:", exc_info=True)
        advice = "give a smaller --train_batch_size or --gradient_checkpointing"
        print(f"{name}: error: the memory is full; {advice}", file=sys.stderr)
        return 2


def main(args: list[str] | None = None) -> int:
    """Trains; returns the exit code."""
    return run_script("train_rdtf.py", Trainer, parse_args(args))


if __name__ == "__main__":
    sys.exit(main())
