"""Tuning adapters end to end on a few drawn stickers and a base of some thousand parameters."""

import shutil
import subprocess
import sys

import pytest
import torch
from example_scripts import EXAMPLES, load_example
from safetensors.torch import load_file
from test_train_processes import ENVIRONMENT, LAUNCH
from test_train_rdtf import arguments, checkpoints
from tiny_models import TINY_UNET

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel, baselines
from rdtf_diffusers.baselines.customize_a_video import ABSORBER
from rdtf_diffusers.checkpoints import generation_settings
from rdtf_diffusers.training.history import read_history


pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = {"i2v_adapter": "I2VAdapterModel", "simda": "SimDAModel", "customize_a_video": "CustomizeAVideoModel"}
SIZES = {"in_channels": 8, "out_channels": 4, "cross_attention_dim": 16, "second_text_dim": None, "sample_size": 8}


@pytest.fixture(scope="module")
def script():
    return load_example("train_baseline.py")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A base with a UNet in which every layer speaks."""
    torch.manual_seed(0)
    unet = UNetDiscreteFrameModel(**TINY_UNET, **SIZES)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("trained")
    StickerGenerationPipeline.from_pretrained(base, unet=unet).save_pretrained(folder)
    return folder


@pytest.fixture
def no_plots(script, monkeypatch):
    """They take longer than the training."""
    module = sys.modules[script.Trainer.__module__]
    for name in ("plot_losses", "plot_curriculum"):
        monkeypatch.setattr(module, name, lambda *args: None)


def baseline(method, base, stickers, output_dir, *more):
    return [*arguments(base, stickers, output_dir, "--method", method, *more), "--learning_rate", "1e-2"]


def adapter_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("method", ["i2v_adapter", "customize_a_video"])  # SimDA is saved as I2V-Adapter is
def test_a_run_leaves_an_adapter_and_resumes_exactly(script, trained, stickers, tmp_path, method):
    more = ("--use_ema", "--max_train_steps", 3, "--lr_scheduler", "cosine")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert script.main(baseline(method, trained, stickers, whole, *more)) == 0
    assert checkpoints(whole) == ["checkpoint-2", "checkpoint-3"]
    assert not list(whole.rglob("diffusion_pytorch_model*"))  # of the base nothing is saved again
    assert (whole / "adapter_config.json").is_file()

    pipe = StickerGenerationPipeline.from_pretrained(trained)
    frames = pipe("a red ball", num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").frames
    getattr(baselines, MODELS[method]).from_pretrained(pipe.unet, whole)
    tuned = pipe("a red ball", num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt").frames
    assert not torch.allclose(frames, tuned, atol=1e-4)
    last, averaged = adapter_weights(whole / "checkpoint-3" / "adapter"), adapter_weights(whole)
    assert not same(last, averaged)
    shutil.copytree(whole / "checkpoint-2", resumed / "checkpoint-2")
    shutil.copy(whole / "history.jsonl", resumed)
    assert script.main(baseline(method, trained, stickers, resumed, *more, "--resume_from_checkpoint", "latest")) == 0
    assert same(adapter_weights(resumed), averaged)
    assert same(adapter_weights(resumed / "checkpoint-3" / "adapter"), last)
    assert read_history(resumed / "history.jsonl") == read_history(whole / "history.jsonl")


def test_only_the_adapter_is_trained_and_averaged(script, trained, stickers, tmp_path):
    for method in MODELS:
        args = script.parse_args(baseline(method, trained, stickers, tmp_path / method, "--use_ema"))
        trainer = script.TRAINERS[method](args)
        own = {id(weight) for weight in trainer.adapter.trainable_parameters()}
        assert {id(weight) for weight in trainer.trainable_weights()} == own
        (group,) = trainer.optimizer.param_groups
        assert len(trainer.ema.shadow_params) == len(group["params"]) == len(own)
        frozen = {n: w.clone() for n, w in trainer.pipeline.unet.named_parameters() if id(w) not in own}
        trainer.step(1, trainer.batches())
        assert all(torch.equal(w, frozen[n]) for n, w in trainer.pipeline.unet.named_parameters() if n in frozen)


def test_i2v_adapter_trains_and_draws_with_a_clean_first_frame(script, trained, stickers, tmp_path, monkeypatch):
    validation = ("--validation_prompts", "a red ball", "--validation_images", stickers / "0.webp")
    more = (*validation, "--validation_inference_steps", 2, "--joint_drop_prob", 0)
    args = script.parse_args(baseline("i2v_adapter", trained, stickers, tmp_path, *more))
    trainer = script.TRAINERS["i2v_adapter"](args)
    calls, masks = [], []
    watch = trainer.pipeline.unet.register_forward_pre_hook
    watch(lambda _, inputs, kwargs: calls.append((inputs[0], kwargs["condition_latents"])), with_kwargs=True)
    module = sys.modules[script.Trainer.__module__]
    dual_mask_loss = module.dual_mask_loss
    monkeypatch.setattr(module, "dual_mask_loss", lambda *args: masks.append(args[2]) or dual_mask_loss(*args))

    rows = [trainer.clips[0], trainer.clips[1]]
    trainer.loss(rows, "i2v")
    ((noisy, condition),), (mask,) = calls, masks
    batch = trainer.collator(rows, "i2v")
    known = batch["condition_mask"][:, 0]
    assert known.tolist() == [True, False]  # the frame that is given is not always the first
    is_clean = (noisy == condition).flatten(3).all(dim=3).all(dim=1)
    assert torch.equal(is_clean[:, 0], known) and not is_clean[:, 1:].any()
    assert torch.equal(mask[:, 0], ~known) and torch.equal(mask[:, 1:], batch["frame_mask"][:, 1:])

    calls.clear()
    assert len(trainer.draw(trainer.pipeline, trainer.cases[0])) == 8
    assert len(calls) == 2
    for noisy, condition in calls:
        (given,) = condition[:, :, 0].flatten(1).any(dim=1).nonzero(as_tuple=True)
        assert len(given) and torch.equal(noisy[given][:, :, 0], condition[given][:, :, 0])
    from_words = script.ValidationCase("0-generation", "a ball", (None,) * 8)
    assert len(trainer.draw(trainer.pipeline, from_words)) == 8


@pytest.mark.usefixtures("no_plots")
def test_an_absorber_takes_the_appearance_and_is_dropped(script, trained, stickers, tmp_path):
    method, absorber = "customize_a_video", tmp_path / "absorber"
    steps = ("--max_train_steps", 1)
    assert script.main(baseline(method, trained, stickers, absorber, "--stage", "appearance", *steps)) == 0
    names = {".attentions." in name for name in adapter_weights(absorber)}
    assert names == {True}
    validation = ("--validation_prompts", "a red ball", "--validation_inference_steps", 2)
    more = ("--absorber", absorber, "--use_ema", "--rank", 2, *steps, *validation)
    assert script.main(baseline(method, trained, stickers, tmp_path / "motion", *more)) == 0
    weights = adapter_weights(tmp_path / "motion")
    assert all("motion_modules" in name for name in weights) and 2 in next(iter(weights.values())).shape
    assert str(tmp_path) not in (tmp_path / "motion" / "README.md").read_text(encoding="utf-8")

    args = script.parse_args(baseline(method, trained, stickers, tmp_path / "again", *more))
    trainer = script.TRAINERS[method](args)
    layers = [layer for layer in trainer.pipeline.unet.modules() if ABSORBER in getattr(layer, "scaling", ())]
    with trainer.averaged_weights():
        assert {layer.scaling[ABSORBER] for layer in layers} == {0.0}
    assert {layer.scaling[ABSORBER] for layer in layers} == {1.0}


def test_the_card(script, trained, stickers, tmp_path, hub):
    out = tmp_path / "my-adapter"
    validation = ("--validation_prompts", "a red ball", "--validation_inference_steps", 2)
    more = ("--max_train_steps", 1, *validation, "--push_to_hub", "--hub_token", hub.token)
    assert script.main(baseline("simda", trained, stickers, out, *more)) == 0
    ((name, files),) = hub.repositories.items()
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "losses.png"} <= set(files)
    assert not any("checkpoint" in file or "unet" in file for file in files)
    assert generation_settings(out)["num_inference_steps"] == 2
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"SimDAModel.from_pretrained(pipe.unet, '{name}')" in card and "arxiv.org/abs/2308.09710" in card
    assert str(tmp_path) not in card and str(trained.parent) not in card
    count = sum(weight.numel() for weight in adapter_weights(out).values())
    assert f"| weights trained | {count:,} of 0.2 M |" in card and "| optimiser steps | 1 |" in card


@pytest.mark.usefixtures("no_plots")
def test_user_errors_end_in_one_line(script, base, trained, stickers, tmp_path, capsys):
    def error(method, folder, *more):
        args = baseline(method, folder, stickers, tmp_path / "run", "--max_train_steps", 1, *more)
        try:
            assert script.main(args) == 2
        except SystemExit as exit:
            assert exit.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "has no UNet" in error("simda", base)
    assert "--rank is of Customize-A-Video, not of --method simda" in error("simda", trained, "--rank", 8)
    assert "invalid choice: 'lora'" in error("lora", trained)
    assert "`rank` must be at least 1" in error("customize_a_video", trained, "--rank", 0)
    assert "what makes one" in error("customize_a_video", trained, "--stage", "appearance", "--absorber", "x")
    assert "nowhere" in error("customize_a_video", trained, "--absorber", tmp_path / "nowhere")
    assert "num_frames 8, not 6" in error("simda", trained, "--num_frames", 6)
    assert "a given UNet has its own" in error("simda", trained, "--temporal_layer", "conv3d")
    with pytest.raises(SystemExit):
        script.parse_args(["--method", "simda", "--train_data_dir", "s"])
    assert "name the pipeline whose UNet" in capsys.readouterr().err
    args = baseline("customize_a_video", trained, stickers, tmp_path / "run", "--max_train_steps", 1)
    assert script.main(args) == 0
    resume = ("--resume_from_checkpoint", "latest")
    assert "options.rank 4, not 2" in error("customize_a_video", trained, *resume, "--rank", 2)
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    unet = UNetDiscreteFrameModel.from_pretrained(other, subfolder="unet")
    unet.conv_out.bias.data += 1
    unet.save_pretrained(other / "unet")
    assert "base " in error("customize_a_video", other, *resume)


@pytest.mark.usefixtures("no_plots")
def test_two_processes_train_as_one_does(script, trained, stickers, tmp_path):
    more = ("--adam_epsilon", 1, "--loss_reduction", "valid", "--use_ema", "--max_train_steps", 2)
    two = baseline("i2v_adapter", trained, stickers, tmp_path / "two", *more, "--train_batch_size", 1)
    one = baseline("i2v_adapter", trained, stickers, tmp_path / "one", *more, "--train_batch_size", 2)
    launch = [*LAUNCH, "--multi_gpu", "--num_processes", "2", str(EXAMPLES / "train_baseline.py")]
    subprocess.run([*launch, *two], env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    assert script.main(one) == 0
    ours, theirs = adapter_weights(tmp_path / "one"), adapter_weights(tmp_path / "two")
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, atol=1e-6, rtol=1e-4)
