"""The command line of the training scripts: what they take, with diffusers' spellings, and what they refuse.

    parser = make_parser("Train a sticker model.")
    args = parse_with_preset(parser, argv)
    check_args(parser, args)

All arguments of diffusers' train_text_to_image.py are here but those of DREAM and xformers, which are refused by name.
"""

import argparse
import importlib.util
import math

from model_parts import ADDITIONS, PREDICTION_TYPES

from rdtf_diffusers.data.animation import INTERPOLATION_MODES, read_animation
from rdtf_diffusers.data.keyframes import KEYFRAME_METHODS
from rdtf_diffusers.training.presets import PRESETS
from rdtf_diffusers.training.tasks import TASKS


DEFAULT_STEPS = 50_000  # RDTF (arXiv 2503.17735), table 6
# of diffusers; piecewise_constant needs rules that no argument gives
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
REFUSED = {
    "--dream_training": "DREAM is not implemented",
    "--dream_detail_preservation": "DREAM is not implemented",
    "--enable_xformers_memory_efficient_attention": "attention runs as PyTorch's scaled_dot_product_attention already",
}


def name_and_weight(entry: str) -> tuple[str, float]:
    """NAME=X -> (NAME, X), for `type=`."""
    name, _, weight = entry.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{entry!r} is not NAME=NUMBER") from None


WEIGHTS = {"nargs": "+", "default": [], "type": name_and_weight}


def named_weights(parser: argparse.ArgumentParser, option: str, entries: list[tuple[str, float]]) -> dict[str, float]:
    """The entries of a `WEIGHTS` option by name; ends with an error where a name comes twice."""
    weights = dict(entries)
    if len(weights) < len(entries):
        parser.error(f"--{option}: a name comes twice")
    return weights


class Refused(argparse.Action):
    """An argument that other scripts have: ends with the reason why this one has not."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string}: {self.const}")


class DefaultsHelp(argparse.HelpFormatter):
    """Help with the default values of numbers and words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, False, [], argparse.SUPPRESS) and "efault" not in action.help
        return f"{action.help} Default: %(default)s." if shown else action.help


