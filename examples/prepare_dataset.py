"""Work out once what training would work out again and again: keyframes, latents, text embeddings.

    accelerate launch examples/prepare_dataset.py --preset tiny --train_data_dir stickers --output_dir prepared
    accelerate launch examples/train_rdtf.py --preset tiny --latent_cache prepared ...

Row by row: read -> filters -> keyframes, or procedural motions of a still -> autoencoder and text encoders -> Parquet
shards. Shards are divided among the processes. Stopped at any moment, even killed, the same command goes on behind the
last whole shard. What was dropped, and why, is in `dropped.jsonl`.
"""

import argparse
import itertools
import json
import logging
import sys
from collections import Counter
from dataclasses import asdict, fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from diffusers.utils import logging as diffusers_logging
from model_parts import load_frozen_parts
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm.auto import tqdm
from training_arguments import WEIGHTS, named_weights
from transformers.utils import logging as transformers_logging

from rdtf_diffusers.data.animation import INTERPOLATION_MODES, AnimationError
from rdtf_diffusers.data.card import dataset_card
from rdtf_diffusers.data.dataset import ClipMaker
from rdtf_diffusers.data.keyframes import KEYFRAME_METHODS, load_features
from rdtf_diffusers.data.latents import (
    PREPARATION_FILE,
    Preparation,
    fingerprint,
    read_dropped,
    save_padding,
    shard_path,
    to_bytes,
    write_shard,
)
from rdtf_diffusers.data.quality import Filters
from rdtf_diffusers.data.rows import check_captions, fingerprint_rows, load_rows, read_row, row_name
from rdtf_diffusers.training.collator import DualMaskCollator, replace_words, row_generator
from rdtf_diffusers.training.presets import PRESETS
from rdtf_diffusers.training.run_state import warn_if_bf16_is_slow
from rdtf_diffusers.utils.hub import public_name


