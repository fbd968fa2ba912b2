"""The whole UNet: the paper's sizes, its promises about batches, layouts and dtypes, and its place in diffusers."""

import inspect
import json
from collections import Counter

import diffusers.loaders.peft
import pytest
import torch
from diffusers.models.attention_processor import FusedAttnProcessor2_0
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from peft import LoraConfig
from torch import nn

from rdtf_diffusers.models.attention import DiscreteFrameAttnProcessor
from rdtf_diffusers.models.unet_discrete_frame import SpatialTemporalInteraction, UNetDiscreteFrameModel


FRAMES, TEXT_WIDTH, SECOND_TEXT_WIDTH = 4, 16, 12
ADDITIONS = {
    "clip_attention_num_heads": 2,
    "clip_attention_head_dim": 8,
    "frame_text_layers": 1,
    "copy_num_heads": 2,
    "copy_head_dim": 8,
}
ABLATIONS = {
    "paper": {},
    "depthwise": {"sti_detail": "temporal_conv"},
    "conv3d": {"temporal_layer": "conv3d"},
    "one text": {"second_text_dim": None},
    "beyond the paper": ADDITIONS,
}


def make_unet(**config) -> UNetDiscreteFrameModel:
    """A UNet of some 100,000 random weights in which every branch speaks, also those that start at zero."""
    torch.manual_seed(0)
    defaults = {
        "sample_size": 4,
        "num_frames": FRAMES,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": TEXT_WIDTH,
        "second_text_dim": SECOND_TEXT_WIDTH,
        "norm_num_groups": 8,
        "sti_num_heads": 2,
        "sti_head_dim": 4,
    }
    unet = UNetDiscreteFrameModel(**(defaults | config)).eval()
    for name, parameter in unet.named_parameters():
        if not parameter.any() or parameter.numel() == 1:
            nn.init.normal_(parameter, std=0.1 if "known_frame_copy" in name else 0.5)
    return unet


def make_inputs(unet: nn.Module, batch: int = 2, size: tuple[int, int] = (4, 4), frames: int = FRAMES) -> dict:
    generator = torch.Generator().manual_seed(1)
    channels = unet.config.out_channels
    inputs = {
        "sample": torch.randn(batch, channels, frames, *size, generator=generator),
        "timestep": torch.arange(batch) * 300 + 7,
        "encoder_hidden_states": torch.randn(batch, 5, TEXT_WIDTH, generator=generator),
        "condition_latents": torch.randn(batch, channels, frames, *size, generator=generator),
    }
    if unet.config.second_text_dim is not None:
        inputs["encoder_hidden_states_2"] = torch.randn(batch, 3, SECOND_TEXT_WIDTH, generator=generator)
    return inputs


@torch.no_grad()
def predict(unet: nn.Module, inputs: dict, **changes) -> torch.Tensor:
    return unet(**(inputs | changes)).sample


def count_parameters(**config) -> Counter:
    """Millions of parameters of the paper's network by part."""
    with torch.device("meta"):
        unet = UNetDiscreteFrameModel(**config)
    parts = ("temporal_layers", "attentions", "motion_modules", "resnets", "samplers", "second_text_projection")
    counts = Counter()
    for name, parameter in unet.named_parameters():
        part = next((part for part in parts if part in name), name.split(".")[0])
        counts["motion_modules_in" if name.startswith("motion_modules_in") else part] += parameter.numel() / 1e6
    return counts


def test_paper_parameters():
    counts = count_parameters()
    assert counts.total() == pytest.approx(960.12, abs=0.05)
    expected = {
        "resnets": 467.5,
        "attentions": 212.0,
        "motion_modules": 207.9,
        "temporal_layers": 19.4,
        "samplers": 41.9,
        "motion_modules_in": 5.6,
        "second_text_projection": 3.7,
        "time_embedding": 2.05,
    }
    assert {part: counts[part] for part in expected} == pytest.approx(expected, abs=0.05)


def test_ablation_parameters():
    assert count_parameters(temporal_layer="conv3d").total() == pytest.approx(1172.2, abs=0.05)
    depthwise = count_parameters(sti_detail="temporal_conv") - count_parameters()
    assert depthwise.total() == pytest.approx(0.15, abs=0.03)
    assert {part for part, count in depthwise.items() if count} == {"temporal_layers"}


def test_paper_layers():
    with torch.device("meta"):
        unet = UNetDiscreteFrameModel()
    assert sum(isinstance(module, SpatialTemporalInteraction) for module in unet.modules()) == 22
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    assert [len(block.resnets) for block in blocks] == [2, 2, 2, 2, 2, 3, 3, 3, 3]
    assert [len(getattr(block, "attentions", ())) for block in blocks] == [2, 2, 2, 0, 1, 0, 3, 3, 3]
    assert [block.attentions[0].transformer_blocks[0].attn1.heads for block in unet.down_blocks[:3]] == [5, 10, 16]


