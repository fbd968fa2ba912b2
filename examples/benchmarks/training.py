"""What a training step costs: time and memory of every preset, of diffusers' video UNets and of adapters, in one run.

    python examples/benchmarks/training.py --json training.json
    python examples/benchmarks/training.py --device cuda
    python examples/benchmarks/training.py --presets paper --measure paper --peers --adapters
    python examples/benchmarks/training.py --presets tiny paper --measure --peers

A step is the network's part of one: the forward pass on random latents (8 frames; of 256x256 pixels but for `tiny`)
and text, `dual_mask_loss`, the backward pass, clipping, AdamW (PyTorch's fused one) on float32 weights that are all
trained, and the moving average. Autoencoder and text encoders are not in it, as with a latent cache. bfloat16 means
autocast. On a CPU attention is made of plain products, as `train_rdtf.py` has it.

**Measured**: every row in a fresh process, all rows once in each of several rounds. Seconds are the median over the
rounds of the median over a process's steps after one that does not count; ratios are taken within a round. Peak
memory is that of the process (`ru_maxrss`, libraries included), on CUDA `max_memory_allocated`. "vs comp." divides its
growth since before the model was built by what is computed for the same device.

**Computed**: the same step is run on tensors without data (`FakeTensorMode`), and the bytes of all storages that are
alive are added up after every operation: weights, gradients, moments, what is kept for the backward pass, what
checkpointing recomputes, autocast's bfloat16 copies of the weights and every temporary result. The peak is the
largest such sum in a step after the first. To stand for CUDA, norms give float32, attention is fused, and the
feed-forward is not sliced. Not in it: CUDA's context, the kernels' workspaces and what the allocator loses between
blocks. An average on the device adds 4 bytes per parameter; one that is offloaded adds none there. 8-bit Adam is
bitsandbytes' block-wise one.

**Adapters** (I2V-Adapter, SimDA, Customize-A-Video) are trained as the presets are, but on a frozen base: the preset
with (3, 1, 1) convolutions over the frames instead of STI, which is what the paper's peers build on. They are measured
at `tiny` and computed at `paper`; on CUDA both are measured. TFLOP are the products of a step's forward and backward
passes, recomputation included, 10^12 multiplications and additions.

Rows that would not fit are not measured. GB are 10^9 bytes.
"""

import argparse
import json
import platform
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import diffusers
import psutil
import torch
from denoiser import DENOISERS, FRAMES, TEXT_TOKENS, in_fresh_process, processor_name
from diffusers import AutoencoderKL
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from rdtf_diffusers import UNetDiscreteFrameModel
from rdtf_diffusers.baselines import (
    CustomizeAVideoConfig,
    CustomizeAVideoModel,
    I2VAdapterConfig,
    I2VAdapterModel,
    SimDAConfig,
    SimDAModel,
)
from rdtf_diffusers.models.unet_discrete_frame import SlicedFeedForward
from rdtf_diffusers.training.losses import dual_mask_loss
from rdtf_diffusers.training.presets import PRESETS


PEERS = ["I2VGenXLUNet", "UNet3DConditionModel"]
ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "I2V-Adapter": lambda unet: I2VAdapterModel(unet, I2VAdapterConfig()),
    "SimDA": lambda unet: SimDAModel(unet, SimDAConfig(latent_shift=True)),
    "Customize-A-Video r4": lambda unet: CustomizeAVideoModel(unet, CustomizeAVideoConfig(rank=4)),
    "Customize-A-Video r64": lambda unet: CustomizeAVideoModel(unet, CustomizeAVideoConfig(rank=64)),
}
GOALS = {"small": 12, "paper": 24}  # GB of the card that a preset is for
EMA_DECAY = 0.9999


@dataclass(frozen=True)
class Shapes:
    """What a preset's UNet is given: latents of `channels` x `size` x `size`, text of these widths."""

    channels: int
    size: int
    text_dim: int
    second_text_dim: int | None = None
    batch_size: int = 1


SHAPES = {
    "tiny": Shapes(16, 8, 384, batch_size=8),
    "small": Shapes(4, 32, 768),
    "paper": Shapes(4, 32, 1024, 768),
}


@dataclass(frozen=True)
class Run:
    """A training step that is measured or computed: the name of a preset or peer, and how it is trained."""

    model: str
    batch_size: int = 1
    dtype: str = "float32"
    checkpointing: bool = False
    channels_last: bool = False
    compiled: bool = False
    average: str | None = None  # where the moving average is: "device", "offloaded", or None for no average
    adapter: str | None = None  # what is trained instead of the network, a name of ADAPTERS

    @property
    def label(self) -> str:
        ways = ("checkpointing", "channels_last", "compiled")
        parts = [self.model, *([self.adapter] if self.adapter else [])]
        return ", ".join([*parts, *(way for way in ways if getattr(self, way))])