logger = logging.getLogger("prepare_dataset")


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), default="tiny", help="Whose frozen parts and resolution are the default.")
    add("--pretrained_model_name_or_path", help="Pipeline with the frozen parts. Default: those of the preset.")
    add("--revision", help="Git revision of that pipeline.")
    add("--variant", help="Variant of its files, such as fp16.")
    parser.add_argument("--output_dir", default="prepared")
    group = parser.add_argument_group("data")
    group.add_argument("--train_data_dir", nargs="+", default=[], help="Folders, JSONL or tar files.")
    group.add_argument("--dataset_name", nargs="+", default=[], help="Hub ids, beside or instead of folders.")
    group.add_argument("--dataset_config_name", default=None, help="Of the Hub data set, if it has several.")
    group.add_argument("--cache_dir", default=None, help="Where downloaded models and data are kept.")
    group.add_argument("--caption_column", default=None, help="Default: text, caption or what is usual.")
    group.add_argument("--image_column", default=None, help="Default: image, animation or what is usual.")
    group.add_argument("--resolution", type=int, help="Height and width of the clips in pixels.")
    group.add_argument("--center_crop", action="store_true", help="Cut to a square instead of padding to one.")
    group.add_argument("--image_interpolation_mode", choices=INTERPOLATION_MODES, default="bicubic")
    group.add_argument("--num_frames", type=int, default=8, help="Frames of a clip.")
    group.add_argument("--min_keyframes", type=int, default=3, help="Fewest frames drawn from an animation.")
    group.add_argument("--max_keyframes", type=int, default=None, help="Most; by default all --num_frames.")
    group.add_argument("--keyframes", choices=KEYFRAME_METHODS, default="cluster")
    group.add_argument("--keyframe_features", default="pixels", help='"pixels", "timm:vgg16" or a vision model\'s id.')
    group.add_argument("--motions_per_picture", type=int, default=4, help="Procedural clips of every still picture.")
    group.add_argument("--motion_weights", **WEIGHTS, metavar="MOTION=X", help="Factors on chances of motions.")
    group.add_argument("--text_variants", type=int, default=4, help="Embeddings per caption; 0: none.")
    group.add_argument("--text_word_drop_prob", type=float, default=0.2)
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("filters, 0 lets everything pass")
    limits = Filters()
    group.add_argument("--min_motion", type=float, default=limits.min_motion, help="Of animations, 0 to 1.")
    group.add_argument("--min_colour_bits", type=float, default=limits.min_colour_bits)
    group.add_argument("--max_aspect_ratio", type=float, default=limits.max_aspect_ratio)
    group.add_argument("--max_text_characters", type=int, default=0, help="By the rows' `ocr`; needs that column.")
    group = parser.add_argument_group("machine")
    group.add_argument("--rows_per_shard", type=int, default=256)
    group.add_argument("--encode_batch_size", type=int, default=32, help="Frames at once in the autoencoder.")
    group.add_argument("--dataloader_num_workers", type=int, default=0)
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], default=None)
    parsed = parser.parse_args(args)
    check_args(parser, parsed)
    return parsed


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses, in one line, what could only fail later."""
    if args.resolution is None:
        args.resolution = PRESETS[args.preset].arguments["resolution"]
    if not args.train_data_dir and not args.dataset_name:
        parser.error("give stickers to prepare: --train_data_dir or --dataset_name")
    for name in ("resolution", "num_frames", "rows_per_shard", "encode_batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    for name in ("motions_per_picture", "text_variants", "max_aspect_ratio", "max_text_characters"):
        if getattr(args, name) < 0:
            parser.error(f"--{name} must not be negative, got {getattr(args, name)}")
    if not 0.0 <= args.text_word_drop_prob <= 1.0:
        parser.error(f"--text_word_drop_prob must be between 0 and 1, got {args.text_word_drop_prob}")
    args.motion_weights = named_weights(parser, "motion_weights", args.motion_weights)
    if args.motion_weights and not args.motions_per_picture:
        parser.error("--motion_weights: with --motions_per_picture 0 no picture is set in motion")
    args.max_keyframes = args.num_frames if args.max_keyframes is None else args.max_keyframes


class PreparedRows(Dataset):
    """Source rows as clips in pixels, ready for the autoencoder; addressed by the row's number."""

    def __init__(self, args: argparse.Namespace, channels: int):
        names = [*args.train_data_dir, *args.dataset_name]
        options = {"config_name": args.dataset_config_name, "cache_dir": args.cache_dir}
        self.rows = ConcatDataset([load_rows(x, args.caption_column, args.image_column, **options) for x in names])
        check_captions(rows.data.column("text") for rows in self.rows.datasets)
        self.filters = Filters(
            min_motion=args.min_motion,
            min_colour_bits=args.min_colour_bits,
            max_aspect_ratio=args.max_aspect_ratio or float("inf"),
            max_text_characters=args.max_text_characters or None,
        )
        self.maker = ClipMaker(
            args.num_frames,
            args.resolution,
            channels,
            min_keyframes=args.min_keyframes,
            max_keyframes=args.max_keyframes,
            keyframes=args.keyframes,
            features=load_features(args.keyframe_features),
            center_crop=args.center_crop,
            interpolation=args.image_interpolation_mode,
            motion_weights=args.motion_weights,
        )
        self.motions, self.seed = args.motions_per_picture, args.seed

    def __getitem__(self, number: int) -> dict:
        """`{"row", "file", "clips"}`, or `{"row", "file", "reason"}` of a row that is dropped."""
        row = self.rows[number]
        item = {"row": number, "file": row_name(row)}
        try:
            animation = read_row(row)
        except AnimationError as error:
            return item | {"reason": f"unreadable: {str(error).removeprefix(item['file'] + ': ')}"}
        if reason := self.filters.reason(animation, row):
            return item | {"reason": reason}
        clips = (
            self.animation_clips(animation, row)
            if len(animation.frames) > 1
            else self.still_clips(animation, row, number)
        )
        return item | {"clips": clips}

    def animation_clips(self, animation, row: dict) -> list[dict]:
        """One clip with every frame that any number of keyframes asks for."""
        table = self.maker.keyframe_table(animation, row)
        frames = np.unique(np.concatenate(list(table.values())))
        pixels = self.maker.clip(animation.frames[frames])
        keyframes = [np.searchsorted(frames, indices).tolist() for indices in table.values()]
        return [{"pixels": pixels, "caption": row["text"], "keyframes": keyframes}]

    def still_clips(self, animation, row: dict, number: int) -> list[dict]:
        """The picture as it is, then in motion."""
        clips = [(self.maker.clip(animation.frames), row["text"])]
        rng = np.random.default_rng([self.seed, 2, number])
        clips += [self.maker.set_in_motion(animation, row["text"], rng)[:2] for _ in range(self.motions)]
        return [{"pixels": pixels, "caption": caption, "keyframes": []} for pixels, caption in clips]