@pytest.mark.parametrize("config", ABLATIONS.values(), ids=ABLATIONS)
def test_forward_and_backward_reach_every_parameter(config):
    unet = make_unet(**config)
    inputs = make_inputs(unet)
    output = unet(**inputs)
    assert output.sample.shape == inputs["sample"].shape
    output.sample.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in unet.parameters())


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 1), (1, 6), (2, 7)])
def test_any_size(size):
    unet = make_unet(block_out_channels=(16, 16, 32))
    inputs = make_inputs(unet, size=size)
    output = predict(unet, inputs)
    assert output.shape == (2, 4, FRAMES, *size) and output.isfinite().all()


@pytest.mark.parametrize("config", [ABLATIONS["depthwise"], ABLATIONS["conv3d"]], ids=["depthwise", "conv3d"])
@pytest.mark.parametrize("frames", [1, 3, 9])
def test_any_number_of_frames_without_frame_resnets(config, frames):
    unet = make_unet(**config)
    assert predict(unet, make_inputs(unet, frames=frames)).shape[2] == frames


def test_latent_width_follows_out_channels():
    unet = make_unet(in_channels=6, out_channels=3)
    assert predict(unet, make_inputs(unet)).shape == (2, 3, FRAMES, 4, 4)


def test_every_input_matters():
    unet = make_unet()
    inputs = make_inputs(unet)
    plain = predict(unet, inputs)
    for name, value in inputs.items():
        changed = predict(unet, inputs, **{name: value.flip(0)})
        assert (changed - plain).abs().max() > 1e-4, name


def test_return_types_and_timesteps():
    unet = make_unet()
    inputs = make_inputs(unet) | {"timestep": 7}
    expected = predict(unet, inputs)
    for timestep in (7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7])):
        torch.testing.assert_close(predict(unet, inputs, timestep=timestep), expected)
    with torch.no_grad():
        (result,) = unet(**inputs, return_dict=False)
    torch.testing.assert_close(result, expected)


def text_seen(unet: nn.Module, inputs: dict) -> torch.Tensor:
    """The tokens that reach the first text cross-attention, (B*F, S, D)."""
    seen = []
    hook = (
        unet.down_blocks[0]
        .attentions[0]
        .transformer_blocks[0]
        .attn2.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
    )
    predict(unet, inputs)
    hook.remove()
    return seen[0]


def test_text_is_projected_second_stream_then_first():
    unet = make_unet()
    inputs = make_inputs(unet)
    mlp, second = unet.second_text_projection, inputs["encoder_hidden_states_2"]
    assert [layer.weight.shape for layer in (mlp[0], mlp[2])] == [(2 * TEXT_WIDTH, SECOND_TEXT_WIDTH), (16, 32)]
    hidden = second @ mlp[0].weight.T + mlp[0].bias
    projected = (hidden * hidden.sigmoid()) @ mlp[2].weight.T + mlp[2].bias
    seen = text_seen(unet, inputs)
    for clip in range(2):
        torch.testing.assert_close(seen[clip], torch.cat([projected[clip], inputs["encoder_hidden_states"][clip]]))


def test_text_gate_drops_text_after_the_mlp():
    unet = make_unet()
    assert all(unet.second_text_projection[i].bias.any() for i in (0, 2))  # zeros in are not zeros out
    inputs = make_inputs(unet)
    for dtype in (torch.float32, torch.bool, torch.long):
        gated = text_seen(unet, inputs | {"text_mask": torch.tensor([0, 1], dtype=dtype)})
        assert not gated[0].any()
        torch.testing.assert_close(gated[1], text_seen(unet, inputs)[1])
    closed = {"text_mask": torch.zeros(2)}
    other_text = {name: torch.ones_like(inputs[name]) for name in ("encoder_hidden_states", "encoder_hidden_states_2")}
    torch.testing.assert_close(predict(unet, inputs, **closed), predict(unet, inputs, **closed, **other_text))


