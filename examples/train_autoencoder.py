"""Train an RGBA autoencoder for stickers: a diffusers AutoencoderKL or AutoencoderTiny with 4 channels in and out.

    accelerate launch examples/train_autoencoder.py --train_data_dir stickers/static/train stickers/animated/train \
        --validation_data_dir stickers/static/validation --resolution 64 --mixed_precision bf16 --output_dir vae

Pictures are premultiplied RGBA in [-1, 1]. Every picture and up to `--frames_per_animation` frames of every animation
are decoded once and kept in memory. The saved weights are the moving average. Mean and deviation of each latent
channel are folded into the 1x1 convolutions around the latents, so saved models give latents of mean 0 and deviation
1, and their `scaling_factor` is 1. An AutoencoderTiny has no such convolutions, and no noise: the mean and the
deviation over all its channels become `shift_factor` and `scaling_factor`.
"""

import argparse
import copy
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from step_trainer import StepTrainer, add_run_arguments, positive_int, run_script

from rdtf_diffusers.data.animation import frames_to_clip
from rdtf_diffusers.data.rows import iterate_animations, load_rows


STATISTICS_BATCH = 64
WIDTHS = {"AutoencoderKL": [16, 32, 64, 72], "AutoencoderTiny": [64, 64, 64, 64]}


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_run_arguments(parser, output_dir="sticker-autoencoder", max_train_steps=20_000)
    parser.add_argument("--validation_data_dir", nargs="+", default=[], help="Stickers to measure the model on.")
    parser.add_argument("--max_validation_samples", type=positive_int, default=512)
    parser.add_argument(
        "--resolution", type=positive_int, default=64, help="Height and width of the training pictures."
    )
    parser.add_argument("--frames_per_animation", type=positive_int, default=8, help="Frames kept of each animation.")
    parser.add_argument("--autoencoder", choices=list(WIDTHS), default="AutoencoderKL", help="Its class in diffusers.")
    help_text = "Widths from the picture to the latents; every further one halves the size. Default: by class."
    parser.add_argument("--block_out_channels", type=positive_int, nargs="+", help=help_text)
    parser.add_argument("--latent_channels", type=int, default=16)
    parser.add_argument("--layers_per_block", type=positive_int, default=1)
    parser.add_argument("--norm_num_groups", type=positive_int, default=2)
    parser.add_argument("--train_batch_size", type=positive_int, default=16, help="Per process.")
    parser.add_argument("--kl_weight", type=float, default=1e-4, help="Weight of the mean KL per latent number.")
    parser.add_argument("--mse_weight", type=float, default=2.0)
    parser.add_argument("--edge_weight", type=float, default=0.5, help="Weight of the L1 on image gradients.")
    parsed = parser.parse_args(args)
    is_tiny = parsed.autoencoder == "AutoencoderTiny"
    parsed.block_out_channels = parsed.block_out_channels or WIDTHS[parsed.autoencoder]
    for name in ("norm_num_groups", "kl_weight") if is_tiny else ():
        if getattr(parsed, name) != parser.get_default(name):
            parser.error(f"--{name}: an AutoencoderTiny has neither norms nor noise")
    factor = 2 ** (len(parsed.block_out_channels) - 1)
    if parsed.resolution % factor:
        parser.error(f"--resolution must be a multiple of {factor} for these blocks, got {parsed.resolution}")
    for width in parsed.block_out_channels:
        if (not is_tiny and width % parsed.norm_num_groups) or width < 8:
            parser.error(f"--block_out_channels must be multiples of --norm_num_groups and at least 8, got {width}")
    if is_tiny and len(set(parsed.block_out_channels)) > 1:
        parser.error(f"--block_out_channels of an AutoencoderTiny must be alike, got {parsed.block_out_channels}")
    if parsed.latent_channels < 4:
        parser.error(f"--latent_channels must be at least 4, got {parsed.latent_channels}")
    return parsed


