# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""I2V-Adapter (arXiv 2312.16693): every frame also looks at the clean first one.

    model = I2VAdapterModel(unet, I2VAdapterConfig())  # `unet` now predicts with the adapter
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    noisy, loss_mask = clean_first_frame(noisy, latents, condition_mask, frame_mask)  # in every training step
    model.save_pretrained("adapter")

    latents = frame_similarity_prior(first_frame, 8, pipe.scheduler, num_inference_steps=50)
    pipe("a dog jumping", image, latents=latents, callback_on_step_end=keep_first_frame(first_frame))

Written from the paper; of the published method, the optional content stream (an IP-Adapter) is left to diffusers'
`load_ip_adapter`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..models.attention import attend
from .adapters import AdapterConfig, AdapterLayer, AdapterModel, ClipShape, spatial_layers


@dataclass
class I2VAdapterConfig(AdapterConfig):
    """What is trained.

    Args:
        mid_block: whether the middle of the UNet has an adapter too. On Stable Diffusion's widths that makes 24.79 M
            weights, and 21.52 M without.
    """

    peft_type: str = "I2V_ADAPTER"
    mid_block: bool = True


class FirstFrameAttention(nn.Module):
    """`O'(Attn(Q', K_1, V_1))`, I2V-Adapter's addition to a spatial self-attention `O(Attn(Q, K, V))`.

    K_1 and V_1 are the first frame's keys and values by the layer's own, frozen projections. Q' starts as a copy of Q
    and O' at zero.
    """

    def __init__(self, attn: Attention):
        super().__init__()
        place = {"device": attn.to_q.weight.device, "dtype": attn.to_q.weight.dtype}
        self.query = nn.Linear(attn.query_dim, attn.inner_dim, bias=attn.to_q.bias is not None, **place)
        self.out = nn.Linear(attn.inner_dim, attn.out_dim, **place)
        with torch.no_grad():
            self.query.weight.copy_(attn.to_q.weight)
            if attn.to_q.bias is not None:
                self.query.bias.copy_(attn.to_q.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, attn: Attention, inputs: torch.Tensor, outputs: torch.Tensor, clip_shape: ClipShape
    ) -> torch.Tensor:
        clips = inputs.unflatten(0, (-1, clip_shape.num_frames))  # (B, F, N, C)
        first_frame = clips[:, 0]  # (B, N, C)
        query = self.query(clips.flatten(1, 2))  # (B, F*N, inner)
        attended = attend(query, attn.to_k(first_frame), attn.to_v(first_frame), attn.heads)
        return self.out(attended).view(outputs.shape)


class I2VAdapterLayer(AdapterLayer):
    """The child `i2v_adapter` of a spatial self-attention."""


class I2VAdapterModel(AdapterModel):
    """A UNet whose spatial self-attentions all have an I2V-Adapter; arguments and errors as of `AdapterModel`."""

    method, paper = "I2V-Adapter", "2312.16693"
    config_class = I2VAdapterConfig
    tuner_layer_cls = I2VAdapterLayer
    layer_name = "i2v_adapter"
    why_not_mergeable = "the attention to the first frame is one more layer, which no weight of the UNet stands for."

    def find_targets(self, unet: nn.Module) -> Iterator[str]:
        for block, _ in spatial_layers(unet):
            if self.adapter_config.mid_block or not block.startswith("mid_block"):
                yield f"{block}.attn1"

    def make_adapter(self, module: Attention, name: str) -> FirstFrameAttention:
        return FirstFrameAttention(module)


def clean_first_frame(
    noisy_latents: torch.Tensor, latents: torch.Tensor, condition_mask: torch.Tensor, frame_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """I2V-Adapter's training input: a first frame that is known has no noise, and is no part of the loss.

    Args:
        noisy_latents, latents: (B, C, F, h, w), with noise and without.
        condition_mask: (B, F) bool, the frames that are known. Where the first one is hidden, nothing changes.
        frame_mask: (B, F) bool, the frames that are real.

    Returns:
        noisy latents (B, C, F, h, w), and the loss mask (B, F) that takes the place of `frame_mask`.
    """
    is_clean = torch.zeros_like(condition_mask)
    is_clean[:, 0] = condition_mask[:, 0]
    return torch.where(is_clean[:, None, :, None, None], latents, noisy_latents), frame_mask & ~is_clean


def keep_first_frame(first_frame: torch.Tensor) -> Callable[..., dict[str, Any]]:
    """A `callback_on_step_end` of the pipeline that keeps the first frame clean, as it was in training.

    Args:
        first_frame: scaled latents (B, C, h, w) of the clips, which must not be longer than the model's window.
    """

    def callback(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["latents"][:, :, 0] = first_frame.to(tensors["latents"])
        return tensors

    return callback


def blur(latents: torch.Tensor, kernel_size: int = 9, sigma: float = 18.0) -> torch.Tensor:
    """Gaussian blur of frames (B, C, h, w), whose borders go on outside; sigma in latents."""
    places = torch.arange(kernel_size, device=latents.device, dtype=latents.dtype) - kernel_size // 2
    kernel = (-0.5 * (places / sigma) ** 2).softmax(0)
    kernel = kernel.outer(kernel).expand(latents.shape[1], 1, -1, -1)
    padded = F.pad(latents, [kernel_size // 2] * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=latents.shape[1])


@torch.no_grad()
def frame_similarity_prior(
    first_frame: torch.Tensor,
    num_frames: int,
    scheduler: KarrasDiffusionSchedulers,
    num_inference_steps: int = 50,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """`latents` for the pipeline that know the first frame: I2V-Adapter's frame similarity prior.

    Every other frame starts from a mix of the first one and its blur (kernel 9, sigma 18), each element drawn from
    either with probability 1/2, with the noise of the first sampling step on top. The first frame stays clean.

    Args:
        first_frame: scaled latents (B, C, h, w).
        num_frames: of the clip; at least the model's window.
        scheduler: the pipeline's; its number of steps is set.
        num_inference_steps: as for the pipeline.
        generator: one, or one for each clip.

    Returns:
        latents (B, C, F, h, w).

    Raises:
        ValueError: the scheduler scales its noise, so that a clean frame among noisy ones makes no sense.
    """
    scheduler.set_timesteps(num_inference_steps, device=first_frame.device)
    if scheduler.init_noise_sigma != 1.0:
        raise ValueError(
            f"`scheduler` must start from noise of deviation 1, as DDIM does, but that of {type(scheduler).__name__} "
            f"is {float(scheduler.init_noise_sigma):.4g}."
        )
    first = first_frame[:, :, None]  # (B, C, 1, h, w)
    shape = (*first_frame.shape[:2], num_frames, *first_frame.shape[2:])
    place = {"device": first_frame.device, "dtype": first_frame.dtype}
    is_sharp = randn_tensor(shape, generator, **place) > 0.0
    prior = torch.where(is_sharp, first, blur(first_frame)[:, :, None])
    latents = scheduler.add_noise(prior, randn_tensor(shape, generator, **place), scheduler.timesteps[:1])
    latents[:, :, 0] = first_frame
    return latents
