# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Layers that the discrete-frame UNet may have beyond the paper, for small models that are short of training.

All of them start as what changes nothing, so they can be added to a network that is trained already. They tell every
frame what the text says about it (`FrameTextEmbedding`), fetch what moves from where it was (`ClipAttention`), and
carry clean latents of the known frames to the output (`KnownFrameCopy`).
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import Timesteps, apply_rotary_emb, get_1d_rotary_pos_embed
from torch import nn

from .attention import attend


def clip_rotary(
    head_dim: int, num_frames: int, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of every place of a clip, 2 x (F*H*W, D).

    About a quarter of the channels turn with the number of the frame, the others with row and column.
    """
    of_row = head_dim * 3 // 16 * 2  # an even number
    of_frame = head_dim - 2 * of_row
    parts = []
    for axis, (size, channels) in enumerate(((num_frames, of_frame), (height, of_row), (width, of_row))):
        table = get_1d_rotary_pos_embed(channels, torch.arange(size, device=device), theta=100.0, use_real=True)
        shape = [1, 1, 1, channels]
        shape[axis] = size
        parts.append([x.view(shape).expand(num_frames, height, width, channels).flatten(0, 2) for x in table])
    return tuple(torch.cat(x, dim=1) for x in zip(*parts))


def rotate(tokens: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], num_heads: int) -> torch.Tensor:
    """Turns the channels of every head by the angles of its token's place; tokens (B, N, C), `rotary` 2 x (N, D)."""
    heads = apply_rotary_emb(tokens.unflatten(2, (num_heads, -1)), rotary, sequence_dim=1)
    return heads.flatten(2)


class ClipAttention(nn.Module):
    """One attention from every place of every frame to all places of all frames, at full resolution.

    Not in the paper. STI's attention does not know where a place is, and sees four pixels as one. Here queries and
    keys are turned by their frame, row and column (rotary embeddings), so that what moves can be fetched from where
    it was. The layer starts as the identity. Shapes: (B*F, C, H, W) -> (B*F, C, H, W).
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = nn.LayerNorm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, num_heads * head_dim) for _ in range(3))
        self.to_out = nn.Linear(num_heads * head_dim, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = hidden_states.shape[2:]
        frames = hidden_states.permute(0, 2, 3, 1)  # (B*F, H, W, C)
        tokens = self.norm(frames).unflatten(0, (-1, num_frames)).flatten(1, 3)  # (B, F*H*W, C)
        rotary = clip_rotary(self.head_dim, num_frames, height, width, tokens.device)
        query, key = (rotate(linear(tokens), rotary, self.num_heads) for linear in (self.to_q, self.to_k))
        moved = self.to_out(attend(query, key, self.to_v(tokens), self.num_heads))
        return hidden_states + moved.view(frames.shape).permute(0, 3, 1, 2)


class KnownFrameCopy(nn.Module):
    """What the known frames show, moved to where it belongs, and how much of it goes into the output.

    Not in the paper, whose network has to squeeze known latents through all of its norms. Attention, with places as in
    `ClipAttention`, from the last hidden states to the places of the known frames, whose values are the clean latents
    themselves; gates per place, channel and head. At first it looks at the same place of the nearest known frames, and
    the gates are zero. Shapes: hidden states (B*F, C, H, W), condition latents (B, c, F, H, W) -> (B*F, c, H, W).
    """

    def __init__(self, channels: int, latent_channels: int, num_heads: int, head_dim: int, sharpness: float = 4.0):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, num_heads * head_dim)
        self.to_k = nn.Linear(channels, num_heads * head_dim)
        self.to_gate = nn.Linear(channels, num_heads * latent_channels)
        for linear, bias in ((self.to_q, sharpness), (self.to_k, sharpness), (self.to_gate, 0.0)):
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, bias)

    def forward(self, hidden_states: torch.Tensor, condition_latents: torch.Tensor) -> torch.Tensor:
        batch_size, latent_channels, num_frames, height, width = condition_latents.shape
        tokens = self.norm(hidden_states.permute(0, 2, 3, 1))  # (B*F, H, W, C)
        tokens = tokens.unflatten(0, (batch_size, num_frames)).flatten(1, 3)  # (B, N, C)
        rotary = clip_rotary(self.head_dim, num_frames, height, width, tokens.device)
        query, key = (
            rotate(linear(tokens), rotary, self.num_heads).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.to_q, self.to_k)
        )
        values = condition_latents.flatten(2).transpose(1, 2)  # (B, N, c)
        known = values.ne(0).any(dim=2)
        mask = known | ~known.any(dim=1, keepdim=True)  # of clips without a known frame all values are zero
        padding = max(self.head_dim - latent_channels, 0)  # fast kernels want one size of heads
        values = F.pad(values, (0, padding)).to(query.dtype)[:, None].expand(-1, self.num_heads, -1, -1)
        copied = F.scaled_dot_product_attention(query, key, values, attn_mask=mask[:, None, None])
        gates = self.to_gate(tokens).unflatten(2, (self.num_heads, -1))  # (B, N, heads, c)
        latents = (gates * copied[..., :latent_channels].transpose(1, 2)).sum(2)
        return latents.view(-1, height, width, latent_channels).permute(0, 3, 1, 2)


class FrameTextEmbedding(nn.Module):
    """What the words say about each frame, for its time embedding: (B, T) and text (B, S, D) -> (B*F, T).

    Not in the paper, where words reach the frames by cross-attention alone, which tells all of them the same. A small
    transformer over the numbers of the frames reads the text; what it finds is added to the time embedding and so
    reaches every residual block. It starts at zero, each of its layers as the identity, so that more can join.
    """

    def __init__(self, time_embed_dim: int, cross_attention_dim: int, head_dim: int, num_layers: int = 2):
        super().__init__()
        self.frame_proj = Timesteps(time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                time_embed_dim, time_embed_dim // head_dim, head_dim, cross_attention_dim=cross_attention_dim
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(time_embed_dim)
        self.proj_out = nn.Linear(time_embed_dim, time_embed_dim)
        outputs = [x for block in self.transformer_blocks for x in (block.attn1.to_out[0], block.attn2.to_out[0])]
        for linear in (*outputs, *(block.ff.net[-1] for block in self.transformer_blocks), self.proj_out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, time_embedding: torch.Tensor, text: torch.Tensor, num_frames: int) -> torch.Tensor:
        numbers = torch.arange(num_frames, device=time_embedding.device)
        tokens = time_embedding[:, None] + self.frame_proj(numbers).to(time_embedding.dtype)  # (B, F, T)
        for block in self.transformer_blocks:
            tokens = block(tokens, encoder_hidden_states=text)
        return (time_embedding[:, None] + self.proj_out(self.norm(tokens))).flatten(0, 1)
