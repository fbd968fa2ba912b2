# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A network that makes a frame of two known ones around or beside it, by the motion between them.

Not in the paper. It knows nothing of words or noise and is trained by the truth alone.
"""

import torch
import torch.nn.functional as F
from torch import nn


CELL = 4  # pixels of a side of a square that has a flow of its own, before it is corrected
FAR, NEAR = 0.7, 0.2  # how far a flow, and its correction, can reach, in half heights and widths
GAP = 8  # frames; distances of known frames are given to the network as multiples of it
LEAST = 0.02  # share of an end in a blend before anything is learned, at least
DECIDED = 0.4  # a share up to which an end counts nothing, so that there are hardly any ghosts


def pixel_grid(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Centres (H, W, 2) of pixels as (x, y) in [-1, 1]."""
    y, x = ((torch.arange(size, device=device) * 2 + 1) / size - 1 for size in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def decide(share: torch.Tensor) -> torch.Tensor:
    """Shares of one of two ends, most of them 0 or 1: a ghost of the other one is worse than either."""
    return ((share - DECIDED) / (1 - 2 * DECIDED)).clamp(0, 1)


class ResidualBlock(nn.Module):
    """(N, D, h, w) -> the same; at first what came in."""

    def __init__(self, channels: int, dilation: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.layers(hidden)


class FrameInterpolator(nn.Module):
    """Warps two known frames to a time between or beside them, and blends them.

    A small U-shaped network on squares of 4x4 pixels, with a level below, predicts from where either end comes and
    which one to take; a second one corrects both at half the size of the picture, having seen where they went, as in
    RIFE (arXiv 2011.06294), and says where nothing moves: there pixels stay as they are, because a flow that is not
    quite 0 blurs them. At first nothing moves, and the nearer end counts more.

    Args:
        in_channels: channels of the frames, 4 for premultiplied RGBA, 3 for RGB.
        channels: width of the network.

    Raises:
        ValueError: `channels` is no multiple of 16.
    """

    def __init__(self, in_channels: int = 4, channels: int = 80):
        super().__init__()
        if channels % 16:
            raise ValueError(f"The interpolator's channels must be a multiple of 16, but are {channels}.")
        deep, detail, fine = channels * 3 // 2, 16, channels // 2
        self.background = 0.0 if in_channels == 4 else 1.0  # premultiplied, or on white
        self.encoder = nn.Sequential(
            nn.Conv2d(2 * in_channels * CELL**2 + 2, channels, 3, padding=1), ResidualBlock(channels)
        )
        self.middle = nn.Sequential(
            nn.Conv2d(channels, deep, 3, stride=2, padding=1),
            *(ResidualBlock(deep, dilation) for dilation in (1, 2, 3, 1)),
            nn.SiLU(),
            nn.Conv2d(deep, channels, 1),
            nn.Upsample(scale_factor=2.0, mode="bilinear"),
        )
        self.decoder = nn.Sequential(
            ResidualBlock(channels), ResidualBlock(channels), nn.SiLU(), nn.Conv2d(channels, 5 + detail, 3, padding=1)
        )
        self.correction = nn.Sequential(
            nn.Conv2d(16 * in_channels + detail, fine, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(fine, fine, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(fine, 6, 3, padding=1),
        )
        for last in (self.decoder[-1], self.correction[-1]):
            nn.init.normal_(last.weight, std=1e-3)
            nn.init.zeros_(last.bias)
        self.correction[-1].bias.data[5] = -2.0  # at first little is taken as it is

    def warp(self, ends: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Ends (N, 2, C, H, W), their pixels taken from where `flow` (N, 4, H, W) says: (x, y) of either end."""
        count, _, _, height, width = ends.shape
        flow = flow.unflatten(1, (2, 2)).flatten(0, 1).permute(0, 2, 3, 1)
        content = ends.flatten(0, 1) - self.background
        warped = F.grid_sample(content, pixel_grid(height, width, ends.device) + flow, align_corners=False)
        return (warped + self.background).unflatten(0, (count, 2))

    def forward(self, ends: torch.Tensor, time: torch.Tensor, gap: torch.Tensor, soft: bool = False) -> torch.Tensor:
        """Interpolates.

        Args:
            ends: the two known frames (N, 2, C, H, W) in [0, 1], H and W multiples of 8. Of a frame that is beside
                both of them the nearer one comes first.
            time: where the frame is, (N,): 0 at the first end, 1 at the second, below 0 beside the first.
            gap: how many frames the ends are apart, (N,).
            soft: blend both ends by the shares that were predicted, as they are trained; by default most pixels are of
                either end alone.

        Returns:
            the frames (N, C, H, W) in [0, 1], float32.
        """
        ends, time = ends.float(), time.float()
        if not len(ends):  # which PyTorch cannot unshuffle
            return ends[:, 0]
        dtype, size = self.encoder[0].weight.dtype, ends.shape[3:]
        facts = torch.stack([time, gap.float() / GAP], dim=1)[:, :, None, None]
        pixels = F.pixel_unshuffle(ends.flatten(1, 2), CELL)
        pixels = torch.cat([pixels, facts.expand(-1, -1, *pixels.shape[2:])], dim=1)
        hidden = self.encoder(pixels.to(dtype))
        motion, detail = self.decoder(hidden + self.middle(hidden)).float().tensor_split([5], dim=1)
        motion = F.interpolate(motion, size=size, mode="bilinear")
        flow = FAR * motion[:, :4].tanh()
        seen = F.pixel_unshuffle(torch.cat([ends, self.warp(ends, flow)], dim=1).flatten(1, 2), 2)
        detail = F.interpolate(detail, scale_factor=2.0, mode="bilinear")
        correction = self.correction(torch.cat([seen, detail], dim=1).to(dtype)).float()
        correction = F.interpolate(correction, size=size, mode="bilinear")
        warped = self.warp(ends, flow + NEAR * correction[:, :4].tanh())
        warped = torch.lerp(warped, ends, correction[:, None, 5:].sigmoid())
        usual = time.clamp(LEAST, 1 - LEAST).logit()[:, None, None, None]
        share = (usual + motion[:, 4:] + correction[:, 4:5]).sigmoid()  # of the second end
        return torch.lerp(warped[:, 0], warped[:, 1], share if soft else decide(share))
