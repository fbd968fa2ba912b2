"""The layers of the UNet against a slow, literal reading of RDTF (arXiv 2503.17735), clip by clip."""

import math

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import nn

from rdtf_diffusers.models.additions import ClipAttention, FrameTextEmbedding, KnownFrameCopy
from rdtf_diffusers.models.attention import attend
from rdtf_diffusers.models.unet_discrete_frame import (
    ConditionEncoder,
    FrameResnet,
    FrameResnets,
    LayerContext,
    SlicedFeedForward,
    SpatialTemporalInteraction,
    SpatialTransformer,
    TemporalConvolutions,
    TemporalTransformer,
    group_pixels,
    ungroup_pixels,
)


CHANNELS, FRAMES, GROUPS = 8, 4, 2
SIZES = [(4, 6), (3, 5), (1, 1), (1, 4)]  # (height, width)


def randomized(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


def random_clips(height: int, width: int, channels: int = CHANNELS, frames: int = FRAMES) -> torch.Tensor:
    """Two clips (B, F, C, H, W)."""
    return torch.randn(2, frames, channels, height, width, generator=torch.Generator().manual_seed(1)).double()


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def reference_group_norm(norm: nn.GroupNorm, clip: torch.Tensor) -> torch.Tensor:
    """Clip (C, F, H, W) or picture (C, H, W); the statistics of a group span all that is not the channel."""
    out = torch.empty_like(clip)
    size = clip.shape[0] // norm.num_groups
    for start in range(0, clip.shape[0], size):
        group = clip[start : start + size]
        out[start : start + size] = (group - group.mean()) / (group.var(unbiased=False) + norm.eps).sqrt()
    shape = (-1,) + (1,) * (clip.ndim - 1)
    return out * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def reference_layer_norm(norm: nn.LayerNorm, tokens: torch.Tensor) -> torch.Tensor:
    rows = [(row - row.mean()) / (row.var(unbiased=False) + norm.eps).sqrt() for row in tokens]
    return torch.stack(rows) * norm.weight + norm.bias


def reference_attention(attention: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Self-attention of one sequence (S, C), head by head; no bias on query, key, value; one on the output."""
    query, key, value = (tokens @ layer.weight.T for layer in (attention.to_q, attention.to_k, attention.to_v))
    size = query.shape[1] // attention.heads
    heads = []
    for start in range(0, query.shape[1], size):
        q, k, v = (x[:, start : start + size] for x in (query, key, value))
        heads.append(torch.softmax(q @ k.T / math.sqrt(size), dim=-1) @ v)
    return torch.cat(heads, dim=1) @ attention.to_out[0].weight.T + attention.to_out[0].bias


def reference_linear(layer: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
    return tokens @ layer.weight.T + layer.bias


def reference_conv3x3(conv: nn.Conv2d, picture: torch.Tensor) -> torch.Tensor:
    """Picture (C, H, W), zeros around it."""
    height, width = picture.shape[1:]
    out = conv.bias[:, None, None].repeat(1, height, width)
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        out[:, y, x] += conv.weight[:, :, dy + 1, dx + 1] @ picture[:, y + dy, x + dx]
    return out


def reference_semantic(layer: SpatialTemporalInteraction, clip: torch.Tensor) -> torch.Tensor:
    """S(x) = Up(Attn(Down(x))) + x of one clip (F, C, H, W): every 2x2 cell of every frame is one token."""
    frames, _, height, width = clip.shape
    cells = [(f, y, x) for f in range(frames) for y in range(0, height, 2) for x in range(0, width, 2)]
    tokens = torch.stack([clip[f, :, y : y + 2, x : x + 2].mean(dim=(1, 2)) for f, y, x in cells])
    attended = reference_attention(layer.attn1, tokens)
    out = clip.clone()
    for (f, y, x), token in zip(cells, attended):
        out[f, :, y : y + 2, x : x + 2] += token[:, None, None]
    return out


def reference_frame_resnets(layer: FrameResnets, clip: torch.Tensor) -> torch.Tensor:
    """D(x) of one clip (F, C, H, W): for each feature channel the frames are the channels of a picture."""
    out = torch.empty_like(clip)
    for channel in range(clip.shape[1]):
        picture = clip[:, channel]  # (F, H, W)
        for resnet in layer.resnets:
            hidden = reference_conv3x3(resnet.conv1, silu(reference_group_norm(resnet.norm1, picture)))
            hidden = reference_conv3x3(resnet.conv2, silu(reference_group_norm(resnet.norm2, hidden)))
            picture = picture + hidden
        out[:, channel] = picture
    return out


def reference_temporal_convolutions(layer: TemporalConvolutions, clip: torch.Tensor) -> torch.Tensor:
    """One clip (F, C, H, W) through [GroupNorm, SiLU, Conv3d (3, 1, 1)] and a residual."""
    residual = clip
    for norm, conv in zip(layer.norms, layer.convs):
        hidden = silu(reference_group_norm(norm, clip.transpose(0, 1)).transpose(0, 1))
        kernel = conv.weight[:, :, :, 0]  # (C, C or 1, 3)
        clip = conv.bias[None, :, None, None].repeat(len(hidden), 1, *hidden.shape[2:])
        for f in range(len(hidden)):
            for step in (-1, 0, 1):
                if 0 <= f + step < len(hidden):
                    matrix = kernel[:, :, step + 1]
                    matrix = torch.diag(matrix[:, 0]) if conv.groups > 1 else matrix
                    clip[f] += torch.einsum("oi,ihw->ohw", matrix, hidden[f + step])
    return residual + clip


def reference_sti(layer: SpatialTemporalInteraction, clip: torch.Tensor) -> torch.Tensor:
    if isinstance(layer.detail, TemporalConvolutions):
        detail = reference_temporal_convolutions(layer.detail, clip)
    else:
        detail = reference_frame_resnets(layer.detail, clip)
    mixed = layer.semantic_weight * reference_semantic(layer, clip) + layer.detail_weight * detail
    return torch.stack([reference_group_norm(layer.norm, frame) for frame in mixed])


def reference_temporal_transformer(layer: TemporalTransformer, clip: torch.Tensor) -> torch.Tensor:
    """One clip (F, C, H, W); every pixel is a sequence of F tokens."""
    normed = reference_group_norm(layer.norm, clip.transpose(0, 1)).transpose(0, 1)
    block = layer.transformer_blocks[0]
    out = clip.clone()
    for y in range(clip.shape[2]):
        for x in range(clip.shape[3]):
            tokens = reference_linear(layer.proj_in, normed[:, :, y, x])
            tokens = tokens + reference_attention(block.attn1, reference_layer_norm(block.norm1, tokens))
            tokens = tokens + reference_attention(block.attn2, reference_layer_norm(block.norm2, tokens))
            hidden = reference_linear(block.ff.net[0].proj, reference_layer_norm(block.norm3, tokens))
            hidden, gate = hidden.chunk(2, dim=1)
            tokens = tokens + reference_linear(block.ff.net[2], hidden * gelu(gate))
            out[:, :, y, x] += reference_linear(layer.proj_out, tokens)
    return out


def reference_condition_encoder(layer: ConditionEncoder, clip: torch.Tensor) -> torch.Tensor:
    conv1, _, conv2, _, conv3 = layer.convs
    block = layer.temporal_encoder
    hidden = [silu(reference_conv3x3(conv2, silu(reference_conv3x3(conv1, frame)))) for frame in clip]
    hidden = torch.stack([reference_conv3x3(conv3, frame) for frame in hidden])
    out = torch.empty_like(hidden)
    for y in range(clip.shape[2]):
        for x in range(clip.shape[3]):
            tokens = hidden[:, :, y, x]
            tokens = tokens + reference_attention(block.attn1, reference_layer_norm(block.norm, tokens))
            inner = gelu(reference_linear(block.ff.net[0].proj, tokens))
            out[:, :, y, x] = tokens + reference_linear(block.ff.net[2], inner)
    return out


@torch.no_grad()
def assert_matches(layer: nn.Module, reference, clips: torch.Tensor) -> None:
    """`layer` on all clips, frames in the batch, equals `reference` on each clip, in both memory layouts."""
    expected = torch.stack([reference(layer, clip) for clip in clips])
    frames = clips.flatten(0, 1)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = layer(frames.contiguous(memory_format=memory_format), clips.shape[1])
        torch.testing.assert_close(result.unflatten(0, clips.shape[:2]), expected)


def make_sti(detail: str) -> SpatialTemporalInteraction:
    return SpatialTemporalInteraction(CHANNELS, FRAMES, GROUPS, num_heads=2, head_dim=3, detail=detail)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("detail", ["frame_resnet", "temporal_conv"])
def test_sti(detail, size):
    assert_matches(randomized(make_sti(detail)), reference_sti, random_clips(*size))


@pytest.mark.parametrize("detail", ["frame_resnet", "temporal_conv"])
def test_sti_starts_as_its_normalized_detail_branch(detail):
    layer = make_sti(detail).double()
    assert (layer.semantic_weight.item(), layer.detail_weight.item()) == (0.0, 1.0)
    assert layer.norm.eps == 1e-6 and layer.attn1.to_q.bias is None and layer.attn1.to_out[0].bias is not None
    frames = random_clips(4, 4).flatten(0, 1)
    torch.testing.assert_close(layer(frames, FRAMES), layer.norm(layer.detail(frames, FRAMES)))


def test_sti_looks_over_space_and_time_at_once():
    """A change in one corner of the first frame reaches the far corner of the last, which no (3, 1, 1) kernel does."""
    layer = randomized(make_sti("temporal_conv"))
    clips = random_clips(8, 8)[:1]
    changed = clips.clone()
    changed[0, 0, :, 0, 0] += 1
    with torch.no_grad():
        near, far = (layer.semantic(x.flatten(0, 1), FRAMES)[-1, :, -1, -1] for x in (clips, changed))
    assert (near - far).abs().max() > 1e-6


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("depthwise", [True, False])
def test_temporal_convolutions(depthwise, frames):
    layer = TemporalConvolutions(CHANNELS, num_layers=3, norm_num_groups=GROUPS, depthwise=depthwise)
    assert_matches(randomized(layer), reference_temporal_convolutions, random_clips(3, 2, frames=frames))


def test_conv3d_ablation_starts_as_the_identity():
    layer = TemporalConvolutions(CHANNELS, num_layers=4, norm_num_groups=GROUPS, depthwise=False).double()
    frames = random_clips(3, 2).flatten(0, 1)
    torch.testing.assert_close(layer(frames, FRAMES), frames)


@pytest.mark.parametrize("size", SIZES)
def test_temporal_transformer(size):
    layer = TemporalTransformer(CHANNELS, num_heads=2, head_dim=3, norm_num_groups=GROUPS)  # inner width 6
    assert_matches(randomized(layer), reference_temporal_transformer, random_clips(*size))


def test_temporal_transformer_is_the_one_of_diffusers():
    layer = randomized(TemporalTransformer(CHANNELS, num_heads=2, head_dim=4, norm_num_groups=GROUPS))
    theirs = TransformerTemporalModel(2, 4, in_channels=CHANNELS, norm_num_groups=GROUPS).double().eval()
    theirs.load_state_dict(layer.state_dict())
    frames = random_clips(5, 3).flatten(0, 1)
    torch.testing.assert_close(layer(frames, FRAMES), theirs(frames, num_frames=FRAMES).sample)


@pytest.mark.parametrize("batch", [1, 2])
def test_pixels_are_grouped_and_back(batch):
    frames = random_clips(3, 2)[:batch].flatten(0, 1)  # (B*F, C, H, W)
    tokens = group_pixels(frames.permute(0, 2, 3, 1), FRAMES)
    assert tokens.is_contiguous()  # else linear layers become many small products
    for clip in range(batch):
        for y in range(3):
            for x in range(2):
                pixel = frames[clip * FRAMES : (clip + 1) * FRAMES, :, y, x]
                assert tokens[clip * 6 + y * 2 + x].equal(pixel)
    assert ungroup_pixels(tokens, 3, 2).equal(frames)


def test_sliced_feed_forward_is_the_feed_forward(monkeypatch):
    layer = randomized(SlicedFeedForward(6))
    whole = FeedForward(6).double()
    whole.load_state_dict(layer.state_dict())
    tokens = torch.randn(5, 7, 6, dtype=torch.double)
    for size in (1, 50, 100, 10_000):
        monkeypatch.setattr(SlicedFeedForward, "slice_size", size)
        torch.testing.assert_close(layer(tokens), whole(tokens))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "batch, heads, queries, keys", [(300, 3, 4, 4), (2, 1, 7, 5), (2, 2, 1100, 1100), (3, 2, 70_000, 40), (1, 2, 1, 1)]
)
def test_attention(batch, heads, queries, keys, gradients):
    """Against softmax(q k^T / sqrt(D)) v, head by head, for many short, few long and one very long sequence."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(batch, n, 4 * heads, generator=generator) for n in (queries, keys, keys))
    copies = query.clone(), key.clone(), value.clone()
    with torch.set_grad_enabled(gradients):
        attended = attend(query, key, value, heads)
    for head in range(heads):
        part = slice(4 * head, 4 * head + 4)
        weights = (copies[0][-1, :, part] @ copies[1][-1, :, part].T / 2).softmax(-1)
        torch.testing.assert_close(attended[-1, :, part], weights @ copies[2][-1, :, part], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_in_bfloat16_bears_keys_that_share_an_offset():
    query, key, value = torch.randn(3, 20, 8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    key += 8 * query.mean(1, keepdim=True)
    expected = attend(query.double(), key.double(), value.double(), 1)
    assert (attend(query, key, value, 1) - expected).std() < 0.01 * expected.std()


@torch.no_grad()
def test_spatial_transformer_is_the_one_of_diffusers():
    ours = randomized(SpatialTransformer(CHANNELS, 2, 4, GROUPS, cross_attention_dim=6))
    upstream = Transformer2DModel(
        2, 4, in_channels=CHANNELS, norm_num_groups=GROUPS, cross_attention_dim=6, use_linear_projection=True
    )
    upstream.double().load_state_dict(ours.state_dict())
    frames, text = random_clips(3, 5).flatten(0, 1), torch.randn(2, 7, 6).double()
    expected = upstream(frames, text.repeat_interleave(FRAMES, dim=0)).sample
    torch.testing.assert_close(ours(frames, LayerContext(torch.empty(0), text, FRAMES, None)), expected)


@torch.no_grad()
def test_frame_resnet_is_the_one_of_diffusers():
    ours = randomized(FrameResnet(FRAMES))
    upstream = ResnetBlock2D(in_channels=FRAMES, temb_channels=None, groups=1, eps=1e-6).double()
    upstream.load_state_dict(ours.state_dict())
    clip = random_clips(3, 5).transpose(1, 2).flatten(0, 1)  # (B*C, F, H, W)
    torch.testing.assert_close(ours(clip), upstream(clip, None))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [4, 3])
def test_condition_encoder(channels, size):
    layer = randomized(ConditionEncoder(channels))
    attention = layer.temporal_encoder.attn1
    assert (attention.heads, attention.to_q.out_features) == (2, 2 * channels)
    assert_matches(layer, reference_condition_encoder, random_clips(*size, channels=channels))


def reference_turn(token: torch.Tensor, place: tuple[int, int, int]) -> torch.Tensor:
    """The channels of one head (D,), pair by pair, turned by angles that grow with frame, row and column."""
    of_row = len(token) * 3 // 16 * 2
    turned = []
    for position, part in zip(place, token.split([len(token) - 2 * of_row, of_row, of_row])):
        for pair in range(len(part) // 2):
            angle = position * 100.0 ** (-2 * pair / len(part))
            x, y = part[2 * pair], part[2 * pair + 1]
            turned += [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]
    return torch.stack(turned)


def reference_placed_attention(layer, clip: torch.Tensor, values: dict, known: list[int]) -> dict:
    """For every place (frame, row, column) of a clip (F, C, H, W): the values that each head finds, (heads, c)."""
    frames, _, height, width = clip.shape
    places = [(f, y, x) for f in range(frames) for y in range(height) for x in range(width)]
    queries, keys = {}, {}
    for f, y, x in places:
        token = reference_layer_norm(layer.norm, clip[f, :, y, x][None])[0]
        for linear, turned in ((layer.to_q, queries), (layer.to_k, keys)):
            heads = (linear.weight @ token + linear.bias).split(layer.head_dim)
            turned[f, y, x] = [reference_turn(head, (f, y, x)) for head in heads]
    seen = [place for place in places if place[0] in known]
    found = {}
    for place in places:
        for head in range(layer.num_heads):
            scores = torch.stack([queries[place][head] @ keys[other][head] for other in seen])
            weights = (scores / math.sqrt(layer.head_dim)).softmax(0)
            found[place, head] = sum(weight * values[other][head] for weight, other in zip(weights, seen))
    return found


def reference_clip_attention(layer: ClipAttention, clip: torch.Tensor) -> torch.Tensor:
    frames, _, height, width = clip.shape
    values, result = {}, clip.clone()
    for f in range(frames):
        for y in range(height):
            for x in range(width):
                token = reference_layer_norm(layer.norm, clip[f, :, y, x][None])[0]
                values[f, y, x] = (layer.to_v.weight @ token + layer.to_v.bias).split(layer.head_dim)
    found = reference_placed_attention(layer, clip, values, list(range(frames)))
    for f, y, x in values:
        heads = torch.cat([found[(f, y, x), head] for head in range(layer.num_heads)])
        result[f, :, y, x] += layer.to_out.weight @ heads + layer.to_out.bias
    return result


def reference_copy(layer: KnownFrameCopy, clip: torch.Tensor, known_latents: torch.Tensor) -> torch.Tensor:
    """`clip` (F, C, H, W) and the latents of the known frames (F, c, H, W), zeros in the others."""
    result = torch.zeros_like(known_latents)
    known = [f for f in range(len(clip)) if known_latents[f].any()]
    if not known:
        return result
    values = {}
    for f in range(len(clip)):
        for y in range(clip.shape[2]):
            for x in range(clip.shape[3]):
                values[f, y, x] = [known_latents[f, :, y, x]] * layer.num_heads
    found = reference_placed_attention(layer, clip, values, known)
    for f, y, x in values:
        token = reference_layer_norm(layer.norm, clip[f, :, y, x][None])[0]
        gates = (layer.to_gate.weight @ token + layer.to_gate.bias).split(known_latents.shape[1])
        result[f, :, y, x] = sum(gate * found[(f, y, x), head] for head, gate in enumerate(gates))
    return result


@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
@torch.no_grad()
def test_clip_attention(size):
    layer = randomized(ClipAttention(CHANNELS, num_heads=2, head_dim=8))
    clips = random_clips(*size)
    expected = torch.stack([reference_clip_attention(layer, clip) for clip in clips])
    torch.testing.assert_close(layer(clips.flatten(0, 1), FRAMES), expected.flatten(0, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_clip_attention_starts_as_the_identity():
    clips = random_clips(3, 2).flatten(0, 1)
    torch.testing.assert_close(ClipAttention(CHANNELS, 2, 8).double()(clips, FRAMES), clips)


@pytest.mark.parametrize("latent_channels", [3, 10])  # fewer and more than channels of a head
@torch.no_grad()
def test_known_frame_copy(latent_channels):
    layer = randomized(KnownFrameCopy(CHANNELS, latent_channels, num_heads=2, head_dim=8))
    clips = random_clips(2, 3).repeat(2, 1, 1, 1, 1)[:3]
    latents = random_clips(2, 3, latent_channels).repeat(2, 1, 1, 1, 1)[:3]
    for clip, hidden in zip(latents, ([1, 2, 3], [1], [0, 1, 2, 3])):  # the last clip knows no frame
        clip[hidden] = 0
    expected = torch.stack([reference_copy(layer, clip, known) for clip, known in zip(clips, latents)])
    copied = layer(clips.flatten(0, 1), latents.transpose(1, 2))
    torch.testing.assert_close(copied, expected.flatten(0, 1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_known_frame_copy_begins_at_the_nearest_known_frame():
    layer = KnownFrameCopy(CHANNELS, 3, num_heads=1, head_dim=32).double()
    clip, latents = random_clips(2, 2)[:1], torch.zeros(1, 3, FRAMES, 2, 2).double()
    assert not layer(clip.flatten(0, 1), latents).any()
    layer.to_gate.bias.fill_(1.0)
    latents[:, :, 0], latents[:, :, 3] = 1.0, 5.0
    copied = layer(clip.flatten(0, 1), latents).mean(dim=(1, 2, 3))
    torch.testing.assert_close(copied, torch.tensor([1.0, 1.0, 5.0, 5.0]).double(), atol=0.3, rtol=0)


@torch.no_grad()
def test_frame_text_embedding_tells_frames_and_texts_apart():
    layer = FrameTextEmbedding(16, 8, head_dim=8).double()
    time, text = torch.randn(2, 16).double(), torch.randn(2, 5, 8).double()
    torch.testing.assert_close(layer(time, text, 3), time.repeat_interleave(3, 0))  # it starts at zero
    embedding = randomized(layer)(time, text, 3)
    assert len(embedding.unique(dim=0)) == 6
    torch.testing.assert_close(layer(time.flip(0), text.flip(0), 3), embedding.view(2, 3, 16).flip(0).flatten(0, 1))
    changed = layer(time, torch.cat([text[:1], -text[1:]]), 3) != embedding
    assert not changed[:3].any() and changed[3:].any()
