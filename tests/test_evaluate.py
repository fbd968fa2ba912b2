"""The evaluation script end to end on drawn stickers and models of some thousand parameters."""

import gc
import itertools
import json
import logging
import re
import shutil
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
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


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection():
    """The script collects garbage after every model, for which all imported libraries would be searched too."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


class Processes:
    """In place of several processes: threads that wait for each other and tell each other what they found."""

    def __init__(self, count):
        self.barrier, self.found = threading.Barrier(count, timeout=60), [None] * count
        self.shares = [
            SimpleNamespace(
                process_index=index,
                num_processes=count,
                is_main_process=index == 0,
                is_local_main_process=False,
                wait_for_everyone=self.barrier.wait,
            )
            for index in range(count)
        ]

    def gather(self, found):
        self.found[int(threading.current_thread().name)] = found
        self.barrier.wait()
        everything = [*itertools.chain(*self.found)]
        self.barrier.wait()
        return everything

    def run(self, work):
        results = [None] * len(self.shares)

        def run_one(share):
            results[share.process_index] = work(share)

        threads = [threading.Thread(target=run_one, args=(s,), name=str(s.process_index)) for s in self.shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_the_number_of_processes_does_not_change_samples(script, models, data, finished, tmp_path, monkeypatch):
    cases, processes = sys.modules["evaluation_cases"], Processes(2)
    monkeypatch.setattr(cases, "gather_object", processes.gather)
    evaluation = script.Evaluation(script.parse_args(arguments(models, data, tmp_path)))
    model, pipeline = evaluation.load("large", str(models / "large"))
    sets, others = processes.run(
        lambda share: cases.write_real_clips(evaluation.stickers, model.form, tmp_path, share)
    )
    assert sets == others and [clip.number for clip in sets[0].clips] == [0, 1, 2, 3]
    tables = [cases.clips_of_task(clips, cases.EVALUATION_TASKS["it2v"], 8) for clips in sets[:1]]
    for share in processes.shares:
        share.wait_for_everyone = lambda: None
        cases.generate(pipeline, model, cases.make_batches(tables, 2, 4), 0, tmp_path, share)
    made = sorted((tmp_path / "samples").rglob("*.webp"))
    assert len(made) == 8
    for file in made:
        assert file.read_bytes() == (finished / file.relative_to(tmp_path)).read_bytes()


def test_real_clips_are_decoded_once_and_made_anew_for_other_facts(script, data, tmp_path):
    cases, (share,) = sys.modules["evaluation_cases"], Processes(1).shares
    form = cases.ClipForm(8, 4)
    stickers = cases.EvaluationStickers(data, "balls", 8, seed=0)
    first = cases.write_real_clips([stickers], form, tmp_path, share)
    files = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*.webp"))}
    assert len(files) == 8
    lost = next(iter(files))
    lost.unlink()
    stickers.read = Mock(side_effect=stickers.read)
    assert cases.write_real_clips([stickers], form, tmp_path, share) == first
    assert [call.args[0] for call in stickers.read.call_args_list] == [0]
    assert lost.read_bytes() == files[lost]
    cases.write_real_clips([cases.EvaluationStickers(data, "balls", 8, seed=1)], form, tmp_path, share)
    changed = [file.parent.name for file, content in files.items() if file.read_bytes() != content]
    assert changed == ["balls-set-in-motion"] * 4


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
    place = Path("samples", "large", "balls", "it2v")
    (folder / place).mkdir(parents=True)
    shutil.copy(finished / place / "00000-0.webp", folder / place)
    shutil.copy(finished / "run.json", folder)
    assert script.main(arguments(models, data, folder, "--seed", 1)) == 2
    assert "was begun with seed 0, not 1 (arguments)" in capsys.readouterr().err
    assert script.main(arguments(models, data, folder, "--num_inference_steps", 3)) == 2
    assert "num_inference_steps 2, not 3" in capsys.readouterr().err
    make_pipeline(unet=make_unet(sample_size=8, sti_num_heads=1)).save_pretrained(tmp_path / "large")
    assert script.main(arguments(tmp_path, data, folder)) == 2
    assert re.search(r"was begun with .*unet \w+, not \w+.*\(model large\)", capsys.readouterr().err)


def test_facts_hold_as_soon_as_a_sample_was_made_with_them(script, tmp_path):
    def open_run():
        return script.RunFile(tmp_path / "run.json", Mock(is_main_process=True))

    open_run().keep("model cat", {"eta": 1.0, "steps": 2}, model="cat")
    open_run().keep("model cat", {"eta": None, "steps": 2}, model="cat")  # the first try came to nothing
    sample = tmp_path / "samples" / "cat" / "balls" / "it2v" / "00000-0.webp"
    sample.parent.mkdir(parents=True)
    sample.touch()
    open_run().keep("model cat", {"eta": None, "steps": 2}, model="cat")
    for facts in ({"eta": 1.0, "steps": 2}, {"steps": 2, "seed": 0}):  # also what was not asked before
        with pytest.raises(ValueError, match=r"was begun with (eta None, not 1.0|seed None, not 0) \(model cat\)"):
            open_run().keep("model cat", facts, model="cat")
    open_run().keep("model dog", {"eta": 1.0}, model="dog")
    open_run().keep("model dog", {"eta": 0.5}, model="dog")
    open_run().keep("data set cubes", {"rows": "a"}, sets=["cubes"])
    open_run().keep("data set cubes", {"rows": "b"}, sets=["cubes"])
    open_run().keep("data set balls", {"rows": "a"}, sets=["cubes", "balls"])
    with pytest.raises(ValueError, match="rows a, not b"):
        open_run().keep("data set balls", {"rows": "b"}, sets=["cubes", "balls"])


def test_all_that_decides_samples_is_told_apart(script):
    pipeline, fingerprint = make_pipeline(), script.component_fingerprint
    before = [fingerprint(part) for part in (pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)]
    assert before == [fingerprint(part) for part in (pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)]
    pipeline.text_encoder.get_input_embeddings().weight.data[0] += 1
    pipeline.tokenizer.add_tokens(["somersault"])
    pipeline.scheduler.register_to_config(timestep_spacing="trailing")
    after = [fingerprint(part) for part in (pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)]
    assert all(old != new for old, new in zip(before, after)) and fingerprint(None) is None


def test_names_have_folders_of_their_own(script):
    cases, measures = sys.modules["evaluation_cases"], sys.modules["evaluation_measures"]
    long = "x" * 68
    names = cases.distinct([f"{long}a", f"{long}b", "Cat", "cat", "cat (2)", "real clips"], measures.ROW_NAMES)
    assert names == [f"{long}a", f"{long}b (2)", "Cat", "cat (2)", "cat (2) (2)", "real clips (2)"]
    assert len({cases.folder_name(name) for name in names}) == 6


def test_only_unfinished_files_of_this_script_are_removed(script, tmp_path):
    (tmp_path / "real" / "8px").mkdir(parents=True)
    ours = [tmp_path / "real" / "8px" / name for name in (".00001.webp.12", ".00001-2.webp.9", ".balls.json.7")]
    others = [tmp_path / ".00001.webp.12", tmp_path / "real" / ".cat.webp.backup", tmp_path / "real" / ".gitignore"]
    for file in (*ours, *others):
        file.touch()
    script.remove_unfinished(tmp_path)
    assert not any(file.exists() for file in ours) and all(file.exists() for file in others)


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
    assert results["datasets"] == [{"name": "balls", "hub_id": None}]
    assert "--pipeline large small --dataset balls" in results["command"] and str(finished) not in results["command"]
    for table in results["tables"]:
        assert len(table["clips"]) == 4
        for figure in table["figures"]:
            assert figure["low"] <= figure["high"] and 0 < figure["n"] <= 4 and figure["padding"] is None
            assert figure["seeds"] == (2 if figure["row"] in ("large", "small") else 1)
        for row in ("large", "small"):
            (error,) = find(table["figures"], row=row, measure="known_frame_error")
            assert (error["value"], error["low"], error["high"], error["n"]) == (0, 0, 0, 4)
            (distance,) = find(table["figures"], row=row, measure="frechet/sticker")
            assert distance["n"] == 4
        assert table["tests"] == []  # four clips tell nothing
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
    assert measured["balls", "interpolation"] - measured["balls", "it2v"] == {"psnr", "ssim", "alpha_iou"}
    assert measured["balls, set in motion", "it2v"] - measured["balls", "it2v"] == {"asked_motion"}
    assert "ssim" not in tables["balls", "interpolation"]["values"]["small"]
    assert "psnr" not in tables["balls", "interpolation"]["values"]["real clips, 16px"]
    still = find(tables["balls", "it2v"]["figures"], row="first frame repeated, 16px", measure="motion_energy")
    assert still[0]["value"] == 0
    same = find(tables["balls", "it2v"]["figures"], row="nearest training clip, 16px", measure="motion_log_ratio")
    assert same[0]["value"] == pytest.approx(0, abs=0.01)  # the training clips are the same here, but not rounded


@pytest.fixture
def compared(script):
    """Twelve clips, measured alike in all rows but for `worse`: two RGBA models, one over white, and references."""
    measures, cases = sys.modules["evaluation_measures"], sys.modules["evaluation_cases"]
    flicker, flicker_distance = measures.beside_real("flicker", "", "", None, of_motion=True)
    found = [
        *(flicker, flicker_distance, measures.Measure("psnr", "", "", "higher", None, of_truth=True)),
        measures.Measure("text_similarity/sticker", "", "", "higher", None, alike=("channels",)),
        measures.Measure("text_similarity/clip:me", "", "", "higher", None, alike=()),
    ]
    chosen = {measure.name: measure for measure in found}
    rows = {}
    for name, kind, size, channels, worse in (
        *(("real", "real", 16, 4, 0), ("still", "reference", 16, 4, 3), ("nearest", "reference", 16, 4, 3)),
        *(("a", "model", 16, 4, 0), ("b", "model", 32, 4, 1), ("white", "model", 16, 3, 1)),
    ):
        row = measures.Row(name, kind, cases.ClipForm(size, channels), 2, None, is_still=name == "still")
        generator = np.random.default_rng(0)
        values = {
            name: generator.normal(size=(12, 2)) + (worse if measure.goal == "lower" else -worse)
            for name, measure in chosen.items()
        }
        rows[row] = measures.Measured(chosen, values, {"sticker": [generator.normal(size=(12, 2)) + worse] * 2})
    return rows


def pairs(tests, measure):
    return {(test["row"], test["against"]) for test in tests if test["measure"] == measure}


def test_pairs_that_are_tested(compared):
    tests = list(sys.modules["evaluation_measures"].paired_tests(compared))
    assert pairs(tests, "psnr") == {("a", "still"), ("a", "nearest")}
    same_channels = {(model, reference) for model in ("a", "b") for reference in ("still", "nearest")} | {("a", "b")}
    assert pairs(tests, "text_similarity/sticker") == same_channels
    everything = same_channels | {("white", "still"), ("white", "nearest"), ("a", "white"), ("b", "white")}
    assert pairs(tests, "text_similarity/clip:me") == everything
    assert pairs(tests, "flicker_distance") == {("a", "nearest")} and not pairs(tests, "flicker")
    assert all(test["n"] == 12 for test in tests)
    for measure in ("psnr", "flicker_distance"):  # whichever way is better
        (test,) = find(tests, measure=measure, row="a", against="nearest")
        assert test["difference"] == pytest.approx(-3) and test["high"] < 0


def test_few_clips_are_not_tested(compared):
    measures = sys.modules["evaluation_measures"]
    for found in compared.values():
        found.values["psnr"][:3] = np.nan
    tests = list(measures.paired_tests(compared))
    assert not pairs(tests, "psnr") and pairs(tests, "flicker_distance")


def test_frechet_distances_are_of_halves_that_never_meet(compared):
    measures = sys.modules["evaluation_measures"]
    real = next(iter(compared))
    compared = {row: found for row, found in compared.items() if row.form == real.form}
    distances = measures.frechet_distances(compared)
    networks = SimpleNamespace(features={"sticker": SimpleNamespace(name="own", padding=None)})
    figures = {figure["row"]: figure for figure in measures.frechet_figures(distances, networks, 12)}
    assert figures["real"]["value"] == figures["a"]["value"] > 0  # the same features: not 0, but what real clips reach
    assert figures["still"]["value"] > figures["a"]["value"] + 10 and figures["a"]["n"] == 12
    tests = list(measures.frechet_tests(distances, 12))
    assert pairs(tests, "frechet/sticker") == {("a", "still"), ("a", "nearest")}
    assert all(test["high"] < 0 for test in tests)
    assert list(measures.frechet_tests(distances, 9)) == []


def test_a_still_picture_wins_nothing_by_standing_still(script):
    measures, cases = sys.modules["evaluation_measures"], sys.modules["evaluation_cases"]
    asked = cases.TaskClips("", "", 0, False, cases.EVALUATION_TASKS["it2v"], (), torch.tensor([True] + 7 * [False]))
    rows = {
        row.name: row.is_still for row in measures.make_rows(asked, [Mock(form=cases.ClipForm(16, 4))], 1, Path(), {})
    }
    assert sum(rows.values()) == 1 and rows["first frame repeated"]
    chosen = {measure.name: measure for measure in measures.pixel_measures(asked, cases.ClipForm(16, 4))}
    assert "alpha_iou" not in chosen and chosen["flicker"].goal == chosen["motion_energy"].goal == "real"
    clips = torch.rand(2, 8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = measures.Shown(clips[:, :1].expand_as(clips), clips, asked.condition_mask.expand(2, -1), ())
    assert torch.equal(chosen["flicker_distance"].values(shown), measures.flicker(clips))


def test_what_a_network_cannot_do_is_found_on_real_clips(script, finished):
    measures, cases = sys.modules["evaluation_measures"], sys.modules["evaluation_cases"]
    table = read_results(finished)["tables"][0]
    clips = tuple(cases.EvaluationClip(**clip) for clip in table["clips"])
    task = cases.EVALUATION_TASKS["it2v"]
    asked = cases.TaskClips("balls", "balls", 0, False, task, clips, task.condition_mask(8))
    broken = Mock(return_value=torch.full((2, 3), torch.nan))
    broken.name = "broken"
    networks = measures.Networks({"broken": broken}, {}, None, None)
    with pytest.raises(ValueError, match="broken gives features of real clips that are not finite"):
        measures.try_measures([asked], [cases.ClipForm(16, 4)], networks, finished)
    assert broken.call_args.args[0].shape == (2, 8, 4, 16, 16)


def test_one_sticker_encoder_answers_for_words_and_motions(script):
    networks = sys.modules["evaluation_measures"].load_networks(["sticker"], ["sticker"], None, None, "cpu", True)
    assert networks.encoder is networks.similarities["sticker"].encoder


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
    requests = [cases.EvaluationClip(number, "", motion) for number, motion in enumerate(("jump", "spin", None))]
    clips = torch.zeros(3, 8, 3, 4, 4)
    shown = measures.Shown(clips, clips, torch.zeros(3, 8, dtype=torch.bool), requests)
    assert measures.motion_is_seen(encoder, shown).nan_to_num(-1).tolist() == [1, 0, -1]


def test_clips_find_their_captions_among_all(script):
    measures, cases = sys.modules["evaluation_measures"], sys.modules["evaluation_cases"]
    captions = [f"caption {number}" for number in range(24)]
    captions[7] = captions[6]  # what is right for clip 6 is right for clip 7
    encoder = SimpleNamespace(
        encode_texts=lambda texts: torch.eye(24)[[int(text.split()[1]) for text in texts]],
        encode_clips=lambda clips: clips[:, 0, 0, 0],
    )
    found = measures.caption_is_found(encoder, captions)
    embeddings = torch.eye(24)[[0, 6, 6, 5]]
    embeddings[0] = torch.arange(24.0) + 1  # the least like its own caption
    requests = [cases.EvaluationClip(number, captions[number]) for number in (0, 6, 7)] + [cases.EvaluationClip(5, "")]
    shown = measures.Shown(embeddings[:, None, None, None], None, None, requests)
    assert found(shown).nan_to_num(-1).tolist() == [0, 1, 1, -1]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twenty animated squares, each with a caption of its own."""
    folder = tmp_path_factory.mktemp("many") / "squares"
    folder.mkdir()
    rows = []
    for index in range(20):
        frames = [Image.new("RGBA", (16, 16)) for _ in range(8)]
        for step, frame in enumerate(frames):
            ImageDraw.Draw(frame).rectangle((step, index % 10, step + 4, index % 10 + 4), fill=(12 * index, 99, 200))
        save_sticker(frames, folder / f"{index}.webp", fps=8)
        rows.append({"file_name": f"{index}.webp", "text": f"square number {index}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_loops_and_retrieval_come_into_the_report(script, models, many, tmp_path):
    args = ["--pipeline", str(models / "large"), "--dataset", str(many), "--tasks", "loop", "--seeds", "1"]
    assert script.main([*args, "--output_dir", str(tmp_path), "--num_inference_steps", "1"]) == 0
    (table,) = read_results(tmp_path)["tables"]
    by_name = {(figure["row"], figure["measure"]): figure for figure in table["figures"]}
    retrieved = by_name["real clips", "retrieval/sticker"]
    assert retrieved["title"] == "caption among the first 10 of 20" and 0 <= retrieved["value"] <= 1
    assert by_name["large", "loop_seam_excess"]["goal"] == "lower"
    assert by_name["large", "loop_closes"]["goal"] == "higher"
    assert not any(measure.startswith(("loop_seam_distance", "psnr")) for _, measure in by_name)
    assert "first frame and words, as a loop" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert (
        sys.modules["evaluation_report"].TASK_TITLES.keys() == sys.modules["evaluation_cases"].EVALUATION_TASKS.keys()
    )


def test_what_cannot_loop_is_not_asked_for_as_a_loop(script):
    cases = sys.modules["evaluation_cases"]
    requests = [cases.EvaluationClip(number, "a dog", may_loop=number != 1) for number in range(4)]
    clip_set = cases.ClipSet("set", 0, True, tuple(requests))
    for name, numbers in (("it2v", [0, 1, 2, 3]), ("loop", [0, 2, 3])):
        asked = cases.clips_of_task(clip_set, cases.EVALUATION_TASKS[name], 8)
        assert [clip.number for clip in asked.clips] == numbers


def test_loops_are_asked_for_and_not_held_against_clips_that_are_none(script, finished):
    measures, cases = sys.modules["evaluation_measures"], sys.modules["evaluation_cases"]
    form, task = cases.ClipForm(16, 4), cases.EVALUATION_TASKS["loop"]
    clips = tuple(cases.EvaluationClip(**clip) for clip in read_results(finished)["tables"][0]["clips"][:2])
    asked = cases.TaskClips("balls", "balls", 0, False, task, clips, task.condition_mask(8))
    chosen = {measure.name for measure in measures.pixel_measures(asked, form)}
    assert "loop_seam_excess" in chosen and "loop_seam" not in chosen
    pipeline = Mock(return_value=SimpleNamespace(frames=torch.zeros(2, 8, 4, 16, 16)))
    files = [cases.real_file(finished, form, "balls", clip) for clip in clips]
    model = cases.EvaluatedModel("m", "m", {"eta": 1.0}, form, "float32")
    assert cases.draw_batch(pipeline, model, cases.Batch(asked, clips, 0), files, 0).shape == (2, 8, 16, 16, 4)
    call = pipeline.call_args.kwargs
    assert call["loop"] and call["prompt"] == [clip.caption for clip in clips]
    assert [[frame is None for frame in frames] for frames in call["frames"]] == [[False] + [True] * 7] * 2


def test_a_sheet_shows_the_first_clips_above_the_samples(finished, tmp_path, capsys):
    sheet = load_example("sample_sheet.py")
    output = tmp_path / "sheet.png"
    args = [str(finished), "--set", "balls", "--size", "8", "--count", "3", "--output", str(output)]
    assert sheet.main([*args, "--model", "large"]) == 0
    with Image.open(output) as picture:
        assert picture.size == (6 + 2 * (8 * 8 + 6), 6 + 2 * (2 * 8 + 6))
        clip = picture.crop((6, 6, 6 + 8, 6 + 16)).convert("L")
        assert clip.crop((0, 0, 8, 8)).tobytes() == clip.crop((0, 8, 8, 16)).tobytes()  # the given frame
    assert sheet.main(args) == 2 and "--model must be one of large, small" in capsys.readouterr().err
    assert (
        sheet.main([*args[:1], "--set", "cubes"]) == 2 and "has no cubes (it2v), but balls" in capsys.readouterr().err
    )
    assert sheet.main([str(tmp_path), "--set", "balls"]) == 2


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
    assert "4 clips, of a model 2 samples each" in text and "no padding" in text and "2 each" in text
    assert "takes at least 10 clips" in text and "<details>" not in text
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
        assert error.dataset_type == "balls" and "torch" in error.dataset_args["versions"]


def test_reports_of_tests_hub_ids_and_left_out_files(script, finished):
    report, results = sys.modules["evaluation_report"], read_results(finished)
    results["datasets"][0]["hub_id"], results["models"][0]["name"] = "me/balls", "cat_v1_<b>"
    table = results["tables"][1]
    table["skipped"] = 3
    test = {"row": "large", "against": "known frames held, 16px", "measure": "psnr", "difference": -2.0}
    table["tests"] = [test | {"low": -3.0, "high": -1.0, "p_value": 0.001, "n": 12}]
    text = report.markdown(results)
    assert "<details>" in text and re.search(r"\| PSNR ↑ .* \*\*[\d.]+\*\* ", text)
    titles = [line.title for line in report.lines(table)]
    assert titles[titles.index("sharpness") + 1] == "sharpness, distance from real"
    assert "could not be read and are left out: 3" in text and r"cat\_v1\_\<b\>: 16px, float32" in text
    assert "      name: balls\n      type: me/balls\n" in report.model_index(results)
    html = report.page(results, [[]] * 4)
    assert f"torch {results['versions']['torch']}" in html and "cat_v1_&lt;b&gt;: 16px" in html


@pytest.mark.parametrize(("value", "text"), [(0.00004, "4e-05"), (0.01234, "0.0123"), (123.4, "123"), (0, "0")])
def test_short_figures(script, value, text):
    assert sys.modules["evaluation_report"].short(value) == text


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
        (("--train_dataset", str(Path(__file__).parent)), "tests: neither a folder with"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(script, models, data, tmp_path, capsys, more, message):
    assert script.main(arguments(models, data, tmp_path / "out", *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("evaluate.py: error: ") and message in line
    assert not (tmp_path / "out" / "samples").exists()


def test_every_model_is_looked_for_before_one_is_drawn_from(script, models, data, tmp_path, capsys):
    words = arguments(models, data, tmp_path / "out", names=("large", "nothing"))
    assert script.main(words) == 2
    assert "nothing: there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "out" / "real").exists()


def test_full_memory_is_answered_with_advice(script, models, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "Evaluation", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    assert script.main(arguments(models, data, tmp_path)) == 2
    assert "give a smaller --batch_size" in capsys.readouterr().err


def test_the_command_in_reports_names_no_folder_of_the_machine(script, models, tmp_path):
    words = {str(models / "large"): "large", "clip:me/clip": "clip:me/clip", f"sticker:{tmp_path}": "sticker:"}
    for word, public in words.items():
        assert script.public_word(word).startswith(public) and str(tmp_path) not in script.public_word(word)
    assert script.public_word(f"--dover={tmp_path}") == f"--dover={tmp_path.name}"


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
    assert table["skipped"] == 1
    assert len(table["clips"]) == 2 and not any("similarity" in name for name in table["values"]["large"])
