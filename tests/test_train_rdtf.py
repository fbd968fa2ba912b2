"""The training script end to end on a few drawn stickers and a model of some thousand parameters."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertConfig, BertModel, BertTokenizer

from rdtf_diffusers import StickerGenerationPipeline


EXAMPLE = Path(__file__).parents[1] / "examples" / "train_rdtf.py"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "_", "a", "red", "blue", "ball", "moving", "##s"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_rdtf", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PRESETS["tiny"] = {
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        "sti_num_heads": 1,
        "sti_head_dim": 8,
    }
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline folder with everything but the UNet."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=4,
        out_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=8)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text_encoder = BertModel(BertConfig(vocab_size=len(WORDS), **sizes))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    folder = tmp_path_factory.mktemp("base")
    StickerGenerationPipeline(vae, text_encoder, tokenizer, None, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stickers(tmp_path_factory):
    """Three animated balls and three still ones, with captions."""
    folder = tmp_path_factory.mktemp("stickers")
    rows = []
    for index, colour in enumerate(["red", "blue", "green"] * 2):
        frames = []
        for step in range(8):
            frame = Image.new("RGBA", (16, 16))
            ImageDraw.Draw(frame).ellipse((step, index, step + 7, index + 7), fill=colour)
            frames.append(frame)
        name = f"{index}.webp"
        rest = frames[1:] if index < 3 else []
        frames[0].save(folder / name, save_all=True, append_images=rest, duration=125, lossless=True)
        rows.append({"file_name": name, "text": f"a {colour} ball"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def arguments(base, stickers, output_dir, *more):
    return [
        *("--pretrained_model_name_or_path", str(base), "--train_data_dir", str(stickers)),
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
    row = trainer.dataset[0]
    losses = [trainer.step(step, iter([[row] * 2]))["loss"] for step in range(80)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_user_errors_end_in_one_line(script, base, stickers, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--pretrained_model_name_or_path", str(base)])
    assert "--train_data_dir" in capsys.readouterr().err.splitlines()[-1]
    assert script.main(arguments(base, tmp_path, tmp_path)) == 2
    assert script.main(arguments(base, stickers, tmp_path, "--caption_column", "words")) == 2
    assert "file_name, text" in capsys.readouterr().err
    assert script.main(arguments(base, stickers, tmp_path, "--resume_from_checkpoint", "checkpoint-7")) == 2
    assert script.main(arguments(tmp_path / "nowhere", stickers, tmp_path)) == 2
