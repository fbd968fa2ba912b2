"""What I2V-Adapter and SimDA have in common: attached in place to any UNet, alone or beside a LoRA, saved, loaded."""

import copy
import io
import json
from functools import partial

import pytest
import torch
from diffusers import UNet3DConditionModel, UNetMotionModel
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_models import TEXT_WIDTH, make_pipeline, make_unet

from rdtf_diffusers.baselines import I2VAdapterConfig, I2VAdapterModel, SimDAConfig, SimDAModel


pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = {
    "i2v_adapter": (I2VAdapterModel, I2VAdapterConfig()),
    "simda": (SimDAModel, SimDAConfig(latent_shift=True)),
}
LORA = LoraConfig(r=2, target_modules=r".*\.attentions\..*\.to_(q|k|v|out\.0)", init_lora_weights=False)


@pytest.fixture(params=METHODS)
def attach(request):
    """Attaches the method to a UNet, with weights that change its output."""
    return partial(attach_trained, request.param)


def attach_trained(method, unet):
    model_class, config = METHODS[method]
    torch.manual_seed(1)
    model = model_class(unet, copy.copy(config))
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.normal_(std=0.3)
    return model


def make_motion_unet() -> UNetMotionModel:
    torch.manual_seed(0)
    return UNetMotionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    ).eval()


def make_3d_unet() -> UNet3DConditionModel:
    torch.manual_seed(0)
    return UNet3DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    ).eval()


UNETS = {"discrete frame": make_unet, "motion": make_motion_unet, "3d": make_3d_unet}


