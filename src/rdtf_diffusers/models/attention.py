# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The attention of the discrete-frame UNet, fast on a CPU without gradients, in diffusers' form."""

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Scaled dot-product attention of tokens (B, N, C) over tokens (B, M, C) -> (B, N, C).

    On a CPU without gradients, where PyTorch's kernel is slow for many short sequences as for few long ones: plain
    products, in blocks of heads and queries whose scores fit the cache. Results take the place of the queries, which
    saves fresh memory. Taking the mean off the keys changes no weight and keeps scores small, for the sake of bfloat16
    (as in SageAttention, arXiv 2410.02367).
    """
    if query.device.type != "cpu" or torch.is_grad_enabled():
        heads = (tokens.unflatten(2, (num_heads, -1)).transpose(1, 2) for tokens in (query, key, value))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    tokens = (query, key - key.mean(1, keepdim=True), value)
    heads = [x.unflatten(2, (num_heads, -1)).transpose(1, 2).flatten(0, 1) for x in tokens]  # (B*heads, N or M, D)
    max_scores, scale, unused = 2**20, heads[0].shape[-1] ** -0.5, query.new_empty(1)
    rows = max(1, max_scores // key.shape[1])
    for q, k, v in zip(*(x.split(max(1, rows // query.shape[1])) for x in heads)):
        for block in q.split(rows, dim=1):
            scores = torch.baddbmm(unused, block, k.mT, beta=0, alpha=scale)
            torch.bmm(scores.softmax(-1), v, out=block)
    return heads[0].unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


class DiscreteFrameAttnProcessor:
    """The attention of all layers: upstream's default processor without what no layer here has (norms, masks,
    residuals, rescaling), around `attend`."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attention_mask is not None:
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        hidden_states = attend(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads)
        for module in attn.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


class ClipCrossAttention(Attention):
    """Cross-attention of frames (B*F, N, C) to what belongs to their clip: text (B, S, D), or a tuple of it and a list
    of an IP-Adapter's pictures (B, I, S, D). Keys and values are made once per clip."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]],
        **kwargs,
    ) -> torch.Tensor:
        text = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        num_frames = hidden_states.shape[0] // text.shape[0]
        if kwargs.get("ip_adapter_masks") is not None:  # these say which places of a frame see a picture
            pictures = [embeds.repeat_interleave(num_frames, dim=0) for embeds in encoder_hidden_states[1]]
            text = text.repeat_interleave(num_frames, dim=0)
            return super().forward(hidden_states, (text, pictures), **kwargs)
        clips = hidden_states.unflatten(0, (-1, num_frames)).flatten(1, 2)  # (B, F*N, C)
        return super().forward(clips, encoder_hidden_states, **kwargs).view(hidden_states.shape)
