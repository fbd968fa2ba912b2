"""`rdtf-diffusers`: what its commands pass on, what they write, and how they refuse."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError
from PIL import Image, ImageSequence

from rdtf_diffusers import __version__, cli
from rdtf_diffusers.checkpoints import SETTINGS, SETTINGS_FILE, generation_settings
from rdtf_diffusers.commands import generate as command
from rdtf_diffusers.commands.output import slug
from rdtf_diffusers.data import report
from rdtf_diffusers.utils.memory import made_to_stay


class Recorder:
    """Stands where a pipeline is expected: remembers the call and draws a moving square."""

    def __call__(self, **arguments):
        self.arguments = arguments
        clip = np.zeros((arguments["num_frames"], 16, 16, 4), np.uint8)
        for index, frame in enumerate(clip):
            frame[4:8, index % 12 : index % 12 + 4] = 255
        self.frames = [[Image.fromarray(frame) for frame in clip]]
        return self


@pytest.fixture
def pipe(monkeypatch, tmp_path) -> Recorder:
    """No model is loaded; the working directory is an empty one with a picture, a text and a checkpoint's folder."""
    recorder = Recorder()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_pipeline", lambda model, device, dtype: recorder)
    Image.new("RGBA", (20, 10), (255, 0, 0, 128)).save("dog.png")
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text('{"_class_name": "StickerGenerationPipeline"}')
    return recorder


def generate(*arguments: str) -> int:
    """The exit code, whichever way it is given."""
    try:
        return cli.main(["generate", "--model", "model", *arguments])
    except SystemExit as stop:
        return stop.code


def stored(path: str) -> dict:
    return json.loads(Image.open(path).getexif()[0x010E])


def test_what_is_made_to_stay_is_collected_at_the_next_use():
    class Node:
        pass

    def make() -> weakref.ref:
        with made_to_stay():
            assert not gc.isenabled()
            node = Node()
            node.itself = node
        return weakref.ref(node)

    try:
        first = make()
        assert gc.isenabled()
        gc.collect()
        assert first() is not None
        second = make()
        assert first() is None and second() is not None
        with pytest.raises(ValueError), made_to_stay():
            raise ValueError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_a_sticker_is_written_and_its_path_printed(pipe, capsys):
    assert generate("a dog jumping", "--image", "dog.png", "--seed", "3", "--output", "dog.webp") == 0
    printed = capsys.readouterr()
    assert printed.out == "dog.webp\n"
    assert "seed 3" in printed.err
    with Image.open("dog.webp") as sticker:
        durations = [frame.load() and frame.info["duration"] for frame in ImageSequence.Iterator(sticker)]
    assert len(durations) == 8 and sum(durations) == 1000
    arguments = pipe.arguments
    assert arguments["prompt"] == "a dog jumping"
    assert arguments["frames"][0].size == (20, 10) and arguments["frames"][0].mode == "RGBA"
    assert arguments["frames"][1:] == [None] * 7
    assert arguments["generator"].initial_seed() == 3
    assert stored("dog.webp") == {
        "software": f"rdtf_diffusers {__version__}",
        "model": "model",
        "prompt": "a dog jumping",
        "seed": 3,
        "loop": False,
        "fps": 8.0,
    }
    assert json.loads(Path("dog.webp.json").read_text()) == stored("dog.webp")


def test_text_alone_picture_alone_and_keyframes(pipe):
    assert generate("a dog") == 0
    assert (pipe.arguments["prompt"], pipe.arguments["frames"]) == ("a dog", None)
    assert generate("--image", "dog.png") == 0
    assert pipe.arguments["prompt"] is None
    assert generate("--image", "dog.png", "--keyframes", "dog.png@5", "--frames", "6", "--loop") == 0
    assert [frame is not None for frame in pipe.arguments["frames"]] == [True, False, False, False, False, True]
    assert (pipe.arguments["num_frames"], pipe.arguments["loop"]) == (6, True)


def test_settings_of_the_checkpoint_give_way_to_options(pipe, tmp_path):
    assert generate("a dog") == 0
    assert not set(SETTINGS) & set(pipe.arguments)  # no generation.json: the pipeline's own defaults
    (tmp_path / "model" / SETTINGS_FILE).write_text('{"num_inference_steps": 20, "guidance_scale": 3.5, "eta": 0}')
    assert generate("a dog", "--steps", "9", "--image-guidance-scale", "2", "--guidance-stop", "0.5") == 0
    settings = {name: pipe.arguments[name] for name in SETTINGS}
    own = {"guidance_scale": 3.5, "eta": 0}
    assert settings == own | {"num_inference_steps": 9, "image_guidance_scale": 2.0, "guidance_stop": 0.5}
    assert stored("sticker.webp") | settings == stored("sticker.webp")