def build(name: str, **changes: Any) -> nn.Module:
    """The network of a preset, whose configuration `changes` replace, or of a peer."""
    if name in DENOISERS:
        return DENOISERS[name].build()
    shapes = SHAPES[name]
    return UNetDiscreteFrameModel(
        **PRESETS[name].unet | changes,
        sample_size=shapes.size,
        num_frames=FRAMES,
        in_channels=2 * shapes.channels,
        out_channels=shapes.channels,
        cross_attention_dim=shapes.text_dim,
        second_text_dim=shapes.second_text_dim,
    )


def make_inputs(name: str, model: nn.Module, batch_size: int) -> dict[str, torch.Tensor]:
    """Random arguments of the network's forward pass for `batch_size` clips."""
    if name in DENOISERS:
        inputs = DENOISERS[name].inputs(model)
        return {key: torch.cat([value] * batch_size) for key, value in inputs.items()}
    shapes = SHAPES[name]
    clip = (batch_size, shapes.channels, FRAMES, shapes.size, shapes.size)
    inputs = {
        "sample": torch.randn(clip),
        "timestep": torch.full((batch_size,), 500),
        "encoder_hidden_states": torch.randn(batch_size, TEXT_TOKENS, shapes.text_dim),
        "condition_latents": torch.randn(clip),
    }
    if shapes.second_text_dim is not None:
        inputs["encoder_hidden_states_2"] = torch.randn(batch_size, TEXT_TOKENS, shapes.second_text_dim)
    return inputs


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class TrainingStep:
    """A network with everything that its training needs, ready to be run step by step."""

    def __init__(self, run: Run, device: str):
        with torch.device(device):
            model = build(run.model, **{"temporal_layer": "conv3d"} if run.adapter else {}).train()
            if run.adapter:
                ADAPTERS[run.adapter](model)
            inputs = make_inputs(run.model, model, run.batch_size)
        if run.checkpointing:
            model.enable_gradient_checkpointing()
        if run.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.run_settings, self.device = model, run, torch.device(device)
        self.network = torch.compile(model) if run.compiled else model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        place = {"device": device, "offloaded": "cpu"}.get(run.average)
        self.average = [] if place is None else [p.detach().to(place, copy=True) for p in self.parameters]
        self.inputs = inputs
        self.noise = torch.randn_like(self.inputs["sample"])
        self.frame_mask = torch.ones(run.batch_size, FRAMES, dtype=torch.bool, device=device)

    def forward(self) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.run_settings.dtype == "bfloat16"):
            prediction = self.network(**self.inputs, return_dict=False)[0]
        return dual_mask_loss(prediction, self.noise, self.frame_mask)

    @torch.no_grad()
    def update(self) -> None:
        """Clips the gradients, moves the weights, forgets the gradients, moves the average."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for average, parameter in zip(self.average, self.parameters):
            average.lerp_(parameter.to(average.device), 1 - EMA_DECAY)

    def run(self) -> float:
        """One step; returns its seconds."""
        start = time.perf_counter()
        self.forward().backward()
        self.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def sizes(self) -> dict[str, int]:
        """Counts of parameters, and bytes of what a step keeps and of a checkpoint with an average."""
        trainable = num_bytes(self.parameters)
        optimiser = num_bytes(value for state in self.optimizer.state.values() for value in state.values())
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trainable": sum(p.numel() for p in self.parameters),
            "weight_bytes": num_bytes(self.model.state_dict().values()),
            "gradient_bytes": trainable,
            "optimiser_bytes": optimiser,
            "optimiser_8bit_bytes": sum(adam_8bit_bytes(p.numel()) for p in self.parameters),
            "checkpoint_bytes": 2 * trainable + optimiser,
        }


def adam_8bit_bytes(elements: int) -> int:
    """Both moments of one parameter in bitsandbytes' 8-bit Adam: a byte each, and a float32 per block of 256; small
    parameters keep float32 moments."""
    return 8 * elements if elements < 4096 else 2 * (elements + 4 * -(-elements // 256))


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make while it is active, for as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages = WeakIdKeyDictionary(ref_type=weakref.ref)  # storages have neither hash nor equality

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:  # most calls are this question
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.storages:  # else a view, or a result written in place
            size = storage.nbytes()
            self.storages[storage] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.live -= size

    def lap(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.live
        return peak


def compute_as_cuda(model: nn.Module) -> None:
    """Lets a step on tensors without data, which are a CPU's, take the memory that it takes on CUDA."""
    for module in model.modules():
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):  # autocast to float32 there, left in bfloat16 here
            module.register_forward_pre_hook(lambda module, args: (args[0].float(),))
        elif isinstance(module, SlicedFeedForward):
            module.slice_size = sys.maxsize


