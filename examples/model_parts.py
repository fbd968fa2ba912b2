"""The models of a training run: frozen parts of a pipeline and the UNet that is trained.

pipeline = load_frozen_parts(args)                       # autoencoder, text encoders, scheduler
pipeline.register_modules(unet=make_unet(args, pipeline))
"""

import argparse

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel, demo_checkpoint
from rdtf_diffusers.training.presets import PRESETS, Preset


PREDICTION_TYPES = ("epsilon", "v_prediction")
ADDITIONS = {  # arguments of the UNet, and what they add to the paper's
    "frame_text_layers": "layers of a transformer that tells every frame what the text says about it",
    "clip_attention_num_heads": "heads of an attention from every place to all places of all frames",
    "copy_num_heads": "heads of an attention that copies latents of the known frames",
}


def load_frozen_parts(args: argparse.Namespace, dtype: torch.dtype = torch.float32) -> StickerGenerationPipeline:
    """A pipeline without UNet: `--pretrained_model_name_or_path`, or else what the preset names.

    Raises:
        ValueError: the resolution does not fit the autoencoder.
    """
    preset, name = PRESETS[args.preset], args.pretrained_model_name_or_path
    if name is None and preset.parts:
        pipeline = load_preset_parts(preset, dtype, args.cache_dir)
    else:
        name = demo_checkpoint() if name is None else name
        options = {"cache_dir": args.cache_dir}
        if args.pretrained_model_name_or_path:
            options |= {"revision": args.revision, "variant": args.variant}
        # a refiner belongs to the UNet that it was trained for
        pipeline = StickerGenerationPipeline.from_pretrained(name, unet=None, refiner=None, dtype=dtype, **options)
    if args.resolution % pipeline.vae_scale_factor:
        raise ValueError(f"`resolution` must be a multiple of {pipeline.vae_scale_factor}, got {args.resolution}.")
    for frozen in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        if frozen is not None:
            frozen.requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_preset_parts(preset: Preset, dtype: torch.dtype, cache_dir: str | None) -> StickerGenerationPipeline:
    """The public models that a preset names, one by one."""
    parts = preset.parts
    second = parts.get("text_encoder_2")
    options = {"dtype": dtype, "cache_dir": cache_dir}
    return StickerGenerationPipeline(
        vae=AutoencoderKL.from_pretrained(parts["vae"], **options),
        text_encoder=CLIPTextModel.from_pretrained(parts["text_encoder"], **options),
        tokenizer=AutoTokenizer.from_pretrained(parts["text_encoder"], cache_dir=cache_dir),
        text_encoder_2=second and T5EncoderModel.from_pretrained(second, **options),
        tokenizer_2=second and AutoTokenizer.from_pretrained(second, cache_dir=cache_dir),
        unet=None,
        scheduler=DDIMScheduler(**preset.scheduler),
    )


def make_unet(args: argparse.Namespace, pipeline: StickerGenerationPipeline) -> UNetDiscreteFrameModel:
    """The UNet to train, in float32: that of `--unet_model_name_or_path`, or one with random weights.

    Layers beyond the paper that the arguments ask for and a pretrained UNet lacks are added to it: they start as what
    changes nothing.

    Raises:
        ValueError: a pretrained UNet does not fit the autoencoder, the text encoders or the number of frames.
    """
    channels, second = pipeline.vae.config.latent_channels, pipeline.text_encoder_2
    size = args.resolution // pipeline.vae_scale_factor
    fitting = {
        "in_channels": 2 * channels,
        "out_channels": channels,
        "cross_attention_dim": pipeline.text_encoder.config.hidden_size,
        "second_text_dim": None if second is None else second.config.hidden_size,
        "num_frames": args.num_frames,
    }
    additions = {name: getattr(args, name) for name in ADDITIONS if getattr(args, name) is not None}
    if args.unet_model_name_or_path is None:
        widths = args.block_out_channels and {"block_out_channels": tuple(args.block_out_channels)}
        return UNetDiscreteFrameModel(
            **PRESETS[args.preset].unet | (widths or {}),
            **fitting,
            **additions,
            sample_size=size,
            temporal_layer=args.temporal_layer,
            sti_detail=args.sti_detail,
        )
    unet = UNetDiscreteFrameModel.from_pretrained(
        args.unet_model_name_or_path,
        subfolder="unet",
        revision=args.non_ema_revision or args.revision,
        variant=args.variant,
        cache_dir=args.cache_dir,
        dtype=torch.float32,
    )
    differences = [f"{k} {unet.config[k]}, not {v}" for k, v in fitting.items() if unet.config[k] != v]
    if differences:
        raise ValueError(f"The UNet of {args.unet_model_name_or_path} does not fit: {', '.join(differences)}.")
    if any(unet.config[name] != count for name, count in additions.items()):
        unet = add_layers(unet, additions)
    unet.register_to_config(sample_size=size)  # what it trains on last is what it draws by default
    return unet


def may_grow(name: str, present: int, wanted: int) -> bool:
    """Whether a trained network can have `wanted` layers, or heads; only layers can join those that are there."""
    return present in (0, wanted) or (name == "frame_text_layers" and present < wanted)


def add_layers(unet: UNetDiscreteFrameModel, additions: dict[str, int]) -> UNetDiscreteFrameModel:
    """The same network with more layers; they start as what changes nothing.

    Raises:
        ValueError: layers that the network has would be changed or lost.
    """
    if any(not may_grow(name, unet.config[name], count) for name, count in additions.items()):
        changes = ", ".join(f"`{name}` {unet.config[name]} to {count}" for name, count in additions.items())
        raise ValueError(f"Layers can be added to a pretrained UNet, not changed or taken away: {changes}.")
    larger = UNetDiscreteFrameModel.from_config(unet.config, **additions)
    larger.load_state_dict(unet.state_dict(), strict=False)
    return larger


def make_scheduler(args: argparse.Namespace, pipeline: StickerGenerationPipeline) -> DDIMScheduler:
    """DDIM with the noise levels of the pipeline's scheduler, for `--prediction_type`.

    Raises:
        ValueError: that scheduler predicts something else than noise or velocity.
    """
    config = dict(pipeline.scheduler.config)
    config["prediction_type"] = args.prediction_type or config["prediction_type"]
    if config["prediction_type"] not in PREDICTION_TYPES:
        raise ValueError(f"The prediction type must be one of {PREDICTION_TYPES}, got {config['prediction_type']!r}.")
    if config["prediction_type"] == "epsilon":  # pure noise says nothing about the noise that it is
        config["rescale_betas_zero_snr"] = False
    return DDIMScheduler.from_config(config)
