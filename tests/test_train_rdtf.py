"""The training script end to end on a few drawn stickers and a model of some thousand parameters."""

import dataclasses
import json
import logging
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from example_scripts import load_example
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import TINY_UNET
from torch._dynamo.testing import CompileCounter

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel
from rdtf_diffusers.checkpoints import generation_settings
from rdtf_diffusers.training import PRESETS
from rdtf_diffusers.training.history import read_history
from rdtf_diffusers.training.run_state import warn_if_bf16_is_slow


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    return load_example("train_rdtf.py")


@pytest.fixture(autouse=True)
def small_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], unet=TINY_UNET))


def arguments(base, stickers, output_dir, *more, source="--train_data_dir"):
    return [
        *("--pretrained_model_name_or_path", str(base), source, str(stickers)),
        *("--output_dir", str(output_dir), "--resolution", "16", "--train_batch_size", "2"),
        *("--report_to", "none"),
        *("--learning_rate", "1e-3", "--max_train_steps", "4", "--checkpointing_steps", "2"),
        *map(str, more),
    ]


def unet_weights(folder):
    return UNetDiscreteFrameModel.from_pretrained(folder, subfolder="unet").state_dict()


def assert_same_run(folder, other):
    weights, others = unet_weights(folder), unet_weights(other)
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    assert read_history(folder / "history.jsonl") == read_history(other / "history.jsonl")


def checkpoints(folder):
    return sorted((path.name for path in folder.glob("*checkpoint-*")), key=lambda name: int(name.split("-")[-1]))


def make_sticker(folder):
    frames = StickerGenerationPipeline.from_pretrained(folder)("a red ball", num_inference_steps=2).frames[0]
    assert len(frames) == 8 and frames[0].mode == "RGBA" and frames[0].size == (16, 16)


# --- the standard tests of diffusers' examples


def test_smoke(script, base, stickers, tmp_path):
    more = ("--max_train_steps", 2, "--gradient_accumulation_steps", 1, "--scale_lr", "--random_flip", "--center_crop")
    assert script.main(arguments(base, stickers, tmp_path, *more, "--lr_warmup_steps", 0)) == 0
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert (tmp_path / "scheduler" / "scheduler_config.json").is_file()
    make_sticker(tmp_path)


def test_checkpoints_can_be_run_and_resumed(script, base, stickers, tmp_path):
    more = ("--max_train_steps", 5)
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 0
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]  # the last step is kept, too
    unet = UNetDiscreteFrameModel.from_pretrained(tmp_path, subfolder="checkpoint-2/unet")
    pipeline = StickerGenerationPipeline.from_pretrained(base, unet=unet)
    assert len(pipeline("a red ball", num_inference_steps=2).frames[0]) == 8
    for name in ("checkpoint-2", "checkpoint-5"):
        shutil.rmtree(tmp_path / name)
    more = ("--max_train_steps", 7, "--resume_from_checkpoint", "checkpoint-4")
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 0
    make_sticker(tmp_path)
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6", "checkpoint-7"]


@pytest.mark.parametrize(
    "more", [("--optimizer", "muon"), ("--offload_ema", "--foreach_ema")], ids=["muon", "offloaded"]
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(script, base, stickers, tmp_path, more):
    more = ("--use_ema", "--curriculum_steps", 5, "--lr_scheduler", "cosine", "--max_train_steps", 5, *more)
    assert script.main(arguments(base, stickers, tmp_path / "whole", *more)) == 0
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", resumed / "checkpoint-2")
    shutil.copy(tmp_path / "whole" / "history.jsonl", resumed)
    assert script.main(arguments(base, stickers, resumed, *more, "--resume_from_checkpoint", "latest")) == 0
    assert_same_run(tmp_path / "whole", resumed)
    last, averaged = unet_weights(resumed / "checkpoint-5"), unet_weights(resumed)
    assert not all(torch.equal(weight, averaged[name]) for name, weight in last.items())


def test_full_memory_is_answered_with_advice(script, capsys):
    trainer = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    assert script.run_script("train_rdtf.py", trainer, None) == 2
    assert "the memory is full; give a smaller --train_batch_size" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="sizes differ"):
        script.run_script("train_rdtf.py", Mock(side_effect=RuntimeError("sizes differ")), None)


