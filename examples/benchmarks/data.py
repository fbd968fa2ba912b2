"""What data costs: clips per second of every stage, and a training step with and without the latent cache.

    python examples/benchmarks/data.py --threads 2 --json data.json
    python examples/benchmarks/data.py --data stickers/animated/train stickers/static/train

Without `--data`, stickers are drawn by code and written as WebP, half of them animated. Stages run one after the other
in one process. Training steps are measured in fresh processes, one for files and one for the cache: how long a step
takes, how much of that it waits for its clips, and how much memory the process takes at most. The last lines say what
2.1 million stickers, as many as the paper's data set has, would take.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from denoiser import in_fresh_process, processor_name

from rdtf_diffusers import demo_checkpoint
from rdtf_diffusers.data.animation import frames_to_clip
from rdtf_diffusers.data.latents import LatentClips, read_dropped, write_shard
from rdtf_diffusers.data.procedural import animate
from rdtf_diffusers.data.rows import read_row
from rdtf_diffusers.data.shapes import draw_shape
from rdtf_diffusers.stickers.encode import save_sticker


sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts that are measured

import prepare_dataset
import train_rdtf


STICKERS = 2_100_000  # of the paper's data set
ANIMATED = 1_140_000  # of them with several frames
PAPER_LATENT = 4 * 32 * 32 * 2  # bytes of a frame: 4x32x32 halves
PAPER_TEXT = 77 * 1024 * 2 + 77 * 768 * 2  # bytes of a caption in both text encoders


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[], help="data sets; drawn stickers by default")
    parser.add_argument("--model", default=None, help="pipeline with the frozen parts; the bundled one by default")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--count", type=int, default=96, help="stickers: drawn, and measured")
    parser.add_argument("--batch_size", type=int, default=16, help="clips of a training step")
    parser.add_argument("--steps", type=int, default=12, help="training steps measured, after three that do not count")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    return parser.parse_args(args)


def draw_stickers(folder: Path, count: int) -> None:
    """Writes `count` stickers of 128 pixels with captions, every other one animated."""
    rows = []
    for index in range(count):
        rng = np.random.default_rng(index)
        picture, caption = draw_shape(rng, 128)
        frames = picture[None]
        if index % 2 == 0:
            clip = animate(picture, rng, num_frames=int(rng.integers(4, 25)), size=128)
            frames, caption = clip.frames.add(1).div(2), f"{caption}, {clip.phrase}"
        alpha = frames[:, 3:]
        straight = torch.cat([torch.where(alpha > 0, frames[:, :3] / alpha.clamp(min=1e-6), 0), alpha], dim=1)
        pixels = straight.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        save_sticker(pixels, folder / f"{index}.webp", fps=12)
        rows.append(json.dumps({"file_name": f"{index}.webp", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def script_args(options: argparse.Namespace, data: list[str], more: dict[str, Any]) -> list[str]:
    """Arguments that both scripts know, and some of one of them."""
    args = ["--pretrained_model_name_or_path", str(options.model or demo_checkpoint())]
    args += ["--resolution", str(options.resolution)]
    args += ["--train_data_dir", *data] if data else []
    return args + [str(word) for name, value in more.items() for word in (f"--{name}", value)]


class Stages:
    """Seconds and things done, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.done: dict[str, int] = {}
        self.units: dict[str, str] = {}

    def time(self, stage: str, unit: str, things: list, function: Callable) -> list:
        """Results of `function` for all things; the first call is made twice, and counts once."""
        function(things[0])
        start = time.perf_counter()
        results = [function(thing) for thing in things]
        self.seconds[stage] = time.perf_counter() - start
        self.done[stage], self.units[stage] = len(things), unit
        return results

    def rates(self) -> dict[str, dict[str, Any]]:
        return {
            stage: {"per_second": self.done[stage] / seconds, "unit": self.units[stage]}
            for stage, seconds in self.seconds.items()
        }