def make_parser(description: str) -> argparse.ArgumentParser:
    """All arguments that the training scripts share."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False, formatter_class=DefaultsHelp)
    add_model_arguments(parser.add_argument_group("model"))
    add_data_arguments(parser.add_argument_group("data"))
    add_method_arguments(parser.add_argument_group("method"))
    add_optimisation_arguments(parser.add_argument_group("optimisation"))
    add_resource_arguments(parser.add_argument_group("memory and speed"))
    add_output_arguments(parser.add_argument_group("output"))
    for name, reason in REFUSED.items():
        parser.add_argument(name, action=Refused, nargs="*", const=reason, help=argparse.SUPPRESS)
    return parser


def add_model_arguments(group) -> None:
    add = group.add_argument
    add("--preset", choices=list(PRESETS), default="tiny", help="Size of the UNet, and defaults that go with it.")
    add("--pretrained_model_name_or_path", help="Pipeline with the frozen parts. Default: those of the preset.")
    add("--unet_model_name_or_path", help="Pipeline whose UNet training starts from, instead of random weights.")
    add("--revision", help="Git revision of the pretrained models.")
    add("--non_ema_revision", help="Git revision of --unet_model_name_or_path. Default: --revision.")
    add("--variant", help="Variant of the pretrained models' files, such as fp16.")
    add("--num_frames", type=int, default=8, help="Frames of a clip.")
    add("--block_out_channels", type=int, nargs="+", help="Widths of the UNet's blocks. Default: those of the preset.")
    add("--temporal_layer", choices=["sti", "conv3d"], default="sti", help="conv3d: the paper's ablation.")
    add("--sti_detail", choices=["frame_resnet", "temporal_conv"], default="frame_resnet", help="A branch of STI.")
    for name, what in ADDITIONS.items():
        add(f"--{name}", type=int, help=f"Beyond the paper: {what}. Default: none, or as many as a given UNet has.")
    add("--prediction_type", choices=PREDICTION_TYPES, help="Default: what the scheduler says.")


def add_data_arguments(group) -> None:
    add = group.add_argument
    add("--train_data_dir", nargs="+", default=[], help="Folders, JSONL or tar files.")
    add("--dataset_name", nargs="+", default=[], help="Hub ids, beside or instead of folders.")
    add("--dataset_config_name", help="Configuration of the Hub data sets.")
    add("--cache_dir", help="Where downloaded models and data sets are kept.")
    add("--latent_cache", help="Folder of prepare_dataset.py, instead of files.")
    add("--streaming", action="store_true", help="Read Hub data while it downloads.")
    add("--image_column", help="Default: image, animation or what is usual.")
    add("--caption_column", help="Default: text, caption or what is usual.")
    add("--max_train_samples", type=int, help="Train on so many stickers, drawn from all.")
    add("--resolution", type=int, help="Height and width of the clips in pixels.")
    add("--center_crop", action="store_true", help="Cut to a square; by default transparency is added to make one.")
    add("--random_flip", action="store_true", help="Mirror half of the stickers that name no side and hold no words.")
    add(
        "--image_interpolation_mode",
        choices=list(INTERPOLATION_MODES),
        default="bicubic",
        help="How pixels are resized.",
    )
    add("--procedural_fraction", type=float, default=0.5, help="Share of pictures set in motion.")
    add("--motion_weights", **WEIGHTS, metavar="MOTION=X", help="Factors on chances of motions, such as spin=2.")
    add("--min_keyframes", type=int, help="Fewest frames drawn from an animation. Default: 3.")
    add("--max_keyframes", type=int, help="Most; by default all --num_frames.")
    add("--keyframes", choices=KEYFRAME_METHODS, default="cluster", help="How they are chosen.")
    add("--keyframe_features", default="pixels", help='"pixels", "timm:vgg16" or a vision model\'s id.')
    add("--dataloader_num_workers", type=int, default=0, help="Processes that read clips.")


def add_method_arguments(group) -> None:
    add = group.add_argument
    add("--curriculum", choices=["uniform", "linear", "adaptive"], default="adaptive", help="How tasks are drawn.")
    add("--curriculum_steps", type=int, help="Default: --max_train_steps.")
    add("--pid", type=float, nargs=3, default=[5.0, 3.0, 1.3], metavar=("KP", "KI", "KD"), help="Adaptive gains.")
    add("--task_weights", **WEIGHTS, metavar="TASK=X", help=f"Factors on chances of {', '.join(TASKS)}.")
    add("--loss_reduction", choices=["all", "valid"], default="all", help="valid: short clips weigh no less.")
    add("--joint_drop_prob", type=float, default=0.1, help="Text and frames dropped together.")
    add("--text_drop_prob", type=float, default=0.0, help="Text dropped, frames kept.")
    add("--text_word_drop_prob", type=float, default=0.2, help="A word replaced by a placeholder.")
    help_text = "Beyond the paper: an interpolation that is given the first and the last frame alone."
    add("--interpolation_ends_prob", type=float, default=0.0, help=help_text)
    help_text = "Beyond the paper: an interpolation that is given all frames but those of one gap."
    add("--interpolation_gap_prob", type=float, default=0.0, help=help_text)
    help_text = "Beyond the paper: a clip of i2v or it2v is given its first frame, not a random one."
    add("--first_frame_prob", type=float, default=0.0, help=help_text)
    help_text = "How much more often steps from --timestep_bias_begin up to --timestep_bias_end are trained."
    add("--timestep_bias_multiplier", type=float, default=1.0, help=help_text)
    add("--timestep_bias_begin", type=int, help="The first such step; the noise grows with its number. Default: 0.")
    add("--timestep_bias_end", type=int, help="The first step after them. Default: all above are among them.")
    add("--snr_gamma", type=float, help="Weigh steps by min(SNR, gamma) (arXiv 2303.09556); 5.0 is usual.")
    add("--noise_offset", type=float, default=0.0, help="Scale of noise that a whole channel of a clip shares.")
    add("--input_perturbation", type=float, default=0.0, help="Scale of noise that the target does not have.")


def add_optimisation_arguments(group) -> None:
    add = group.add_argument
    add("--train_batch_size", type=int, default=1, help="Clips per process and micro-step.")
    add("--gradient_accumulation_steps", type=int, default=1, help="Micro-steps per optimiser step.")
    add("--max_train_steps", type=int, help=f"Optimiser steps. Default: {DEFAULT_STEPS}, or --num_train_epochs.")
    add("--num_train_epochs", type=int, help="Times that every sticker is seen, instead of --max_train_steps.")
    add("--learning_rate", type=float, help="After the warm-up.")
    add("--scale_lr", action="store_true", help="Multiply it by processes, accumulation and batch size.")
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant", help="How the rate goes on.")
    add("--lr_warmup_steps", type=int, default=0, help="Optimiser steps in which the rate rises.")
    add("--optimizer", choices=["adamw", "muon"], default="adamw", help="muon: AdamW for all but matrices.")
    add("--adam_beta1", type=float, default=0.9, help="Decay of the first moment.")
    add("--adam_beta2", type=float, default=0.999, help="Decay of the second moment.")
    add("--adam_weight_decay", type=float, default=1e-2, help="Decoupled weight decay.")
    add("--adam_epsilon", type=float, default=1e-8, help="Added to the root of the second moment.")
    add("--use_8bit_adam", action="store_true", help="AdamW of bitsandbytes, with a quarter of the state.")
    add("--max_grad_norm", type=float, default=1.0, help="Longer gradients are cut to it.")
    add("--use_ema", action="store_true", help="Keep a moving average of the weights; it is what is saved.")
    add("--ema_decay", type=float, default=0.9995, help="Share of the average that stays in a step.")
    add("--offload_ema", action="store_true", help="Keep the average in main memory between steps.")
    add("--foreach_ema", action="store_true", help="Update it with fewer, larger kernels.")
    add("--seed", type=int, default=0, help="Decides every random choice of the run.")


def add_resource_arguments(group) -> None:
    add = group.add_argument
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="Default: what accelerate is configured for.")
    add("--gradient_checkpointing", action="store_true", help="Less memory for a third more arithmetic.")
    add("--allow_tf32", action="store_true", help="Faster float32 products on Ampere and newer.")
    add("--compile", action="store_true", help="torch.compile the UNet.")
    add("--local_rank", type=int, default=-1, help="For launchers that pass it; the environment counts.")


def add_output_arguments(group) -> None:
    add = group.add_argument
    add("--output_dir", default="sticker-model", help="What the run leaves.")
    add("--checkpointing_steps", type=int, default=500, help="Optimiser steps between checkpoints.")
    add("--checkpoints_total_limit", type=int, help="Newest checkpoints to keep.")
    add("--resume_from_checkpoint", help='A checkpoint folder, or "latest" (or a new run, if there is none).')
    add("--validation_prompts", nargs="+", default=[], help="Stickers to draw on the way.")
    add("--validation_images", nargs="+", default=[], help="One per prompt, or none. Animations show all tasks.")
    add("--validation_steps", type=int, default=500, help="Optimiser steps between validations.")
    add("--validation_epochs", type=int, help="Epochs between validations, instead.")
    add("--validation_inference_steps", type=int, default=20, help="Denoising steps.")
    add("--validation_guidance_scale", type=float, default=3.0, help="For text and for pictures.")
    add("--validation_eta", type=float, default=0.0, help="Share of fresh noise.")
    add("--report_to", default="tensorboard", help='A tracker of accelerate, "all" or "none".')
    add("--logging_dir", default="logs", help="Trackers' files, in --output_dir.")
    add("--tracker_project_name", default="train_rdtf", help="Name of the run in trackers.")
    add("--push_to_hub", action="store_true", help="Publish the pipeline.")
    add("--hub_model_id", help="Its name there. Default: that of --output_dir.")
    add("--hub_token", help="Default: the one that `hf auth login` stored.")


def parse_with_preset(parser: argparse.ArgumentParser, args: list[str] | None = None) -> argparse.Namespace:
    """Parses `args`; where they are silent, the defaults of `--preset` hold."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="tiny")
    preset = early.parse_known_args(args)[0].preset
    if preset in PRESETS:  # else the parser says so
        parser.set_defaults(**PRESETS[preset].arguments)
    return parser.parse_args(args)


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses, in one line, what could only fail later; reads validation pictures and task weights."""
    args.max_keyframes = args.num_frames if args.max_keyframes is None else args.max_keyframes
    args.min_keyframes = min(3, args.max_keyframes) if args.min_keyframes is None else args.min_keyframes
    check_numbers(parser, args)
    check_data_arguments(parser, args)
    check_validation(parser, args)
    if args.use_8bit_adam and args.optimizer != "adamw":
        parser.error(f"--use_8bit_adam: there is no --optimizer {args.optimizer} in 8 bits")
    if args.use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
        parser.error("--use_8bit_adam needs a package more: pip install bitsandbytes")
    if args.offload_ema and not args.use_ema:
        parser.error("--offload_ema: there is no average to offload without --use_ema")
    if args.max_train_steps and args.num_train_epochs:
        parser.error("--max_train_steps and --num_train_epochs: give one of them")
    for name in ("task_weights", "motion_weights"):
        setattr(args, name, named_weights(parser, name, getattr(args, name)))
    if args.motion_weights and not args.procedural_fraction:
        parser.error("--motion_weights: with --procedural_fraction 0 no picture is set in motion")
    for name in ("block_out_channels", "temporal_layer", "sti_detail") if args.unet_model_name_or_path else ():
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name}: a given UNet has its own")


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    at_least_one = (
        "resolution num_frames train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs"
    )
    at_least_one += " checkpointing_steps validation_steps validation_epochs validation_inference_steps"
    at_least_one += " checkpoints_total_limit max_train_samples curriculum_steps"
    for name in at_least_one.split():
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    for name in ("max_grad_norm", "snr_gamma", "adam_epsilon", "timestep_bias_multiplier"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be finite and above 0, got {value}")
    not_negative = "learning_rate lr_warmup_steps noise_offset input_perturbation seed validation_guidance_scale"
    for name in (not_negative + " dataloader_num_workers adam_weight_decay").split():
        value = getattr(args, name)
        if value is not None and not value >= 0:
            parser.error(f"--{name} must not be negative, got {value}")
    fractions = "procedural_fraction joint_drop_prob text_drop_prob text_word_drop_prob interpolation_ends_prob"
    fractions += " interpolation_gap_prob first_frame_prob"
    fractions += " ema_decay validation_eta"
    for name in fractions.split():
        if not 0.0 <= getattr(args, name) <= 1.0:
            parser.error(f"--{name} must be between 0 and 1, got {getattr(args, name)}")
    if args.timestep_bias_multiplier == 1 and (args.timestep_bias_begin, args.timestep_bias_end) != (None, None):
        parser.error("--timestep_bias_begin and --timestep_bias_end need a --timestep_bias_multiplier")
    if args.interpolation_ends_prob + args.interpolation_gap_prob > 1.0:
        parser.error("--interpolation_ends_prob and --interpolation_gap_prob must not exceed 1 together")


def check_data_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.train_data_dir or args.dataset_name) == bool(args.latent_cache):
        parser.error("give stickers to train on: --train_data_dir or --dataset_name, or else --latent_cache")
    if args.latent_cache and args.streaming:
        parser.error("--latent_cache is read from disk; leave --streaming out")
    if args.latent_cache and args.random_flip:
        parser.error("--random_flip: the clips of a --latent_cache are encoded already")
    if args.latent_cache and args.motion_weights:
        parser.error("--motion_weights: the clips of a --latent_cache move already; give them to prepare_dataset.py")
    if args.streaming and (args.num_train_epochs or args.validation_epochs):
        parser.error("--streaming: how long an epoch is cannot be known; give steps, not epochs")


def check_validation(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    prompts, files = args.validation_prompts, args.validation_images
    if files and len(files) != len(prompts):
        parser.error(f"--validation_images must be as many as --validation_prompts ({len(prompts)}), got {len(files)}")
    if not files and not all(prompt.strip() for prompt in prompts):
        parser.error("--validation_prompts: an empty prompt needs a picture, --validation_images")
    try:
        args.validation_animations = [read_animation(file) for file in files]
    except ValueError as error:
        parser.error(f"--validation_images: {error}")