@pytest.mark.parametrize("kind", ["uniform", "linear"])
def test_resume_latest_without_a_checkpoint_starts_anew(script, base, stickers, tmp_path, kind):
    more = ("--max_train_steps", 1, "--curriculum", kind, "--resume_from_checkpoint", "latest")
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 0
    assert checkpoints(tmp_path) == ["checkpoint-1"]


def test_only_the_newest_checkpoints_stay(script, base, stickers, tmp_path):
    assert (
        script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 7, "--checkpoints_total_limit", 2)) == 0
    )
    assert checkpoints(tmp_path) == ["checkpoint-6", "checkpoint-7"]


def test_a_limit_that_is_new_removes_several_checkpoints(script, base, stickers, tmp_path):
    assert script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 8)) == 0
    assert len(checkpoints(tmp_path)) == 4
    more = ("--max_train_steps", 10, "--resume_from_checkpoint", "checkpoint-8", "--checkpoints_total_limit", 2)
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 0
    assert checkpoints(tmp_path) == ["checkpoint-8", "checkpoint-10"]


# --- resuming


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(script, base, stickers, tmp_path, caplog):
    assert script.main(arguments(base, stickers, tmp_path)) == 0
    before = unet_weights(tmp_path)
    (tmp_path / "checkpoint-4" / "optimizer.bin").write_bytes(b"cut")
    caplog.set_level(logging.INFO)
    assert script.main(arguments(base, stickers, tmp_path, "--resume_from_checkpoint", "latest")) == 0
    assert "checkpoint-4" in caplog.text and "optimizer.bin" in caplog.text
    assert f"Resuming from {tmp_path / 'checkpoint-2'}" in caplog.text
    assert all(torch.equal(weight, before[name]) for name, weight in unet_weights(tmp_path).items())


def test_what_the_command_line_says_holds_after_a_resume(script, base, stickers, tmp_path):
    assert script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 2, "--use_ema")) == 0
    more = (
        "--resume_from_checkpoint",
        "latest",
        "--learning_rate",
        0.5,
        "--adam_beta1",
        0.8,
        "--lr_scheduler",
        "cosine",
    )
    args = arguments(base, stickers, tmp_path, *more, "--use_ema", "--ema_decay", 0.5)
    trainer = script.Trainer(script.parse_args(args))
    trainer.resume()
    logs = trainer.step(3, trainer.batches())
    (group,) = trainer.optimizer.param_groups
    assert logs["lr"] == group["lr"] == pytest.approx(0.25)  # half of the cosine over 4 steps
    assert group["betas"] == (0.8, 0.999) and trainer.ema.decay == 0.5
    assert trainer.samples == 6  # two steps of two clips before, one after


def test_a_checkpoint_of_another_model_is_refused(script, base, stickers, tmp_path, monkeypatch, capsys):
    assert script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 1)) == 0
    resume = ("--resume_from_checkpoint", "latest")
    wide = TINY_UNET | {"block_out_channels": (16, 24)}
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], unet=wide))
    assert script.main(arguments(base, stickers, tmp_path, *resume)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint-1" in error and "block_out_channels" in error and "24" in error


def test_another_accumulation_after_a_resume_begins_with_a_whole_step(script, base, stickers, tmp_path):
    accumulate = ("--gradient_accumulation_steps",)
    assert script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 1, *accumulate, 2)) == 0
    more = (*accumulate, 3, "--resume_from_checkpoint", "latest")
    trainer = script.Trainer(script.parse_args(arguments(base, stickers, tmp_path, *more)))
    trainer.resume()
    steps = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(trainer.accelerator.step))
    batches = trainer.batches()
    for step in (2, 3):
        trainer.step(step, batches)
    assert steps == [3, 6] and trainer.samples == 4 + 2 * 6


def test_what_cannot_go_on_is_refused(script, base, stickers, tmp_path, capsys):
    def error(*more):
        assert script.main(arguments(base, stickers, tmp_path, *more)) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 2)) == 0
    resume = ("--resume_from_checkpoint", "latest")
    assert "checkpoint-2 has gone further" in error(*resume, "--max_train_steps", 1)
    assert "use_ema False, not True" in error(*resume, "--use_ema")
    assert "curriculum adaptive, not linear" in error(*resume, "--curriculum", "linear")
    (tmp_path / "checkpoint-2" / "optimizer.bin").write_bytes(b"cut")
    assert "Every checkpoint" in error(*resume)
    assert checkpoints(tmp_path) == ["checkpoint-2"] and len(read_history(tmp_path / "history.jsonl")) == 2


