# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""SimDA (arXiv 2308.09710): small bottlenecks in space and time, and attention to patches of the frames before.

    model = SimDAModel(unet, SimDAConfig(latent_shift=True))  # `unet` now predicts with the adapter
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    model.save_pretrained("adapter")

Written from the paper.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import nn
from torch.utils.hooks import RemovableHandle

from .adapters import AdapterConfig, AdapterLayer, AdapterModel, ClipShape, spatial_layers


# How many frames back the tokens of a 4x4 tile come from, row by row.
SHIFTS = ((4, 3, 2, 1), (3, 2, 1, 0), (2, 1, 0, 0), (1, 2, 3, 4))


@dataclass
class SimDAConfig(AdapterConfig):
    """What is trained. On Stable Diffusion's widths the defaults make 24.86 M weights, half of them temporal.

    Args:
        spatial_ratio: width of the spatial bottlenecks, as a part of the layer's.
        temporal_ratio: the same of the temporal ones.
        latent_shift: whether every spatial self-attention also looks at the patch-shifted clip. The published method
            does. It has no weights and so no start at which it changes nothing, which is why it is off by default.
    """

    peft_type: str = "SIMDA"
    spatial_ratio: float = 0.25
    temporal_ratio: float = 0.5
    latent_shift: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("spatial_ratio", "temporal_ratio"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie above 0 and not above 1, but is {getattr(self, name)}.")


class SpatialAdapter(nn.Sequential):
    """Linear, GELU, Linear, of which the last starts at zero, on tokens (B*F, H*W, C).

    Serial with a skip on the output of a self-attention; parallel without one on the input of a feed-forward (behind
    its norm).
    """

    def __init__(self, channels: int, ratio: float, is_serial: bool, like: torch.Tensor):
        place = {"device": like.device, "dtype": like.dtype}
        width = max(1, int(ratio * channels))
        super().__init__(nn.Linear(channels, width, **place), nn.GELU(), nn.Linear(width, channels, **place))
        self.is_serial = is_serial
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)

    def forward(
        self, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor, clip_shape: ClipShape
    ) -> torch.Tensor:
        return super().forward(outputs if self.is_serial else inputs)


class TemporalAdapter(nn.Sequential):
    """`Up(DW(Down(x)))` after a resnet: convolutions 1x1x1, depthwise (3, 1, 1) and 1x1x1 without activations between.

    Written with (3, 1) convolutions over (F, H*W), which are the same and faster; Up starts at zero.
    """

    def __init__(self, channels: int, ratio: float, like: torch.Tensor):
        place = {"device": like.device, "dtype": like.dtype}
        width = max(1, int(ratio * channels))
        super().__init__(
            nn.Conv2d(channels, width, 1, **place),
            nn.Conv2d(width, width, (3, 1), padding=(1, 0), groups=width, **place),
            nn.Conv2d(width, channels, 1, **place),
        )
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)

    def forward(
        self, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor, clip_shape: ClipShape
    ) -> torch.Tensor:
        clip = outputs.unflatten(0, (-1, clip_shape.num_frames)).transpose(1, 2).flatten(3)  # (B, C, F, H*W)
        return super().forward(clip).transpose(1, 2).reshape(outputs.shape)  # (B*F, C, H, W)


class SimDALayer(AdapterLayer):
    """The child `simda` of a resnet, a spatial self-attention or its feed-forward."""


def shift_patches(tokens: torch.Tensor, num_frames: int, height: int, width: int) -> torch.Tensor:
    """The patch-shifted clip of SimDA's latent-shift attention: tokens (B*F, H*W, C) -> the same.

    The token of frame i at (y, x) comes from frame `i - SHIFTS[y % 4][x % 4]`, or stays where there is none before.
    """
    frame = torch.arange(num_frames, device=tokens.device)[:, None, None]
    row = torch.arange(height, device=tokens.device)[:, None]
    column = torch.arange(width, device=tokens.device)
    source = frame - torch.tensor(SHIFTS, device=tokens.device)[row % 4, column % 4]  # (F, H, W)
    source = torch.where(source < 0, frame, source)
    clips = tokens.unflatten(0, (-1, num_frames)).unflatten(2, (height, width))  # (B, F, H, W, C)
    return clips[:, source, row, column].flatten(2, 3).flatten(0, 1)


def add_shifted_tokens(
    attn: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before a spatial self-attention: keys and values come from the frame and from its patch-shifted map.

    Raises:
        ValueError: its projections are fused, so that they cannot read two different inputs.
    """
    if not isinstance(attn.simda, SimDALayer) or not attn.simda.is_on:
        return args, kwargs
    if isinstance(attn.processor, FusedAttnProcessor2_0):
        raise ValueError("SimDA's latent shift needs separate projections: call `unfuse_qkv_projections` first.")
    tokens, clip = args[0], attn.simda.clip_shape
    shifted = shift_patches(tokens, clip.num_frames, *clip.grid(tokens.shape[1]))
    return args, kwargs | {"encoder_hidden_states": torch.cat([tokens, shifted], dim=1)}  # (B*F, 2*H*W, C)


class SimDAModel(AdapterModel):
    """A UNet with SimDA wherever it has a spatial transformer; arguments and errors as of `AdapterModel`."""

    method, paper = "SimDA", "2308.09710"
    config_class = SimDAConfig
    tuner_layer_cls = SimDALayer
    layer_name = "simda"
    why_not_mergeable = "its bottlenecks hold a GELU or look at other frames, which no weight of the UNet stands for."

    def find_targets(self, unet: nn.Module) -> Iterator[str]:
        for block, resnet in spatial_layers(unet):
            yield from (resnet, f"{block}.attn1", f"{block}.ff")

    def make_adapter(self, module: nn.Module, name: str) -> nn.Module:
        config, like = self.adapter_config, next(module.parameters())
        if name == "attn1":
            return SpatialAdapter(module.query_dim, config.spatial_ratio, is_serial=True, like=like)
        if name == "ff":
            channels = module.net[0].proj.in_features
            return SpatialAdapter(channels, config.spatial_ratio, is_serial=False, like=like)
        return TemporalAdapter(module.out_channels, config.temporal_ratio, like=like)

    def make_hooks(self, module: nn.Module, name: str) -> list[RemovableHandle]:
        hooks = super().make_hooks(module, name)
        if name == "attn1" and self.adapter_config.latent_shift:
            hooks.append(module.register_forward_pre_hook(add_shifted_tokens, with_kwargs=True))
        return hooks
