"""The comparison of methods: its stages on a few drawn stickers, what decides a claim, and the source domain."""

import importlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, load_example
from PIL import Image
from tiny_models import make_unet

from rdtf_diffusers.baselines import CustomizeAVideoConfig, CustomizeAVideoModel, I2VAdapterConfig, I2VAdapterModel


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    return load_example("compare_methods.py")


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # jobs import the scripts by name
    return importlib.import_module("comparison_jobs")


@pytest.fixture(scope="module")
def report():
    return load_example("comparison_report.py")


@pytest.fixture(scope="module")
def source():
    return load_example("source_domain.py")


@pytest.fixture
def no_plots(jobs, monkeypatch):
    """They take longer than the trainings."""
    module = importlib.import_module("train_rdtf")
    for name in ("plot_losses", "plot_curriculum"):
        monkeypatch.setattr(module, name, lambda *args: None)


def compare(script, monkeypatch, *args):
    """Runs the script with its jobs in this process; returns the exit code and the folders of the jobs."""
    ran = []

    def run_process(self, chain, threads):
        ran.append(chain[0].folder.name)
        try:
            return script.work(chain, threads)
        except SystemExit as stop:
            return stop.code

    monkeypatch.setattr(script.Comparison, "run_process", run_process)
    monkeypatch.setattr(importlib.import_module("comparison_jobs"), "end_with_parent", lambda: None)
    return script.main([str(arg) for arg in args]), ran


@pytest.mark.usefixtures("no_plots")
def test_a_comparison_goes_on_and_reports(script, base, stickers, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "comparison"
    args = ["--train_data_dir", stickers, "--dataset", stickers, "--output_dir", folder]
    args += ["--pretrained_model_name_or_path", base, "--resolution", 16, "--block_out_channels", 16, 16]
    args += ["--base_block_out_channels", 16, 32, "--clips", 8, "--base_clips", 4, "--source_pictures", 4]
    args += ["--batch_size", 2, "--num_inference_steps", 1, "--methods", "sti", "customize_a_video"]
    args += ["--tasks", "it2v", "--learning_rates", 1e-3, 3e-3]
    args += ["--dtype", "bfloat16"]

    assert compare(script, monkeypatch, *args, "--time_limit", 0) == (0, [])
    assert not (folder / "results.md").exists()

    code, ran = compare(script, monkeypatch, *args, "--seeds", 1)
    assert code == 0, capsys.readouterr().err
    rates = [f"{name}-{rate}" for name in ("rdtf", "customize_a_video") for rate in ("0.001", "0.003")]
    assert ran == ["source-latents", "sticker-latents", "base", *rates, "sti-0", "customize_a_video-0"]

    code, ran = compare(script, monkeypatch, *args, "--seeds", 2)
    assert (code, ran) == (0, ["base", "sti-1", "customize_a_video-1"])  # base: samples alone
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [table["task"] for table in results["tables"]] == ["it2v", "it2v"]
    titles = ["base, not tuned", "STI", "Customize-A-Video"]
    assert [row["name"] for row in results["tables"][0]["rows"] if row["kind"] == "model"] == titles
    assert {row["seeds"] for row in results["tables"][0]["rows"] if row["kind"] == "model"} == {2}
    figure = next(figure for figure in results["tables"][0]["figures"] if figure["row"] == "STI")
    assert len(figure["by_seed"]) == 2 and np.mean(figure["by_seed"]) == pytest.approx(figure["value"])
    sizes = {method["title"]: (method["parameters"], method["trained"]) for method in results["methods"]}
    whole = sizes["base, not tuned"][0]
    assert sizes["STI"][0] == sizes["STI"][1]
    assert sizes["Customize-A-Video"][0] == whole + sizes["Customize-A-Video"][1]
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "## Claims" in text
    with Image.open(folder / "comparison.png") as plot:
        assert plot.width > 500
    page = (folder / "evaluation" / "index.html").read_text(encoding="utf-8")
    assert all((folder / "evaluation" / file).is_file() for file in re.findall(r'src="([^"]+)"', page))

    assert compare(script, monkeypatch, *args, "--clips", 16)[0] == 2
    assert "was begun with clips 8, not 16" in capsys.readouterr().err


@pytest.mark.parametrize("words, passed", [([], False), (["--mixed_precision", "bf16"], True)])
def test_trainings_have_the_precision_that_was_asked_for(script, words, passed):
    asked = script.parse_args(["--train_data_dir", "a", "--dataset", "b", *words])
    given = script.Comparison.training(SimpleNamespace(args=asked), "cache", 64, 1e-3, 0)
    assert ("--mixed_precision" in given) == passed == ("bf16" in given)


@pytest.mark.usefixtures("jobs")
def test_a_job_that_fails_says_why(script, base, stickers, tmp_path, capsys):
    done = tmp_path / "comparison" / "source-latents" / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    words = ["--train_data_dir", str(tmp_path / "missing"), "--dataset", str(stickers), "--resolution", "16"]
    words += ["--output_dir", str(tmp_path / "comparison"), "--source_pictures", "2"]
    assert script.main([*words, "--pretrained_model_name_or_path", str(base)]) == 2  # in a process of its own
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"compare_methods.py: error: .*sticker-latents.log: prepare_dataset.py: error: .*missing", said)


