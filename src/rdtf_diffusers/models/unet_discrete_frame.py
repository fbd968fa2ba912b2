# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The discrete-frame UNet of RDTF (arXiv 2503.17735), built from diffusers' layers.

    from rdtf_diffusers import UNetDiscreteFrameModel

    unet = UNetDiscreteFrameModel()  # the paper's 960 M parameters
    noise = unet(sample, timestep, text, condition_latents=known_frames).sample  # (B, 4, 8, 32, 32)

A latent video UNet for clips of a few, far-apart frames. Every layer of a block is

    resnet -> STI -> spatial transformer (self, text, feed-forward) -> temporal transformer (self, self, feed-forward)

where STI, the paper's spatial-temporal interaction, looks over space and time at once, because in a sticker the same
object jumps further between two frames than a (3, 1, 1) convolution can see. Frames live in the batch dimension,
(B*F, C, H, W), and only temporal layers regroup them. Spatial layers keep the key names of Stable Diffusion 2.1.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin, UNet2DConditionLoadersMixin
from diffusers.loaders.peft import _SET_ADAPTER_SCALE_FN_MAPPING
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales
from diffusers.models.attention import AttentionMixin, BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from diffusers.utils import BaseOutput, apply_lora_scale
from diffusers.utils.torch_utils import apply_freeu
from torch import nn

from .additions import ClipAttention, FrameTextEmbedding, KnownFrameCopy
from .attention import ClipCrossAttention, DiscreteFrameAttnProcessor


def group_pixels(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Regroups channels-last frames (B*F, H, W, C) into one sequence of frames per pixel, (B*H*W, F, C).

    Contiguous also for one clip: linear layers take tokens with gaps as one small matrix product per pixel.
    """
    return frames.unflatten(0, (-1, num_frames)).flatten(2, 3).transpose(1, 2).flatten(0, 1).contiguous()


def ungroup_pixels(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `group_pixels` with channels moved back in place: (B*H*W, F, C) -> (B*F, C, H, W)."""
    frames = tokens.unflatten(0, (-1, height * width)).transpose(1, 2)  # (B, F, H*W, C)
    return frames.flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)


@dataclass
class UNetDiscreteFrameOutput(BaseOutput):
    """Output of [`UNetDiscreteFrameModel`].

    Args:
        sample (`torch.Tensor` of shape (B, C, F, H, W)): the predicted noise.
    """

    sample: torch.Tensor


