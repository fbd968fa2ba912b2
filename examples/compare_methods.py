"""Train RDTF from scratch, and adapters on a larger base, on the same stickers, and compare: the paper's experiment.

    python examples/compare_methods.py --train_data_dir stickers/animated/train stickers/static/train \
        --dataset stickers/animated/validation stickers/static/validation --output_dir comparison --jobs 2

1. A base, larger than RDTF's network and with convolutions over time instead of STI, learns another domain: textured
   shapes in motion, drawn by code.
2. Every method tries some learning rates on a quarter of the clips; the one with the lowest loss is taken.
3. With each seed every method sees as many clips: RDTF and its ablations from random weights, adapters on the base.
   Then it is asked for the same stickers as all others.
4. All are measured as by evaluate.py, and the paper's claims are tested on what came out.

The same command goes on after any stop, in the midst of a training too; with `--time_limit` nothing new is begun after
so many minutes. Seeds come one after the other, and the report is of those that all methods have.

Exit codes: 0; 2 after one line about what the user has to put right; 130 after Ctrl-C.
"""

import argparse
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from comparison_jobs import (
    BASE,
    METHODS,
    NUM_FRAMES,
    TITLES,
    Chain,
    Drawing,
    Job,
    log_of,
    make_tables,
    matched_rank,
    work,
)
from comparison_report import write_report
from evaluate import library_versions, public_word
from evaluation_cases import EVALUATION_TASKS, ClipForm
from evaluation_measures import load_networks, make_rows, measure_table
from evaluation_report import page_clips
from safetensors import safe_open
from source_domain import METADATA_FILE, write_source_pictures
from step_trainer import positive_int, share
from tqdm.auto import tqdm
from training_arguments import DefaultsHelp

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel, demo_checkpoint
from rdtf_diffusers.checkpoints import SETTINGS, generation_settings, override_settings
from rdtf_diffusers.utils.files import write_whole
from rdtf_diffusers.utils.hub import environment, is_hub_id, public_name


logger = logging.getLogger("compare_methods")