def test_broken_weights_are_not_saved(script, base, stickers, tmp_path, capsys):
    more = ("--learning_rate", 1e38, "--max_train_steps", 3, "--checkpointing_steps", 1)
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 2
    assert "lower --learning_rate" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "unet").exists()
    for folder in tmp_path.glob("checkpoint-*"):
        unet = UNetDiscreteFrameModel.from_pretrained(folder, subfolder="unet")
        assert all(torch.isfinite(weight).all() for weight in unet.parameters())


def test_a_new_run_does_not_mix_with_an_old_one(script, base, stickers, tmp_path, capsys):
    assert script.main(arguments(base, stickers, tmp_path, "--max_train_steps", 1)) == 0
    assert script.main(arguments(base, stickers, tmp_path)) == 2
    assert "holds checkpoint-1 of an earlier run" in capsys.readouterr().err


def test_a_stream_goes_on_where_it_stopped(script, base, stickers, tmp_path):
    more = ("--streaming", "--max_train_steps", 5)  # an epoch has three steps
    assert script.main(arguments(base, stickers, tmp_path / "whole", *more)) == 0
    (tmp_path / "resumed").mkdir()
    for name in ("checkpoint-4", "history.jsonl"):
        (tmp_path / "whole" / name).rename(tmp_path / "resumed" / name)
    args = arguments(base, stickers, tmp_path / "resumed", *more, "--resume_from_checkpoint", "latest")
    assert script.main(args) == 0
    weights = unet_weights(tmp_path / "whole")
    assert all(torch.equal(weights[name], weight) for name, weight in unet_weights(tmp_path / "resumed").items())


# --- what a step does


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_accumulation_equals_a_larger_batch(script, base, stickers, tmp_path, reduction):
    weights = []
    for batch_size, micro_steps in ((4, 1), (2, 2)):
        # a large epsilon makes Adam's step proportional to the gradient, so that rounding stays rounding
        more = ("--train_batch_size", batch_size, "--gradient_accumulation_steps", micro_steps, "--adam_epsilon", 1)
        more = (*more, "--max_train_steps", 2, "--loss_reduction", reduction, "--learning_rate", 1)
        assert script.main(arguments(base, stickers, tmp_path / str(batch_size), *more)) == 0
        weights.append(unet_weights(tmp_path / str(batch_size)))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_lowers_the_loss_on_one_clip(script, base, stickers, tmp_path, prediction_type):
    more = ("--prediction_type", prediction_type, "--joint_drop_prob", 0, "--text_word_drop_prob", 0)
    args = script.parse_args(
        arguments(base, stickers, tmp_path, *more, "--max_train_steps", 40, "--learning_rate", 3e-3)
    )
    trainer = script.Trainer(args)
    row = trainer.clips[0]
    losses = [trainer.step(step, iter([[row] * 2]))["loss"] for step in range(1, 41)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_noise_offset_and_input_perturbation(script, base, stickers, tmp_path):
    def noisy(name, *more):
        args = arguments(base, stickers, tmp_path / name, *more)
        trainer = script.Trainer(script.parse_args(args))
        rows = [{"seed": 1}, {"seed": 2}]
        return trainer.add_noise(torch.zeros(2, 4, 8, 8, 8), rows, torch.tensor([999, 500])), trainer

    (plain, target), trainer = noisy("plain")
    scale = (1 - trainer.pipeline.scheduler.alphas_cumprod[[999, 500]]).sqrt().view(2, 1, 1, 1, 1)
    torch.testing.assert_close(plain, scale * target)
    (offset, offset_target), _ = noisy("offset", "--noise_offset", 0.5)
    shift = offset_target - target  # one number per clip and channel
    torch.testing.assert_close(shift, shift[:, :, :1, :1, :1].expand_as(shift))
    assert shift[:, :, 0, 0, 0].unique().numel() == 8
    torch.testing.assert_close(offset, scale * offset_target)
    (perturbed, same_target), _ = noisy("perturbed", "--input_perturbation", 0.1)
    assert torch.equal(same_target, target)
    assert ((perturbed - plain) / scale).std() == pytest.approx(0.1, rel=0.1)


def test_noise_levels_that_are_trained_more_often(script, base, stickers, tmp_path, capsys):
    def trainer(name, *more):
        return script.Trainer(script.parse_args(arguments(base, stickers, tmp_path / name, *more)))

    rows = [{"seed": seed} for seed in range(300)]
    plain = trainer("plain")
    assert (plain.draw_timesteps(rows) >= 900).float().mean() < 0.2 and plain.noise_levels() == "all alike"
    bias = ("--timestep_bias_multiplier", 81, "--timestep_bias_begin", 900)
    biased = trainer("biased", *bias)
    timesteps = biased.draw_timesteps(rows)
    assert 0.8 < (timesteps >= 900).float().mean() < 1  # 9 of 10
    assert biased.noise_levels() == "900 to 999 of 1000, 81 times as often"
    assert torch.equal(biased.draw_timesteps(rows[7:9]), timesteps[7:9])  # whatever the batch
    assert script.main(arguments(base, stickers, tmp_path / "wrong", *bias, "--timestep_bias_end", 900)) == 2
    assert "`timestep_bias_end`" in capsys.readouterr().err


def test_epochs_and_scaled_rates(script, base, stickers, tmp_path):
    more = ("--num_train_epochs", 3, "--validation_epochs", 1, "--gradient_accumulation_steps", 2, "--scale_lr")
    args = arguments(base, stickers, tmp_path, *more)
    del args[args.index("--max_train_steps") : args.index("--max_train_steps") + 2]
    trainer = script.Trainer(script.parse_args(args))
    assert (trainer.args.max_train_steps, trainer.args.validation_steps) == (5, 2)  # 6 stickers, 4 a step
    assert trainer.args.learning_rate == pytest.approx(4e-3)
    assert trainer.curriculum.total_steps == 5


@pytest.mark.parametrize(
    "more",
    [
        ("--gradient_checkpointing",),
        ("--compile", "--gradient_checkpointing"),
        ("--snr_gamma", 0.01),
        ("--max_train_samples", 3),
    ],
    ids=lambda more: more[0],
)
def test_other_ways_to_train(script, base, stickers, tmp_path, monkeypatch, more):
    compile = torch.nn.Module.compile
    graphs = CompileCounter()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile(module, backend=graphs))
    losses = []
    for folder, extra in (("plain", ()), ("other", more)):
        args = arguments(base, stickers, tmp_path / folder, *extra, "--max_train_steps", 2)
        assert script.main(args) == 0
        losses.append([record["loss"] for record in read_history(tmp_path / folder / "history.jsonl")])
    assert graphs.frame_count == (more[0] == "--compile")  # the whole network is one graph
    if more[0] in ("--gradient_checkpointing", "--compile"):
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    else:
        assert losses[0] != losses[1]
    make_sticker(tmp_path / "other")


