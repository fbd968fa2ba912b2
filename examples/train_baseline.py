"""Tune an adapter on a trained sticker model: I2V-Adapter, SimDA or Customize-A-Video, which RDTF is compared with.

    accelerate launch examples/train_baseline.py --method simda --pretrained_model_name_or_path base-model \
        --train_data_dir stickers --train_batch_size 16 --max_train_steps 5000 --output_dir my-adapter

Data, masks, curriculum, checkpoints, logs and arguments are those of train_rdtf.py. The base's UNet is frozen; only
the adapter is trained, averaged and saved: `--output_dir` ends with `adapter_config.json`,
`adapter_model.safetensors` and a card that says how to attach them.

Customize-A-Video may have its appearance kept apart, in two runs:

    train_baseline.py --method customize_a_video --stage appearance --output_dir absorber ...
    train_baseline.py --method customize_a_video --absorber absorber --output_dir my-adapter ...

Exit codes as of train_rdtf.py.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from safetensors.torch import load_file
from train_rdtf import Trainer, run_script
from training_arguments import check_args, make_parser, parse_with_preset
from validation_stickers import ValidationCase, draw

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel
from rdtf_diffusers.baselines import (
    CustomizeAVideoConfig,
    CustomizeAVideoModel,
    I2VAdapterConfig,
    I2VAdapterModel,
    SimDAConfig,
    SimDAModel,
    clean_first_frame,
    frame_similarity_prior,
    keep_first_frame,
)
from rdtf_diffusers.checkpoints import SETTINGS_FILE
from rdtf_diffusers.data.latents import fingerprint
from rdtf_diffusers.utils.hub import model_card, public_name


class BaselineTrainer(Trainer):
    """A run that trains an adapter of the base's UNet.

    Attributes:
        adapter_class: of the method.
        options: arguments of the method, which other methods refuse.
        adapter: attached to `pipeline.unet`.
    """

    adapter_class: type
    options: tuple[str, ...]
    lasting_facts = (*Trainer.lasting_facts, "base", "method", "options")

    def make_adapter(self, unet: UNetDiscreteFrameModel) -> torch.nn.Module:
        """The adapter as it starts, attached to `unet`, in which nothing else is left to train."""
        raise NotImplementedError

    def make_unet(self) -> UNetDiscreteFrameModel:
        """The base's UNet with the adapter.

        Raises:
            ValueError: the base has no UNet, or the weights of a run are sharded.
        """
        if self.weights_are_sharded:
            raise ValueError("An adapter is too small to be sharded: use DDP, not FSDP or DeepSpeed stage 3.")
        self.check_base()
        unet = super().make_unet()
        self.base_fingerprint = fingerprint(unet)
        self.adapter = self.make_adapter(unet)
        return unet

    def check_base(self) -> None:
        """Refuses a pipeline of frozen parts alone, as train_rdtf.py takes it."""
        args = self.args
        if args.unet_model_name_or_path != args.pretrained_model_name_or_path:
            return
        base = args.pretrained_model_name_or_path
        parts = StickerGenerationPipeline.load_config(base, revision=args.revision, cache_dir=args.cache_dir)
        if not any(parts.get("unet") or ()):
            raise ValueError(
                f"`pretrained_model_name_or_path` {base} has no UNet: an adapter needs one that is trained, of this "
                "pipeline or of --unet_model_name_or_path."
            )

    def facts(self) -> dict[str, Any]:
        return super().facts() | {
            "base": self.base_fingerprint,
            "method": self.args.method,
            "options": self.method_options(),
        }

    def method_options(self) -> dict[str, Any]:
        """The method's arguments, without machine paths."""
        values = {name: getattr(self.args, name) for name in self.options}
        return {name: public_name(value) if name == "absorber" and value else value for name, value in values.items()}

    def save_trained(self, folder: Path) -> None:
        """Writes the adapter as PEFT names its files."""
        self.adapter.save_pretrained(folder / "adapter")

    @torch.no_grad()
    def load_trained(self, folder: Path) -> None:
        saved = load_file(folder / "adapter" / SAFETENSORS_WEIGHTS_NAME)
        for name, weight in self.adapter.named_weights():
            weight.copy_(saved[name])

    def save_model(self) -> None:
        """Writes the adapter into `--output_dir`, and the settings that validation stickers were drawn with."""
        if self.accelerator.is_main_process:
            self.adapter.save_pretrained(self.output_dir)
            settings = json.dumps(self.generation_settings(), indent=2)
            (self.output_dir / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")

    def card(self, losses: dict[str, float]) -> ModelCard:
        count = sum(weight.numel() for weight in self.trainable_weights())
        facts = self.training_facts()
        return model_card(
            self.output_dir,
            repo_id=self.args.hub_model_id,
            prompt=self.cases[0].prompt if self.cases else None,
            base_models=[self.args.unet_model_name_or_path],
            data=self.data_sources(),
            training={"weights trained": f"{count:,} of {facts['parameters']}"} | self.method_options() | facts,
            final_losses=losses,
        )


class I2VAdapterTrainer(BaselineTrainer):
    """I2V-Adapter: a first frame that is known stays clean, in training as in drawing."""

    adapter_class, options = I2VAdapterModel, ("skip_mid_block",)

    def make_adapter(self, unet: UNetDiscreteFrameModel) -> I2VAdapterModel:
        return I2VAdapterModel(unet, I2VAdapterConfig(mid_block=not self.args.skip_mid_block))

    def network_input(
        self, noisy: torch.Tensor, latents: torch.Tensor, condition_mask: torch.Tensor, frame_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return clean_first_frame(noisy, latents, condition_mask, frame_mask)

    def draw(self, pipeline: StickerGenerationPipeline, case: ValidationCase) -> list[Image.Image]:
        if case.frames[0] is None:
            return super().draw(pipeline, case)
        args, settings = self.args, self.generation_settings()
        size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        known = pipeline.prepare_known_frames([[case.frames[0]]], size, size)
        first_frame = pipeline.encode_known_frames(*known)[:, :, 0]
        latents = frame_similarity_prior(
            first_frame,
            args.num_frames,
            pipeline.scheduler,
            settings["num_inference_steps"],
            torch.Generator().manual_seed(args.seed + 1),  # not the noise of the sampling steps
        )
        keep = keep_first_frame(first_frame)
        return draw(pipeline, case, args.seed, latents=latents, callback_on_step_end=keep, **settings)


class SimDATrainer(BaselineTrainer):
    """SimDA."""

    adapter_class, options = SimDAModel, ("latent_shift",)

    def make_adapter(self, unet: UNetDiscreteFrameModel) -> SimDAModel:
        return SimDAModel(unet, SimDAConfig(latent_shift=self.args.latent_shift))


class CustomizeAVideoTrainer(BaselineTrainer):
    """Customize-A-Video: one of its two stages. An absorber is there in training only."""

    adapter_class, options = CustomizeAVideoModel, ("rank", "stage", "absorber")

    def make_adapter(self, unet: UNetDiscreteFrameModel) -> CustomizeAVideoModel:
        model = CustomizeAVideoModel(unet, CustomizeAVideoConfig(self.args.rank, self.args.stage))
        if self.args.absorber:
            model.load_absorber(self.args.absorber)
        return model

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        with super().averaged_weights(), self.adapter.without_absorber() if self.args.absorber else nullcontext():
            yield


TRAINERS = {
    "i2v_adapter": I2VAdapterTrainer,
    "simda": SimDATrainer,
    "customize_a_video": CustomizeAVideoTrainer,
}


def add_method_arguments(group) -> None:
    add = group.add_argument
    add("--method", choices=list(TRAINERS), required=True, help="Which adapter is tuned.")
    add("--skip_mid_block", action="store_true", help="I2V-Adapter without an adapter in the middle of the UNet.")
    add("--latent_shift", action="store_true", help="SimDA with its latent-shift attention.")
    add("--rank", type=int, default=4, help="Of Customize-A-Video's low-rank matrices.")
    add("--stage", choices=["temporal", "appearance"], default="temporal", help="Of Customize-A-Video.")
    add("--absorber", help="Customize-A-Video's adapter of stage appearance, beside which stage temporal trains.")


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__.split("\n")[0])
    add_method_arguments(parser.add_argument_group("adapter"))
    parser.set_defaults(output_dir="sticker-adapter", tracker_project_name="train_baseline")
    parsed = parse_with_preset(parser, args)
    if parsed.pretrained_model_name_or_path is None:
        parser.error("--pretrained_model_name_or_path: name the pipeline whose UNet is to be tuned")
    parsed.unet_model_name_or_path = parsed.unet_model_name_or_path or parsed.pretrained_model_name_or_path
    check_args(parser, parsed)
    for trainer in TRAINERS.values():
        for name in () if trainer is TRAINERS[parsed.method] else trainer.options:
            if getattr(parsed, name) != parser.get_default(name):
                parser.error(f"--{name} is of {trainer.adapter_class.method}, not of --method {parsed.method}")
    if parsed.absorber and parsed.stage == "appearance":
        parser.error("--absorber: stage appearance is what makes one")
    return parsed


def main(args: list[str] | None = None) -> int:
    """Trains; returns the exit code."""
    parsed = parse_args(args)
    return run_script("train_baseline.py", TRAINERS[parsed.method], parsed)


if __name__ == "__main__":
    sys.exit(main())