PLAN_FILE = "plan.json"
# What may differ from one call to the next: names of places, what is added to, what only measures, how it is run
FREE = ("command", "train_data_dir", "dataset", "output_dir", "pretrained_model_name_or_path")
FREE += ("methods", "tasks", "seeds", "features", "padding", "text_similarity", "jobs", "time_limit")
RATE_SHARE = 4  # a learning rate is tried on one clip of so many


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], allow_abbrev=False, formatter_class=DefaultsHelp
    )
    add = parser.add_argument
    add("--train_data_dir", nargs="+", required=True, help="Stickers to train on: folders, JSONL or tar files.")
    add("--dataset", nargs="+", required=True, help="Stickers to measure with; none of those trained on.")
    add("--output_dir", default="comparison", help="What the comparison leaves.")
    add("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="Default: all.")
    # the window that closes a loop begins in its middle, so the first frame is not where I2V-Adapter looks for it
    tasks = [name for name, task in EVALUATION_TASKS.items() if not task.loop]
    add("--tasks", nargs="+", choices=tasks, default=["it2v", "interpolation", "prediction"])
    add("--seeds", type=positive_int, default=3, help="Trainings of each method.")
    add("--seed", type=int, default=0, help="The first seed; decides data and samples, too.")
    add("--max_clips", type=positive_int, default=32, help="Stickers of each data set that are asked for.")
    add("--pretrained_model_name_or_path", help="Pipeline with the frozen parts. Default: those of the bundled model.")
    add("--resolution", type=positive_int, default=48, help="Height and width of the clips in pixels.")
    add("--block_out_channels", type=int, nargs="+", default=[48, 64], help="Widths of RDTF's network.")
    add("--base_block_out_channels", type=int, nargs="+", default=[64, 96], help="Widths of the base.")
    add("--clips", type=positive_int, default=8_000, help="That every method trains on.")
    add("--base_clips", type=positive_int, default=16_000, help="That the base has learnt from before.")
    add("--source_pictures", type=positive_int, default=2000, help="Shapes that these are made of.")
    add("--batch_size", type=positive_int, default=16, help="Clips of a training step.")
    add("--learning_rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2], help="To be tried.")
    add("--base_learning_rate", type=float, default=1e-3, help="Of the base.")
    add("--num_inference_steps", type=positive_int, help="Of samples; default of this and the next four: the parts'.")
    add("--guidance_scale", type=float, help="How much the words count.")
    add("--image_guidance_scale", type=float, help="How much the given frames count.")
    add("--guidance_stop", type=share, help="Share of the steps in which these two count.")
    add("--eta", type=share, help="Share of fresh noise.")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="Of trainings. Default: what accelerate has set.")
    add("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="Of what draws the samples.")
    add("--features", nargs="*", default=["sticker"], help='"sticker", i3d:FILE, videomae:ID, frames:ID; for Frechet.')
    add("--padding", choices=["repeat"], help="How a network gets the frames that it needs and a clip has not.")
    add("--text_similarity", nargs="*", default=["sticker"], help='"sticker" or clip:ID.')
    add("--jobs", type=positive_int, default=1, help="Trainings at a time; on a CPU as many as cores do most.")
    add("--time_limit", type=float, help="Minutes after which nothing new is begun.")
    words = sys.argv[1:] if args is None else args
    parsed = parser.parse_args(words)
    parsed.command = shlex.join(["compare_methods.py", *map(public_word, words)])
    parsed.methods = [name for name in METHODS if name in parsed.methods]
    if parsed.clips < RATE_SHARE * parsed.batch_size:
        parser.error(f"--clips must be at least {RATE_SHARE} batches, got {parsed.clips}")
    return parsed


class TimeUp(Exception):
    """`--time_limit` is over, and there was more to do."""


class Comparison:
    """A comparison in a folder.

    Attributes:
        tables: what all methods are asked.
        rates: the learning rate of each method, once it is chosen.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.base, self.stickers = self.folder / BASE, self.folder / "sticker-latents"
        self.evaluation = self.folder / "evaluation"
        self.began = time.monotonic()
        self.keep_plan()
        parts = args.pretrained_model_name_or_path or demo_checkpoint()
        channels = StickerGenerationPipeline.from_pretrained(parts, unet=None).vae.config.in_channels
        args.form = ClipForm(args.resolution, channels)
        given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
        args.settings = override_settings(generation_settings(parts), given)
        self.accelerator = Accelerator()
        self.tables = make_tables(args, self.evaluation, self.accelerator)
        self.rates: dict[str, float] = {}

    def keep_plan(self) -> None:
        """Refuses to mix results of other arguments with what is there.

        Raises:
            ValueError: the folder was begun with others; they are named.
        """
        file = self.folder / PLAN_FILE
        plan = {name: value for name, value in vars(self.args).items() if name not in FREE}
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else plan
        if differences := [
            f"{name} {known.get(name)}, not {plan[name]}" for name in plan if known.get(name) != plan[name]
        ]:
            raise ValueError(
                f"`output_dir` {self.folder} was begun with {', '.join(differences)}: give what it was begun with, or "
                "another folder."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(plan, indent=1) + "\n").encode())

    def run(self) -> None:
        """All stages; reports what there is when the time is up."""
        try:
            self.prepare_data()
            self.run_chains([self.base_chain()])
            self.choose_rates()
            self.run_chains(self.chain(name, seed) for seed in range(self.args.seeds) for name in self.args.methods)
        except TimeUp:
            logger.info("The time is up; the same command goes on.")
        self.report()

    def prepare_data(self) -> None:
        """Pictures of the source domain, and both domains as latents."""
        args, source = self.args, self.folder / "source"
        if not (source / METADATA_FILE).is_file():
            write_source_pictures(source, args.source_pictures, args.seed)
        common = ("--resolution", args.resolution, "--num_frames", NUM_FRAMES, "--seed", args.seed, *self.parts())
        common += ("--dataloader_num_workers", 1)  # reads the next clips while some are encoded
        for folder, data in ((self.folder / "source-latents", [source]), (self.stickers, args.train_data_dir)):
            self.run_chains([[Job(folder, "prepare_dataset", texts(*common, "--train_data_dir", *data))]])

    def parts(self) -> tuple[str, ...]:
        """Which frozen parts, for the scripts."""
        name = self.args.pretrained_model_name_or_path
        return ("--pretrained_model_name_or_path", name) if name else ()

    def training(self, cache: Path, clips: int, rate: float, seed: int) -> tuple[Any, ...]:
        """What all trainings have in common."""
        args, steps = self.args, clips // self.args.batch_size
        precision = ("--mixed_precision", args.mixed_precision) if args.mixed_precision else ()
        return (
            *("--latent_cache", cache, "--resolution", args.resolution, "--num_frames", NUM_FRAMES),
            *("--procedural_fraction", 1, "--train_batch_size", args.batch_size, "--max_train_steps", steps),
            *("--learning_rate", rate, "--lr_scheduler", "cosine", "--lr_warmup_steps", steps // 20),
            *("--checkpointing_steps", 200, "--checkpoints_total_limit", 1, "--resume_from_checkpoint", "latest"),
            *("--seed", seed, "--report_to", "none", *precision),
        )

    def base_chain(self) -> Chain:
        args, cache = self.args, self.folder / "source-latents"
        common = self.training(cache, args.base_clips, args.base_learning_rate, args.seed)
        network = ("--temporal_layer", "conv3d", "--block_out_channels", *args.base_block_out_channels)
        train = Job(self.base, "train_rdtf", texts(*common, *network, *self.parts()))
        return [train, Drawing(BASE, self.base, self.base, tuple(range(args.seeds)), self.evaluation, args)]

    def method_job(self, name: str, folder: Path, clips: int, rate: float, seed: int) -> Job:
        """A training of a method."""
        method = METHODS[name]
        common = (*self.training(self.stickers, clips, rate, seed), *method.arguments)
        if method.adapter is None:
            network = ("--block_out_channels", *self.args.block_out_channels)
            return Job(folder, "train_rdtf", texts(*common, *network, *self.parts()))
        rank = ("--rank", self.rank) if name == "customize_a_video" else ()
        return Job(folder, "train_baseline", texts(*common, *rank, "--pretrained_model_name_or_path", self.base))

    @cached_property
    def rank(self) -> int:
        """Of Customize-A-Video on the base."""
        config = UNetDiscreteFrameModel.load_config(self.base, subfolder="unet")
        with torch.device("meta"):
            return matched_rank(UNetDiscreteFrameModel.from_config(config))

    def choose_rates(self) -> None:
        """For each method the learning rate with the lowest final loss, averaged over tasks, on fewer clips."""
        args, rates = self.args, self.args.learning_rates
        owners = {name: METHODS[name].rate_of or name for name in args.methods}
        trials = {
            (owner, rate): self.method_job(
                owner, self.folder / "rates" / f"{owner}-{rate:g}", args.clips // RATE_SHARE, rate, args.seed
            )
            for owner in dict.fromkeys(owners.values())
            for rate in rates
        }
        if len(rates) > 1:
            self.run_chains([job] for job in trials.values())
        losses = {trial: job.done["losses"] if job.done else {} for trial, job in trials.items()}
        for name, owner in owners.items():
            tasks = set.intersection(*(set(losses[owner, rate]) for rate in rates))  # nearly always all
            self.rates[name] = min(rates, key=lambda rate: sum(losses[owner, rate][task] for task in tasks))

    def chain(self, name: str, seed: int) -> Chain:
        """The training of a method with a seed, and its samples."""
        folder = self.folder / "cells" / f"{name}-{seed}"
        train = self.method_job(name, folder, self.args.clips, self.rates[name], self.args.seed + seed)
        return [train, Drawing(name, folder, self.base, (seed,), self.evaluation, self.args)]

    def run_chains(self, chains: Iterable[Chain]) -> None:
        """Runs what is left of chains, `--jobs` of them at a time.

        Raises:
            TimeUp: some were not begun.
            ValueError: one failed; what it said last is told.
        """
        left = [chain for chain in chains if any(job.is_left(self.tables) for job in chain)]
        if not left:
            return
        jobs = min(self.args.jobs, len(left))
        threads = max(torch.get_num_threads() // jobs, 1)
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self.run_chain, chain, threads) for chain in left]
            try:
                for future in tqdm(futures, unit="job"):
                    future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def run_chain(self, chain: Chain, threads: int) -> None:
        """Runs a chain in a process of its own, so that all its memory is given back."""
        limit = self.args.time_limit
        if limit is not None and time.monotonic() - self.began > 60 * limit:
            raise TimeUp
        code = self.run_process(chain, threads)
        if code:
            log = log_of(chain)
            said = log.read_text(encoding="utf-8").split("\n") if log.is_file() else []
            said = [line.rpartition("\r")[2] for line in said if line.strip()]
            raise ValueError(f"{log}: {said[-1] if said else f'the process ended with {code}'}")

    def run_process(self, chain: Chain, threads: int) -> int:
        process = get_context("spawn").Process(target=work, args=(chain, threads))
        process.start()
        process.join()
        return process.exitcode

    def report(self) -> None:
        """Measures and writes what there is, if all methods are trained with a seed or more."""
        args, seeds = self.args, 0
        while seeds < args.seeds and self.rates and all(self.is_done(name, seeds) for name in args.methods):
            seeds += 1
        if not seeds:
            logger.info("There is nothing to report before all methods are trained once.")
            return
        device, motions = self.accelerator.device, any(asked.procedural for asked in self.tables)
        networks = load_networks(args.features, args.text_similarity, args.padding, None, device, motions)
        models = [chain[-1].model for chain in (self.base_chain(), *(self.chain(name, 0) for name in args.methods))]
        results, shown = self.facts(seeds), []
        for asked in tqdm(self.tables, desc="measuring", unit="table"):
            rows = make_rows(asked, models, seeds, self.evaluation, {})
            results["tables"].append(measure_table(asked, rows, networks, self.evaluation, args.batch_size))
            shown.append(page_clips(asked, rows, self.evaluation))
        write_report(self.folder, self.evaluation.name, results, shown)
        logger.info("%s: results.md, results.json, comparison.png, %s/index.html", self.folder, self.evaluation.name)

    def is_done(self, name: str, seed: int) -> bool:
        return not any(job.is_left(self.tables) for job in self.chain(name, seed))

    def facts(self, seeds: int) -> dict[str, Any]:
        """What results.json says beside the tables."""
        args = self.args
        hidden = ("command", "form", "settings", "output_dir", "time_limit")
        settings = {name: value for name, value in vars(args).items() if name not in hidden}
        for name in ("train_data_dir", "dataset"):
            settings[name] = [public_name(source) for source in settings[name]]
        if args.pretrained_model_name_or_path:
            settings["pretrained_model_name_or_path"] = public_name(args.pretrained_model_name_or_path)
        drawn = {"form": args.form.name, "dtype": args.dtype, "settings": args.settings}
        return {
            "command": args.command,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": environment()["hardware"],
            "versions": library_versions(),
            "settings": settings | {"num_frames": NUM_FRAMES, "seeds": seeds},
            "datasets": [
                {"name": public_name(source), "hub_id": source if is_hub_id(source) else None}
                for source in args.dataset
            ],
            "models": [{"name": TITLES[name], "source": name, **drawn} for name in (BASE, *args.methods)],
            "methods": [self.method_facts(name, seeds) for name in (BASE, *args.methods)],
            "tables": [],
        }

    def method_facts(self, name: str, seeds: int) -> dict[str, Any]:
        """Sizes, learning rate, clips and minutes of a method."""
        args, is_base = self.args, name == BASE
        jobs = [self.base_chain()[0]] if is_base else [self.chain(name, seed)[0] for seed in range(seeds)]
        trained = count_weights(jobs[0].folder)
        tuned = not is_base and METHODS[name].adapter is not None
        return {
            "name": name,
            "title": TITLES[name],
            "parameters": trained + (count_weights(self.base) if tuned else 0),
            "trained": trained,
            "learning_rate": args.base_learning_rate if is_base else self.rates[name],
            "clips": args.base_clips if is_base else args.clips,
            "minutes": [job.done["minutes"] for job in jobs],
        }


def count_weights(folder: Path) -> int:
    """Of an adapter, or of the network of a pipeline."""
    total = 0
    for file in sorted(folder.glob("adapter_model.safetensors")) or sorted(folder.glob("unet/*.safetensors")):
        with safe_open(file, "pt") as weights:
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())
    return total


def texts(*arguments: Any) -> tuple[str, ...]:
    return tuple(map(str, arguments))


def main(args: list[str] | None = None) -> int:
    """Compares; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of the jobs' processes
    parsed = parse_args(args)
    try:
        Comparison(parsed).run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(f"compare_methods.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