class Encoder:
    """The frozen parts of a pipeline: clips in pixels become rows of a shard."""

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator = args, accelerator
        self.pipeline = load_frozen_parts(args)
        self.pipeline.to(accelerator.device)
        self.pipeline.vae.to(memory_format=torch.channels_last)
        self.placeholder = DualMaskCollator().word_placeholder

    @torch.inference_mode()
    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """(K, C, H, W) in [-1, 1] -> (K, c, h, w), a batch at a time."""
        with self.accelerator.autocast():
            batches = frames.split(self.args.encode_batch_size)
            return torch.cat([self.pipeline.encode_frames(batch.to(self.accelerator.device)) for batch in batches])

    @torch.inference_mode()
    def text(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, S, D) of each text encoder."""
        with self.accelerator.autocast():
            embeds, _, embeds_2, _ = self.pipeline.encode_prompt(captions)
        return embeds, embeds_2

    def variants(self, caption: str, row: int, clip: int) -> list[str]:
        """The caption with words dropped, `--text_variants` times."""
        args = self.args
        generators = (row_generator(args.seed, f"words {row} {clip} {i}") for i in range(args.text_variants))
        return [replace_words(caption, args.text_word_drop_prob, self.placeholder, g) for g in generators]

    def __call__(self, item: dict) -> dict:
        """An item of `PreparedRows` as a row of a shard."""
        clips, args = item["clips"], self.args
        latents = self.latents(torch.cat([clip["pixels"] for clip in clips]))
        pieces = latents.split([len(clip["pixels"]) for clip in clips])
        rows = [
            {"caption": clip["caption"], "latents": to_bytes(piece), "keyframes": clip["keyframes"]}
            for clip, piece in zip(clips, pieces)
        ]
        if args.text_variants:
            captions = [self.variants(clip["caption"], item["row"], index) for index, clip in enumerate(clips)]
            streams = self.text([caption for variants in captions for caption in variants])
            for name, embeds in zip(("text", "text_2"), streams):
                if embeds is not None:
                    for row, variants in zip(rows, embeds.split(args.text_variants)):
                        row[name] = to_bytes(variants)
        return {"row": item["row"], "file": item["file"], "clips": rows}

    def preparation(self, rows: PreparedRows) -> Preparation:
        """All that decides what will stand in the shards."""
        args, pipeline = self.args, self.pipeline
        channels, size = pipeline.vae.config.in_channels, args.resolution
        embeds, embeds_2 = self.text([""]) if args.text_variants else (None, None)
        names = {field.name for field in fields(Preparation)} & set(vars(args)) - {"mixed_precision"}
        return Preparation(
            **{name: getattr(args, name) for name in names},
            sources=(*args.train_data_dir, *args.dataset_name),
            num_rows=len(rows.rows),
            rows=tuple(fingerprint_rows(source) for source in rows.rows.datasets),
            filters=asdict(rows.filters),
            latent_shape=tuple(self.latents(torch.zeros(1, channels, size, size)).shape[1:]),
            text_shape=None if embeds is None else tuple(embeds.shape[1:]),
            text_2_shape=None if embeds_2 is None else tuple(embeds_2.shape[1:]),
            vae=fingerprint(pipeline.vae),
            text_encoder=fingerprint(pipeline.text_encoder),
            text_encoder_2=None if pipeline.text_encoder_2 is None else fingerprint(pipeline.text_encoder_2),
            mixed_precision=self.accelerator.mixed_precision,
        )


def prepare_shards(rows: PreparedRows, encoder: Encoder, made: Preparation) -> None:
    """Writes this process's share of the shards that are not there yet."""
    args, accelerator = encoder.args, encoder.accelerator
    missing = [shard for shard in range(made.num_shards) if not shard_path(args.output_dir, shard).is_file()]
    (missing,) = broadcast_object_list([missing])  # one list for all, as the folder fills while it is looked at
    shards = missing[accelerator.process_index :: accelerator.num_processes]
    numbers = [number for shard in shards for number in made.rows_of_shard(shard)]
    loader = DataLoader(rows, sampler=numbers, batch_size=None, num_workers=args.dataloader_num_workers)
    items = iter(loader)
    progress = tqdm(total=len(numbers), unit="row", disable=not accelerator.is_local_main_process)
    for shard in shards:
        kept, dropped = [], []
        for item in itertools.islice(items, len(made.rows_of_shard(shard))):
            if "reason" in item:
                dropped.append(item)
            else:
                kept.append(encoder(item))
            progress.update()
        write_shard(args.output_dir, shard, kept, dropped)
    progress.close()