def measure_stages(options: argparse.Namespace, data: list[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Clips per second of each stage from a file to a shard and back."""
    args = prepare_dataset.parse_args(script_args(options, data, {"output_dir": folder}))
    encoder = prepare_dataset.Encoder(args, prepare_dataset.Accelerator())
    rows = prepare_dataset.PreparedRows(args, encoder.pipeline.vae.config.in_channels)
    order = np.random.default_rng(0).permutation(len(rows.rows))[: options.count]
    stages = Stages()
    read = stages.time("read a file", "files", [rows.rows[int(i)] for i in order], read_row)
    stages.time("filters", "files", read, lambda animation: rows.filters.reason(animation, {}))
    moving = [animation for animation in read if len(animation.frames) > 1]
    still = [animation for animation in read if len(animation.frames) == 1]
    row = {"text": "a red ball bouncing"}
    stages.time("keyframes, k = 3..8", "animations", moving, lambda a: rows.maker.keyframe_table(a, row))
    eight = [animation.frames[np.arange(8) % len(animation.frames)] for animation in moving]
    clips = stages.time("pixels, 8 frames", "clips", eight, lambda frames: frames_to_clip(frames, args.resolution))
    rng = np.random.default_rng(0)
    stages.time("set in motion", "clips", still, lambda a: rows.maker.set_in_motion(a, row["text"], rng))
    stages.time("autoencoder, 8 frames", "clips", clips, encoder.latents)
    stages.time("text, 4 variants", "captions", clips, lambda clip: encoder.text([row["text"]] * 4))
    items = [rows[int(i)] for i in order]
    shard = stages.time("encode all clips of", "stickers", [item for item in items if "clips" in item], encoder)
    start = time.perf_counter()
    write_shard(folder / "written", 0, shard, [])
    stages.seconds["write a shard"] = time.perf_counter() - start
    stages.done["write a shard"], stages.units["write a shard"] = len(shard), "stickers"
    return stages.rates()


def prepare(options: argparse.Namespace, data: list[str], folder: Path) -> dict[str, float]:
    """Runs the script that prepares; returns what it took."""
    start = time.perf_counter()
    code = prepare_dataset.main(script_args(options, data, {"output_dir": folder}))
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(code)
    clips = LatentClips(folder)
    made = clips.preparation
    dropped = sum(len(read_dropped(folder, shard)) for shard in range(made.num_shards))
    size = sum(file.stat().st_size for file in clips.files)
    clips_of_row = [len(row) for group in range(len(clips.groups)) for row in clips.read_group(group)["clips"]]
    start = time.perf_counter()
    for number in range(512):
        clips[number]
    return {
        "stickers_per_second": made.num_rows / seconds,
        "bytes_per_sticker": size / (made.num_rows - dropped),
        "clips_per_sticker": float(np.mean(clips_of_row)),
        "cached_clips_per_second": 512 / (time.perf_counter() - start),
    }


class Waiting:
    """An iterator that adds up how long its items were waited for."""

    def __init__(self, items: Iterator):
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> "Waiting":
        return self

    def __next__(self) -> Any:
        start = time.perf_counter()
        item = next(self.items)
        self.seconds += time.perf_counter() - start
        return item


def measure_training(args: list[str], steps: int, threads: int) -> dict[str, float]:
    """Seconds of a training step, the share of it spent waiting for clips, and peak memory. For a fresh process."""
    torch.set_num_threads(threads)
    trainer = train_rdtf.Trainer(train_rdtf.parse_args(args))
    batches = Waiting(trainer.batches())
    times, waits = [], []
    with train_rdtf.sdpa_kernel(train_rdtf.SDPBackend.MATH):  # as the script does on a CPU
        for step in range(1, steps + 4):
            batches.seconds, start = 0.0, time.perf_counter()
            trainer.step(step, batches)
            times.append(time.perf_counter() - start)
            waits.append(batches.seconds)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "step_seconds": median(times[3:]),
        "waiting_share": sum(waits[3:]) / sum(times[3:]),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
    }


def project(prepared: dict[str, float]) -> dict[str, dict[str, float]]:
    """Hours and gigabytes for the paper's number of stickers."""
    hours = STICKERS / prepared["stickers_per_second"] / 3600
    clips = ANIMATED + 5 * (STICKERS - ANIMATED)  # a still picture is kept as it is and in four motions
    frames = 16 * ANIMATED + 33 * (STICKERS - ANIMATED)  # all keyframes of an animation are about 16 frames
    return {
        "as measured": {"hours": hours, "gb": STICKERS * prepared["bytes_per_sticker"] / 1e9},
        "on 16 machines": {"hours": hours / 16, "gb": STICKERS * prepared["bytes_per_sticker"] / 1e9},
        "bytes at the paper's sizes, computed": {"gb": (frames * PAPER_LATENT + 4 * clips * PAPER_TEXT) / 1e9},
        "the same without text": {"gb": frames * PAPER_LATENT / 1e9},
    }


def print_report(figures: dict[str, Any]) -> None:
    print("stage                       per second")
    for stage, rate in figures["stages"].items():
        print(f"  {stage:<24}{rate['per_second']:>10.1f} {rate['unit']}")
    prepared = figures["prepared"]
    print(f"  {'prepare_dataset.py':<24}{prepared['stickers_per_second']:>10.1f} stickers, start included")
    print(f"  {'read from the cache':<24}{prepared['cached_clips_per_second']:>10.1f} clips")
    print(f"{prepared['bytes_per_sticker'] / 1e3:.1f} KB and {prepared['clips_per_sticker']:.1f} clips a sticker")
    print("training step              seconds   waiting   peak GB")
    for source, row in figures["training"].items():
        print(f"  {source:<24}{row['step_seconds']:>8.2f}{row['waiting_share']:>10.1%}{row['peak_gb']:>10.2f}")
    files, cache = figures["training"]["files"], figures["training"]["cache"]
    print(
        f"with the cache a step takes {cache['step_seconds'] / files['step_seconds']:.2f} of the time and "
        f"{cache['peak_gb'] / files['peak_gb']:.2f} of the memory, and waits {cache['waiting_share']:.1%} (bar 5 %)"
    )
    for name, row in figures["2.1 million stickers"].items():
        hours = f"{row['hours']:.1f} h, " if "hours" in row else ""
        print(f"2.1 million stickers, {name}: {hours}{row['gb']:,.0f} GB")


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    torch.set_num_threads(options.threads)
    setup = {"processor": processor_name(), "python": platform.python_version(), "torch": torch.__version__}
    setup |= {name: getattr(options, name) for name in ("threads", "resolution", "batch_size", "steps", "count")}
    print(", ".join(f"{key} {value}" for key, value in setup.items()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = options.data
        if not data:
            (folder / "stickers").mkdir()
            draw_stickers(folder / "stickers", options.count)
            data = [str(folder / "stickers")]
        figures = {"setup": setup, "stages": measure_stages(options, data, folder / "stages")}
        figures["prepared"] = prepare(options, data, folder / "cache")
        run = {"train_batch_size": options.batch_size, "max_train_steps": options.steps + 3, "report_to": "none"}
        figures["training"] = {}
        for source, flag in (("files", {}), ("cache", {"latent_cache": folder / "cache"})):
            words = script_args(options, [] if flag else data, run | flag | {"output_dir": folder / f"from-{source}"})
            figures["training"][source] = in_fresh_process(measure_training, words, options.steps, options.threads)
    figures["2.1 million stickers"] = project(figures["prepared"])
    print_report(figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