def predict(unet: torch.nn.Module, height: int = 4) -> torch.Tensor:
    """The output of a UNet, or of a tuner around it, for two clips of eight frames."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, height, 4, generator=generator)
    text = torch.randn(2, 3, TEXT_WIDTH, generator=generator)
    if isinstance(unet, UNetMotionModel):  # which wants it once for every frame
        text = text.repeat_interleave(8, dim=0)
    known = {"condition_latents": sample.flip(2)} if unet.config.in_channels == 8 else {}
    return unet(sample, torch.tensor([7, 500]), encoder_hidden_states=text, **known).sample


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("model_class", [I2VAdapterModel, SimDAModel])
@pytest.mark.parametrize("make", UNETS.values(), ids=UNETS)
@torch.no_grad()
def test_changes_nothing_at_the_start(make, model_class):
    unet = make()
    plain = predict(unet)
    model = model_class(unet, model_class.config_class())
    torch.testing.assert_close(predict(unet), plain, atol=1e-6, rtol=0.0)
    for parameter in model.trainable_parameters():
        parameter.normal_(std=0.3)
    assert (predict(unet) - plain).abs().max() > 1e-3
    assert predict(unet, height=7).isfinite().all()  # another size, not square, odd


def test_freezes_the_rest(attach):
    unet = make_unet()
    model = attach(unet)
    trainable = {id(parameter) for parameter in model.trainable_parameters()}
    assert {id(parameter) for parameter in unet.parameters() if parameter.requires_grad} == trainable
    predict(model).square().mean().backward()
    assert all(parameter.grad.any() for parameter in model.trainable_parameters())


@torch.no_grad()
def test_switch_and_unload(attach):
    unet = make_unet()
    plain, names = predict(unet), list(unet.state_dict())
    model = attach(unet)
    tuned = predict(model)
    assert (model.config, model.dtype, model.device) == (unet.config, torch.float32, torch.device("cpu"))
    assert set(names) < set(unet.state_dict())  # no weight of the UNet gets another name
    model.disable_adapter_layers()
    assert_same(predict(unet), plain)
    model.enable_adapter_layers()
    assert_same(predict(unet), tuned)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge()
    assert model.unload() is unet
    assert_same(predict(unet), plain)
    assert list(unet.state_dict()) == names and not hasattr(unet, "peft_config")
    model.unload()  # does nothing more
    again = attach(unet)
    assert_same(predict(unet), tuned)
    unet.delete_adapters(again.adapter_name)
    assert_same(predict(unet), plain)
    attach(unet)  # after what PEFT deletes and what diffusers unloads it fits again, and works once
    assert_same(predict(unet), tuned)
    unet.unload_lora()
    assert_same(predict(unet), plain)
    last = attach(unet)
    assert_same(predict(unet), tuned)
    assert_same(predict(last.unload()), plain)
    assert list(unet.state_dict()) == names


@torch.no_grad()
def test_saved_and_loaded(attach, tmp_path):
    model = attach(make_unet())
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(map(torch.numel, weights.values())) == sum(map(torch.numel, model.trainable_parameters()))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == model.adapter_config.peft_type

    unet = make_unet()
    loaded = type(model).from_pretrained(unet, tmp_path, adapter_name="mine")
    assert_same(predict(unet), predict(model))
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    loaded.unload()
    assert all(
        parameter.requires_grad
        for parameter in type(model).from_pretrained(unet, tmp_path, is_trainable=True).trainable_parameters()
    )


@torch.no_grad()
def test_in_half_precision(attach, tmp_path):
    model = attach(make_unet())
    model.save_pretrained(tmp_path, dtype=torch.float16)
    assert {weight.dtype for weight in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float16}
    assert model.trainable_parameters()[0].dtype == torch.float32
    loaded = type(model).from_pretrained(make_unet(), tmp_path)
    torch.testing.assert_close(predict(loaded), predict(model), atol=1e-2, rtol=0.0)

    unet = make_unet().to(torch.bfloat16)
    loaded = type(model).from_pretrained(unet, tmp_path)
    assert {parameter.dtype for parameter in loaded.trainable_parameters()} == {torch.bfloat16}
    clip = torch.randn(1, 4, 8, 4, 4).bfloat16()
    text = torch.randn(1, 3, TEXT_WIDTH).bfloat16()
    output = unet(clip, 7, encoder_hidden_states=text, condition_latents=clip).sample
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


def test_the_repository_of_the_base_is_saved(tmp_path):
    def saved_base(source):
        unet = make_unet()
        unet.register_to_config(_name_or_path=source)
        SimDAModel(unet, SimDAConfig()).save_pretrained(tmp_path)
        return json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]

    assert saved_base("me/base") == "me/base"
    assert saved_base("/cache/hub/models--me--my-base/snapshots/0123/unet") == "me/my-base"
    assert saved_base("/home/me/base/unet") is saved_base(str(tmp_path)) is saved_base(None) is None


def test_an_option_of_a_newer_version_is_ignored(tmp_path):
    SimDAConfig(spatial_ratio=0.5).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"new": 1}))
    with pytest.warns(UserWarning, match=r"does not know: \['new'\]"):
        assert SimDAConfig.from_pretrained(tmp_path).spatial_ratio == 0.5


def test_saved_for_something_else(attach, tmp_path):
    model = attach(make_unet())
    model.save_pretrained(tmp_path)
    wider = make_unet(block_out_channels=(16, 16))
    with pytest.raises(ValueError, match=r"must fit the UNet, but .* is \(.*\) there and \(.*\) here"):
        type(model).from_pretrained(wider, tmp_path)
    assert not hasattr(wider, "peft_config")
    LORA.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LORA"):
        type(model).from_pretrained(make_unet(), tmp_path)


@torch.no_grad()
def test_copy_stands_on_its_own(attach):
    unet = make_unet()
    model = attach(unet)
    tuned, other, file = predict(unet), copy.deepcopy(unet), io.BytesIO()
    torch.save(unet, file)
    for parameter in model.trainable_parameters():
        parameter.zero_()
    assert_same(predict(other), tuned)
    file.seek(0)
    assert_same(predict(torch.load(file, weights_only=False)), tuned)
    assert (predict(unet) - tuned).abs().max() > 1e-3


def test_gradient_checkpointing(attach):
    gradients = []
    for use_checkpoints in (False, True):
        unet = make_unet().train()
        if use_checkpoints:
            unet.enable_gradient_checkpointing()
        model = attach(unet)
        predict(unet).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.trainable_parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain)


def test_compiles_as_one_graph():
    unet = make_unet()
    for model_class, config in METHODS.values():
        model_class(unet, config)
    predict(unet)  # says how many frames there are
    attn = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    torch._dynamo.reset()
    tokens = torch.randn(16, 16, 8)
    assert_same(torch.compile(attn, backend="eager", fullgraph=True)(tokens), attn(tokens))


@pytest.mark.parametrize(("method", "is_first"), [("i2v_adapter", True), ("simda", False)])
@torch.no_grad()
def test_beside_a_lora(method, is_first):
    attach = partial(attach_trained, method)
    unet = make_unet()
    torch.manual_seed(2)
    if is_first:
        unet.add_adapter(LORA, "style")
        styled = predict(unet)
        model = attach(unet)
    else:
        model = attach(unet)
        unet.add_adapter(LORA, "style")
        model.disable_adapter_layers()
        styled = predict(unet)
        model.enable_adapter_layers()
    both = predict(unet)
    assert (both - styled).abs().max() > 1e-3
    assert set(unet.peft_config) == {"style", model.adapter_name}
    lora = [name for name, _ in unet.named_modules() if name.endswith("lora_A.style")]
    assert len(lora) == 4 * 2 * 4  # projections of two attentions in four transformers: none is hidden

    model.disable_adapter_layers()  # switches off only itself
    assert_same(predict(unet), styled)
    model.enable_adapter_layers()
    unet.set_adapters("style", 0.0)  # weights only the LoRA
    alone = predict(unet)
    unet.set_adapters(["style", model.adapter_name], [1.0, 1.0])
    assert_same(predict(unet), both)
    with pytest.raises(ValueError, match=r"must be 1, but is 0\.5"):
        unet.set_adapters(["style", model.adapter_name], [1.0, 0.5])
    unet.set_adapters("style", 1.0)
    other = copy.deepcopy(unet)
    other.fuse_lora()
    torch.testing.assert_close(predict(other), both, atol=1e-4, rtol=0.0)
    other.unfuse_lora()
    unet.delete_adapters("style")
    assert_same(predict(unet), alone)
    model.unload()
    assert_same(predict(unet), predict(make_unet()))
    other.unload_lora()  # removes everything of PEFT
    torch.testing.assert_close(predict(other), predict(make_unet()), atol=1e-4, rtol=0.0)


def test_training_beside_a_lora(attach):
    unet = make_unet()
    unet.add_adapter(LORA, "style")
    model = attach(unet)
    trainable = [name for name, parameter in unet.named_parameters() if parameter.requires_grad]
    assert len(trainable) == sum("lora_" in name for name in trainable) + len(model.trainable_parameters())


def test_refused(attach):
    unet = make_unet()
    model = attach(unet)
    with pytest.raises(ValueError, match="already"):
        attach(unet)
    other = SimDAModel if isinstance(model, I2VAdapterModel) else I2VAdapterModel
    with pytest.raises(ValueError, match="`adapter_name` must be new"):
        other(unet, other.config_class(), model.adapter_name)
    with pytest.raises(ValueError, match="got Linear"):
        type(model)(torch.nn.Linear(2, 2), model.adapter_config)


@torch.no_grad()
def test_both_at_once(attach):
    unet = make_unet()
    plain, model = predict(unet), attach(unet)
    tuned = predict(unet)
    other = SimDAModel if isinstance(model, I2VAdapterModel) else I2VAdapterModel
    other = other(unet, other.config_class())
    assert_same(predict(unet), tuned)
    model.unload()
    assert_same(predict(unet), plain)
    other.unload()


def test_in_the_pipeline(attach):
    pipe = make_pipeline()

    def sample() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a dog", num_inference_steps=2, generator=generator, output_type="latent").frames

    plain = sample()
    model = attach(pipe.unet)
    assert (sample() - plain).abs().max() > 1e-3
    model.disable_adapter_layers()
    torch.testing.assert_close(sample(), plain, atol=1e-5, rtol=0.0)
    pipe.unet.add_adapter(LORA, "style")
    pipe.set_lora_device(["style"], "cpu")