def report(args: argparse.Namespace, made: Preparation) -> None:
    """Writes `dropped.jsonl` and the data set's card, and prints what was dropped for which reason.

    Raises:
        ValueError: nothing was kept.
    """
    folder = Path(args.output_dir)
    dropped = [row for shard in range(made.num_shards) for row in read_dropped(folder, shard)]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in dropped)
    (folder / "dropped.jsonl").write_text("".join(lines), encoding="utf-8")
    kept = made.num_rows - len(dropped)
    print(f"{folder}: {kept} of {made.num_rows} rows kept in {made.num_shards} shards")
    for reason, count in Counter(row["reason"].split(":")[0] for row in dropped).most_common():
        print(f"  dropped {count}: {reason}")
    if not kept:
        sources = ", ".join(map(public_name, made.sources))
        raise ValueError(f"No row of {sources} was kept; {folder / 'dropped.jsonl'} says why.")
    dataset_card(folder).save(folder / "README.md")


def run(args: argparse.Namespace) -> None:
    """Prepares all shards; the last process to finish leaves a complete folder."""
    folder = Path(args.output_dir)
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))  # a process may have shards left when others do not
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[patience])
    warn_if_bf16_is_slow(accelerator)
    encoder = Encoder(args, accelerator)
    rows = PreparedRows(args, encoder.pipeline.vae.config.in_channels)
    made = encoder.preparation(rows)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        strange = [file for file in folder.iterdir() if not file.name.startswith(".")]  # dots: of a killed process
        if strange and not (folder / PREPARATION_FILE).is_file():
            raise ValueError(f"`output_dir` {folder} holds something else; give a new or empty folder.")
        made.save(folder)
        for unfinished in (folder / "shards").glob(".*"):
            unfinished.unlink()
        blank = torch.zeros(1, encoder.pipeline.vae.config.in_channels, args.resolution, args.resolution)
        save_padding(folder, encoder.latents(blank)[0])
    accelerator.wait_for_everyone()
    prepare_shards(rows, encoder, made)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        report(args, made)
    accelerator.end_training()


def main(args: list[str] | None = None) -> int:
    """Prepares; returns the exit code: 0, 2 after one line about what the user has to put right, or 130 (Ctrl-C)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for library in (diffusers_logging, transformers_logging):  # which would report every caption that is cut
        library.set_verbosity_error()
        library.disable_progress_bar()
    parsed = parse_args(args)
    try:
        run(parsed)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on behind the last whole shard", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"prepare_dataset.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
