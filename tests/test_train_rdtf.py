"""The training script end to end on a few drawn stickers and a model of some thousand parameters."""

from types import SimpleNamespace

import pytest
import torch
from example_scripts import load_example
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import TINY_UNET

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.training.run_state import warn_if_bf16_is_slow


@pytest.fixture(scope="module")
def script():
    module = load_example("train_rdtf.py")
    module.PRESETS["tiny"] = TINY_UNET
    return module


def arguments(base, stickers, output_dir, *more, source="--train_data_dir"):
    return [
        *("--pretrained_model_name_or_path", str(base), source, str(stickers)),
        *("--output_dir", str(output_dir), "--resolution", "16", "--train_batch_size", "2"),
        *("--report_to", "none"),
        *("--learning_rate", "1e-3", "--max_train_steps", "4", "--checkpointing_steps", "2"),
        *map(str, more),
    ]


def unet_weights(folder):
    return StickerGenerationPipeline.from_pretrained(folder).unet.state_dict()


def test_a_run_ends_as_a_pipeline_that_makes_stickers(script, base, stickers, tmp_path):
    more = ("--use_ema", "--validation_prompts", "a red ball", "--validation_inference_steps", 2)
    more = (*more, "--validation_steps", 4, "--report_to", "tensorboard")
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 0
    pipeline = StickerGenerationPipeline.from_pretrained(tmp_path)
    frames = pipeline("a red ball", num_inference_steps=2).frames[0]
    assert len(frames) == 8 and frames[0].mode == "RGBA" and frames[0].size == (16, 16)
    assert (tmp_path / "validation" / "step-4" / "0.webp").stat().st_size > 0
    events = EventAccumulator(str(tmp_path / "logs" / "train_rdtf"))
    events.Reload()
    assert {"loss", "lr", "grad_norm", "pid/level", "task_share/i2v"} <= set(events.Tags()["scalars"])
    assert any(tag.startswith("validation/0 a red ball") for tag in events.Tags()["images"])


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(script, base, stickers, tmp_path):
    more = ("--use_ema", "--curriculum_steps", 4, "--lr_scheduler", "cosine")
    assert script.main(arguments(base, stickers, tmp_path / "whole", *more)) == 0
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    assert (
        script.main(arguments(base, stickers, tmp_path / "resumed", *more, "--resume_from_checkpoint", "latest")) == 0
    )
    whole, resumed = unet_weights(tmp_path / "whole"), unet_weights(tmp_path / "resumed")
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_only_the_newest_checkpoints_stay(script, base, stickers, tmp_path):
    more = ("--checkpoints_total_limit", 1, "--max_train_steps", 5)
    assert script.main(arguments(base, stickers, tmp_path, *more)) == 0
    assert [folder.name for folder in tmp_path.glob("*checkpoint-*")] == ["checkpoint-5"]


def test_accumulation_equals_a_larger_batch(script, base, stickers, tmp_path):
    weights = []
    for batch_size, micro_steps in ((4, 1), (2, 2)):
        # a large epsilon makes Adam's step proportional to the gradient, so that rounding stays rounding
        more = ("--train_batch_size", batch_size, "--gradient_accumulation_steps", micro_steps, "--adam_epsilon", 1)
        args = arguments(base, stickers, tmp_path / str(batch_size), *more, "--max_train_steps", 2)
        assert script.main([*args, "--learning_rate", "1"]) == 0
        weights.append(unet_weights(tmp_path / str(batch_size)))
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_training_lowers_the_loss_on_one_clip(script, base, stickers, tmp_path, prediction_type):
    more = ("--prediction_type", prediction_type, "--joint_drop_prob", 0, "--text_word_drop_prob", 0)
    args = script.parse_args(arguments(base, stickers, tmp_path, *more, "--max_train_steps", 80))
    trainer = script.Trainer(args)
    row = trainer.clips[0]
    losses = [trainer.step(step, iter([[row] * 2]))["loss"] for step in range(80)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


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
        losses.append(
            [trainer.step(step, batches)["loss"] for batches in [trainer.batches(0)] for step in (1, 2, 3, 4)]
        )
    torch.testing.assert_close(losses[0], losses[1], atol=2e-3, rtol=2e-3)
    assert trainer.pipeline.vae is None and trainer.pipeline.text_encoder is None
    validation = ("--validation_prompts", "a red ball", "--validation_inference_steps", 2)
    assert script.main([*args, *map(str, validation), "--validation_steps", "2"]) == 0
    frames = StickerGenerationPipeline.from_pretrained(tmp_path / "--latent_cache")("a", num_inference_steps=2).frames[
        0
    ]
    assert len(frames) == 8
    assert (tmp_path / "--latent_cache" / "validation" / "step-4" / "0.webp").is_file()
    assert script.main([*args, "--num_frames", "6"]) == 2
    with pytest.raises(SystemExit, match="2"):
        script.main([*args, "--streaming"])


def test_a_stream_trains(script, base, stickers, tmp_path):
    assert script.main(arguments(base, stickers, tmp_path, "--streaming", "--max_train_steps", 2)) == 0


def test_bf16_on_a_processor_without_it_is_said(caplog, monkeypatch):
    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for supported in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda supported=supported: supported)
        warn_if_bf16_is_slow(accelerator)
        assert ("no bfloat16 instructions" in caplog.text) is not supported


def test_user_errors_end_in_one_line(script, base, stickers, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--pretrained_model_name_or_path", str(base)])
    assert "--train_data_dir" in capsys.readouterr().err.splitlines()[-1]
    assert script.main(arguments(base, tmp_path, tmp_path)) == 2
    assert script.main(arguments(base, stickers, tmp_path, "--caption_column", "words")) == 2
    assert "file_name, text" in capsys.readouterr().err
    assert script.main(arguments(base, stickers, tmp_path, "--resume_from_checkpoint", "checkpoint-7")) == 2
    assert script.main(arguments(tmp_path / "nowhere", stickers, tmp_path)) == 2