@pytest.mark.parametrize(
    "words, message",
    [
        ("--clips 8", "--clips must be at least 4 batches"),
        ("--methods lora", "invalid choice"),
        ("--guidance_stop 2", "must be from 0 to 1, got 2"),
        ("--output_dir", "expected one argument"),
    ],
)
def test_wrong_arguments_end_in_one_line(script, words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.parse_args(["--train_data_dir", "a", "--dataset", "b", *words.split()])
    assert message in capsys.readouterr().err


def test_customize_a_video_has_as_many_weights_as_i2v_adapter(jobs):
    unet = make_unet()
    rank = jobs.matched_rank(unet)
    counts = []
    for model, config in ((I2VAdapterModel, I2VAdapterConfig()), (CustomizeAVideoModel, CustomizeAVideoConfig(rank))):
        adapter = model(unet, config)
        counts.append(sum(weight.numel() for weight in adapter.trainable_parameters()))
        adapter.unload()
    per_rank = counts[1] / rank
    assert abs(counts[1] - counts[0]) <= max(per_rank / 2, per_rank - counts[0])


def test_i2v_adapter_starts_from_the_first_frame(jobs):
    calls = []

    def encode(pixels, mask):
        return torch.full((2, 4, 1, 8, 8), 0.5)

    scheduler = SimpleNamespace(
        init_noise_sigma=1.0,
        set_timesteps=lambda *args, **kwargs: None,
        timesteps=torch.tensor([999]),
        add_noise=lambda latents, noise, timesteps: latents + noise,
    )

    class Pipeline:
        def __call__(self, **kwargs):
            calls.append(kwargs)

    pipeline = Pipeline()
    pipeline.scheduler, pipeline.encode_known_frames = scheduler, encode
    pipeline.prepare_known_frames = lambda frames, height, width: (frames, None)
    call = jobs.from_first_frame(pipeline)
    about = {"num_frames": 3, "height": 8, "width": 8, "num_inference_steps": 2}
    about["generator"] = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    call(frames=[["picture", None, None]] * 2, prompt=["a", "b"], **about)
    assert (calls[0]["latents"][:, :, 0] == 0.5).all() and calls[0]["latents"].shape == (2, 4, 3, 8, 8)
    assert calls[0]["prompt"] == ["a", "b"] and "callback_on_step_end" in calls[0]
    for frames in (None, [[None, "picture", None]] * 2):
        call(frames=frames, prompt=["a", "b"], **about)
        assert "latents" not in calls[-1] and calls[-1]["frames"] is frames


def table(difference, low, high, by_seed, goal="lower", row="RDTF", against="SimDA"):
    figures = [
        {"row": name, "measure": "frechet/sticker", "title": "FVD", "goal": goal, "by_seed": seeds, "value": seeds[0]}
        for name, seeds in zip(("RDTF", "SimDA"), by_seed)
    ]
    test = {"row": row, "against": against, "measure": "frechet/sticker", "difference": difference}
    test |= {"low": low, "high": high, "p_value": 0.01, "n": 12}
    return {"set": "validation", "task": "it2v", "figures": figures, "tests": [test]}


@pytest.mark.parametrize(
    "made, gain, said",
    [
        (table(-3, -5, -1, ([1, 2], [4, 5])), 3, "holds"),
        (table(3, 1, 5, ([1, 2], [4, 5]), row="SimDA", against="RDTF"), 3, "holds"),
        (table(-3, -5, -1, ([1, 6], [4, 5])), 3, "open"),  # one seed says otherwise
        (table(-3, -5, 1, ([1, 2], [4, 5])), 3, "open"),
        (table(3, 1, 5, ([4, 5], [1, 2])), -3, "does not hold"),
        (table(-0.3, -0.5, -0.1, ([0.9, 0.8], [0.4, 0.5]), goal="higher"), 0.3, "holds"),
    ],
)
def test_a_claim_holds_where_clips_and_seeds_say_so(report, made, gain, said):
    titles = {"rdtf": "RDTF", "simda": "SimDA"}
    (found,) = report.verdicts([made], titles)
    assert (found["better"], found["worse"], found["verdict"]) == ("RDTF", "SimDA", said)
    assert found["difference"] == pytest.approx(gain) and found["low"] <= gain <= found["high"]
    assert not list(report.verdicts([made], {"rdtf": "RDTF"}))
    assert not list(report.verdicts([made | {"task": "t2v"}], titles))


def test_source_pictures_are_textured_shapes(source, tmp_path):
    source.write_source_pictures(tmp_path / "a", number=12, seed=3)
    source.write_source_pictures(tmp_path / "b", number=3, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(re.match(rf"an? ({'|'.join(source.TEXTURES)}) ", row["text"]) for row in rows)
    for row in rows[:3]:  # a picture depends on the seed and its number alone
        assert (tmp_path / "a" / row["file_name"]).read_bytes() == (tmp_path / "b" / row["file_name"]).read_bytes()
    with Image.open(tmp_path / "a" / rows[0]["file_name"]) as picture:
        assert picture.mode == "RGBA" and picture.getextrema()[3] == (0, 255)


def test_textures_are_shares(source):
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    for name, texture in source.TEXTURES.items():
        share = np.asarray(texture(x, y, np.random.default_rng(0)), dtype=float)
        assert share.shape == (32, 32) and share.min() >= 0 and share.max() <= 1
        assert (share.std() > 0.05) == (name != "plain")
