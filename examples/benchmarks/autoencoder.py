# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How well autoencoders give stickers back, beside linear projections, in one table.

    python examples/benchmarks/autoencoder.py --data stickers/static/validation --resolution 96
    python examples/benchmarks/autoencoder.py --data stickers/static/validation --model my-model --json quality.json

Means over pictures (of an animation, up to two frames) of the PSNR over the 4 channels of premultiplied RGBA in
[0, 1], and of the intersection over union of alpha above 0.5. The projections are those of patches of 8x8 pixels onto
their principal components, fitted on the very pictures that are measured: no linear map of patches to as many numbers
has a smaller mean squared error. Milliseconds are those of encoding and decoding with the measure.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, AutoModel


sys.path.insert(0, str(Path(__file__).parents[1]))  # the script whose measure this is
from evaluation_cases import distinct
from train_autoencoder import load_pictures, reconstruction_quality

from rdtf_diffusers import demo_checkpoint
from rdtf_diffusers.utils.hub import public_name


PATCH = 8  # pixels
CHANNELS = 4
FRAMES = 2  # of an animation


class PatchProjection:
    """Patches of 8x8 pixels as their `size` principal components: an autoencoder without nonlinearities."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, pixels: torch.Tensor, size: int):
        patches = self.to_patches(pixels)
        self.mean = patches.mean(dim=(0, 2), keepdim=True)  # (1, C*64, 1)
        flat = (patches - self.mean).transpose(1, 2).flatten(0, 1).double()  # (P*N, C*64)
        self.basis = torch.linalg.eigh(flat.T @ flat)[1][:, -size:].float()  # (C*64, size)

    @staticmethod
    def to_patches(pixels: torch.Tensor) -> torch.Tensor:
        """(P, C, H, W) -> (P, C*64, N)."""
        return F.unfold(pixels, PATCH, stride=PATCH)

    def __call__(self, pixels: torch.Tensor) -> SimpleNamespace:
        """Pictures (P, C, H, W) -> `sample`, what is left of them."""
        patches = self.basis @ (self.basis.T @ (self.to_patches(pixels) - self.mean)) + self.mean
        return SimpleNamespace(sample=F.fold(patches, pixels.shape[2:], PATCH, stride=PATCH))


def load_autoencoder(folder: str) -> AutoencoderKL | AutoencoderTiny:
    """The autoencoder of a pipeline.

    Raises:
        ValueError: it has no alpha.
    """
    vae = AutoModel.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
    if vae.config.in_channels != CHANNELS:
        raise ValueError(f"{folder}: the autoencoder must have {CHANNELS} channels, got {vae.config.in_channels}")
    return vae


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="folders of stickers")
    parser.add_argument(
        "--model", nargs="*", default=[demo_checkpoint()], help="pipelines; default: the bundled model"
    )
    parser.add_argument("--resolution", type=int, default=96, help="height and width in pixels")
    parser.add_argument("--projections", nargs="*", type=int, default=[16, 32, 64], help="numbers for a patch of 8x8")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(args)
    if options.resolution < 1 or options.resolution % PATCH:
        parser.error(f"--resolution must be a multiple of {PATCH}, got {options.resolution}")
    if not all(1 <= size <= CHANNELS * PATCH**2 for size in options.projections):
        parser.error(
            f"--projections must be 1 to {CHANNELS * PATCH**2}, got {' '.join(map(str, options.projections))}"
        )
    return options


def main(args: list[str] | None = None) -> int:
    """Prints the table; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    options = parse_args(args)
    try:
        measure(options)
    except (OSError, ValueError) as error:
        print(f"autoencoder.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(options: argparse.Namespace) -> None:
    """Prints and writes the figures of all autoencoders."""
    torch.set_num_threads(options.threads)
    pixels = load_pictures(options.data, options.resolution, FRAMES).float() / 127.5 - 1  # (P, 4, S, S)
    coders = {f"8x8 patches, {size} numbers": PatchProjection(pixels, size) for size in options.projections}
    for name, folder in zip(distinct(map(public_name, options.model), coders), options.model):
        coders[name] = load_autoencoder(folder)
    where = ", ".join(map(str, options.data))
    print(f"{len(pixels)} pictures of {options.resolution} pixels from {where}, torch {torch.__version__}")
    print(f"{'':<28}{'PSNR, dB':>10}{'alpha IoU':>11}{'ms':>8}")
    rows = []
    for name, coder in coders.items():
        start = time.perf_counter()
        psnr, iou = reconstruction_quality(coder, pixels)
        milliseconds = (time.perf_counter() - start) / len(pixels) * 1000
        rows.append({"name": name, "psnr": psnr, "alpha_iou": iou, "milliseconds": milliseconds})
        print(f"{name:<28}{psnr:>10.2f}{iou:>11.4f}{milliseconds:>8.1f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"pictures": len(pixels), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