class FrameResnet(nn.Module):
    """A residual block without time embedding, twice [GroupNorm (1 group), SiLU, Conv 3x3], in upstream's key names.

    Upstream's block leaves the order in memory to the convolutions. With only `channels` = F of them that costs more
    than the convolutions do, so here every norm and sum sees NCHW. So do the convolutions, but for training under
    autocast on a CPU, where their gradients take half the time in channels-last.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(1, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = nn.GroupNorm(1, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        trains = torch.is_grad_enabled() and clip.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        layout = torch.channels_last if trains else torch.contiguous_format
        normed = self.norm1(clip).contiguous(memory_format=layout)
        normed = self.norm2(self.conv1(F.silu(normed)).contiguous()).contiguous(memory_format=layout)
        return clip + self.conv2(F.silu(normed)).contiguous()


class FrameResnets(nn.Module):
    """Detail preservation of STI with *frames as channels*: two residual blocks, 3x3, F -> F, shared by all features.

    RDTF table 6 and its release. The kernels mix frames, so the clip length is fixed.
    """

    def __init__(self, num_frames: int):
        super().__init__()
        self.resnets = nn.ModuleList(FrameResnet(num_frames) for _ in range(2))

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        clip = hidden_states.unflatten(0, (-1, num_frames)).transpose(1, 2)  # (B, C, F, H, W)
        channels = clip.shape[1]
        clip = clip.contiguous().flatten(0, 1)  # (B*C, F, H, W)
        for resnet in self.resnets:
            clip = resnet(clip)
        return clip.unflatten(0, (-1, channels)).transpose(1, 2).flatten(0, 1)


class TemporalConvolutions(nn.Module):
    """`num_layers` times [GroupNorm, SiLU, Conv3d (3, 1, 1)] with one residual: a stack over frames at each pixel.

    Written as (3, 1) convolutions over (F, H*W), which is faster and knows the channels-last layout.
    With `depthwise` it is the detail branch of STI that takes any clip length; in full width, four layers and the last
    one starting at zero it is the paper's "DFGN (3D-Conv)" ablation.
    """

    def __init__(self, channels: int, num_layers: int, norm_num_groups: int, depthwise: bool):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(norm_num_groups, channels) for _ in range(num_layers))
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels if depthwise else 1)
            for _ in range(num_layers)
        )
        if not depthwise:  # the ablation starts as the identity
            nn.init.zeros_(self.convs[-1].weight)
            nn.init.zeros_(self.convs[-1].bias)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        clip = hidden_states.unflatten(0, (-1, num_frames)).transpose(1, 2).flatten(3)  # (B, C, F, H*W)
        residual = clip
        for norm, conv in zip(self.norms, self.convs):
            clip = conv(F.silu(norm(clip)))
        return (residual + clip).transpose(1, 2).reshape(hidden_states.shape)  # (B*F, C, H, W)


class SpatialTemporalInteraction(nn.Module):
    """The STI layer of RDTF (table 6; first described in VSD2M, arXiv 2412.08259).

    `y = GroupNorm(w1 * S(x) + w2 * D(x))` with scalars that start at `w1 = 0`, `w2 = 1`. The semantic branch
    `S(x) = Up(Attn(Down(x))) + x` is one self-attention over all places of all frames at half resolution; `D`
    preserves detail, see `sti_detail`.
    Shapes: (B*F, C, H, W) -> (B*F, C, H, W).
    """

    def __init__(
        self, channels: int, num_frames: int, norm_num_groups: int, num_heads: int, head_dim: int, detail: str
    ):
        super().__init__()
        self.attn1 = Attention(query_dim=channels, heads=num_heads, dim_head=head_dim)
        if detail == "frame_resnet":
            self.detail = FrameResnets(num_frames)
        else:
            self.detail = TemporalConvolutions(channels, num_layers=2, norm_num_groups=norm_num_groups, depthwise=True)
        self.semantic_weight = nn.Parameter(torch.zeros(1))
        self.detail_weight = nn.Parameter(torch.ones(1))
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)

    def semantic(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = hidden_states.shape[2:]
        pooled = F.avg_pool2d(hidden_states, kernel_size=2, ceil_mode=True).permute(0, 2, 3, 1)  # (B*F, h, w, C)
        tokens = pooled.unflatten(0, (-1, num_frames)).flatten(1, 3)  # (B, F*h*w, C)
        attended = self.attn1(tokens).reshape(pooled.shape).permute(0, 3, 1, 2)
        return hidden_states + F.interpolate(attended, size=(height, width), mode="nearest")

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        semantic = self.semantic(hidden_states, num_frames)
        detail = self.detail(hidden_states, num_frames)
        return self.norm(self.semantic_weight * semantic + self.detail_weight * detail)


class SlicedFeedForward(FeedForward):
    """The GEGLU feed-forward of the transformers. On a CPU it takes `slice_size` tokens at a time, because its inner
    activations, eight times as wide, are then still in the cache when they are read."""

    slice_size = 512

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.flatten(0, -2)
        if hidden_states.device.type != "cpu" or len(tokens) <= self.slice_size:
            return super().forward(hidden_states)
        slices = tokens.split(self.slice_size)
        return torch.cat([FeedForward.forward(self, tokens) for tokens in slices]).view(hidden_states.shape)


class SpatialTransformer(Transformer2DModel):
    """Self-attention over the pixels of each frame, cross-attention to text and a GEGLU.

    Upstream's class with its keys, but its output stays in the layout of its tokens. Upstream copies it to NCHW, after
    which every convolution of the network copies back to channels-last.
    Shapes: (B*F, C, H, W) -> (B*F, C, H, W).
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int, norm_num_groups: int, cross_attention_dim: int):
        super().__init__(
            num_heads,
            head_dim,
            in_channels=channels,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            use_linear_projection=True,
        )
        block = self.transformer_blocks[0]
        block.attn2 = ClipCrossAttention(channels, cross_attention_dim, num_heads, dim_head=head_dim)
        block.ff = SlicedFeedForward(channels)

    def forward(self, hidden_states: torch.Tensor, context: "LayerContext") -> torch.Tensor:
        height, width = hidden_states.shape[2:]
        tokens = self.proj_in(self.norm(hidden_states).permute(0, 2, 3, 1).flatten(1, 2))  # (B*F, H*W, C)
        for block in self.transformer_blocks:
            tokens = block(
                tokens,
                encoder_hidden_states=context.encoder_hidden_states,
                cross_attention_kwargs=context.cross_attention_kwargs,
            )
        return hidden_states + self.proj_out(tokens).unflatten(1, (height, width)).permute(0, 3, 1, 2)


