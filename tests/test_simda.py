"""SimDA: how many weights and where, what its adapters and its latent shift compute."""

import pytest
import torch
from tiny_models import TEXT_WIDTH, make_unet
from torch import nn

from rdtf_diffusers import UNetDiscreteFrameModel
from rdtf_diffusers.baselines import SimDAConfig, SimDAModel
from rdtf_diffusers.baselines.adapters import ClipShape
from rdtf_diffusers.baselines.simda import SHIFTS, SpatialAdapter, TemporalAdapter, shift_patches


def make_clip_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 8, 4, 4, generator=generator)
    text = torch.randn(1, 3, TEXT_WIDTH, generator=generator)
    return {"sample": sample, "timestep": 7, "encoder_hidden_states": text, "condition_latents": sample.flip(2)}


def test_parameters_on_the_widths_of_stable_diffusion():
    with torch.device("meta"):
        unet = UNetDiscreteFrameModel(block_out_channels=(320, 640, 1280, 1280))
    model = SimDAModel(unet, SimDAConfig())
    counts = {"temporal": 0, "spatial": 0}
    for name, parameter in model.named_weights():
        counts["temporal" if ".resnets." in name else "spatial"] += parameter.numel()
    assert counts == {"temporal": 12_434_080, "spatial": 12_421_600}
    resnets = {name.rpartition(".adapters")[0] for name, _ in model.named_weights() if ".resnets." in name}
    assert len(resnets) == 16
    assert [name for name in resnets if "mid_block" in name] == ["base_model.model.mid_block.resnets.0.simda"]
    assert not any("down_blocks.3" in name or "up_blocks.0" in name for name in resnets)  # no attention there


def test_temporal_adapter_is_three_convolutions():
    torch.manual_seed(0)
    adapter = TemporalAdapter(6, 0.5, like=torch.zeros(()))
    assert not adapter[2].weight.any() and not adapter[2].bias.any()
    nn.init.normal_(adapter[2].weight)
    convs = [nn.Conv3d(6, 3, 1), nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0), groups=3), nn.Conv3d(3, 6, 1)]
    for conv, own in zip(convs, adapter):
        conv.load_state_dict({"weight": own.weight.view(conv.weight.shape), "bias": own.bias})
    clips = torch.randn(2, 6, 5, 4, 3)  # (B, C, F, H, W)
    frames = clips.transpose(1, 2).flatten(0, 1)
    actual = adapter(nn.Identity(), torch.empty(0), frames, ClipShape(5, 4, 3))
    torch.testing.assert_close(actual.unflatten(0, (2, 5)).transpose(1, 2), nn.Sequential(*convs)(clips))


@pytest.mark.parametrize("is_serial", [True, False])
def test_spatial_adapter(is_serial):
    torch.manual_seed(0)
    adapter = SpatialAdapter(8, 0.25, is_serial, like=torch.zeros(()))
    assert adapter[0].out_features == 2 and not adapter[2].weight.any() and not adapter[2].bias.any()
    nn.init.normal_(adapter[2].weight)
    inputs, outputs = torch.randn(2, 4, 3, 8)
    tokens = outputs if is_serial else inputs
    hidden = tokens @ adapter[0].weight.T + adapter[0].bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(adapter(nn.Identity(), inputs, outputs, ClipShape()), hidden @ adapter[2].weight.T)


def test_adapters_stand_where_the_paper_has_them():
    """Serial after the self-attention, parallel to the feed-forward, temporal after the resnet before them."""
    unet = make_unet()
    SimDAModel(unet, SimDAConfig())
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    assert block.attn1.simda.adapters["simda"].is_serial and not block.ff.simda.adapters["simda"].is_serial
    assert isinstance(unet.down_blocks[0].resnets[0].simda.adapters["simda"], TemporalAdapter)


def test_shift_patches_by_loops():
    batch, frames, height, width = 2, 6, 5, 7
    clips = torch.randn(batch, frames, height, width, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.empty_like(clips)
    for b in range(batch):
        for f in range(frames):
            for y in range(height):
                for x in range(width):
                    source = f - SHIFTS[y % 4][x % 4]
                    expected[b, f, y, x] = clips[b, source if source >= 0 else f, y, x]
    tokens = clips.flatten(2, 3).flatten(0, 1)  # (B*F, H*W, C)
    assert torch.equal(shift_patches(tokens, frames, height, width), expected.flatten(2, 3).flatten(0, 1))


@torch.no_grad()
def test_latent_shift_attention():
    """Queries are the frame's tokens, keys and values these and the shifted ones, from the start on."""
    unet = make_unet()
    plain = unet(**make_clip_inputs()).sample
    model = SimDAModel(unet, SimDAConfig(latent_shift=True))
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    seen = []
    attn.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    shifted = unet(**make_clip_inputs()).sample
    assert (shifted - plain).abs().max() > 1e-3
    tokens, actual = seen[0]
    context = torch.cat([tokens, shift_patches(tokens, 8, 4, 4)], dim=1)
    query, key, value = (
        (source @ layer.weight.T).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for source, layer in ((tokens, attn.to_q), (context, attn.to_k), (context, attn.to_v))
    )
    attended = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
    torch.testing.assert_close(actual, attn.to_out[0](attended.transpose(1, 2).flatten(2)))
    model.disable_adapter_layers()
    torch.testing.assert_close(unet(**make_clip_inputs()).sample, plain, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_fused_projections():
    unet = make_unet()
    SimDAModel(unet, SimDAConfig(latent_shift=True))
    before = unet(**make_clip_inputs()).sample
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        unet(**make_clip_inputs())
    unet.unfuse_qkv_projections()
    torch.testing.assert_close(unet(**make_clip_inputs()).sample, before)


def test_ratio_out_of_range():
    with pytest.raises(ValueError, match="`spatial_ratio` must lie above 0 and not above 1, but is 0"):
        SimDAConfig(spatial_ratio=0.0)