def attention_of(device_type: str) -> Any:
    """Attention as `train_rdtf.py` has it on this kind of device."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(device_type == "cpu")
    return sdpa_kernel(SDPBackend.MATH) if device_type == "cpu" else nullcontext()


def compute(run: Run, device_type: str) -> dict[str, int]:
    """Sizes, arithmetic, and the most bytes alive in each phase of a step after the first, on `device_type`."""
    with FakeTensorMode(), LiveBytes() as memory, attention_of(device_type):
        offloaded = run.average == "offloaded"  # then it is not on the device
        with patch.object(nn.Module, "to", lambda module, *args, **kwargs: module):  # PEFT's, which fails without data
            step = TrainingStep(replace(run, average=None) if offloaded else run, "cpu")
        if device_type == "cuda":
            compute_as_cuda(step.model)
        for parameter in step.parameters:
            parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()  # from here on there are moments
        step.optimizer.zero_grad()
        before, _ = memory.live, memory.lap()
        loss = step.forward()
        kept = memory.live - before
        peaks = {"forward": memory.lap()}
        loss.backward()
        peaks["backward"] = memory.lap()
        step.update()
        peaks["update"] = memory.lap()
        with FlopCounterMode(display=False) as counter:  # in a step of its own, as it keeps what others would free
            step.forward().backward()
        figures = {"flops": counter.get_total_flops(), "kept_bytes": kept, "peak_bytes": max(peaks.values())}
        return step.sizes() | figures | peaks


def peak_rss() -> int:
    """Bytes of this process's memory at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(run: Run, device: str, threads: int, steps: int) -> dict[str, Any]:
    """Seconds of every step and peak memory. Only right in a fresh process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = peak_rss()
    with attention_of(torch.device(device).type):
        step = TrainingStep(run, device)
        seconds = [step.run() for _ in range(steps + 1)][1:]
    if step.device.type == "cuda":
        peak, before = torch.cuda.max_memory_allocated(), 0
    else:
        peak = peak_rss()
    return {"seconds": median(seconds), "peak_bytes": peak, "growth_bytes": peak - before}


def free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def measure_rows(runs: list[Run], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per run: medians over the rounds, and ratios to the first run; what does not fit is only computed."""
    device_type = torch.device(options.device).type
    rows = [asdict(run) | {"label": run.label} for run in runs]
    for row, run in zip(rows, runs):
        same_bytes = replace(run, compiled=False, channels_last=False)
        row["computed"] = in_fresh_process(compute, same_bytes, device_type)
    fits = [row["computed"]["peak_bytes"] * 1.1 < free_bytes(options.device) for row in rows]
    rounds = [
        {
            run: in_fresh_process(measure, run, options.device, options.threads, options.steps)
            for run, fit in zip(runs, fits)
            if fit
        }
        for _ in range(options.rounds)
    ]
    for row, run, fit in zip(rows, runs, fits):
        if not fit:
            continue
        row["measured"] = {key: median(by_run[run][key] for by_run in rounds) for key in rounds[0][run]}
        row["measured"]["clips_per_second"] = run.batch_size / row["measured"]["seconds"]
        if fits[0]:
            for key in ("seconds", "peak_bytes"):
                row["measured"][f"{key}_ratio"] = median(by_run[run][key] / by_run[runs[0]][key] for by_run in rounds)
    return rows


def frozen_parts() -> dict[str, Any]:
    """What `paper` keeps beside the UNet without a latent cache, in bfloat16: parameters of the parts, built from
    their published sizes, and the most bytes that encoding a clip of 8x256x256 adds to the autoencoder's."""
    clip = CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    t5 = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    with torch.device("meta"), LiveBytes() as memory, torch.no_grad():
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        ).bfloat16()
        before, _ = memory.live, memory.lap()
        vae.encode(torch.randn(FRAMES, 3, 256, 256, dtype=torch.bfloat16))
        encoding = memory.lap() - before
        parts = {"vae": vae, "text_encoder": CLIPTextModel(clip), "text_encoder_2": T5EncoderModel(t5)}
        return {
            "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
            "encoding_bytes": encoding,
        }