@pytest.mark.parametrize("config", ABLATIONS.values(), ids=ABLATIONS)
def test_clips_do_not_know_their_batch(config):
    unet = make_unet(**config)
    inputs = make_inputs(unet, batch=3) | {"text_mask": torch.tensor([1, 0, 1])}
    batch = predict(unet, inputs)
    order = torch.tensor([2, 0, 1])
    permuted = predict(unet, {name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(permuted, batch[order], atol=1e-5, rtol=1e-5)
    for clip in range(3):
        alone = predict(unet, {name: value[clip : clip + 1] for name, value in inputs.items()})
        torch.testing.assert_close(alone, batch[clip : clip + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", ABLATIONS.values(), ids=ABLATIONS)
def test_channels_last_gives_the_same(config):
    unet = make_unet(**config)
    inputs = make_inputs(unet, size=(5, 4))
    expected = predict(unet, inputs)
    unet.to(memory_format=torch.channels_last)
    videos = {name: inputs[name].to(memory_format=torch.channels_last_3d) for name in ("sample", "condition_latents")}
    torch.testing.assert_close(predict(unet, inputs, **videos), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    unet = make_unet()
    inputs = make_inputs(unet)
    expected = predict(unet, inputs)
    unet.to(dtype)
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    result = predict(unet, half)
    assert unet.dtype == result.dtype == dtype
    assert (result.float() - expected).norm() < 0.05 * expected.norm()


def test_layerwise_casting():
    unet = make_unet()
    inputs = make_inputs(unet)
    expected = predict(unet, inputs)
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = {name: parameter.dtype for name, parameter in unet.named_parameters()}
    assert stored["conv_in.weight"] == torch.float8_e4m3fn
    assert {dtype for name, dtype in stored.items() if "norm" in name or name.endswith("semantic_weight")} == {
        torch.float32
    }
    assert (predict(unet, inputs) - expected).norm() < 0.3 * expected.norm()


@pytest.mark.parametrize("config", ABLATIONS.values(), ids=ABLATIONS)
def test_gradient_checkpointing_changes_nothing(config):
    results = []
    for checkpointing in (False, True):
        unet = make_unet(**config).train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        output = unet(**make_inputs(unet)).sample
        output.square().mean().backward()
        results.append((output, {name: parameter.grad for name, parameter in unet.named_parameters()}))
    torch.testing.assert_close(*results, atol=0, rtol=0)


@pytest.mark.parametrize("config", [ABLATIONS["paper"], ABLATIONS["conv3d"]], ids=["paper", "conv3d"])
def test_compiles_without_graph_breaks(config):
    unet = make_unet(**config)
    inputs = make_inputs(unet)
    torch._dynamo.reset()
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    torch.testing.assert_close(predict(compiled, inputs), predict(unet, inputs))
    with torch.no_grad():
        torch.testing.assert_close(predict(compiled, inputs), predict(unet, inputs))


@pytest.mark.parametrize("config", ABLATIONS.values(), ids=ABLATIONS)
def test_without_gradients_the_result_is_the_same(config):
    """Attention takes another way then, see `attend`."""
    unet = make_unet(**config)
    inputs = make_inputs(unet)
    expected = predict(unet, inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(predict(unet, inputs), expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (predict(unet, inputs) - expected).std() < 0.05 * expected.std()


def test_freeu_on_and_off():
    unet = make_unet()
    inputs = make_inputs(unet)
    plain = predict(unet, inputs)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert (predict(unet, inputs) - plain).abs().max() > 1e-3
    unet.disable_freeu()
    torch.testing.assert_close(predict(unet, inputs), plain)


def test_fused_projections_give_the_same():
    unet = make_unet()
    inputs = make_inputs(unet)
    plain = predict(unet, inputs)
    unet.fuse_qkv_projections()
    assert {type(processor) for processor in unet.attn_processors.values()} == {FusedAttnProcessor2_0}
    torch.testing.assert_close(predict(unet, inputs), plain, atol=1e-5, rtol=1e-5)
    unet.unfuse_qkv_projections()
    assert {type(processor) for processor in unet.attn_processors.values()} == {DiscreteFrameAttnProcessor}
    torch.testing.assert_close(predict(unet, inputs), plain)


@pytest.mark.parametrize("config", [{}, ADDITIONS], ids=["paper", "beyond the paper"])
def test_only_spatial_text_attentions_look_like_text_attentions(config):
    """IP-Adapters give their own processor to all others than `attn1` and those under `motion_modules`."""
    names = [name.removesuffix(".processor") for name in make_unet(**config).attn_processors]
    text = [name for name in names if not name.endswith("attn1") and "motion_modules" not in name]
    assert len(text) == 1 + 1 + 2  # down, middle, up
    assert all(name.endswith("attentions.0.transformer_blocks.0.attn2") or ".attentions.1." in name for name in text)


def test_additions_start_as_what_changes_nothing():
    torch.manual_seed(0)
    plain = make_unet()
    larger = UNetDiscreteFrameModel.from_config(plain.config, **ADDITIONS).eval()
    found = larger.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    parts = {name.split(".")[0] for name in found.missing_keys if "clip_attentions" not in name}
    assert parts == {"motion_modules_text", "known_frame_copy"}
    inputs = make_inputs(plain)
    torch.testing.assert_close(predict(larger, inputs), predict(plain, inputs))


def test_spatial_keys_are_those_of_stable_diffusion():
    ours = make_unet().state_dict()
    theirs = diffusers.UNet2DConditionModel(
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
    ).state_dict()
    assert {name: value.shape for name, value in theirs.items()}.items() <= {
        name: value.shape for name, value in ours.items()
    }.items()


def test_save_and_load(tmp_path):
    unet = make_unet(sti_detail="temporal_conv")
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "UNetDiscreteFrameModel" and config["sti_detail"] == "temporal_conv"
    loaded = UNetDiscreteFrameModel.from_pretrained(tmp_path)
    for name in inspect.signature(UNetDiscreteFrameModel).parameters:
        value = getattr(loaded.config, name)
        assert (tuple(value) if isinstance(value, list) else value) == getattr(unet.config, name), name
    torch.testing.assert_close(loaded.state_dict(), unet.state_dict(), atol=0, rtol=0)
    inputs = make_inputs(unet)
    torch.testing.assert_close(predict(loaded, inputs), predict(unet, inputs))
    assert UNetDiscreteFrameModel.from_pretrained(tmp_path, dtype=torch.float16).dtype == torch.float16


def test_registered_with_diffusers():
    names = ("UNetDiscreteFrameModel", "KnownFrameRefiner")
    methods = {name: ["save_pretrained", "from_pretrained"] for name in names}
    assert LOADABLE_CLASSES["rdtf_diffusers"] == methods
    assert methods.items() <= ALL_IMPORTABLE_CLASSES.items()
    assert "UNetDiscreteFrameModel" in diffusers.loaders.peft._SET_ADAPTER_SCALE_FN_MAPPING


def test_lora_strength_per_block():
    unet = make_unet()
    inputs = make_inputs(unet)
    plain = predict(unet, inputs)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    assert (predict(unet, inputs) - plain).abs().max() > 1e-3
    unet.set_adapters("style", {"down": 0.0, "mid": 0.5, "up": {"block_1": [1.0, 2.0]}})
    layers = {name: layer.scaling["style"] for name, layer in unet.named_modules() if hasattr(layer, "scaling")}
    strengths = {
        "down_blocks.0.attentions.0": 0.0,
        "mid_block.attentions.0": 0.5,
        "up_blocks.1.attentions.0": 1.0,
        "up_blocks.1.attentions.1": 2.0,
    }
    base = 8 / 2  # lora_alpha / r
    for block, strength in strengths.items():
        assert {scale for name, scale in layers.items() if name.startswith(block)} == {strength * base}
    torch.testing.assert_close(predict(unet, inputs, cross_attention_kwargs={"scale": 0.0}), plain)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 9}, "`in_channels` must be twice `out_channels`.*9 and 4"),
        ({"attention_head_dim": 10}, "multiple of `attention_head_dim` = 10.*16, 32"),
        ({"norm_num_groups": 5}, "multiple of `norm_num_groups` = 5"),
        ({"temporal_layer": "lstm"}, "`temporal_layer` must be one of .*'sti', 'conv3d'.*'lstm'"),
        ({"copy_head_dim": 12}, "`copy_head_dim` must be a multiple of 8, but is 12"),
        ({"sti_detail": "none"}, "`sti_detail` must be one of .*'frame_resnet', 'temporal_conv'.*'none'"),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        make_unet(**config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {name: torch.zeros(2, 4, 3, 4, 4) for name in ("sample", "condition_latents")},
            "`sample` has 3 frames.*exactly 4.*temporal_conv",
        ),
        ({"sample": torch.zeros(2, 3, FRAMES, 4, 4)}, "4 latent channels.*got 3"),
        ({"condition_latents": torch.zeros(2, 4, FRAMES, 4, 5)}, r"`condition_latents`.*\(2, 4, 4, 4, 4\).*5\)"),
    ],
)
def test_bad_clip(changes, message):
    unet = make_unet()
    with pytest.raises(ValueError, match=message):
        predict(unet, make_inputs(unet) | changes)


def test_second_text_needs_its_mlp():
    unet = make_unet(second_text_dim=None)
    with pytest.raises(ValueError, match="second_text_dim=None"):
        predict(unet, make_inputs(unet), encoder_hidden_states_2=torch.zeros(2, 3, SECOND_TEXT_WIDTH))
