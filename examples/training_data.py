"""The data of a training run: files, a stream or a latent cache, and which sample comes when.

clips = make_clips(args, pipeline, accelerator)
numbers = sample_numbers(args, accelerator, first_sample=0)
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.data.keyframes import load_features
from rdtf_diffusers.data.latents import LatentClips, fingerprint
from rdtf_diffusers.data.streaming import StreamedClips


def make_maker(args: argparse.Namespace, channels: int) -> ClipMaker:
    """How files become clips in this run."""
    return ClipMaker(
        num_frames=args.num_frames,
        size=args.resolution,
        channels=channels,
        procedural_fraction=args.procedural_fraction,
        motion_weights=args.motion_weights,
        min_keyframes=args.min_keyframes,
        max_keyframes=args.max_keyframes,
        keyframes=args.keyframes,
        features=load_features(args.keyframe_features),
        center_crop=args.center_crop,
        random_flip=args.random_flip,
        interpolation=args.image_interpolation_mode,
    )


def make_clips(
    args: argparse.Namespace, pipeline: StickerGenerationPipeline, accelerator: Accelerator
) -> StickerClips | StreamedClips | LatentClips:
    """The training data: files, a stream, or a latent cache."""
    if args.latent_cache:
        keyframes = args.min_keyframes, args.max_keyframes
        options = {"seed": args.seed, "max_samples": args.max_train_samples}
        clips = LatentClips(args.latent_cache, args.procedural_fraction, *keyframes, **options)
        check_cache(clips, args, pipeline)
        return clips
    missing = [folder for folder in args.train_data_dir if not Path(folder).exists()]
    if missing:
        raise ValueError(f"`train_data_dir`: there is no {', '.join(missing)}; names on the Hub go to --dataset_name.")
    source = {
        "sources": [*args.train_data_dir, *args.dataset_name],
        "maker": make_maker(args, pipeline.vae.config.in_channels),
        "caption_column": args.caption_column,
        "image_column": args.image_column,
        "seed": args.seed,
        "max_samples": args.max_train_samples,
        "config_name": args.dataset_config_name,
        "cache_dir": args.cache_dir,
    }
    if args.streaming:
        clips = StreamedClips(**source, rank=accelerator.process_index, world_size=accelerator.num_processes)
    else:
        clips = StickerClips(**source)
    clips.check()
    return clips


def check_cache(clips: LatentClips, args: argparse.Namespace, pipeline: StickerGenerationPipeline) -> None:
    """Refuses a latent cache that was prepared for another pipeline or other arguments, and names the differences."""
    made = clips.preparation
    names = ("resolution", "num_frames", "keyframes", "keyframe_features", "center_crop", "image_interpolation_mode")
    wanted = {name: getattr(args, name) for name in names} | {"vae": fingerprint(pipeline.vae)}
    if made.text_variants:
        second = pipeline.text_encoder_2
        wanted["text_word_drop_prob"] = args.text_word_drop_prob
        wanted["text_encoder"] = fingerprint(pipeline.text_encoder)
        wanted["text_encoder_2"] = None if second is None else fingerprint(second)
    differences = [f"{k} {getattr(made, k)}, not {v}" for k, v in wanted.items() if getattr(made, k) != v]
    if differences:
        raise ValueError(f"`latent_cache` {args.latent_cache} was prepared for {', '.join(differences)}.")


def sample_numbers(args: argparse.Namespace, accelerator: Accelerator, first_sample: int) -> Iterator[list[int]]:
    """The numbers of this process's samples, micro-step by micro-step, after `first_sample` samples of all processes.

    The run is one long row of samples. Which of them are seen, and how, depends on the seed alone, so a resumed run
    goes on where it stopped, and the number of processes only divides the work.
    """
    per_process = args.train_batch_size
    start = first_sample + accelerator.process_index * per_process
    while True:
        yield list(range(start, start + per_process))
        start += accelerator.num_processes * per_process
