"""The work of a comparison: which methods there are, how each trains, and how its samples are drawn.

A job is done once, in a process of its own, and leaves `done.json` in its folder; jobs that are done are skipped.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from evaluation_cases import (
    EVALUATION_TASKS,
    Batch,
    ClipForm,
    EvaluatedModel,
    EvaluationStickers,
    TaskClips,
    clips_of_task,
    distinct,
    generate,
    make_batches,
    sample_file,
    write_real_clips,
)

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.baselines import (
    CustomizeAVideoConfig,
    CustomizeAVideoModel,
    I2VAdapterConfig,
    I2VAdapterModel,
    SimDAModel,
    frame_similarity_prior,
    keep_first_frame,
)
from rdtf_diffusers.commands.generate import load_pipeline
from rdtf_diffusers.training.history import HISTORY_FILE, final_losses, read_history
from rdtf_diffusers.training.tasks import TASKS
from rdtf_diffusers.utils.files import write_whole
from rdtf_diffusers.utils.hub import public_name
from rdtf_diffusers.utils.processes import end_with_parent


NUM_FRAMES = 8
DONE_FILE = "done.json"
FINAL_SHARE = 0.25  # of a training's steps, over which losses are averaged: every task is among them


@dataclass(frozen=True)
class Method:
    """A way to come from stickers to a model.

    Attributes:
        title: in tables.
        arguments: of its training script.
        adapter: what is tuned on the base; None for a network that is trained from random weights.
        rate_of: whose learning rate it has, a key of `METHODS`; "" for its own.
    """

    title: str
    arguments: tuple[str, ...]
    adapter: type | None = None
    rate_of: str = ""


# Without the dual mask: one frame and the text are given, always, and no clip is shorter than the others.
OTHER_TASKS = tuple(f"{task}=0" for task in TASKS if task != "it2v")
NO_DUAL_MASK = ("--curriculum", "uniform", "--task_weights", *OTHER_TASKS, "--min_keyframes", str(NUM_FRAMES))

BASE = "base"
METHODS = {
    "conv3d": Method("3D-Conv", ("--temporal_layer", "conv3d", *NO_DUAL_MASK), rate_of="rdtf"),
    "sti": Method("STI", NO_DUAL_MASK, rate_of="rdtf"),
    "dual_mask": Method("STI + dual mask", ("--curriculum", "uniform"), rate_of="rdtf"),
    "linear": Method("STI + dual mask + linear curriculum", ("--curriculum", "linear"), rate_of="rdtf"),
    "rdtf": Method("RDTF", ("--curriculum", "adaptive")),
    "i2v_adapter": Method("I2V-Adapter", ("--method", "i2v_adapter"), I2VAdapterModel),
    "simda": Method("SimDA", ("--method", "simda", "--latent_shift"), SimDAModel),
    "customize_a_video": Method("Customize-A-Video", ("--method", "customize_a_video"), CustomizeAVideoModel),
}
TITLES = {BASE: "base, not tuned"} | {name: method.title for name, method in METHODS.items()}


@dataclass(frozen=True)
class Job:
    """A run of one of the scripts beside this one.

    Attributes:
        folder: what it leaves; `--output_dir` of the script.
        script: its module.
        arguments: the others.
    """

    folder: Path
    script: str
    arguments: tuple[str, ...]

    @property
    def done(self) -> dict[str, Any] | None:
        """What it said when it was done, or None."""
        file = self.folder / DONE_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def is_left(self, tables: Sequence[TaskClips]) -> bool:
        return self.done is None

    def run(self) -> int:
        """Works until it is done, behind what an earlier try left; returns the script's exit code."""
        if self.done is not None:
            return 0
        started, begun = time.monotonic(), self.folder.exists()
        code = importlib.import_module(self.script).main([*self.arguments, "--output_dir", str(self.folder)])
        if code == 0:
            history = self.folder / HISTORY_FILE
            losses = final_losses(read_history(history), FINAL_SHARE) if history.is_file() else {}
            # a run in several pieces has another time than one that was left alone
            facts = {"minutes": None if begun else (time.monotonic() - started) / 60, "losses": losses}
            write_whole(self.folder / DONE_FILE, (json.dumps(facts) + "\n").encode())
        return code