def memory_plans(computed: dict[str, int], frozen: dict[str, Any] | None) -> dict[str, int]:
    """Peak bytes of one computed step, by optimiser, place of the average, and what else is on the device."""
    plans = {}
    for optimiser in ("AdamW", "8-bit Adam"):
        saved = computed["optimiser_bytes"] - computed["optimiser_8bit_bytes"] if optimiser == "8-bit Adam" else 0
        peak = computed["peak_bytes"] - saved
        plans[f"{optimiser}, average offloaded"] = peak
        plans[f"{optimiser}, average on the device"] = peak + computed["weight_bytes"]
        if frozen is not None:
            parts = 2 * sum(frozen["parameters"].values())
            # clips are encoded while there are neither gradients nor anything kept for the backward pass
            encoding = computed["weight_bytes"] + computed["optimiser_bytes"] - saved + frozen["encoding_bytes"]
            plans[f"{optimiser}, average offloaded, no latent cache"] = parts + max(peak, encoding)
    return plans


def preset_runs(preset: str, options: argparse.Namespace) -> list[Run]:
    """The rows of a preset that is measured, the plain one first where there is one."""
    shapes, on_cuda = SHAPES[preset], options.device.startswith("cuda")
    run = Run(preset, options.batch_size or shapes.batch_size, options.dtype)
    if preset != "tiny":  # without checkpointing, and with an average in the same memory, `paper` fits few machines
        return [replace(run, checkpointing=True, average="offloaded" if on_cuda else None)]
    plain = replace(run, average="device")
    compiled = [replace(plain, compiled=True)] if options.compile or on_cuda else []
    return [plain, replace(plain, checkpointing=True), replace(plain, channels_last=True), *compiled]