class TemporalTransformer(nn.Module):
    """Self-attention over the frames at each pixel, twice, and a GEGLU, as in ModelScope; no positional encoding.

    The maths of diffusers' `TransformerTemporalModel` without its permutations to NCHW and back: the group norm runs
    on the clip as one (B, C, F*H, W) picture, and tokens are regrouped once on the way in and once on the way out.
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int, norm_num_groups: int):
        super().__init__()
        inner_dim = num_heads * head_dim
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner_dim)
        self.transformer_blocks = nn.ModuleList(
            [BasicTransformerBlock(inner_dim, num_heads, head_dim, double_self_attention=True)]
        )
        self.transformer_blocks[0].ff = SlicedFeedForward(inner_dim)
        self.proj_out = nn.Linear(inner_dim, channels)

    def forward(self, hidden_states: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = hidden_states.shape[2:]
        frames = hidden_states.permute(0, 2, 3, 1)  # (B*F, H, W, C)
        clip = frames.unflatten(0, (-1, num_frames)).flatten(1, 2).permute(0, 3, 1, 2)  # (B, C, F*H, W)
        frames = self.norm(clip).permute(0, 2, 3, 1).reshape(frames.shape)
        tokens = self.proj_in(group_pixels(frames, num_frames))  # (B*H*W, F, inner)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return hidden_states + ungroup_pixels(self.proj_out(tokens), height, width)


class PixelTransformerBlock(nn.Module):
    """One attention over the frames at each pixel and a GELU feed-forward, for (B*H*W, F, C) tokens."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn1 = Attention(query_dim=channels, heads=2, dim_head=channels)
        self.ff = FeedForward(channels, activation_fn="gelu", inner_dim=4 * channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn1(self.norm(tokens))
        return tokens + self.ff(tokens)


class ConditionEncoder(nn.Module):
    """The path of the known frames before they join the noisy latents (I2VGen-XL form).

    Three 3x3 convolutions C -> 16 -> 16 -> C with SiLU between, then one attention over the frames at each pixel with
    a feed-forward. Shapes: (B*F, C, H, W) -> (B*F, C, H, W).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, channels, 3, padding=1),
        )
        self.temporal_encoder = PixelTransformerBlock(channels)

    def forward(self, condition_latents: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = condition_latents.shape[2:]
        tokens = group_pixels(self.convs(condition_latents).permute(0, 2, 3, 1), num_frames)  # (B*H*W, F, C)
        return ungroup_pixels(self.temporal_encoder(tokens), height, width)


@dataclass(frozen=True)
class LayerContext:
    """What every layer of one forward pass shares: time (B*F, T), text (B, S, D) and the number of frames."""

    time_embedding: torch.Tensor
    encoder_hidden_states: torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]
    num_frames: int
    cross_attention_kwargs: dict[str, Any] | None


class DiscreteFrameBlock(nn.Module):
    """The layers of one resolution: `resnets[i]` -> `temporal_layers[i]` -> `attentions[i]` -> `motion_modules[i]`.

    `attentions` and `motion_modules` are absent at the lowest resolution, and shorter than `resnets` in the middle.
    """

    gradient_checkpointing = False

    def __init__(self, config, in_channels: list[int], out_channels: int, num_attentions: int):
        super().__init__()
        groups, head_dim = config.norm_num_groups, config.attention_head_dim
        heads = out_channels // head_dim
        self.resnets = nn.ModuleList(
            ResnetBlock2D(
                in_channels=width,
                out_channels=out_channels,
                temb_channels=4 * config.block_out_channels[0],
                groups=groups,
                eps=1e-5,
            )
            for width in in_channels
        )
        self.temporal_layers = nn.ModuleList(self._temporal_layer(config, out_channels) for _ in in_channels)
        if num_attentions:
            self.attentions = nn.ModuleList(
                SpatialTransformer(out_channels, heads, head_dim, groups, config.cross_attention_dim)
                for _ in range(num_attentions)
            )
            self.motion_modules = nn.ModuleList(
                TemporalTransformer(out_channels, heads, head_dim, groups) for _ in range(num_attentions)
            )
            if config.clip_attention_num_heads:
                self.clip_attentions = nn.ModuleList(
                    ClipAttention(out_channels, config.clip_attention_num_heads, config.clip_attention_head_dim)
                    for _ in range(num_attentions)
                )

    @staticmethod
    def _temporal_layer(config, channels: int) -> nn.Module:
        if config.temporal_layer == "conv3d":
            return TemporalConvolutions(
                channels, num_layers=4, norm_num_groups=config.norm_num_groups, depthwise=False
            )
        return SpatialTemporalInteraction(
            channels,
            config.num_frames,
            config.norm_num_groups,
            config.sti_num_heads,
            config.sti_head_dim,
            config.sti_detail,
        )

    def layer(self, index: int, hidden_states: torch.Tensor, context: LayerContext) -> torch.Tensor:
        hidden_states = self.resnets[index](hidden_states, context.time_embedding)
        hidden_states = self.temporal_layers[index](hidden_states, context.num_frames)
        if index < len(getattr(self, "attentions", ())):
            hidden_states = self.attentions[index](hidden_states, context)
            if hasattr(self, "clip_attentions"):
                hidden_states = self.clip_attentions[index](hidden_states, context.num_frames)
            hidden_states = self.motion_modules[index](hidden_states, context.num_frames)
        return hidden_states

    def run_layer(self, index: int, hidden_states: torch.Tensor, context: LayerContext) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self.layer, index, hidden_states, context)
        return self.layer(index, hidden_states, context)


class DiscreteFrameDownBlock(DiscreteFrameBlock):
    def __init__(self, config, in_channels: int, out_channels: int, has_attention: bool, downsample: bool):
        widths = [in_channels] + [out_channels] * (config.layers_per_block - 1)
        super().__init__(config, widths, out_channels, num_attentions=len(widths) if has_attention else 0)
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, use_conv=True, name="op")] if downsample else [])

    def forward(self, hidden_states: torch.Tensor, context: LayerContext) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for index in range(len(self.resnets)):
            hidden_states = self.run_layer(index, hidden_states, context)
            skips.append(hidden_states)
        for downsampler in self.downsamplers:
            hidden_states = downsampler(hidden_states)
            skips.append(hidden_states)
        return hidden_states, skips


class DiscreteFrameMidBlock(DiscreteFrameBlock):
    def __init__(self, config):
        channels = config.block_out_channels[-1]
        super().__init__(config, [channels, channels], channels, num_attentions=1)

    def forward(self, hidden_states: torch.Tensor, context: LayerContext) -> torch.Tensor:
        for index in range(len(self.resnets)):
            hidden_states = self.run_layer(index, hidden_states, context)
        return hidden_states


class DiscreteFrameUpBlock(DiscreteFrameBlock):
    # FreeU's four factors, set and removed by UNetDiscreteFrameModel.enable_freeu / disable_freeu
    s1 = s2 = b1 = b2 = None

    def __init__(
        self,
        config,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        has_attention: bool,
        upsample: bool,
        resolution_idx: int,
    ):
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        widths = [width + skip for width, skip in zip(widths, skip_channels)]
        super().__init__(config, widths, out_channels, num_attentions=len(widths) if has_attention else 0)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels, use_conv=True)] if upsample else [])
        self.resolution_idx = resolution_idx

    def forward(self, hidden_states: torch.Tensor, skips: list[torch.Tensor], context: LayerContext) -> torch.Tensor:
        freeu = {"s1": self.s1, "s2": self.s2, "b1": self.b1, "b2": self.b2}
        for index in range(len(self.resnets)):
            skip = skips.pop()
            if all(freeu.values()):
                hidden_states, skip = apply_freeu(self.resolution_idx, hidden_states, skip, **freeu)
            hidden_states = self.run_layer(index, torch.cat([hidden_states, skip], dim=1), context)
        for upsampler in self.upsamplers:
            hidden_states = upsampler(hidden_states, output_size=skips[-1].shape[2:])
        return hidden_states


class UNetDiscreteFrameModel(
    ModelMixin, AttentionMixin, ConfigMixin, UNet2DConditionLoadersMixin, PeftAdapterMixin, CacheMixin
):
    """The discrete-frame generation network (DFGN) of RDTF (arXiv 2503.17735). The defaults are the
    paper's: 960.12 M parameters, 22 STI layers.

    Args:
        sample_size: height and width of the latents that the model was made for; other sizes work.
        num_frames: frames of a clip, F.
        in_channels: noisy latents plus condition latents; always twice `out_channels`.
        out_channels: width C of the autoencoder's latents.
        block_out_channels: channels of each resolution; the last one has no attention.
        layers_per_block: layers of a block going down; one more going up.
        attention_head_dim: channels **per head** of the spatial and temporal transformers.
        cross_attention_dim: width of the text tokens.
        second_text_dim: width of the optional second text stream (T5), projected by an MLP of the UNet; None: no MLP.
        norm_num_groups: groups of the group norms.
        sti_num_heads, sti_head_dim: heads of STI's attention and channels of each.
        temporal_layer: "sti", or "conv3d" for the paper's ablation (1172.2 M parameters).
        sti_detail: detail branch of STI: "frame_resnet" (frames as channels: exactly `num_frames` frames) or
            "temporal_conv" (depthwise (3, 1, 1): any number of frames).
        clip_attention_num_heads, clip_attention_head_dim: heads of an attention from every place to all places of all
            frames after each spatial transformer; 0 heads: none, as in the paper.
        frame_text_layers: layers of a transformer that adds to every frame's time embedding what the text says about
            it; 0: none, as in the paper.
        copy_num_heads, copy_head_dim: heads of an attention that copies latents of the known frames into the output; 0
            heads: none, as in the paper.

    Raises:
        ValueError: if widths do not fit each other.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["BasicTransformerBlock", "ResnetBlock2D", "SpatialTemporalInteraction"]
    _skip_layerwise_casting_patterns = ["norm"]
    _repeated_blocks = ["BasicTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        num_frames: int = 8,
        in_channels: int = 8,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1024, 1280),
        layers_per_block: int = 2,
        attention_head_dim: int = 64,
        cross_attention_dim: int = 1024,
        second_text_dim: int | None = 768,
        norm_num_groups: int = 32,
        sti_num_heads: int = 8,
        sti_head_dim: int = 32,
        temporal_layer: Literal["sti", "conv3d"] = "sti",
        sti_detail: Literal["frame_resnet", "temporal_conv"] = "frame_resnet",
        clip_attention_num_heads: int = 0,
        clip_attention_head_dim: int = 32,
        frame_text_layers: int = 0,
        copy_num_heads: int = 0,
        copy_head_dim: int = 32,
    ):
        super().__init__()
        self._check_config()
        widths = list(block_out_channels)
        time_embed_dim = 4 * widths[0]

        # 1. inputs: known frames, noisy frames, time, text
        self.condition_encoder = ConditionEncoder(out_channels)
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1)
        self.motion_modules_in = TemporalTransformer(widths[0], 8, attention_head_dim, norm_num_groups)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], time_embed_dim)
        if second_text_dim is not None:
            self.second_text_projection = nn.Sequential(
                nn.Linear(second_text_dim, 2 * cross_attention_dim),
                nn.SiLU(),
                nn.Linear(2 * cross_attention_dim, cross_attention_dim),
            )
        self.encoder_hid_proj = None  # set by load_ip_adapter
        if frame_text_layers:  # the name keeps IP-Adapters away from its attention
            self.motion_modules_text = FrameTextEmbedding(
                time_embed_dim, cross_attention_dim, attention_head_dim, frame_text_layers
            )

        # 2. blocks; `skip_widths` lists the channels of every skip connection in the order in which they are made
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        last = len(widths) - 1
        skip_widths = [widths[0]]
        for i, width in enumerate(widths):
            block = DiscreteFrameDownBlock(self.config, skip_widths[-1], width, i < last, downsample=i < last)
            self.down_blocks.append(block)
            skip_widths += [width] * (layers_per_block + (i < last))
        self.mid_block = DiscreteFrameMidBlock(self.config)
        previous = widths[-1]
        for i, width in enumerate(reversed(widths)):
            block_skips = [skip_widths.pop() for _ in range(layers_per_block + 1)]
            self.up_blocks.append(
                DiscreteFrameUpBlock(self.config, previous, width, block_skips, i > 0, i < last, resolution_idx=i)
            )
            previous = width

        # 3. output
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], out_channels, kernel_size=3, padding=1)
        if copy_num_heads:
            self.known_frame_copy = KnownFrameCopy(widths[0], out_channels, copy_num_heads, copy_head_dim)
        self.set_attn_processor(DiscreteFrameAttnProcessor())

    def _check_config(self) -> None:
        config = self.config
        if config.in_channels != 2 * config.out_channels:
            raise ValueError(
                f"`in_channels` must be twice `out_channels` (noisy and condition latents), but they are "
                f"{config.in_channels} and {config.out_channels}."
            )
        for name in ("attention_head_dim", "norm_num_groups"):
            divisor = config[name]
            if any(width % divisor for width in config.block_out_channels):
                raise ValueError(
                    f"Every width in `block_out_channels` must be a multiple of `{name}` = {divisor}, "
                    f"but they are {tuple(config.block_out_channels)}."
                )
        for name in ("clip_attention_head_dim", "copy_head_dim"):
            if config[name] % 8:
                raise ValueError(f"`{name}` must be a multiple of 8, but is {config[name]}.")
        for name, allowed in (
            ("temporal_layer", ("sti", "conv3d")),
            ("sti_detail", ("frame_resnet", "temporal_conv")),
        ):
            if config[name] not in allowed:
                raise ValueError(f"`{name}` must be one of {allowed}, but is {config[name]!r}.")

    @property
    def has_fixed_length(self) -> bool:
        """Whether only clips of `config.num_frames` frames fit, because they are channels of STI's detail branch."""
        return self.config.temporal_layer == "sti" and self.config.sti_detail == "frame_resnet"

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Switches on FreeU (arXiv 2309.11497) for the two lowest resolutions.

        Args:
            s1, s2: factors on the low frequencies of the skip connections, lowest resolution first.
            b1, b2: factors on half of the backbone's channels, lowest resolution first.
        """
        for block in self.up_blocks:
            block.s1, block.s2, block.b1, block.b2 = s1, s2, b1, b2

    def disable_freeu(self) -> None:
        """Switches FreeU off."""
        for block in self.up_blocks:
            block.s1 = block.s2 = block.b1 = block.b2 = None

    def fuse_qkv_projections(self) -> None:
        """Joins the query, key and value projections of every attention into one matrix product.

        Raises:
            ValueError: if an IP-Adapter is loaded, whose processors bring projections of their own.
        """
        if self.encoder_hid_proj is not None:
            raise ValueError("Projections cannot be fused while an IP-Adapter is loaded; unload it first.")
        self.original_attn_processors = self.attn_processors
        for module in self.modules():
            if isinstance(module, Attention):
                module.fuse_projections(fuse=True)
        self.set_attn_processor(FusedAttnProcessor2_0())

    def unfuse_qkv_projections(self) -> None:
        """Goes back to separate projections after `fuse_qkv_projections`."""
        if getattr(self, "original_attn_processors", None) is not None:
            self.set_attn_processor(self.original_attn_processors)
            self.original_attn_processors = None

    def _check_clip(self, sample: torch.Tensor, condition_latents: torch.Tensor) -> None:
        channels, num_frames = self.config.out_channels, sample.shape[2]
        if sample.shape[1] != channels:
            raise ValueError(f"`sample` must have {channels} latent channels (B, C, F, H, W), got {sample.shape[1]}.")
        if condition_latents.shape != sample.shape:
            raise ValueError(
                f"`condition_latents` must have the shape of `sample`, {tuple(sample.shape)}, "
                f"but has {tuple(condition_latents.shape)}."
            )
        if self.has_fixed_length and num_frames != self.config.num_frames:
            raise ValueError(
                f"`sample` has {num_frames} frames, but this model takes exactly {self.config.num_frames}; "
                "a model with `sti_detail='temporal_conv'` takes any number."
            )

    def _embed_time(
        self, timestep: torch.Tensor | float | int, sample: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        embedding = self.time_proj(timestep).to(sample.dtype)  # (B, widths[0]), computed in float32
        embedding, num_frames = self.time_embedding(embedding), sample.shape[2]
        if self.config.frame_text_layers:
            return self.motion_modules_text(embedding, text, num_frames)  # (B*F, T)
        return embedding.repeat_interleave(num_frames, dim=0)

    def _embed_text(
        self,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_2: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        added_cond_kwargs: dict[str, Any] | None,
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        text = encoder_hidden_states
        if encoder_hidden_states_2 is not None:
            if self.config.second_text_dim is None:
                raise ValueError("`encoder_hidden_states_2` was given, but the model has `second_text_dim=None`.")
            text = torch.cat([self.second_text_projection(encoder_hidden_states_2), text], dim=1)  # (B, S2 + S, D)
        if text_mask is not None:
            text = text * text_mask.to(text.dtype)[:, None, None]
        if self.encoder_hid_proj is None:
            return text
        if "image_embeds" not in (added_cond_kwargs or {}):
            raise ValueError("An IP-Adapter is loaded: `added_cond_kwargs` must hold `image_embeds`.")
        return text, self.encoder_hid_proj(added_cond_kwargs["image_embeds"])

    @apply_lora_scale("cross_attention_kwargs")
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        condition_latents: torch.Tensor,
        encoder_hidden_states_2: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> UNetDiscreteFrameOutput | tuple[torch.Tensor]:
        """Predicts the noise in a clip.

        Args:
            sample: noisy latents of shape (B, C, F, H, W).
            timestep: one diffusion step for all clips, or (B,).
            encoder_hidden_states: text tokens of shape (B, S, `cross_attention_dim`).
            condition_latents: clean latents of the known frames, zeros elsewhere, of the shape of `sample`.
            encoder_hidden_states_2: second text stream of shape (B, S2, `second_text_dim`); its projected tokens go
                before the first stream's.
            text_mask: (B,), 0 where a clip's text is dropped. Multiplies the text tokens after all projections.
            added_cond_kwargs: `image_embeds` of an IP-Adapter.
            cross_attention_kwargs: passed to the spatial attention processors; `scale` is the strength of LoRA.
            return_dict: whether to return an [`UNetDiscreteFrameOutput`] or a tuple.

        Returns:
            the noise of shape (B, C, F, H, W).

        Raises:
            ValueError: for a clip of the wrong width, shape or number of frames.
        """
        self._check_clip(sample, condition_latents)
        batch_size, _, num_frames = sample.shape[:3]

        # 1. inputs
        text = self._embed_text(encoder_hidden_states, encoder_hidden_states_2, text_mask, added_cond_kwargs)
        words = text[0] if isinstance(text, tuple) else text
        context = LayerContext(self._embed_time(timestep, sample, words), text, num_frames, cross_attention_kwargs)
        frames = sample.transpose(1, 2).flatten(0, 1)  # (B*F, C, H, W)
        condition = self.condition_encoder(condition_latents.transpose(1, 2).flatten(0, 1), num_frames)
        hidden_states = self.conv_in(torch.cat([frames, condition], dim=1))
        hidden_states = self.motion_modules_in(hidden_states, num_frames)

        # 2. down, middle, up
        skips = [hidden_states]
        for block in self.down_blocks:
            hidden_states, block_skips = block(hidden_states, context)
            skips += block_skips
        hidden_states = self.mid_block(hidden_states, context)
        for block in self.up_blocks:
            hidden_states = block(hidden_states, skips, context)

        # 3. output
        frames = self.conv_out(F.silu(self.conv_norm_out(hidden_states)))
        if self.config.copy_num_heads:
            frames = frames + self.known_frame_copy(hidden_states, condition_latents)
        noise = frames.unflatten(0, (batch_size, num_frames)).transpose(1, 2)  # (B, C, F, H, W)
        return UNetDiscreteFrameOutput(sample=noise) if return_dict else (noise,)


# Pipelines saved with this model name it as ["rdtf_diffusers", "UNetDiscreteFrameModel"]. Diffusers resolves that
# name, from a folder as from a Hub id, only for libraries that it knows.
NAMES = ("UNetDiscreteFrameModel", "KnownFrameRefiner")
LOADABLE_CLASSES["rdtf_diffusers"] = {name: ["save_pretrained", "from_pretrained"] for name in NAMES}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["rdtf_diffusers"])
# LoRA strengths may be given per block, as for diffusers' own UNets.
_SET_ADAPTER_SCALE_FN_MAPPING["UNetDiscreteFrameModel"] = _maybe_expand_lora_scales