def load_pictures(sources: list[str], size: int, frames_per_animation: int) -> torch.Tensor:
    """All pictures and animation frames, premultiplied uint8 (P, 4, size, size)."""
    pictures = []
    for source in sources:
        for animation in iterate_animations(load_rows(source)):
            frames = animation.pick(min(frames_per_animation, len(animation.frames)))
            pictures.append(frames_to_clip(frames, size).add(1).mul(127.5).round().to(torch.uint8))
    if not pictures:
        raise ValueError(f"No readable picture in {', '.join(sources)}.")
    return torch.cat(pictures)


def hue_rotations(angles: torch.Tensor) -> torch.Tensor:
    """(B,) radians -> (B, 3, 3), rotations of RGB around the grey axis (Rodrigues' formula)."""
    axis = 1 / math.sqrt(3)
    cross = axis * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    sine, cosine = angles.sin().view(-1, 1, 1), angles.cos().view(-1, 1, 1)
    return cosine * torch.eye(3) + sine * cross + (1 - cosine) / 3


def draw_batch(pictures: torch.Tensor, count: int, resolution: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw pictures, half of them as they are and half moved: (count, 4, resolution, resolution) in [-1, 1].

    Moved: scaled, stretched, rotated, mirrored and shifted as a moving sticker is, with a turned hue and faded. Both
    colour changes are linear, so they may be made while premultiplied; colours are then limited to the alpha.
    """
    pixels = pictures[torch.from_numpy(rng.integers(len(pictures), size=count))].float() / 255
    still, moved = pixels[: count // 2], pixels[count // 2 :]
    still = F.interpolate(still, size=(resolution, resolution), mode="bicubic", antialias=True).clamp(0, 1)
    number = len(moved)
    angle = rng.uniform(-math.pi, math.pi, number) * (rng.random(number) < 0.5)
    stretch_x = rng.choice([-1, 1], number) / rng.uniform(0.45, 1.05, number)
    stretch_y = 1 / rng.uniform(0.45, 1.05, number)
    shift = rng.uniform(-0.5, 0.5, (2, number))
    rows = [np.cos(angle) * stretch_x, -np.sin(angle) * stretch_x, shift[0] * stretch_x]
    rows += [np.sin(angle) * stretch_y, np.cos(angle) * stretch_y, shift[1] * stretch_y]
    theta = torch.from_numpy(np.stack(rows, axis=1)).float().view(number, 2, 3)
    grid = F.affine_grid(theta, (number, 4, 2 * resolution, 2 * resolution), align_corners=False)
    moved = F.avg_pool2d(
        F.grid_sample(moved, grid, align_corners=False), 2
    )  # drawn at twice the size against aliasing
    turns = torch.from_numpy(rng.uniform(-math.pi, math.pi, number) * (rng.random(number) < 0.4)).float()
    moved[:, :3] = torch.einsum("bij,bjhw->bihw", hue_rotations(turns), moved[:, :3])
    fade = np.where(rng.random(number) < 0.15, rng.uniform(0.1, 1, number), 1)
    moved *= torch.from_numpy(fade).float().view(-1, 1, 1, 1)
    pixels = torch.cat([still, moved])
    return torch.minimum(pixels.clamp(min=0), pixels[:, 3:]) * 2 - 1


@torch.no_grad()
def start_as_blur(vae: AutoencoderKL) -> None:
    """Start where the autoencoder gives back a blurred copy, from which colours need not be learned.

    Residual branches start at zero, and 8 channels carry the averages of RGBA and their negatives through all levels:
    SiLU(x) - SiLU(-x) = x then passes the last activations of encoder and decoder. The first 4 latent channels hold
    the averages, and all latents start with little noise.
    """
    same = torch.eye(8)
    split = torch.cat([torch.eye(4), -torch.eye(4)])  # x -> x, -x
    merge = split.T  # the activated x, -x -> x
    centre = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    average = torch.tensor([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])  # its stride is 2

    def carry(convolution: torch.nn.Conv2d, channels: torch.Tensor, kernel: torch.Tensor) -> None:
        outputs, inputs = channels.shape
        convolution.weight[:outputs] = 0
        convolution.weight[:outputs, :inputs] = channels[:, :, None, None] * kernel
        convolution.bias[:outputs] = 0

    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            torch.nn.init.zeros_(block.conv2.weight)
            torch.nn.init.zeros_(block.conv2.bias)
            if block.conv_shortcut is not None:
                carry(block.conv_shortcut, same, torch.ones(1, 1))
        elif isinstance(block, Downsample2D):
            carry(block.conv, same, average)
        elif isinstance(block, Upsample2D):
            carry(block.conv, same, centre)
    for convolution in (vae.encoder.conv_in, vae.decoder.conv_in):
        carry(convolution, split, centre)
    for convolution in (vae.encoder.conv_out, vae.decoder.conv_out):
        carry(convolution, merge, centre)
    vae.encoder.conv_out.bias[vae.config.latent_channels :] = -4  # log variance
    for convolution in (vae.quant_conv, vae.post_quant_conv):
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)


def make_autoencoder(args: argparse.Namespace) -> AutoencoderKL | AutoencoderTiny:
    """The network of `--autoencoder` before training."""
    widths, blocks = tuple(args.block_out_channels), len(args.block_out_channels)
    if args.autoencoder == "AutoencoderTiny":
        return AutoencoderTiny(
            in_channels=4,
            out_channels=4,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=(1, *(args.layers_per_block,) * (blocks - 1)),
            num_decoder_blocks=(*(args.layers_per_block,) * (blocks - 1), 1),
            latent_channels=args.latent_channels,
        )
    vae = AutoencoderKL(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=widths,
        layers_per_block=args.layers_per_block,
        latent_channels=args.latent_channels,
        norm_num_groups=args.norm_num_groups,
        sample_size=args.resolution,
        mid_block_add_attention=False,
    )
    start_as_blur(vae)
    return vae


class Reconstruction(torch.nn.Module):
    """Encoder, sampled latents and decoder in one forward, so that it can be wrapped for several processes."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (B, 4, H, W) -> their reconstruction, and the mean KL per latent number, 0 without noise."""
        encoded = self.vae.encode(pixels)
        if not hasattr(encoded, "latent_dist"):
            return self.vae.decode(encoded.latents).sample, pixels.new_zeros(())
        posterior = encoded.latent_dist
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return self.vae.decode(posterior.sample()).sample, kl


def reconstruction_loss(output: torch.Tensor, pixels: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
    """L1 + weighted MSE + weighted L1 between the image gradients, which keeps flat art crisp."""
    error = output.float() - pixels
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + args.mse_weight * error.square().mean() + args.edge_weight * edges


@torch.no_grad()
def reconstruction_quality(vae: AutoencoderKL | AutoencoderTiny, pixels: torch.Tensor) -> tuple[float, float]:
    """PSNR over the 4 premultiplied channels in [0, 1] and alpha IoU at 0.5, both means over pictures (P, 4, H, W)."""
    psnr, iou = [], []
    for batch in pixels.split(STATISTICS_BATCH):
        batch_there = batch.to(vae.device, vae.dtype)
        if isinstance(vae, AutoencoderTiny):  # whose forward rounds latents to bytes, which sampling does not
            output = vae.decode(vae.encode(batch_there).latents).sample
        else:
            output = vae(batch_there).sample
        output = output.float().cpu().clamp(-1, 1)
        mse = ((output - batch) / 2).square().mean(dim=(1, 2, 3))
        psnr.append(-10 * mse.clamp(min=1e-10).log10())
        ours, theirs = output[:, 3] > 0, batch[:, 3] > 0
        union = (ours | theirs).sum(dim=(1, 2))
        iou.append((ours & theirs).sum(dim=(1, 2)) / union.clamp(min=1))
    return torch.cat(psnr).mean().item(), torch.cat(iou).mean().item()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL | AutoencoderTiny, pixels: torch.Tensor) -> None:
    """Make latents have mean 0 and deviation 1 over `pixels`.

    Per channel, folded into the 1x1 convolutions around the latents; without these by `shift_factor` and
    `scaling_factor`.
    """
    if isinstance(vae, AutoencoderTiny):
        latents = torch.cat([vae.encode(batch.to(vae.device)).latents for batch in pixels.split(STATISTICS_BATCH)])
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
        return
    posteriors = [vae.encode(batch.to(vae.device)).latent_dist for batch in pixels.split(STATISTICS_BATCH)]
    centres = torch.cat([posterior.mean for posterior in posteriors])
    noise = torch.cat([posterior.var for posterior in posteriors]).mean(dim=(0, 2, 3))
    mean, deviation = centres.mean(dim=(0, 2, 3)), (centres.var(dim=(0, 2, 3)) + noise).sqrt()
    scale = torch.cat([1 / deviation, torch.ones_like(deviation)])
    vae.quant_conv.weight.mul_(scale.view(-1, 1, 1, 1))
    vae.quant_conv.bias.mul_(scale)
    vae.quant_conv.bias.sub_(torch.cat([mean / deviation, 2 * deviation.log()]))  # log variance: - 2 log deviation
    vae.post_quant_conv.bias.add_(vae.post_quant_conv.weight[:, :, 0, 0] @ mean)
    vae.post_quant_conv.weight.mul_(deviation.view(1, -1, 1, 1))
    vae.register_to_config(scaling_factor=1.0)


class Trainer(StepTrainer):
    """One training run: pictures, autoencoder, its moving average."""

    name = "train_autoencoder"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.pictures = load_pictures(args.train_data_dir, args.resolution * 3 // 2, args.frames_per_animation)
        self.validation = self._validation_pixels()
        self.vae = make_autoencoder(args)
        self.prepare(Reconstruction(self.vae))

    def _validation_pixels(self) -> torch.Tensor | None:
        if not self.args.validation_data_dir:
            return None
        pictures = load_pictures(self.args.validation_data_dir, self.args.resolution, frames_per_animation=2)
        stride = max(1, len(pictures) // self.args.max_validation_samples)
        return pictures[::stride][: self.args.max_validation_samples].float() / 127.5 - 1

    def save_model(self) -> dict[str, float]:
        """Save the moving average as a diffusers model, normalised, and measure it."""
        args = self.args
        model = copy.deepcopy(self.vae)
        self.ema.copy_to(model.parameters())
        rng = np.random.default_rng([args.seed, 0])
        normalise_latents(model, draw_batch(self.pictures, 8 * STATISTICS_BATCH, args.resolution, rng))
        model.save_pretrained(self.output_dir)
        if self.validation is None:
            return {}
        psnr, iou = reconstruction_quality(model, self.validation)
        return {"validation/psnr": psnr, "validation/alpha_iou": iou}

    def batch(self, step: int) -> torch.Tensor:
        """This process's share of the batch of `step`, which depends on the seed and the step alone."""
        size = self.args.train_batch_size
        rng = np.random.default_rng([self.args.seed, step])
        everything = draw_batch(self.pictures, size * self.accelerator.num_processes, self.args.resolution, rng)
        return everything[self.accelerator.process_index :: self.accelerator.num_processes].to(self.accelerator.device)

    def step(self, step: int) -> dict[str, torch.Tensor]:
        """One optimiser step; returns its losses."""
        pixels = self.batch(step)
        output, kl = self.model(pixels)
        reconstruction = reconstruction_loss(output, pixels, self.args)
        self.optimise(reconstruction + self.args.kl_weight * kl)
        return {"loss": reconstruction.detach(), "kl": kl.detach()}


def main(args: list[str] | None = None) -> int:
    """Train; returns the exit code: 0, or 2 after one line about what the user has to put right."""
    return run_script(Trainer, parse_args, args)


if __name__ == "__main__":
    sys.exit(main())
