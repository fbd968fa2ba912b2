"""The evaluation script end to end on drawn stickers and models of some thousand parameters."""

import json
import logging
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from example_scripts import load_example
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw
from tiny_models import make_pipeline, make_unet, make_vae

from rdtf_diffusers import read_animation, save_sticker
from rdtf_diffusers.data.animation import frames_to_clip
from rdtf_diffusers.data.procedural import MOTIONS
from rdtf_diffusers.metrics import sticker_encoder


pytestmark = pytest.mark.usefixtures("one_thread", "small_encoder")

CAPTION = "a <b>red</b> & round ball"


@pytest.fixture(scope="module")
def script():
    return load_example("evaluate.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four animated balls and four still ones; the captions would be markup if nobody took care."""
    folder = tmp_path_factory.mktemp("data") / "balls"
    folder.mkdir()
    rows = []
    for index in range(8):
        frames = [Image.new("RGBA", (32, 32)) for _ in range(8 if index < 4 else 1)]
        for step, frame in enumerate(frames):
            left, colour = 2 * step, ("red", "blue", "green", "black")[index % 4]
            ImageDraw.Draw(frame).ellipse((left, 3 * (index % 4), left + 14, 3 * (index % 4) + 14), fill=colour)
        save_sticker(frames, folder / f"{index}.webp", fps=8)
        rows.append({"file_name": f"{index}.webp", "text": CAPTION})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three pipelines by name: 16 pixels, 8 pixels, and 16 pixels over white."""
    folder = tmp_path_factory.mktemp("models")
    pipelines = {
        "large": make_pipeline(unet=make_unet(sample_size=8)),
        "small": make_pipeline(),
        "opaque": make_pipeline(unet=make_unet(sample_size=8), vae=make_vae(channels=3)),
    }
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(folder / name)
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "image_guidance_scale": 1.0, "eta": 1.0}
    (folder / "large" / "generation.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    text = sticker_encoder.FrozenText()
    sizes = {"sample_size": 16, "widths": (8, 8, 8), "num_layers": 1, "num_heads": 1, "embed_dim": 8}
    sizes |= {"text_dim": text.model.config.hidden_size, "text_encoder": text.fingerprint}
    sticker_encoder.StickerEncoderModel(**sizes, motions=tuple(MOTIONS)).save_pretrained(folder)
    return folder


@pytest.fixture
def small_encoder(encoder_folder, monkeypatch):
    """The bundled sticker encoder is one that knows nothing, but takes no time."""
    monkeypatch.setattr(sticker_encoder, "sticker_encoder_checkpoint", lambda: encoder_folder)


def arguments(models, data, output_dir, *more, names=("large",)):
    return [
        *("--pipeline", *(str(models / name) for name in names), "--dataset", str(data)),
        *("--output_dir", str(output_dir), "--seeds", "2", "--tasks", "it2v", "interpolation", "--batch_size", "4"),
        *("--num_inference_steps", "2"),
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def finished(script, models, data, encoder_folder, tmp_path_factory):
    """The folder of a run with two models of different sizes and all references."""
    folder = tmp_path_factory.mktemp("finished") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sticker_encoder, "sticker_encoder_checkpoint", lambda: encoder_folder)
        assert script.main(arguments(models, data, folder, "--train_dataset", data, names=("large", "small"))) == 0
    return folder


def read_results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def find(entries, **wanted):
    return [entry for entry in entries if all(entry[name] == value for name, value in wanted.items())]


# --- samples


def test_samples_keep_the_given_frames_and_differ_by_seed(finished):
    files = sorted((finished / "samples" / "large" / "balls" / "interpolation").iterdir())
    assert [file.name for file in files] == [f"0000{clip}-{seed}.webp" for clip in range(4) for seed in range(2)]
    real = read_animation(finished / "real" / "16px" / "balls" / "00001.webp").pick(8)
    first, second = (read_animation(file).pick(8) for file in files[2:4])
    for number in range(8):
        same = np.array_equal(first[number], second[number])
        assert same == (number in (0, 3, 6)), number
        if same:
            visible = real[number][..., 3] > 0
            assert np.array_equal(real[number][visible], first[number][visible])
    assert len(list((finished / "samples" / "small").rglob("*.webp"))) == 2 * 2 * 4 * 2  # sets, tasks, clips, seeds


def test_frames_become_clips_and_come_back(script, data):
    cases = sys.modules["evaluation_cases"]
    frames = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 4), dtype=np.uint8)
    frames[..., 3] = np.maximum(frames[..., 3], 1)
    back = cases.clip_to_frames(frames_to_clip(frames, 6))
    assert np.array_equal(back[..., 3], frames[..., 3])
    assert np.abs(back.astype(int) - frames)[frames[..., 3] == 255].max(initial=0) == 0
    white = cases.clip_to_frames(frames_to_clip(frames, 6, channels=3))
    assert white.shape == (8, 6, 6, 3)


def test_the_number_of_processes_does_not_change_samples(script, models, data, finished, tmp_path):
    cases = sys.modules["evaluation_cases"]
    evaluation = script.Evaluation(script.parse_args(arguments(models, data, tmp_path)))
    model, pipeline = evaluation.load("large", str(models / "large"))
    for index in range(2):
        share = SimpleNamespace(
            process_index=index, num_processes=2, is_local_main_process=False, wait_for_everyone=lambda: None
        )
        sets = cases.write_real_clips(evaluation.stickers, model.form, tmp_path, share)
    tables = [cases.clips_of_task(clips, cases.EVALUATION_TASKS["it2v"], 8) for clips in sets[:1]]
    for index in range(2):
        share.process_index = index
        cases.generate(pipeline, model, cases.make_batches(tables, 2, 4), 0, tmp_path, share)
    made = sorted((tmp_path / "samples").rglob("*.webp"))
    assert len(made) == 8
    for file in made:
        assert file.read_bytes() == (finished / file.relative_to(tmp_path)).read_bytes()


def test_a_run_that_lost_samples_makes_the_same_ones_again(script, models, data, finished, tmp_path):
    folder = tmp_path / "evaluation"
    shutil.copytree(finished, folder)
    files = sorted((folder / "samples").rglob("*.webp"))
    lost = {file: file.read_bytes() for file in files[::13]}
    kept = {file: file.stat().st_mtime_ns for file in files if file not in lost}
    for file in lost:
        file.unlink()
    unfinished = files[0].with_name(".00000-0.webp.123")
    unfinished.write_bytes(b"cut")
    assert script.main(arguments(models, data, folder, "--train_dataset", data, names=("large", "small"))) == 0
    assert all(file.read_bytes() == content for file, content in lost.items())
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert not unfinished.exists()
    ours, theirs = read_results(folder), read_results(finished)
    for results in (ours, theirs):
        del results["time"], results["command"]
    assert ours == theirs
    for name in ("results.md", "model-index.yml", "index.html"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_another_seed_or_other_weights_are_refused(script, models, data, finished, tmp_path, capsys):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    shutil.copy(finished / "run.json", folder)
    assert script.main(arguments(models, data, folder, "--seed", 1)) == 2
    assert "was begun with seed 0, not 1 (arguments)" in capsys.readouterr().err
    make_pipeline(unet=make_unet(sample_size=8, sti_num_heads=1)).save_pretrained(tmp_path / "large")
    assert script.main(arguments(tmp_path, data, folder)) == 2
    assert re.search(r"was begun with unet \w+, not \w+ \(model large\)", capsys.readouterr().err)
    assert script.main(arguments(models, data, folder, "--num_inference_steps", 3)) == 2
    assert "num_inference_steps 2, not 3" in capsys.readouterr().err


# --- figures


def test_every_figure_says_what_it_is_made_of(finished):
    results = read_results(finished)
    assert [(table["set"], table["task"]) for table in results["tables"]] == [
        ("balls", "it2v"),
        ("balls", "interpolation"),
        ("balls, set in motion", "it2v"),
        ("balls, set in motion", "interpolation"),
    ]
    assert results["models"][0]["settings"]["num_inference_steps"] == 2
    for table in results["tables"]:
        assert len(table["clips"]) == 4
        for figure in table["figures"]:
            assert figure["low"] <= figure["high"] and 0 < figure["n"] <= 4 and figure["padding"] is None
            assert figure["seeds"] == (2 if figure["row"] in ("large", "small") else 1)
        for row in ("large", "small"):
            (error,) = find(table["figures"], row=row, measure="known_frame_error")
            assert (error["value"], error["low"], error["high"], error["n"]) == (0, 0, 0, 4)
            assert find(table["figures"], row=row, measure="frechet/sticker")
        values = np.array(table["values"]["large"]["flicker"])
        (figure,) = find(table["figures"], row="large", measure="flicker")
        assert values.shape == (4, 2) and figure["value"] == pytest.approx(values.mean())


def test_references_and_measures_are_those_that_fit_a_task(finished):
    tables = {(table["set"], table["task"]): table for table in read_results(finished)["tables"]}
    names = [row["name"] for row in tables["balls", "interpolation"]["rows"]]
    assert names[:4] == [
        "real clips, 16px",
        "known frames held, 16px",
        "known frames blended, 16px",
        "nearest training clip, 16px",
    ]
    assert names[-2:] == ["large", "small"]
    names = [row["name"] for row in tables["balls", "it2v"]["rows"]]
    assert names[:3] == ["real clips, 16px", "first frame repeated, 16px", "nearest training clip, 16px"]
    measured = {key: set(table["values"]["large"]) for key, table in tables.items()}
    assert measured["balls", "interpolation"] - measured["balls", "it2v"] == {"psnr", "ssim"}
    assert measured["balls, set in motion", "it2v"] - measured["balls", "it2v"] == {"asked_motion"}
    assert "ssim" not in tables["balls", "interpolation"]["values"]["small"]
    assert "psnr" not in tables["balls", "interpolation"]["values"]["real clips, 16px"]
    still = find(tables["balls", "it2v"]["figures"], row="first frame repeated, 16px", measure="motion_energy")
    assert still[0]["value"] == 0
    same = find(tables["balls", "it2v"]["figures"], row="nearest training clip, 16px", measure="motion_log_ratio")
    assert same[0]["value"] == pytest.approx(0, abs=0.01)  # the training clips are the same here, but not rounded


def test_pairs_that_are_tested(finished):
    table = read_results(finished)["tables"][1]
    pairs = {(test["row"], test["against"]) for test in find(table["tests"], measure="psnr")}
    references = {"known frames held", "known frames blended", "nearest training clip"}
    assert pairs == {("large", f"{name}, 16px") for name in references} | {
        ("small", f"{name}, 8px") for name in references
    }
    pairs = {(test["row"], test["against"]) for test in find(table["tests"], measure="text_similarity/sticker")}
    assert ("large", "small") in pairs and ("large", "known frames held, 8px") in pairs
    assert not find(table["tests"], measure="motion_energy")
    (test,) = find(table["tests"], measure="psnr", row="large", against="nearest training clip, 16px")
    assert test["difference"] > 50 and test["low"] > 0 and test["n"] == 4  # dB by which the model is worse


def test_a_row_is_best_only_where_tests_say_so(script):
    marks = sys.modules["evaluation_report"].marks

    def tests(*outcomes):
        return {
            "tests": [
                {"measure": "psnr", "row": row, "against": other, "difference": d, "low": d - 1, "high": d + 1}
                for row, other, d in outcomes
            ]
        }

    assert marks(tests(("a", "held", -2), ("a", "b", -2), ("b", "held", 0)), "psnr") == {"a": "best"}
    assert marks(tests(("a", "held", 2), ("b", "held", 2), ("a", "b", 0.5)), "psnr") == {"held": "best"}
    tie = marks(tests(("a", "held", -2), ("a", "b", 0.5), ("b", "held", -2)), "psnr")
    assert tie == {"a": "unbeaten", "b": "unbeaten"}
    assert marks(tests(("a", "held", 2), ("a", "blended", 2)), "psnr") == {"held": "unbeaten", "blended": "unbeaten"}
    assert marks(tests(("a", "b", -2)), "ssim") == {}


def test_asked_motion_counts_clips_with_one_motion(script):
    measures, cases = sys.modules["evaluation_measures"], sys.modules["evaluation_cases"]
    encoder = SimpleNamespace(
        motions=("jump", "spin"), classify_motion=lambda clips: torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    )
    asked = [cases.EvaluationClip(number, "", motion) for number, motion in enumerate(("jump", "spin", None))]
    clips = torch.zeros(3, 8, 3, 4, 4)
    shown = measures.Shown(clips, clips, torch.zeros(3, 8, dtype=torch.bool), asked)
    assert measures.motion_is_seen(encoder, shown).nan_to_num(-1).tolist() == [1, 0, -1]


def test_models_without_alpha_are_measured_over_white(script, models, data, tmp_path):
    more = ("--tasks", "prediction", "t2v", "--seeds", 1, "--features", "--text_similarity", "--train_dataset", data)
    assert script.main(arguments(models, data, tmp_path, *more, names=("opaque",))) == 0
    assert read_animation(tmp_path / "real" / "16px-over-white" / "balls" / "00000.webp").frames[..., 3].min() == 255
    prediction, words, *_ = read_results(tmp_path)["tables"]
    assert (prediction["known_frames"], words["known_frames"]) == ([0, 1, 2, 3], [])
    assert "alpha_iou" not in prediction["values"]["opaque"] and "known frames blended" not in prediction["values"]
    assert find(prediction["figures"], row="opaque", measure="known_frame_error")[0]["value"] == 0
    assert [row["name"] for row in words["rows"]] == ["real clips", "nearest training clip", "opaque"]


# --- reports


def test_markdown_and_model_index(finished):
    text = (finished / "results.md").read_text(encoding="utf-8")
    assert "## balls: interpolation, frames between given ones" in text
    assert re.search(r"^\| PSNR ↑ \(dB\) \|( .* \|){10}$", text, re.MULTILINE)
    assert "4 clips, of a model 2 samples each" in text and "no padding" in text and "<details>" in text
    block = (finished / "model-index.yml").read_text(encoding="utf-8")
    card = ModelCard(f"---\n{block}---\n# A model\n")
    errors = [
        result
        for result in card.data.eval_results
        if (result.metric_type, result.dataset_name, result.dataset_config) == ("known_frame_error", "balls", "it2v")
    ]
    assert len(errors) == 2  # one of each model
    for error in errors:
        assert (error.task_type, error.metric_value, error.metric_args["n"]) == ("image-text-to-video", 0, 4)


class Page(HTMLParser):
    """What a browser makes of the page: tags, the files of its pictures, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.files, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.files.append(unquote(dict(attributes)["src"]))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_files_beside_it_and_escapes_captions(finished):
    page = Page((finished / "index.html").read_text(encoding="utf-8"))
    assert all((finished / file).is_file() for file in page.files)
    assert len(page.files) == 4 * (2 * (1 + 2 * 3 + 4) + 2 * (1 + 2 * 4 + 4))  # clips of tables, with all rows
    assert "b" not in page.tags and "script" not in page.tags
    assert sum(CAPTION in words for words in page.words) >= 8
    given = [read_animation(finished / file).frames for file in page.files if file.startswith("given/")]
    assert {frames.shape for frames in given} == {(1, 16, 8 * 16, 4)}
    shown = [given[4][0][:, start : start + 16, 3].any() for start in range(0, 8 * 16, 16)]
    assert shown == [True, False, False, True, False, False, True, False]


# --- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--pipeline", "no/such/folder"), "`pipeline` no/such/folder: there is no such folder"),
        (("--dataset", str(Path(__file__).parent)), "tests: neither a folder with"),
        (("--max_clips", "1"), "needs at least two clips"),
        (("--features", "i3d:nowhere.pt"), "there is no nowhere.pt"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(script, models, data, tmp_path, capsys, more, message):
    assert script.main(arguments(models, data, tmp_path / "out", *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("evaluate.py: error: ") and message in line


def test_words_alone_need_captions(script, models, data, tmp_path, capsys):
    (tmp_path / "silent").mkdir()
    for name in ("0.webp", "1.webp"):
        shutil.copy(data / name, tmp_path / "silent")
    assert script.main(arguments(models, tmp_path / "silent", tmp_path / "out", "--tasks", "t2v")) == 2
    assert "silent: t2v needs at least two clips with a caption, got 0" in capsys.readouterr().err


def test_a_single_still_and_a_broken_file_are_left_out(script, models, data, tmp_path, caplog):
    for name in ("0.webp", "1.webp", "4.webp"):
        (tmp_path / "few").mkdir(exist_ok=True)
        shutil.copy(data / name, tmp_path / "few")
    (tmp_path / "few" / "broken.webp").write_bytes(b"RIFF")
    caplog.set_level(logging.WARNING)
    more = ("--tasks", "i2v", "--features", "--text_similarity")
    assert script.main(arguments(models, tmp_path / "few", tmp_path / "out", *more)) == 0
    assert "few, set in motion: left out" in caplog.text and "broken.webp" in caplog.text
    (table,) = read_results(tmp_path / "out")["tables"]
    assert len(table["clips"]) == 2 and not any("similarity" in name for name in table["values"]["large"])