@dataclass(frozen=True)
class Drawing:
    """The samples of a method.

    Attributes:
        method: a key of `METHODS`, or `BASE`.
        folder: of its training.
        base: of the base's training.
        tries: which numbers the samples have; a training's seed, all for the base.
        evaluation: the folder of all samples.
        args: of the comparison.
    """

    method: str
    folder: Path
    base: Path
    tries: tuple[int, ...]
    evaluation: Path
    args: argparse.Namespace = field(repr=False)

    def batches(self, tables: Sequence[TaskClips]) -> list[Batch]:
        """Those with samples that are missing."""
        title, found = TITLES[self.method], make_batches(tables, max(self.tries) + 1, self.args.batch_size)
        return [
            batch
            for batch in found
            if batch.seed in self.tries
            and not all(
                sample_file(self.evaluation, title, batch.asked, clip, batch.seed).exists() for clip in batch.clips
            )
        ]

    def is_left(self, tables: Sequence[TaskClips]) -> bool:
        return bool(self.batches(tables))

    def run(self) -> int:
        """Draws what is missing."""
        args, accelerator = self.args, Accelerator()
        batches = self.batches(make_tables(args, self.evaluation, accelerator))
        method = METHODS.get(self.method)
        is_adapter = method is not None and method.adapter is not None
        pipeline = load_pipeline(str(self.base if is_adapter else self.folder), str(accelerator.device), args.dtype)
        pipeline.set_progress_bar_config(disable=True)
        if is_adapter:
            method.adapter.from_pretrained(pipeline.unet, self.folder)
        draw = from_first_frame(pipeline) if self.method == "i2v_adapter" else pipeline
        generate(draw, self.model, batches, args.seed, self.evaluation, accelerator)
        return 0

    @property
    def model(self) -> EvaluatedModel:
        """What is told of it."""
        return EvaluatedModel(
            TITLES[self.method], self.folder.name, self.args.settings, self.args.form, self.args.dtype
        )


Chain = Sequence[Job | Drawing]  # of which each needs those before it


def from_first_frame(pipeline: StickerGenerationPipeline) -> Callable[..., Any]:
    """A pipeline that begins with I2V-Adapter's frame similarity prior where the first frame is given."""

    def call(
        *,
        frames: list[list] | None,
        num_frames: int,
        height: int,
        width: int,
        generator: list[torch.Generator],
        **settings: Any,
    ) -> Any:
        known = {"frames": frames, "num_frames": num_frames, "height": height, "width": width}
        if frames is None or frames[0][0] is None:
            return pipeline(**known, generator=generator, **settings)
        pixels, mask = pipeline.prepare_known_frames([clip[:1] for clip in frames], height, width)
        first_frame = pipeline.encode_known_frames(pixels, mask)[:, :, 0]
        steps = settings["num_inference_steps"]
        latents = frame_similarity_prior(first_frame, num_frames, pipeline.scheduler, steps, generator)
        keep = keep_first_frame(first_frame)
        return pipeline(**known, generator=generator, latents=latents, callback_on_step_end=keep, **settings)

    return call


def open_stickers(args: argparse.Namespace) -> list[EvaluationStickers]:
    """The data sets that are measured on."""
    names = distinct(map(public_name, args.dataset))
    return [
        EvaluationStickers(source, name, NUM_FRAMES, args.seed, args.max_clips, split="validation")
        for source, name in zip(args.dataset, names)
    ]


def make_tables(args: argparse.Namespace, folder: Path, accelerator: Accelerator) -> list[TaskClips]:
    """What all methods are asked; the real clips are in `folder` afterwards."""
    form: ClipForm = args.form
    sets = write_real_clips(open_stickers(args), form, folder, accelerator)
    return [clips_of_task(clips, EVALUATION_TASKS[task], NUM_FRAMES) for clips in sets for task in args.tasks]


def matched_rank(unet: ModelMixin) -> int:
    """The rank with which Customize-A-Video trains about as many weights as I2V-Adapter does."""
    counts = []
    for make in (I2VAdapterModel, CustomizeAVideoModel):
        config = I2VAdapterConfig() if make is I2VAdapterModel else CustomizeAVideoConfig(rank=1)
        adapter = make(unet, config)
        counts.append(sum(weight.numel() for weight in adapter.trainable_parameters()))
        adapter.unload()
    return max(round(counts[0] / counts[1]), 1)


def work(jobs: Chain, threads: int) -> None:
    """One after the other, in a process of their own, all output into the first one's log; exits with its code."""
    end_with_parent()
    torch.set_num_threads(threads)
    jobs[0].folder.parent.mkdir(parents=True, exist_ok=True)
    with open(log_of(jobs), "a", buffering=1, encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        for job in jobs:
            try:
                code = job.run()
            except KeyboardInterrupt:
                code = 130
            except (OSError, ValueError) as error:
                print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=log)
                code = 2
            if code:
                raise SystemExit(code)


def log_of(jobs: Chain) -> Path:
    """Beside the folder of the first job, which must not be there before it begins."""
    return jobs[0].folder.parent / f"{jobs[0].folder.name}.log"
