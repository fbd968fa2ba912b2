"""The benchmarks run, on models of a few thousand parameters, and count what they say they count."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from example_scripts import load_example
from PIL import Image, ImageDraw
from tiny_models import TINY_UNET, make_pipeline
from torch.utils.checkpoint import checkpoint

from rdtf_diffusers.data.procedural import MOTIONS
from rdtf_diffusers.metrics.sticker_encoder import FrozenText, StickerEncoderModel
from rdtf_diffusers.training import PRESETS


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for colour in ("red", "green"):
        picture = Image.new("RGBA", (16, 16))
        ImageDraw.Draw(picture).ellipse((3, 3, 12, 12), fill=colour)
        picture.save(folder / f"{colour}.png")
        rows.append({"file_name": f"{colour}.png", "text": f"a {colour} ball"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_sampling_table(tmp_path, pictures, capsys):
    sampling = load_example("benchmarks/sampling.py")
    make_pipeline().save_pretrained(tmp_path / "model")
    args = ["--model", str(tmp_path / "model"), "--data", str(pictures), "--count", "4"]
    settings = ["2,2,1,0,0.5", "unipc:3,2,1,0"]
    sheet, written = tmp_path / "sheet.png", tmp_path / "table.json"
    assert sampling.main([*args, "--settings", *settings, "--sheet", str(sheet), "--json", str(written)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    still, truth, *rows = json.loads(written.read_text())["rows"]
    for row, setting in zip(rows, settings, strict=True):
        assert {key: row[key] for key in sampling.parse_settings(setting)} == sampling.parse_settings(setting)
        assert row["error"] > 0 and row["motion"] > 0 and row["fvd"] > 0
    assert still["error"] > 0 == still["motion"] and truth["error"] == 0 and truth["motion"] == 1
    with Image.open(sheet) as picture:
        assert picture.size == (8 * 8, 4 * 2 * 8)
    for wrong in ("2,2", "magic:2,2,1,0", "2,2,1,0,2", "2,2,1,0,1,1"):
        with pytest.raises(SystemExit):
            sampling.main([*args, "--settings", wrong])
    capsys.readouterr()
    assert sampling.main([*args[:2], "--data", str(tmp_path / "nothing")]) == 2
    assert "sampling.py: error: " in capsys.readouterr().err


@pytest.mark.parametrize("task", ["it2v", "t2v"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_levels_table(tmp_path, pictures, capsys, task, prediction_type):
    noise_levels = load_example("benchmarks/noise_levels.py")
    pipe = make_pipeline()
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    pipe.save_pretrained(tmp_path / "model")
    args = ["--model", str(tmp_path / "model"), "--data", str(pictures), "--count", "3", "--task", task]
    assert noise_levels.main([*args, "--levels", "10", "990"]) == 0
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == f"3 clips, {task}, seed 0"
    assert [row.split()[0] for row in rows] == ["990", "10"] and rows[1].endswith("100%")
    for wrong in (["--count", "1"], ["--task", "i2v"]):
        with pytest.raises(SystemExit):
            noise_levels.main([*args, *wrong])
    assert noise_levels.main([*args, "--levels", "1000"]) == 2
    assert "noise_levels.py: error: noise levels of this model are 0 to 999" in capsys.readouterr().err
    assert noise_levels.main([*args[:2], "--data", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize("task", ["it2v", "t2v"])
def test_noise_levels_count_the_hidden_frames_with_own_and_other_words(task):
    noise_levels = load_example("benchmarks/noise_levels.py")
    pipe = make_pipeline()
    frames, width = pipe.unet.config.num_frames, pipe.unet.config.cross_attention_dim
    shape = (3, pipe.unet.config.out_channels, frames, 4, 4)
    data = {"latents": torch.randn(shape), "text": {"encoder_hidden_states": torch.randn(3, 2, width)}}
    seen = []

    def unet(sample, timestep, encoder_hidden_states, condition_latents):
        seen.append((encoder_hidden_states, condition_latents))
        drawn = torch.zeros_like(sample)
        drawn[:, :, 0] = 100.0  # the first frame is all wrong
        return type("Output", (), {"sample": drawn})

    pipe.register_modules(unet=None)
    pipe.unet = unet
    pipe.scheduler.register_to_config(prediction_type="epsilon")
    own, other = noise_levels.errors(pipe, data, task, 500, seed=0)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(shape)
    if task == "it2v":
        given[:, :, 0] = data["latents"][:, :, 0]
        assert own == other == pytest.approx(noise[:, :, 1:].square().mean().item(), rel=1e-5)
    else:
        assert own == other > 100
    for _, condition in seen:
        torch.testing.assert_close(condition, given)
    text = data["text"]["encoder_hidden_states"]
    assert torch.equal(seen[0][0], text) and torch.equal(seen[1][0], text[[2, 0, 1]])


def test_only_still_pictures_are_set_in_motion(tmp_path, pictures):
    sampling, pipe = load_example("benchmarks/sampling.py"), make_pipeline()
    animation = [Image.open(pictures / name) for name in ("red.png", "green.png")]
    animation[0].save(tmp_path / "changing.webp", save_all=True, append_images=animation[1:], duration=100)
    rows = [{"file_name": "changing.webp", "text": "a changing ball"}]
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    with pytest.raises(ValueError, match="no still picture to set in motion"):
        sampling.true_clips(pipe, str(tmp_path), 2, 0)
    Image.open(pictures / "green.png").save(tmp_path / "green.png")
    rows.append({"file_name": "green.png", "text": "a green ball"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    moved = sampling.true_clips(pipe, str(tmp_path), 3, 0)
    assert len(moved.clips) == 3 and all("green ball" in caption for caption in moved.captions)


def test_sampling_compares_premultiplied_pictures():
    sampling = load_example("benchmarks/sampling.py")
    picture = torch.tensor([0.5, 0.25, 0.0, 0.5]).view(4, 1, 1)
    assert sampling.straight(picture).flatten().tolist() == [1.0, 0.5, 0.0, 0.5]
    clips = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1, 1)
    assert sampling.motion(clips) == 0.75


def test_autoencoder_table(tmp_path, pictures, capsys):
    autoencoder = load_example("benchmarks/autoencoder.py")
    make_pipeline().save_pretrained(tmp_path / "model")
    args = [
        "--data",
        str(pictures),
        "--model",
        str(tmp_path / "model"),
        "--resolution",
        "16",
        "--projections",
        "1",
        "256",
    ]
    autoencoder.main([*args, "--json", str(tmp_path / "table.json")])
    assert len(capsys.readouterr().out.splitlines()) == 5
    table = json.loads((tmp_path / "table.json").read_text())
    coarse, whole, model = table["rows"]
    assert table["pictures"] == 2 and coarse["psnr"] < 60 < whole["psnr"] and whole["alpha_iou"] == 1
    assert model["name"] == "model" and model["psnr"] > 0
    with pytest.raises(SystemExit):
        autoencoder.parse_args(["--data", str(pictures), "--resolution", "20"])
    with pytest.raises(SystemExit):
        autoencoder.parse_args(["--data", str(pictures), "--projections", "0"])
    assert autoencoder.main([*args, "--data", str(tmp_path / "nothing")]) == 2


def test_data_table(tmp_path, pictures, base, capsys, monkeypatch):
    data = load_example("benchmarks/data.py")
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], unet=TINY_UNET))
    options = data.parse_args(["--resolution", "16", "--count", "4", "--model", str(base)])
    data.draw_stickers(pictures, 4)
    source = [str(pictures)]
    stages = data.measure_stages(options, source, tmp_path / "stages")
    assert stages["read a file"]["per_second"] > 0 and stages["keyframes, k = 3..8"]["unit"] == "animations"
    prepared = data.prepare(options, source, tmp_path / "cache")
    assert prepared["clips_per_sticker"] == 3  # two animations, and two pictures with four motions each
    words = data.script_args(options, [], {"latent_cache": tmp_path / "cache", "output_dir": tmp_path / "run"})
    row = data.measure_training([*words, "--max_train_steps", "5", "--report_to", "none"], steps=2, threads=2)
    assert 0 < row["waiting_share"] < 1 and row["step_seconds"] > 0 and row["peak_gb"] > 0
    projected = data.project(prepared)
    hours = 2_100_000 / prepared["stickers_per_second"] / 3600
    assert projected["as measured"]["hours"] == pytest.approx(hours)
    training = {"files": row, "cache": row}
    data.print_report(
        {"stages": stages, "prepared": prepared, "training": training, "2.1 million stickers": projected}
    )
    assert "waits" in capsys.readouterr().out


def test_training_table(tmp_path, monkeypatch, capsys):
    training = load_example("benchmarks/training.py")
    with training.FakeTensorMode(), training.LiveBytes() as memory:
        layers = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.GELU(), torch.nn.Linear(20, 5))
        batch = torch.randn(3, 10)
        assert memory.live == 4 * (20 * 10 + 20 + 5 * 20 + 5 + 3 * 10)
        before, _ = memory.live, memory.lap()
        output = layers(batch)
        two_hidden, result = 4 * 3 * 20 * 2, 4 * 3 * 5
        assert memory.live - before == memory.lap() - before == two_hidden + result  # inputs of GELU and second layer
        del output
        assert memory.live == before
        memory.lap()
        output = checkpoint(layers, batch, use_reentrant=False)
        assert (memory.live - before, memory.lap() - before) == (result, two_hidden)

    tiny = dataclasses.replace(training.PRESETS["tiny"], unet=TINY_UNET | {"block_out_channels": (16,)})
    monkeypatch.setitem(training.PRESETS, "paper", tiny)
    monkeypatch.setitem(training.SHAPES, "paper", training.Shapes(4, 4, 8))
    monkeypatch.setattr(training, "in_fresh_process", lambda function, *args: function(*args))
    monkeypatch.setattr(training, "frozen_parts", lambda: {"parameters": {"vae": 1000}, "encoding_bytes": 10**9})
    words = ["--presets", "paper", "--measure", "paper", "--peers", "--rounds", "1", "--steps", "1", "--threads", "1"]
    training.main([*words, "--json", str(tmp_path / "table.json")])
    output = capsys.readouterr().out
    assert "paper, checkpointing" in output and "8-bit Adam, average offloaded, no latent cache" in output
    figures = json.loads((tmp_path / "table.json").read_text())
    (row,) = figures["measured"]
    assert row["measured"]["seconds"] > 0 and row["measured"]["peak_bytes"] > 0

    unet = training.build("paper")
    count, tensors = unet.num_parameters(), len(list(unet.parameters()))
    computed = row["computed"]
    assert computed["parameters"] == computed["trainable"] == count
    assert computed["weight_bytes"] == computed["gradient_bytes"] == 4 * count
    assert computed["optimiser_bytes"] == 8 * count + 4 * tensors  # two moments, and a number of steps per tensor
    assert computed["checkpoint_bytes"] == 16 * count + 4 * tensors
    plans = figures["plans"]["paper"]
    assert plans["AdamW, average on the device"] - plans["AdamW, average offloaded"] == 4 * count
    no_cache = plans["AdamW, average offloaded, no latent cache"]
    assert no_cache == 2 * 1000 + 10**9 + 12 * count + 4 * tensors  # encoding, before there are gradients
    assert training.adam_8bit_bytes(4096) == 2 * 4096 + 2 * 4 * 16 and training.adam_8bit_bytes(4095) == 8 * 4095

    rows = {row["adapter"]: row for row in figures["adapters"]}
    assert list(rows) == [None, *training.ADAPTERS] and all("measured" in row for row in rows.values())
    for name in training.ADAPTERS:
        base = training.build("paper", temporal_layer="conv3d")
        frozen = base.num_parameters()
        training.ADAPTERS[name](base)
        trained = [weight for weight in base.parameters() if weight.requires_grad]
        computed = rows[name]["computed"]
        assert computed["trainable"] == sum(weight.numel() for weight in trained)
        assert computed["parameters"] == frozen + computed["trainable"]
        assert computed["gradient_bytes"] == 4 * computed["trainable"]
        assert computed["checkpoint_bytes"] == 16 * computed["trainable"] + 4 * len(trained)
    assert [run.label for run in training.preset_runs("tiny", training.parse_args([]))] == [
        "tiny",
        "tiny, checkpointing",
        "tiny, channels_last",
    ]


def test_export_table(tmp_path, capsys):
    export = load_example("benchmarks/export.py")
    args = ["--platforms", "slack", "discord-emoji", "telegram-emoji", "--kinds", "flat", "gradient"]
    export.main([*args, "--frames", "2", "--sizes", "64", "--json", str(tmp_path / "table.json")])
    summary = capsys.readouterr().out.splitlines()[-2:]
    assert summary == ["6 of 6 clips pass, 0 are refused", "SSIM is at least Pillow's in 4 of 4"]
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["platform"] for row in rows if "ssim" not in row] == 2 * ["telegram-emoji"]  # Pillow has no peer


def test_export_measures_similarity_and_reads_joined_frames():
    export = load_example("benchmarks/export.py")
    clip = export.draw_photo(2, 32)
    noisy = clip.copy()
    noisy[..., :3] ^= 16
    assert export.ssim(clip, clip) == pytest.approx(1)
    assert export.ssim(clip, noisy) < 0.99
    joined = export.save([Image.fromarray(clip[place]) for place in (0, 0, 1)], "WEBP", lossless=True, duration=100)
    assert export.read(joined, 3)[:, 16, 16].tolist() == clip[[0, 0, 1], 16, 16].tolist()


def test_pictures_of_exported_files(monkeypatch):
    pictures = load_example("benchmarks/export_pictures.py")
    monkeypatch.setattr(pictures, "FORMATS", {"GIF": "twitch"})
    frames = np.zeros((2, 32, 32, 4), np.uint8)
    frames[0, 8:24, 8:24] = frames[1, 9:25, 9:25] = (250, 40, 10, 255)
    edges = np.asarray(pictures.draw_edges(frames))
    assert edges.shape == (14 + 3 * 100, 2 * 96 + 8, 3)
    assert {(0, 0, 0), (0, 200, 80), (250, 40, 10)} <= {tuple(colour) for colour in edges[14:, 100:196].reshape(-1, 3)}
    grown = np.asarray(pictures.draw_growing(frames, times=2, side=16))
    assert grown.shape == (34, 4 * 20 + 4, 3) and (grown[14:30, 4:20] == (250, 40, 10)).all()


@pytest.fixture(scope="module")
def sticker_encoder(tmp_path_factory):
    """The folder of an encoder with random weights."""
    torch.manual_seed(0)
    model = StickerEncoderModel(
        sample_size=16,
        widths=(8, 8, 16),
        num_layers=1,
        num_heads=1,
        motions=tuple(MOTIONS),
        text_encoder=FrozenText().fingerprint,
    )
    folder = tmp_path_factory.mktemp("sticker-encoder")
    model.save_pretrained(folder)
    return folder


def save_stickers(folder, count, frames):
    """Balls of `count` sizes, which roll if there are several frames."""
    folder.mkdir()
    rows = []
    for number in range(count):
        pictures = [Image.new("RGBA", (16, 16)) for _ in range(frames)]
        for left, picture in enumerate(pictures):
            ImageDraw.Draw(picture).ellipse((left, 3, left + 4 + number / 4, 12), fill=(10 * number, 80, 200))
        picture, *others = pictures
        picture.save(folder / f"{number}.webp", save_all=True, append_images=others, duration=100, lossless=True)
        rows.append({"file_name": f"{number}.webp", "text": f"ball {number}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_measures_answer_to_damage(tmp_path, sticker_encoder, monkeypatch, capsys):
    metrics = load_example("benchmarks/metrics.py")
    monkeypatch.setattr(metrics, "STRENGTHS", (0.0, 0.5, 1.0))
    data = save_stickers(tmp_path / "stickers", 24, frames=1)
    args = ["--data", str(data), "--count", "24", "--size", "16", "--encoder", str(sticker_encoder)]
    files = {suffix: tmp_path / f"damage.{suffix}" for suffix in ("png", "json")}
    metrics.main([*args, "--plot", str(files["png"]), "--json", str(files["json"])])
    assert "rank correlation" in capsys.readouterr().out and files["png"].stat().st_size > 10_000
    figures = json.loads(files["json"].read_text())
    assert len(figures["rows"]) == len(metrics.DAMAGES) * len(metrics.STRENGTHS)
    whole = [row for row in figures["rows"] if row["strength"] == 0]
    assert all({**row, "damage": ""} == {**whole[0], "damage": ""} for row in whole), "without damage all are equal"
    assert figures["correlations"]["motion log ratio, freeze"] > 0.9
    assert figures["correlations"]["flicker, noise"] > 0.9
    assert "motion named" in whole[0] and "motion named" in figures["encoder"]


def test_measures_of_animations_alone(tmp_path, sticker_encoder, monkeypatch, capsys):
    """Nobody knows their motions' names."""
    metrics = load_example("benchmarks/metrics.py")
    monkeypatch.setattr(metrics, "STRENGTHS", (0.0, 1.0))
    data = save_stickers(tmp_path / "stickers", 10, frames=3)
    args = ["--data", str(data), "--size", "16", "--encoder", str(sticker_encoder), "--count"]
    files = {suffix: tmp_path / f"damage.{suffix}" for suffix in ("png", "json")}
    metrics.main([*args, "10", "--plot", str(files["png"]), "--json", str(files["json"])])
    assert "motion named" not in capsys.readouterr().out + files["json"].read_text()
    with pytest.raises(SystemExit, match="--count must be from 10 to 10, all stickers of --data, got 12"):
        metrics.main([*args, "12"])


def test_damage_is_what_it_says():
    metrics = load_example("benchmarks/metrics.py")
    clips = torch.rand(6, 8, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, damage in metrics.DAMAGES.items():
        undamaged = damage(clips, 0.0, torch.Generator().manual_seed(0))
        if name == "noise":  # which keeps colours below alpha
            clips = undamaged
        assert torch.equal(undamaged, clips), name
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(metrics.freeze(clips, 1.0, generator), clips[:, :1].expand_as(clips))
    shuffled = metrics.shuffle(clips, 1.0, generator)
    for ours, theirs in zip(shuffled, clips):
        assert not any(torch.equal(frame, other) for frame, other in zip(ours, theirs))
        assert sorted(frame.sum().item() for frame in ours) == sorted(frame.sum().item() for frame in theirs)
    wrong = metrics.wrong_clip(clips, 0.5, generator)
    assert sum(torch.equal(clip, other) for clip, other in zip(wrong, clips)) == 3
    flat = torch.full((1, 1, 4, 32, 32), 1.0)
    assert torch.allclose(metrics.blur(flat, 0.3, generator)[..., 16, 16], torch.tensor(1.0), atol=1e-5)