def test_a_cache_trains_as_the_files_do_without_autoencoder_and_text_encoder(script, base, stickers, tmp_path):
    cache = tmp_path / "cache"
    options = ("--pretrained_model_name_or_path", base, "--train_data_dir", stickers, "--resolution", 16)
    options = (*options, "--min_motion", 0, "--min_colour_bits", 0, "--text_word_drop_prob", 0, "--output_dir", cache)
    assert load_example("prepare_dataset.py").main([*map(str, options)]) == 0
    more = ("--procedural_fraction", 0, "--text_word_drop_prob", 0, "--learning_rate", 0)
    losses = []
    for source, data in (("--train_data_dir", stickers), ("--latent_cache", cache)):
        args = arguments(base, data, tmp_path / source, *more, source=source)
        trainer = script.Trainer(script.parse_args(args))
        batches = trainer.batches()
        losses.append([trainer.step(step, batches)["loss"] for step in (1, 2, 3, 4)])
    torch.testing.assert_close(losses[0], losses[1], atol=2e-3, rtol=2e-3)
    assert trainer.pipeline.vae is None and trainer.pipeline.text_encoder is None
    validation = ("--validation_prompts", "a red ball", "--validation_inference_steps", 2)
    assert script.main([*args, *map(str, validation), "--validation_steps", "2"]) == 0
    make_sticker(tmp_path / "--latent_cache")
    assert (tmp_path / "--latent_cache" / "validation" / "step-4" / "0-generation.webp").is_file()
    assert script.main([*args, "--num_frames", "6", "--resume_from_checkpoint", "latest"]) == 2


# --- what people watch, and what a run leaves


