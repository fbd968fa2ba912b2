# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""One denoising step beside diffusers' video UNets: parameters, arithmetic, time and peak memory in one table.

    python examples/benchmarks/denoiser.py --json denoiser.json
    python examples/benchmarks/denoiser.py --device cuda --repeats 20
    python examples/benchmarks/denoiser.py --only I2VGenXLUNet --passes forward

A step is one clip of 8 frames of 256x256 pixels, latents (1, 4, 8, 32, 32), with 77 text tokens. Every model gets the
same treatment: random weights, the same dtype and threads, convolutions in the channels-last layout and diffusers'
default attention; the forward pass in inference mode; forward + backward without optimizer, with gradient
checkpointing where the class has it. Times are medians. A peer is timed in turn with ours in one process, round by
round, and its ratio is the median over the rounds, so that what else the machine does hits both. Peak memory is that
of a fresh process (`ru_maxrss`, weights and libraries included), on CUDA the peak of allocated memory.
"""

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from diffusers import I2VGenXLUNet, UNet2DConditionModel, UNet3DConditionModel, UNetMotionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rdtf_diffusers import UNetDiscreteFrameModel


OURS = "UNetDiscreteFrameModel"
FRAMES, LATENT_SIZE, TEXT_TOKENS = 8, 32, 77


def unet_motion() -> nn.Module:
    """AnimateDiff in the text width of its released weights."""
    return UNetMotionModel(cross_attention_dim=768)


def unet_2d() -> nn.Module:
    """The spatial part of our widths alone, frames as a batch: what no video model of these widths can undercut."""
    return UNet2DConditionModel(
        in_channels=8,
        block_out_channels=(320, 640, 1024, 1280),
        attention_head_dim=(5, 10, 16, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )


def video_inputs(model: nn.Module, **extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "sample": torch.randn(1, 4, FRAMES, LATENT_SIZE, LATENT_SIZE),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, model.config.cross_attention_dim),
        **extra,
    }


def our_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    return video_inputs(model, condition_latents=torch.randn(1, 4, FRAMES, LATENT_SIZE, LATENT_SIZE))


def i2vgen_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    return video_inputs(
        model,
        fps=torch.tensor([8]),
        image_latents=torch.randn(1, 4, FRAMES, LATENT_SIZE, LATENT_SIZE),
        image_embeddings=torch.randn(1, model.config.cross_attention_dim),
    )


def motion_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    inputs = video_inputs(model)
    return inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"].repeat(FRAMES, 1, 1)}


def unet_2d_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        "sample": torch.randn(FRAMES, 8, LATENT_SIZE, LATENT_SIZE),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(FRAMES, TEXT_TOKENS, model.config.cross_attention_dim),
    }


@dataclass(frozen=True)
class Denoiser:
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], dict[str, torch.Tensor]]
    is_video: bool = True


DENOISERS = {
    OURS: Denoiser(UNetDiscreteFrameModel, our_inputs),
    "I2VGenXLUNet": Denoiser(I2VGenXLUNet, i2vgen_inputs),
    "UNet3DConditionModel": Denoiser(UNet3DConditionModel, video_inputs),
    "UNetMotionModel": Denoiser(unet_motion, motion_inputs),
    "UNet2DConditionModel": Denoiser(unet_2d, unet_2d_inputs, is_video=False),
}


@dataclass(frozen=True)
class Settings:
    device: str
    dtype: str
    threads: int
    repeats: int


class Step:
    """One model with its inputs, ready to be run and timed."""

    def __init__(self, name: str, backward: bool, settings: Settings):
        dtype = getattr(torch, settings.dtype)
        torch.manual_seed(0)
        with torch.device("meta"):
            model = DENOISERS[name].build()
        nn.Module.to(model, dtype).to_empty(device=settings.device)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.normal_(std=0.02)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        self.model = model.train(backward)
        if backward and model._supports_gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.backward = backward
        self.device = torch.device(settings.device)
        self.inputs = {
            key: value.to(self.device, dtype if value.is_floating_point() else None)
            for key, value in DENOISERS[name].inputs(model).items()
        }

    def run(self) -> float:
        """Runs one step and returns its seconds."""
        start = time.perf_counter()
        with torch.inference_mode(not self.backward):
            prediction = self.model(**self.inputs, return_dict=False)[0]
        if self.backward:
            prediction.float().square().mean().backward()
            self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def time_steps(names: list[str], backward: bool, settings: Settings) -> dict[str, list[float]]:
    """Seconds of every repeat of every model; the models take turns, after one round that does not count."""
    torch.set_num_threads(settings.threads)
    steps = {name: Step(name, backward, settings) for name in names}
    rounds = [{name: step.run() for name, step in steps.items()} for _ in range(settings.repeats + 1)]
    return {name: [times[name] for times in rounds[1:]] for name in names}


def measure_memory(name: str, backward: bool, settings: Settings) -> float:
    """Peak memory of one model's step in GB. Only right in a fresh process."""
    torch.set_num_threads(settings.threads)
    step = Step(name, backward, settings)
    step.run()
    if step.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def count(name: str) -> dict[str, Any]:
    """Parameters in millions and TFLOP of one forward pass (a multiplication and an addition are two)."""
    with torch.device("meta"):
        model = DENOISERS[name].build()
        inputs = DENOISERS[name].inputs(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(**inputs)
    return {
        "model": name,
        "parameters_m": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "tflop": counter.get_total_flops() / 1e12,
        "checkpointing": model._supports_gradient_checkpointing,
    }


def measure(names: list[str], passes: list[str], settings: Settings) -> list[dict[str, Any]]:
    """The rows of the table, ours first."""
    rows = {name: count(name) for name in names}
    for kind in passes:
        backward = kind == "forward_backward"
        our_times = []
        for name in names:
            rows[name][f"{kind}_gb"] = in_fresh_process(measure_memory, name, backward, settings)
        for peer in names[1:]:
            times = in_fresh_process(time_steps, [OURS, peer], backward, settings)
            our_times += times[OURS]
            rows[peer][f"{kind}_s"] = median(times[peer])
            rows[peer][f"{kind}_ratio"] = median(b / a for a, b in zip(times[OURS], times[peer]))
        rows[OURS] |= {f"{kind}_s": median(our_times), f"{kind}_ratio": 1.0}
    return list(rows.values())


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    return next(line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)


def print_table(rows: list[dict[str, Any]], passes: list[str]) -> None:
    header = f"{'model':<24}{'M params':>10}{'TFLOP':>8}"
    for kind in passes:
        header += f"{kind + ' s':>20}{'x ours':>8}{'peak GB':>9}"
    print(header)
    for row in rows:
        line = f"{row['model']:<24}{row['parameters_m']:>10.1f}{row['tflop']:>8.2f}"
        for kind in passes:
            line += f"{row[f'{kind}_s']:>20.3f}{row[f'{kind}_ratio']:>8.2f}{row[f'{kind}_gb']:>9.2f}"
        if "forward_backward" in passes:
            line += "  checkpointed" if row["checkpointing"] else "  no checkpointing"
        print(line)


def print_bars(rows: list[dict[str, Any]], passes: list[str]) -> None:
    by_name = {row["model"]: row for row in rows}
    if "forward" in passes and "I2VGenXLUNet" in by_name:
        ratio = 1 / by_name["I2VGenXLUNet"]["forward_ratio"]
        print(f"ours / I2VGenXLUNet forward time = {ratio:.2f} (bar 0.75, goal 0.65)")
    for kind in passes:
        ours, *others = [row[f"{kind}_gb"] for row in rows if DENOISERS[row["model"]].is_video]
        verdict = "below" if ours < min(others, default=float("inf")) else "NOT below"
        print(f"peak memory, {kind}: ours {ours:.2f} GB, {verdict} every 3D peer measured")


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5)
    peers = [name for name in DENOISERS if name != OURS]
    parser.add_argument("--only", nargs="+", default=peers, choices=peers, metavar="PEER", help="peers to measure")
    both = ["forward", "forward_backward"]
    parser.add_argument("--passes", nargs="+", default=both, choices=both)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(args)

    settings = Settings(options.device, options.dtype, options.threads, options.repeats)
    on_cuda = torch.device(options.device).type == "cuda"
    setup = {
        "processor": torch.cuda.get_device_name(options.device) if on_cuda else processor_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        **asdict(settings),
    }
    print(", ".join(f"{key} {value}" for key, value in setup.items()))
    rows = measure([OURS, *options.only], options.passes, settings)
    print_table(rows, options.passes)
    print_bars(rows, options.passes)
    if options.json is not None:
        options.json.write_text(json.dumps({"setup": setup, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