def test_a_given_scale_counts_with_several_frames_too(pipe, tmp_path):
    text = '{"guidance_scale": 3, "continuation_guidance_scale": 2, "continuation_image_guidance_scale": 1}'
    (tmp_path / "model" / SETTINGS_FILE).write_text(text)
    assert generate("a dog") == 0
    assert {name: pipe.arguments[name] for name in json.loads(text)} == json.loads(text)
    assert generate("a dog", "--guidance-scale", "5") == 0
    assert pipe.arguments["guidance_scale"] == 5 and "continuation_guidance_scale" not in pipe.arguments
    assert pipe.arguments["continuation_image_guidance_scale"] == 1


@pytest.mark.parametrize("text", ['{"steps": 20}', '{"eta": "much"}', "[1.0]", "{"])
def test_wrong_settings_of_a_checkpoint_are_refused(pipe, capsys, tmp_path, text):
    (tmp_path / "model" / SETTINGS_FILE).write_text(text)
    assert generate("a dog") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_random_seed_is_printed_and_stored(pipe, capsys):
    assert generate("a dog") == 0
    seed = stored("sticker.webp")["seed"]
    assert f"seed {seed}" in capsys.readouterr().err
    assert pipe.arguments["generator"].initial_seed() == seed


def test_metadata_can_be_left_out(pipe):
    assert generate("a dog", "--no-metadata") == 0
    assert not Image.open("sticker.webp").getexif()
    assert not Path("sticker.webp.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give a prompt, a picture"),
        (["  "], "give a prompt, a picture"),
        (["a dog", "--image", "cat.png"], "no file 'cat.png'"),
        (["a dog", "--image", ""], "no file ''"),
        (["a dog", "--image", "empty"], "no file 'empty'"),
        (["a dog", "--image", "notes.png"], "notes.png"),
        (["a dog", "--keyframes", "dog.png"], "FILE@INDEX"),
        (["a dog", "--keyframes", "dog.png@8"], "frames are 0 to 7"),
        (["a dog", "--image", "dog.png", "--keyframes", "dog.png@0"], "frame 0 is given 2 times"),
        (["a dog", "--frames", "0"], "--frames: must be a whole number from 1"),
        (["a dog", "--frames", "2.5"], "--frames: must be a whole number"),
        (["a dog", "--fps", "0"], "--fps: must be a number from 0.1 to 50"),
        (["a dog", "--fps", "nan"], "--fps: must be a number"),
        (["a dog", "--steps", "0"], "--steps: must be a whole number from 1"),
        (["a dog", "--eta", "2"], "--eta: must be a number from 0 to 1"),
        (["a dog", "--guidance-stop", "2"], "--guidance-stop: must be a number from 0 to 1"),
        (["a dog", "--guidance-scale", "inf"], "--guidance-scale: must be"),
        (["a dog", "--seed", "-1"], "--seed: must be a whole number from 0"),
        (["a dog", "--output", "dog.mp4"], "--output: must end in one of .webp, .gif, .png, .apng"),
        (["a dog", "--output", "dog.png/x"], "there can be no folder"),
        (["a dog", "a cat", "--output", "dog.webp"], "one file, but there will be several"),
        (["a dog", "--platform", "all", "--output", "dog.webp"], "one file, but there will be several"),
        (["a dog", "--platform", "myspace"], "invalid choice: 'myspace'"),
        (["a dog", "--prompts-file", "nothing.txt"], "no file 'nothing.txt'"),
        (["a dog", "--cover", "last"], "must be auto, first or the number of a frame"),
        (["a dog", "--output", "nowhere/dog.webp"], "no folder 'nowhere'"),
        (["a dog", "--model", "nothing"], "neither a folder nor a Hub id"),
        (["a dog", "--model", "empty"], "holds no model_index.json"),
        (["a dog", "--model", "dog.png"], "holds no model_index.json"),
        (["a dog", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_a_model_is_loaded(
    pipe, capsys, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(command, "load_pipeline", lambda *args: pytest.fail("a model was loaded"))
    before = sorted(tmp_path.rglob("*"))
    assert generate(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_folder_is_refused(pipe, capsys, monkeypatch):
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    assert generate("a dog") == 2
    assert "'sticker.webp' cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code, message",
    [
        (ValueError("`num_frames` must be\nat most 64, not 1000"), 2, "`num_frames` must be at most 64, not 1000"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "error: the memory is full; ask for less"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "error: the memory is full"),
        (MemoryError(), 2, "error: the memory is full"),
    ],
)
def test_errors_while_drawing_leave_the_old_file_alone(pipe, capsys, tmp_path, monkeypatch, error, code, message):
    def fail(self, **arguments):
        raise error

    monkeypatch.setattr(Recorder, "__call__", fail)
    (tmp_path / "sticker.webp").write_bytes(b"old")
    before = sorted(tmp_path.rglob("*"))
    assert generate("a dog") == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line
    assert (tmp_path / "sticker.webp").read_bytes() == b"old"
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_hub_ids_are_told_apart(pipe, capsys, monkeypatch):
    reasons = {
        LocalEntryNotFoundError("offline"): "no such folder, not cached, and the Hub cannot be reached",
        RemoteEntryNotFoundError("404", response=Mock()): "the repository holds no model_index.json",
        RepositoryNotFoundError("404", response=Mock()): "no such folder, and no such (public) repository on the Hub",
    }
    for error, reason in reasons.items():
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=error))
        assert generate("a dog", "--model", "some/model") == 2
        assert capsys.readouterr().err == f"rdtf-diffusers generate: error: --model some/model: {reason}\n"


@pytest.mark.parametrize(("cached", "settings"), [(huggingface_hub._CACHED_NO_EXIST, {}), (None, None)])
def test_settings_that_cannot_be_asked_for_are_not_taken_for_none(monkeypatch, cached, settings):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=LocalEntryNotFoundError("offline")))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: cached)
    if settings is not None:
        assert generation_settings("some/model") == settings
        return
    with pytest.raises(OSError, match=r"^some/model: generation\.json is not cached, and the Hub"):
        generation_settings("some/model")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_no_such_device(device):
    with pytest.raises(ValueError, match=f"--device {device}"):
        command.load_pipeline("never looked at", device, None)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_after_loading(monkeypatch, enabled):
    calls = []
    monkeypatch.setattr(gc, "isenabled", lambda: enabled)
    monkeypatch.setattr(gc, "disable", lambda: calls.append("disable"))
    monkeypatch.setattr(gc, "enable", lambda: calls.append("enable"))
    with pytest.raises(ValueError, match="--device nonsense"):
        command.load_pipeline("never looked at", "nonsense", None)
    assert calls == ["disable", "enable"][: 1 + enabled]


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_the_bundled_model_draws_the_same_sticker_again(tmp_path, suffix):
    Image.new("RGBA", (40, 40), (255, 0, 0, 255)).save(tmp_path / "dog.png")
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        arguments = ["a dog jumping", "--image", str(tmp_path / "dog.png"), "--seed", "1", "--steps", "2"]
        assert cli.main(["generate", *arguments, "--output", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as sticker:
        frames = [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(sticker)]
    np.testing.assert_array_equal(frames[0][..., 3], 255)  # the given frame, as it was given
    tolerance = 4 if suffix == "gif" else 0  # a GIF's palette rounds
    assert np.abs(frames[0][..., :3].astype(int) - (255, 0, 0)).max() <= tolerance


def test_several_prompts_and_seeds_fill_a_folder(pipe, capsys):
    Path("prompts.txt").write_text("# animals\n\na red dog!\n  a cat \n", encoding="utf-8")
    arguments = ["a bird", "--prompts-file", "prompts.txt", "--num", "2", "--seed", "5", "--output", "new", "--json"]
    assert generate(*arguments, "--negative", "blur", "--size", "64") == 0
    results = json.loads(capsys.readouterr().out)
    assert [(result["prompt"], result["seed"]) for result in results] == [
        (prompt, seed) for prompt in ("a bird", "a red dog!", "a cat") for seed in (5, 6)
    ]
    assert {path.name for path in Path("new").glob("*.webp")} == {
        f"{name}-{seed}.webp" for name in ("a-bird", "a-red-dog", "a-cat") for seed in (5, 6)
    }
    assert (pipe.arguments["height"], pipe.arguments["negative_prompt"]) == (64, "blur")
    assert json.loads(Path("new/a-cat-6.webp.json").read_text())["negative_prompt"] == "blur"


def test_a_sticker_for_a_platform_keeps_its_rules(pipe, capsys):
    assert generate("a dog", "--platform", "discord-emoji", "--output", "dog.webp") == 0
    printed = capsys.readouterr()
    assert printed.out == "dog.webp\n" and "128x128" in printed.err
    assert json.loads(Path("dog.webp.json").read_text())["platform"] == "discord-emoji"
    assert run("check", "dog.webp", "--platform", "discord-emoji") == 0
    assert run("check", "dog.webp", "--platform", "slack") == 1
    assert "Slack emoji:\n  format: " in capsys.readouterr().out


def run(*arguments: str) -> int:
    """The exit code of any command, whichever way it is given."""
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def sticker(monkeypatch, tmp_path) -> Path:
    """A moving square of 32 pixels, 60 frames of 1/60 s, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    frames = []
    for index in range(60):
        frame = Image.new("RGBA", (32, 32))
        frame.paste((255, 0, 0, 255), (index % 24, 4, index % 24 + 8, 20))
        frames.append(frame)
    times = [17, 17, 16] * 20
    frames[0].save("square.webp", save_all=True, append_images=frames[1:], duration=times, lossless=True)
    return tmp_path / "square.webp"


def test_a_file_is_exported_checked_and_shown(sticker, capsys):
    assert run("export", "square.webp", "--platform", "telegram-emoji") == 0
    printed = capsys.readouterr()
    assert printed.out == "square-telegram-emoji.webm\n" and "100x100, 30 frames, 1 s" in printed.err
    assert run("check", "square-telegram-emoji.webm", "--platform", "telegram-emoji") == 0
    assert run("export", "square.webp", "--platform", "slack", "--output", "out", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out.split("fine\n")[-1])
    assert (result["path"], result["platform"], result["seconds"]) == ("out/square.gif", "slack", 1.0)
    assert run("preview", "square.webp", "--output", "sheet.png", "--size", "16") == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.mode == "RGB" and sheet.getpixel((13, 18)) == (225, 225, 225)  # the checkerboard


def test_a_file_is_not_exported_onto_itself(sticker, capsys):
    before = Path("square.webp").read_bytes()
    assert run("export", "square.webp", "--platform", "discord-emoji", "--output", ".", "--format", "webp") == 2
    assert "square.webp is the file that is read" in capsys.readouterr().err
    assert Path("square.webp").read_bytes() == before


def test_names_of_files_are_short_in_bytes():
    assert slug("A dog, jumping!") == "a-dog-jumping" and slug("!") == "sticker"
    assert len(slug("\U0001d4ec" * 80).encode()) == 120


def test_platforms_are_listed(capsys):
    assert run("platforms") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and lines[1].startswith("whatsapp")
    assert run("platforms", "--json") == 0
    assert json.loads(capsys.readouterr().out)["line"]["sources"][0][2] == "official"


def test_a_pack_is_built_of_good_stickers_only(sticker, capsys):
    Path("set").mkdir()
    for number in range(3):
        assert run("export", "square.webp", "--platform", "signal", "--output", f"set/{number}.png") == 0
    assert run("pack", "set", "--platform", "signal", "--title", "Squares", "--output", "squares") == 0
    assert len(list(Path("squares").glob("*.png"))) >= 3
    assert run("pack", "set", "--platform", "whatsapp") == 2
    assert "0.png" in capsys.readouterr().err and not Path("set-whatsapp").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["export", "nothing.webp", "--platform", "slack"], "there is no file 'nothing.webp'"),
        (["export", "square.webp"], "required: --platform"),
        (["export", "square.webp", "--platform", "all", "--output", "x.gif"], "one file, but there will be several"),
        (["export", "notes.png", "--platform", "slack"], "notes.png"),
        (["export", "square.webp", "--platform", "slack", "--cover", "99"], "`cover` must be"),
        (["check", "nothing.webp", "--platform", "slack"], "there is no file"),
        (["preview", "notes.png"], "notes.png"),
        (["pack", "square.webp", "--platform", "line"], "there is no folder"),
        (["pack", ".", "--platform", "twitch"], "invalid choice: 'twitch'"),
    ],
)
def test_wrong_files_are_refused_in_one_line(sticker, capsys, arguments, message):
    Path("notes.png").write_text("no picture")
    before = sorted(sticker.parent.rglob("*"))
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(sticker.parent.rglob("*")) == before


@pytest.fixture
def stickers(monkeypatch, tmp_path):
    """The working directory holds `stickers`, with three good pictures and no captions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stickers").mkdir()
    for colour in ("red", "green", "blue"):
        Image.effect_noise((20, 20), 80).save(f"stickers/{colour}.png")
    return tmp_path / "stickers"


def check_data(*arguments: str) -> int:
    """The exit code, whichever way it is given."""
    try:
        return cli.main(["check-data", *arguments])
    except SystemExit as stop:
        return stop.code


def test_good_data(stickers, capsys):
    assert check_data("stickers", "--html", "page.html", "--json", "all.json") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("stickers\n  rows          3\n") and printed.err == ""
    content = json.loads((stickers.parent / "all.json").read_text())
    assert (content["rows"], content["empty_captions"]) == (3, 3)
    assert "<title>stickers: data report</title>" in (stickers.parent / "page.html").read_text()


def test_bad_files_are_named_and_the_exit_code_says_so(stickers, capsys):
    (stickers / "broken.gif").write_bytes(b"GIF89a")
    assert check_data("stickers") == 1
    assert "stickers/broken.gif: " in capsys.readouterr().out
    assert check_data("stickers", "--limit", "1") == 0  # blue.png
    assert "rows          1" in capsys.readouterr().out


def test_columns_and_workers_are_passed_on(stickers, capsys, monkeypatch):
    (stickers / "metadata.jsonl").write_text('{"file_name": "red.png", "title": "a red one", "text": ""}\n')
    monkeypatch.setattr(report, "check", Mock(wraps=report.check))
    assert check_data("stickers", "--caption-column", "title", "--workers", "3") == 0
    assert "3 to 3 words" in capsys.readouterr().out
    assert report.check.call_args.kwargs == {"workers": 3}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: PATH"),
        (["nowhere"], "'nowhere' is neither a file, nor a folder, nor a Hub id"),
        (["/no/such/folder"], "is neither a file, nor a folder, nor a Hub id"),
        (["stickers/red.png"], "is a file, but neither .jsonl nor .tar"),
        (["empty"], "neither a folder with metadata.jsonl or stickers"),
        (["broken"], "metadata.jsonl, line 1: not JSON"),
        (["stickers", "--workers", "0"], "--workers: must be a whole number from 1"),
        (["stickers", "--limit", "0"], "--limit: must be a whole number from 1"),
        (["stickers", "--html", "nowhere/page.html"], "no folder 'nowhere'"),
        (["stickers", "--json", "stickers"], "'stickers' cannot be written"),
    ],
)
def test_data_that_cannot_be_checked_is_refused_in_one_line(stickers, capsys, arguments, message):
    for name in ("empty", "broken"):
        (stickers.parent / name).mkdir()
    (stickers.parent / "broken/metadata.jsonl").write_text("{")
    before = sorted(stickers.parent.rglob("*"))
    assert check_data(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(stickers.parent.rglob("*")) == before


def test_other_errors_of_libraries_are_not_hidden(pipe, monkeypatch):
    monkeypatch.setattr(Recorder, "__call__", Mock(side_effect=RuntimeError("sizes differ")))
    with pytest.raises(RuntimeError, match="sizes differ"):
        generate("a dog")


def test_an_interrupted_check_writes_nothing(stickers, capsys, monkeypatch):
    monkeypatch.setattr(report.Report, "html", Mock(side_effect=KeyboardInterrupt))
    assert check_data("stickers", "--json", "all.json", "--html", "page.html") == 130
    assert capsys.readouterr().err == "interrupted; files named above are whole, nothing else was written\n"
    assert [path.name for path in stickers.parent.iterdir()] == ["stickers"]


def test_a_reader_that_has_seen_enough_is_no_error():
    """`rdtf-diffusers platforms --json | head -1`"""
    program = Path(sys.executable).with_name("rdtf-diffusers")
    command = f"{program} platforms --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{\n", "")
    quick = f"{program} platforms | true"  # it has left before anything is written
    assert subprocess.run(["bash", "-c", quick], capture_output=True, text=True, timeout=60).stderr == ""


def test_a_format_can_be_asked_for(tmp_path, capsys):
    frames = [Image.new("RGBA", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=200, lossless=True)
    arguments = ["export", str(tmp_path / "a.webp"), "--platform", "discord-emoji", "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--format", "gif"]) == 0
    assert (tmp_path / "out" / "a.gif").is_file()
    assert cli.main([*arguments, "--format", "apng"]) == 2
    assert "must be one of webp, gif for Discord" in capsys.readouterr().err
