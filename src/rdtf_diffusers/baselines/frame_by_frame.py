# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A video UNet that processes every frame for itself: its temporal layers are bypassed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

from ..models.additions import ClipAttention, KnownFrameCopy
from ..models.unet_discrete_frame import (
    PixelTransformerBlock,
    SpatialTemporalInteraction,
    TemporalConvolutions,
    TemporalTransformer,
)


# What mixes frames and adds to its input, in ours and in diffusers' UNets. STI is none: it has a norm at its end.
RESIDUAL_LAYERS = (
    TemporalTransformer,
    TemporalConvolutions,
    PixelTransformerBlock,
    ClipAttention,
    AnimateDiffTransformer3D,
    TemporalConvLayer,
)


def keep(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of the forward of a residual layer."""
    return hidden_states


def keep_in_tuple(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
    """The same for `TransformerTemporalModel`, which is asked for a tuple."""
    return (hidden_states,)


def keep_normed(layer: SpatialTemporalInteraction, x: torch.Tensor, num_frames: int) -> torch.Tensor:
    """The same for STI: both branches give back their input."""
    return layer.norm((layer.semantic_weight + layer.detail_weight) * x)


def copy_nothing(hidden_states: torch.Tensor, condition_latents: torch.Tensor) -> torch.Tensor:
    """The same for `KnownFrameCopy`, whose output is added to that of the whole network."""
    return torch.zeros_like(condition_latents.transpose(1, 2).flatten(0, 1))


def without_frame_mixing(layer: nn.Module) -> Callable | None:
    """A forward function for `layer` in which no frame sees another; None if it mixes none."""
    if isinstance(layer, RESIDUAL_LAYERS):
        return keep
    if isinstance(layer, TransformerTemporalModel):
        return keep_in_tuple
    if isinstance(layer, KnownFrameCopy):
        return copy_nothing
    if isinstance(layer, SpatialTemporalInteraction):
        return partial(keep_normed, layer)  # a copy of the UNet gets one with its own layer
    return None


def bypass_temporal_layers(unet: nn.Module, bypassed: bool) -> None:
    """Lets a UNet process every frame for itself, or undoes it."""
    for layer in unet.modules():
        if replacement := without_frame_mixing(layer):
            if bypassed:
                layer.forward = replacement
            else:
                layer.__dict__.pop("forward", None)  # the class's own comes to light