def comparison(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Ours at the paper's size and the peers, trained alike: measured on CUDA, else computed for it."""
    run = Run("paper", options.batch_size or 1, "bfloat16")
    runs = [replace(run, checkpointing=True), run, *(replace(run, model=peer) for peer in options.peers)]
    if options.device.startswith("cuda"):
        return measure_rows([replace(run, dtype=options.dtype, average="offloaded") for run in runs], options)
    rows = [asdict(run) | {"label": run.label} for run in runs]
    for row, run in zip(rows, runs):
        row["computed"] = in_fresh_process(compute, run, "cuda")
    return rows


def adapters(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The presets `tiny` and `paper` and adapters of their size: measured where that is possible, else computed."""
    rows = []
    for preset in ("tiny", "paper"):
        on_cuda = options.device.startswith("cuda")
        run = Run(preset, options.batch_size or SHAPES[preset].batch_size, options.dtype, average="device")
        runs = [run, *(replace(run, adapter=name) for name in options.adapters)]
        if preset in options.measure:
            rows += measure_rows(runs, options)
        elif preset in options.presets:
            runs = [run if on_cuda else replace(run, dtype="bfloat16") for run in runs]
            computed = [in_fresh_process(compute, run, "cuda") for run in runs]
            rows += [asdict(run) | {"label": run.label, "computed": figures} for run, figures in zip(runs, computed)]
    return rows


def print_measured(rows: list[dict[str, Any]]) -> None:
    names = "M params,M trained,s/step,ratio,clips/s,peak GB,ratio,moments GB,files GB,vs comp."
    print(f"\n{'measured':<34}" + "".join(f"{name:>11}" for name in names.split(",")))
    for row in rows:
        sizes, measured = row["computed"], row.get("measured")
        line = f"{row['label']:<34}{sizes['parameters'] / 1e6:>11.2f}{sizes['trainable'] / 1e6:>11.2f}"
        if measured is None:
            print(f"{line}  not measured: about {sizes['peak_bytes'] / 1e9:.1f} GB do not fit")
            continue
        line += f"{measured['seconds']:>11.3f}{measured.get('seconds_ratio', float('nan')):>11.2f}"
        line += f"{measured['clips_per_second']:>11.3f}{measured['peak_bytes'] / 1e9:>11.3f}"
        line += f"{measured.get('peak_bytes_ratio', float('nan')):>11.2f}{sizes['optimiser_bytes'] / 1e9:>11.3f}"
        line += f"{sizes['checkpoint_bytes'] / 1e9:>11.3f}"
        # what the compiler does to memory is not computed
        print(line + (f"{'':>11}" if row["compiled"] else f"{measured['growth_bytes'] / sizes['peak_bytes']:>11.2f}"))
    print("files: a checkpoint's weights, moments and average; vs comp.: growth of memory, measured / computed")


def print_computed(rows: list[dict[str, Any]]) -> None:
    columns = ("weight_bytes", "gradient_bytes", "optimiser_bytes", "kept_bytes", "forward", "backward", "update")
    names = "M params,M trained,TFLOP,weights,gradients,moments,kept,forward,backward,update,peak,ratio,files"
    print(f"\n{'computed, GB on CUDA':<34}" + "".join(f"{name:>11}" for name in names.split(",")))
    for row in rows:
        computed = row["computed"]
        line = f"{row['label']:<34}{computed['parameters'] / 1e6:>11.2f}{computed['trainable'] / 1e6:>11.2f}"
        line += f"{computed['flops'] / 1e12:>11.2f}"
        line += "".join(f"{computed[name] / 1e9:>11.2f}" for name in (*columns, "peak_bytes"))
        line += f"{computed['peak_bytes'] / rows[0]['computed']['peak_bytes']:>11.2f}"
        line += f"{computed['checkpoint_bytes'] / 1e9:>11.3f}"
        print(line + ("  cannot checkpoint" if row["model"] in PEERS else ""))
    print("kept: after the forward pass, for the backward pass; forward, backward, update: the most alive then")


def print_plans(preset: str, plans: dict[str, int], frozen: dict[str, Any] | None) -> None:
    print(f"\ncomputed: {preset}, bfloat16 autocast, checkpointing; goal: less than {GOALS[preset]} GB")
    for plan, size in plans.items():
        verdict = "met" if size / 1e9 < GOALS[preset] else "NOT met"
        print(f"  {plan:<46}{size / 1e9:>8.2f} GB  {verdict}")
    if frozen is not None:
        parts = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in frozen["parameters"].items())
        total = 2 * sum(frozen["parameters"].values()) / 1e9
        print(f"  frozen parts in bfloat16: {parts}, together {total:.2f} GB;")
        print(f"  encoding a clip takes {frozen['encoding_bytes'] / 1e9:.2f} GB, before there are gradients")


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--measure", nargs="*", default=None, choices=list(SHAPES), help="default: tiny; on CUDA all")
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS, help="beside `paper`; none: no comparison")
    names = list(ADAPTERS)
    parser.add_argument("--adapters", nargs="*", default=names, choices=names, help="of tiny, paper; none: no table")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16"], help="default: bfloat16 on CUDA")
    parser.add_argument("--batch_size", type=int, default=None, help="clips of a step; default: tiny 8, others 1")
    parser.add_argument("--compile", action="store_true", help="torch.compile for tiny also on a CPU")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes per measured row")
    parser.add_argument("--steps", type=int, default=3, help="steps per process, after one that does not count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(args)
    on_cuda = options.device.startswith("cuda")
    options.dtype = options.dtype or ("bfloat16" if on_cuda else "float32")
    measured = (options.presets if on_cuda else ["tiny"]) if options.measure is None else options.measure
    options.measure = [preset for preset in options.presets if preset in measured]
    return options


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    on_cuda = options.device.startswith("cuda")
    figures: dict[str, Any] = {
        "setup": {
            "processor": torch.cuda.get_device_name(options.device) if on_cuda else processor_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            **{name: getattr(options, name) for name in ("device", "dtype", "threads", "rounds", "steps")},
        }
    }
    print(", ".join(f"{key} {value}" for key, value in figures["setup"].items()))
    figures["measured"] = []
    for preset in options.measure:
        figures["measured"] += measure_rows(preset_runs(preset, options), options)
    if figures["measured"]:
        print_measured(figures["measured"])
    frozen = in_fresh_process(frozen_parts) if "paper" in options.presets else None
    figures |= {"frozen": frozen, "plans": {}}
    for preset in options.presets:
        if preset in GOALS:
            run = Run(preset, options.batch_size or 1, "bfloat16", checkpointing=True)
            parts = frozen if preset == "paper" else None
            figures["plans"][preset] = memory_plans(in_fresh_process(compute, run, "cuda"), parts)
            print_plans(preset, figures["plans"][preset], parts)
    if options.peers and "paper" in options.presets:
        figures["comparison"] = comparison(options)
        if on_cuda:
            print_measured(figures["comparison"])
        print_computed(figures["comparison"])
    if options.adapters:
        figures["adapters"] = adapters(options)
        measured = [row for row in figures["adapters"] if row["model"] in options.measure]
        computed = [row for row in figures["adapters"] if row["model"] not in options.measure]
        if measured:
            print_measured(measured)
        if computed:
            print_computed(computed)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
