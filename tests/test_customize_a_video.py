"""Customize-A-Video against slow references: weights changed by hand, and frames processed one by one."""

import copy
import io

import pytest
import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from tiny_models import TEXT_WIDTH, make_unet

from rdtf_diffusers import UNetDiscreteFrameModel
from rdtf_diffusers.baselines import SimDAConfig
from rdtf_diffusers.baselines.customize_a_video import CustomizeAVideoConfig, CustomizeAVideoModel


pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = 4
CONFIGS = {stage: CustomizeAVideoConfig(rank=2, stage=stage) for stage in ("temporal", "appearance")}


def small_unet(**config) -> UNetDiscreteFrameModel:
    return make_unet(num_frames=FRAMES, **config)


def make_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clip = (2, 4, FRAMES, 4, 4)
    return {
        "sample": torch.randn(clip, generator=generator),
        "timestep": torch.tensor(300),
        "encoder_hidden_states": torch.randn(2, 5, TEXT_WIDTH, generator=generator),
        "condition_latents": torch.randn(clip, generator=generator),
    }


def make_network(kind: type) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A small network and its inputs."""
    inputs = make_inputs()
    if kind is UNetDiscreteFrameModel:
        return small_unet(), inputs
    del inputs["condition_latents"]
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    if kind is UNet3DConditionModel:
        blocks = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        blocks["up_block_types"] = ("UpBlock3D", "CrossAttnUpBlock3D")
        peer = kind(**sizes, **blocks, cross_attention_dim=TEXT_WIDTH, attention_head_dim=4)
    else:
        blocks = {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")}
        blocks["up_block_types"] = ("UpBlockMotion", "CrossAttnUpBlockMotion")
        heads = {"num_attention_heads": 2, "motion_num_attention_heads": 2}
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].repeat_interleave(FRAMES, dim=0)
        peer = kind(**sizes, **blocks, **heads, cross_attention_dim=TEXT_WIDTH, use_motion_mid_block=True)
    for parameter in peer.parameters():
        if not parameter.any():  # temporal layers that start as the identity
            torch.nn.init.normal_(parameter, std=0.2)
    return peer.eval(), inputs


@torch.no_grad()
def predict(network, inputs):
    return network(**inputs).sample


def assert_same(output, expected):
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def speak(model: CustomizeAVideoModel) -> CustomizeAVideoModel:
    """Gives the adapter weights as if it had been trained."""
    torch.manual_seed(1)
    for parameter in model.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def changed_by_hand(unet: torch.nn.Module, folder) -> torch.nn.Module:
    """A copy of the network with W + B A in place of every W for which a saved adapter has the two."""
    changed = copy.deepcopy(unet)
    saved = load_file(folder / "adapter_model.safetensors")
    for name in (name for name in saved if name.endswith("lora_A.weight")):
        down, up = saved[name], saved[name.replace("lora_A", "lora_B")]
        layer = changed.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        layer.weight.data += up @ down
    return changed


@pytest.mark.parametrize("kind", [UNetDiscreteFrameModel, UNetMotionModel, UNet3DConditionModel])
def test_it_starts_as_the_base_and_ends_as_it(kind):
    unet, inputs = make_network(kind)
    weights, plain = copy.deepcopy(unet.state_dict()), predict(unet, inputs)
    model = CustomizeAVideoModel(unet, CONFIGS["temporal"])
    assert model.model is unet
    assert_same(predict(model, inputs), plain)
    trained = predict(speak(model), inputs)
    assert (trained - plain).abs().max() > 1e-3
    model.disable_adapter_layers()
    assert_same(predict(unet, inputs), plain)
    model.enable_adapter_layers()
    assert_same(predict(unet, inputs), trained)
    assert model.unload() is unet
    assert_same(predict(unet, inputs), plain)
    torch.testing.assert_close(unet.state_dict(), weights, atol=0, rtol=0)
    model = speak(CustomizeAVideoModel(unet, CONFIGS["temporal"]))
    assert_same(predict(model.merge_and_unload(), inputs), trained)
    assert unet.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("stage", CONFIGS)
def test_only_the_stage_s_attention_is_trained(stage):
    unet = small_unet()
    widths = {"temporal": "motion_modules", "appearance": "attentions"}
    count = sum(
        2 * (layer.in_features + layer.out_features)
        for name, layer in unet.named_modules()
        if widths[stage] in name and isinstance(layer, torch.nn.Linear) and ".ff." not in name and "proj_" not in name
    )
    model = CustomizeAVideoModel(unet, CONFIGS[stage])
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert [id(p) for p in trainable] == [id(p) for p in model.trainable_parameters()]
    assert sum(parameter.numel() for parameter in trainable) == count
    speak(model)(**make_inputs()).sample.sum().backward()
    assert all(parameter.grad.any() for parameter in trainable)


def test_sizes_at_the_paper_s_width():
    with torch.device("meta"):
        model = CustomizeAVideoModel(UNetDiscreteFrameModel(), CustomizeAVideoConfig(rank=64))
    widths = 512 + 5 * (320 + 640 + 1024) + 1280  # of the temporal transformers; two attentions of four projections
    assert sum(p.numel() for p in model.trainable_parameters()) == 2 * 4 * 2 * widths * 64 == 11_993_088


def test_the_adapter_adds_the_product_of_its_matrices(tmp_path):
    unet, inputs = small_unet(), make_inputs()
    base = copy.deepcopy(unet)
    model = speak(CustomizeAVideoModel(unet, CONFIGS["temporal"]))
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    by_hand = predict(changed_by_hand(base, tmp_path), inputs)
    assert_same(predict(model, inputs), by_hand)
    loaded = CustomizeAVideoModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert loaded.config == model.config and not any(p.requires_grad for p in loaded.model.parameters())
    assert_same(predict(loaded, inputs), predict(model, inputs))
    in_peft = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert_same(predict(in_peft, inputs), predict(model, inputs))


BEYOND = {"clip_attention_num_heads": 1, "clip_attention_head_dim": 8, "copy_num_heads": 1, "copy_head_dim": 8}


@pytest.mark.parametrize(
    "config", [{}, {"temporal_layer": "conv3d"}, BEYOND], ids=["sti", "conv3d", "beyond the paper"]
)
def test_the_absorber_sees_frames_one_by_one(config):
    unet, inputs = small_unet(**config), make_inputs()
    for name, parameter in unet.named_parameters():
        if "clip_attentions" in name or "known_frame_copy" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    plain = predict(unet, inputs)
    model = CustomizeAVideoModel(unet, CONFIGS["appearance"])
    together = predict(model, inputs)
    clips = [name for name, value in inputs.items() if value.dim() == 5]
    for frame in range(FRAMES):  # STI takes clips of this length only
        still = {name: inputs[name][:, :, [frame]].repeat(1, 1, FRAMES, 1, 1) for name in clips}
        assert_same(predict(model, inputs | still)[:, :, 0], together[:, :, frame])
    assert (together - plain).abs().max() > 1e-3  # the temporal layers had something to say
    model.disable_adapter_layers()
    assert_same(predict(model, inputs), plain)
    model.enable_adapter_layers()
    assert_same(predict(model, inputs), together)
    assert_same(predict(model.unload(), inputs), plain)


@pytest.mark.parametrize("kind", [UNetMotionModel, UNet3DConditionModel])
def test_the_absorber_sees_frames_one_by_one_in_networks_of_diffusers(kind):
    unet, inputs = make_network(kind)
    model = CustomizeAVideoModel(unet, CONFIGS["appearance"])
    together = predict(model, inputs)
    frames_of_text = len(inputs["encoder_hidden_states"]) // 2
    alone = inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][::frames_of_text]}
    for frame in range(FRAMES):
        alone["sample"] = inputs["sample"][:, :, [frame]]
        assert_same(predict(model, alone), together[:, :, [frame]])


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_copy_stands_on_its_own(stage):
    unet, inputs = small_unet(), make_inputs()
    model = speak(CustomizeAVideoModel(unet, CONFIGS[stage]))
    tuned, other, file = predict(unet, inputs), copy.deepcopy(unet), io.BytesIO()
    torch.save(unet, file)
    for parameter in unet.parameters():
        torch.nn.init.zeros_(parameter)
    assert_same(predict(other, inputs), tuned)
    file.seek(0)
    assert_same(predict(torch.load(file, weights_only=False), inputs), tuned)
    assert unet.active_adapters() == ["customize_a_video"]  # diffusers knows of it
    model.unload()
    model.unload()  # does nothing more


def test_bypassed_layers_leave_what_is_under_their_residuals():
    unet, inputs = small_unet(), make_inputs()
    silent = copy.deepcopy(unet)
    for name, parameter in silent.named_parameters():  # every residual branch of a temporal layer ends in zeros
        ends = ("motion_modules", "temporal_encoder", "temporal_layers")
        last = ("proj_out.weight", "proj_out.bias", "to_out.0.weight", "to_out.0.bias", "conv2.weight", "conv2.bias")
        if any(end in name for end in ends) and (name.endswith(last) or "temporal_encoder.ff.net.2" in name):
            torch.nn.init.zeros_(parameter)
    bypassed = predict(CustomizeAVideoModel(unet, CONFIGS["appearance"]), inputs)
    assert_same(bypassed, predict(silent, inputs))


def test_an_absorber_works_while_training_only(tmp_path):
    unet, inputs = small_unet(), make_inputs()
    base = copy.deepcopy(unet)
    absorber = speak(CustomizeAVideoModel(unet, CONFIGS["appearance"]))
    absorber.save_pretrained(tmp_path / "absorber")
    absorber.unload()
    absorbing = predict(changed_by_hand(base, tmp_path / "absorber"), inputs)
    model = CustomizeAVideoModel(unet, CONFIGS["temporal"])
    model.load_absorber(tmp_path / "absorber")
    assert_same(predict(model, inputs), absorbing)
    with model.without_absorber():
        assert_same(predict(model, inputs), predict(base, inputs))
    assert_same(predict(model, inputs), absorbing)
    trainable = [id(parameter) for parameter in unet.parameters() if parameter.requires_grad]
    assert trainable == [id(parameter) for parameter in model.trainable_parameters()]
    speak(model).save_pretrained(tmp_path / "motion")
    motion = predict(CustomizeAVideoModel.from_pretrained(copy.deepcopy(base), tmp_path / "motion"), inputs)
    with model.without_absorber():
        assert_same(predict(model, inputs), motion)
    assert_same(predict(model.merge_and_unload(), inputs), motion)


def users_lora(unet):
    torch.manual_seed(2)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")


@pytest.mark.parametrize("first", ["style", "adapter"])
def test_a_user_s_lora_stays(first):
    inputs, styled, adapted = make_inputs(), small_unet(), small_unet()
    users_lora(styled)
    style = predict(styled, inputs)
    merged = speak(CustomizeAVideoModel(adapted, CONFIGS["temporal"])).merge_and_unload()
    users_lora(merged)
    both = predict(merged, inputs)

    unet = small_unet()
    if first == "style":
        users_lora(unet)
    model = speak(CustomizeAVideoModel(unet, CONFIGS["temporal"]))
    if first == "adapter":
        users_lora(unet)
        unet.set_adapters(["customize_a_video", "style"])
    assert_same(predict(unet, inputs), both)
    model.disable_adapter_layers()
    assert_same(predict(unet, inputs), style)
    model.unload()
    assert_same(predict(unet, inputs), style)
    assert list(unet.peft_config) == ["style"]
    model = speak(CustomizeAVideoModel(unet, CONFIGS["temporal"]))
    assert not any(p.requires_grad for name, p in unet.named_parameters() if "style" in name)
    assert_same(predict(model.merge_and_unload(), inputs), both)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        CustomizeAVideoConfig(rank=0)
    with pytest.raises(ValueError, match=r"`stage` must be one of .*'temporal', 'appearance'.*'both'"):
        CustomizeAVideoConfig(stage="both")
    model = CustomizeAVideoModel(small_unet(), CONFIGS["temporal"])
    with pytest.raises(ValueError, match="already"):
        CustomizeAVideoModel(model.model, CONFIGS["temporal"])
    model.save_pretrained(tmp_path / "motion")
    with pytest.raises(ValueError, match="is of 'temporal' and this model of 'temporal'"):
        model.load_absorber(tmp_path / "motion")
    with pytest.raises(ValueError, match="must fit the UNet"):
        CustomizeAVideoModel.from_pretrained(small_unet(block_out_channels=(16, 16)), tmp_path / "motion")
    with pytest.raises(ValueError, match="must fit the UNet"):
        CustomizeAVideoModel.from_pretrained(small_unet(layers_per_block=2), tmp_path / "motion")
    absorber = CustomizeAVideoModel(small_unet(block_out_channels=(16, 16)), CONFIGS["appearance"])
    absorber.save_pretrained(tmp_path / "absorber")
    for _ in range(2):  # the first leaves nothing
        with pytest.raises(ValueError, match="must fit the UNet"):
            model.load_absorber(tmp_path / "absorber")
    assert list(model.model.peft_config) == ["customize_a_video"]
    with pytest.raises(ValueError, match="target"):
        CustomizeAVideoModel(torch.nn.Linear(2, 2), CONFIGS["temporal"])
    LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]).save_pretrained(tmp_path / "style")
    with pytest.raises(ValueError, match="another kind"):
        CustomizeAVideoModel.from_pretrained(small_unet(), tmp_path / "style")
    SimDAConfig().save_pretrained(tmp_path / "simda")
    with pytest.raises(ValueError, match=r"of another kind .*SIMDA"):
        CustomizeAVideoModel.from_pretrained(small_unet(), tmp_path / "simda")