def test_what_a_run_shows_and_leaves(script, base, stickers, tmp_path, caplog):
    out = tmp_path / "my-model"
    validation = (
        "--validation_prompts",
        "a red ball",
        "",
        "--validation_images",
        stickers / "0.webp",
        stickers / "5.webp",
    )
    more = ("--use_ema", "--validation_inference_steps", 2, "--validation_steps", 4, "--report_to", "tensorboard")
    assert script.main(arguments(base, stickers, out, *validation, *more)) == 0
    make_sticker(out)
    assert generation_settings(out)["num_inference_steps"] == 2
    events = EventAccumulator(str(out / "logs" / "train_rdtf"))
    events.Reload()
    scalars = {"loss", "lr", "grad_norm", "level", "pid/integral", "task_share/i2v", "motion/generation"}
    assert scalars <= set(events.Tags()["scalars"])
    assert "motion/real" in events.Tags()["scalars"] and "task" not in events.Tags()["scalars"]
    names = ["0-generation", "0-interpolation", "0-prediction", "1-generation"]  # the second is a still
    assert sorted(file.stem for file in (out / "validation" / "step-4").iterdir()) == names
    with Image.open(out / "validation" / "step-4" / "0-prediction.webp") as sticker:
        assert sticker.n_frames > 1
    (image,) = events.Images("validation/0-prediction a red ball")
    assert image.encoded_image_string.startswith(b"GIF89a") and image.width == 16
    for plot in ("losses", "curriculum"):
        with Image.open(out / f"{plot}.png") as picture:
            assert min(picture.size) > 300
    card = (out / "README.md").read_text(encoding="utf-8")
    assert (
        "library_name: diffusers" in card
        and str(tmp_path) not in card
        and "losses.png" in card
        and "preview.webp" in card
    )
    history = read_history(out / "history.jsonl")
    assert [record["step"] for record in history] == [1, 2, 3, 4] and history[3]["motion/real"] > 0


def test_publishing_needs_no_validation(script, base, stickers, tmp_path, hub, capsys):
    more = ("--push_to_hub", "--max_train_steps", 1, "--hub_token")
    assert script.main(arguments(base, stickers, tmp_path / "my-model", *more, hub.token)) == 0
    ((name, files),) = hub.repositories.items()
    assert name.endswith("/my-model") and {"model_index.json", "README.md", "losses.png"} <= set(files)
    assert not any("checkpoint" in file for file in files)
    assert f"from_pretrained('{name}')" in files["README.md"].decode()
    assert not any(hub.token.encode() in content for content in files.values())
    assert script.main(arguments(base, stickers, tmp_path / "other", *more, "hf_wrong")) == 2
    assert "401" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "other").iterdir())  # before any work is done


def test_bf16_on_a_processor_without_it_is_said(caplog, monkeypatch):
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda supported=supported: supported)
        warn_if_bf16_is_slow(accelerator)
        assert ("no bfloat16 instructions" in caplog.text) is not supported


def test_user_errors_end_in_one_line(script, base, stickers, tmp_path, capsys):
    def error(*args):
        assert script.main(list(map(str, args))) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    run = tmp_path / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in error(*arguments(base, empty, run))
    assert "file_name, text" in error(*arguments(base, stickers, run, "--caption_column", "words"))
    assert "checkpoint-7" in error(*arguments(base, stickers, run, "--resume_from_checkpoint", "checkpoint-7"))
    assert "nowhere" in error(*arguments(tmp_path / "nowhere", stickers, run))
    assert "exceeds 6 stickers" in error(*arguments(base, stickers, run, "--train_batch_size", 7))
    assert "multiple of 2" in error(*arguments(base, stickers, run, "--resolution", 15))
    assert "fp16" in error(*arguments(base, stickers, run, "--mixed_precision", "fp16"))
    assert "no stikers" in error(*arguments(base, "stikers", run))
    assert "wandb is not installed" in error(*arguments(base, stickers, run, "--report_to", "wandb"))
    assert "is a file" in error(*arguments(base, stickers, stickers / "0.webp"))
    without_words, broken = tmp_path / "without words", tmp_path / "broken"
    for folder in (without_words, broken):
        shutil.copytree(stickers, folder)
    rows = [{"file_name": file.name, "text": " "} for file in without_words.glob("*.webp")]
    (without_words / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "--caption_column" in error(*arguments(base, without_words, run))
    for file in broken.glob("*.webp"):
        file.write_bytes(b"RIFF")
    assert "can be read" in error(*arguments(base, broken, run))
