"""The Space without a browser: its files, its endpoints as scripts use them, and its limits."""

import base64
import io
import json
import os
import re
import runpy
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
import setuptools
import yaml
from example_scripts import EXAMPLES, load_example
from gradio.data_classes import ImageData
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from space_app import STEPS, cards, jobs, links, running

from rdtf_diffusers import read_animation
from rdtf_diffusers.stickers.check import check
from rdtf_diffusers.stickers.encode import encode
from rdtf_diffusers.stickers.platforms import PLATFORMS
from rdtf_diffusers.stickers.resize import fit_canvas


SPACE = EXAMPLES / "space"
ROOT = EXAMPLES.parent
HEART, HEART_STICKER = str(SPACE / "examples" / "heart.png"), str(SPACE / "examples" / "heart.webp")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cache")) as address:
        yield address


@pytest.fixture(scope="module")
def client(address, tmp_path_factory):
    return Client(address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"), analytics_enabled=False)


def visitor(name: str = "somebody") -> SimpleNamespace:
    return SimpleNamespace(headers={}, client=SimpleNamespace(host=name), query_params={})


def panel(**changes) -> dict:
    return {
        "seed": 1,
        "loop": False,
        "fps": 8,
        "negative_prompt": "",
        **jobs.defaults(),
        "num_inference_steps": 2,
    } | changes


def panel_without_loop() -> dict:
    return {name: value for name, value in panel().items() if name != "loop"}


def moving(path: str) -> np.ndarray:
    """The frames of an animation that moves and has transparent parts."""
    frames = read_animation(path).frames
    assert len(frames) > 1 and frames[..., 3].min() == 0 and frames[..., 3].max() > 200
    assert np.abs(frames[1].astype(int) - frames[0]).max() > 50
    return frames


# Its files


def test_front_matter_names_the_tested_gradio_and_the_file_to_start():
    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front)
    assert f"gradio=={front['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert (front["sdk"], front["python_version"]) == ("gradio", "3.12")
    assert (SPACE / front["app_file"]).is_file() and len(front["short_description"]) <= 60


def test_requirements_are_those_of_the_package(monkeypatch):
    given = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path("setup.py")
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == given["install_requires"]


def test_package_comes_from_the_wheel_where_it_is_missing(monkeypatch, tmp_path):
    app, commands = load_example("space/app.py"), []
    monkeypatch.setattr(app.subprocess, "run", lambda command, check: commands.append(command))
    app.install_package()
    assert not commands
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    monkeypatch.setattr(app, "__file__", str(tmp_path / "app.py"))
    with pytest.raises(FileNotFoundError, match="pip wheel --no-deps"):
        app.install_package()
    for number, version in enumerate(("0.9.0", "0.10.0")):
        wheel = tmp_path / f"rdtf_diffusers-{version}-py3-none-any.whl"
        wheel.touch()
        os.utime(wheel, (number, number))
    app.install_package()
    assert commands[0][1:] == ["-m", "pip", "install", "--no-deps", str(wheel)]


# Endpoints


def test_endpoints_and_their_arguments(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    arguments = {name: [a["parameter_name"] for a in endpoint["parameters"]] for name, endpoint in endpoints.items()}
    scales = ["seed", "fps", "loop", "num_inference_steps", "guidance_scale", "image_guidance_scale"]
    scales.append("negative_prompt")
    without_loop = [name for name in scales if name != "loop"]
    assert arguments == {
        "/sticker": ["prompt", "picture", *scales],
        "/keyframes": ["prompt", *(f"frame_{slot}" for slot in range(1, 9)), *scales],
        "/continue": ["animation", "kept", "prompt", *without_loop],
        "/export": ["animation", "platforms"],
    }


def test_sticker_moves_is_transparent_and_comes_again_with_its_seed(client):
    call = {"prompt": "a heart beating", "picture": handle_file(HEART), "seed": 7, "api_name": "/sticker"}
    path, note, made = client.predict(**call)
    frames = moving(path)
    assert len(frames) == 8 and "8 frames · 1 s" in note and "seed 7" in note
    assert made["seed"] == 7 and made["picture"] == "heart" and made["num_inference_steps"] == STEPS
    inside = json.loads(Image.open(path).getexif()[0x010E])
    assert inside == made
    again, _, _ = client.predict(**call)
    np.testing.assert_array_equal(read_animation(again).frames, frames)
    assert made["prompt"] in path.replace("-", " ")


def test_previews_come_before_the_sticker(client):
    job = client.submit(prompt="a ball", picture=None, seed=1, api_name="/sticker")
    job.result()
    notes = [note for _, note, _ in job.outputs()]
    assert len(notes) == 2 and notes[0] == f"Step 3 of {2 * STEPS}" and "drawn in" in notes[1]


def test_keyframes_stand_where_they_were_put(client):
    given = {f"frame_{slot}": handle_file(HEART) for slot in (2, 8)}
    path, _, made = client.predict(prompt="", **given, frame_1=None, frame_5=None, seed=1, api_name="/keyframes")
    frames = moving(path)
    assert made["keyframes"] == [2, 8]
    np.testing.assert_array_equal(frames[1], frames[7])


def test_sticker_goes_on_after_its_last_frames(client):
    path, _, made = client.predict(
        animation=handle_file(HEART_STICKER), kept=3, prompt="", seed=1, api_name="/continue"
    )
    frames = moving(path)
    assert len(frames) == 13 and made["kept"] == 3
    given = fit_canvas(read_animation(HEART_STICKER).frames, *frames.shape[1:3])  # in the model's size
    np.testing.assert_array_equal(frames[:8, ..., 3], given[..., 3])


def test_export_gives_files_within_the_rules(client):
    platforms = ["telegram-emoji", "slack"]
    path, note = client.predict(animation=handle_file(HEART_STICKER), platforms=platforms, api_name="/export")
    assert note == "2 of 2 platforms served"
    folder = Path(path).with_suffix("")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    report = json.loads((folder / "report.json").read_text())
    assert [entry["platform"] for entry in report] == platforms
    for entry in report:
        assert check(folder / entry["file"], entry["platform"]) == []
        assert all(rule["kept"] for rule in entry["rules"].values())


def test_snippet_of_the_readme(address, monkeypatch, tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", (SPACE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(SPACE / "examples")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = {}
    exec(snippet.replace("my-name/stickers", address), result)
    assert result["settings"]["seed"] == 7 and len(moving(result["sticker"])) == 8


# What is refused


def outcome(address: str, picture: object) -> str:
    """The events of a crafted call, which the client would not make: it uploads what lies on its own machine."""
    fields = ["", picture, 1, 8, False, 1, 2, 2, ""]
    called = httpx.post(f"{address}gradio_api/call/sticker", json={"data": fields})
    if called.status_code != 200:
        return called.text
    return httpx.get(f"{address}gradio_api/call/sticker/{called.json()['event_id']}", timeout=30).text


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}], ids=["as a file", "bare"])
def test_paths_outside_the_cache_are_not_read(address, tmp_path, meta):
    secret = tmp_path / "secret.png"
    secret.write_bytes(Path(HEART).read_bytes())
    uploaded = httpx.post(f"{address}gradio_api/upload", files={"files": secret.read_bytes()}).json()[0]
    allowed = outcome(address, {"path": uploaded, "meta": {"_type": "gradio.FileData"}})
    assert "event: complete" in allowed and "event: error" not in allowed
    for path in (
        str(secret),
        "/etc/passwd",
        f"{uploaded}/../../../../../../../../../..{secret}",
        "file:///etc/passwd",
    ):
        events = outcome(address, {"path": path, **meta})
        assert "event: complete" not in events and "webp" not in events
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{address}gradio_api/file={SPACE / 'jobs.py'}").status_code in (403, 404)


def test_no_field_of_any_event_takes_a_path_outside_the_cache(address):
    (page,) = [page for page in gr.Blocks.get_instances() if page.local_url == address]
    fields = {field for event in page.fns.values() for field in event.inputs if "path" in str(field.api_info())}
    assert {type(field).__name__ for field in fields} == {"PictureFile"} and len(fields) == 1 + 8 + 1 + 1 + 3
    for field in fields:
        with pytest.raises(gr.Error, match="no uploaded file"):
            field.preprocess(ImageData(path=HEART))


def test_pictures_written_into_a_call_are_not_opened(address):
    data = base64.b64encode(Path(HEART).read_bytes()).decode()
    picture = {"url": f"data:image/png;base64,{data}", "meta": {"_type": "gradio.FileData"}}
    assert "event: complete" not in outcome(address, picture)


def test_broken_and_long_uploads_are_refused_by_name(client, tmp_path):
    broken = tmp_path / "<img src=x>.png"
    broken.write_bytes(Path(HEART).read_bytes()[:3000])
    with pytest.raises(AppError, match=r"The picture: .*cut short"):
        client.predict(prompt="", picture=handle_file(str(broken)), seed=1, api_name="/sticker")
    long = tmp_path / "long.webp"
    frames = (np.arange(151)[:, None, None, None] * np.ones((1, 2, 2, 4))).astype(np.uint8)
    long.write_bytes(encode(frames, "webp"))
    with pytest.raises(AppError, match="The sticker: more than 150 frames"):
        client.predict(animation=handle_file(str(long)), platforms=["slack"], api_name="/export")


def test_large_uploads_are_refused(address):
    data = b"0" * (jobs.UPLOAD_LIMITS["max_bytes"] + 1)
    assert httpx.post(f"{address}gradio_api/upload", files={"files": data}).status_code == 413


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": " ", "picture": None}, "Say what happens"),
        ({"prompt": "a" * 201}, "at most 200 characters"),
        ({"negative_prompt": "a" * 201}, "at most 200 characters"),
        ({"num_inference_steps": 31}, "maximum|greater"),
        ({"seed": -2}, "minimum|less"),
        ({"fps": 1000}, "maximum|greater"),
    ],
)
def test_fields_beyond_their_limits_are_refused(client, call, message):
    with pytest.raises(AppError, match=message):
        client.predict(**({"prompt": "a", "picture": None, "seed": 1} | call), api_name="/sticker")


def test_too_few_keyframes_and_no_platform_are_refused(client):
    with pytest.raises(AppError, match="at least two"):
        client.predict(prompt="a", frame_1=None, frame_5=None, seed=1, api_name="/keyframes")
    with pytest.raises(AppError, match="Choose a platform"):
        client.predict(animation=handle_file(HEART_STICKER), platforms=[], api_name="/export")
    with pytest.raises(AppError):
        client.predict(animation=handle_file(HEART_STICKER), platforms=["nowhere"], api_name="/export")


def test_visitors_who_are_too_fast_wait(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    limit = jobs.RateLimit(2, 60)
    limit.check(visitor("a"))
    now[0] += 20
    limit.check(visitor("a"))
    limit.check(visitor("b"))
    with pytest.raises(gr.Error, match="wait 40 seconds"):
        limit.check(visitor("a"))
    now[0] += 40
    limit.check(visitor("a"))
    now[0] += 1000
    limit.check(visitor("c"))
    assert set(limit.times) == {"c"}


def test_an_empty_seed_is_any_seed_and_numbers_are_whole():
    settings = jobs.settings_of("a", **panel(seed=None, num_inference_steps=2.0))
    assert settings["seed"] >= 0 and isinstance(settings["num_inference_steps"], int)
    assert jobs.settings_of("a", **panel(seed=5.0))["seed"] == 5


def test_a_long_frame_is_held_in_memory_once(monkeypatch, tmp_path):
    """Its 24 places in what is continued share one resized picture."""
    sizes = []

    def counted(frames, *size):
        sizes.append(len(frames))
        return fit_canvas(frames, *size)

    monkeypatch.setattr(jobs, "fit_canvas", counted)
    long = tmp_path / "long.gif"
    Image.open(HEART_STICKER).convert("RGBA").save(long, save_all=True, duration=30_000)
    *_, (_, _, made) = jobs.continued(str(long), visitor(), 2.4, "a", **panel_without_loop())
    assert sizes == [1] and made["kept"] == 2


def test_every_button_counts_and_the_queue_is_short(monkeypatch, address):
    limit = jobs.RateLimit(0, 60)
    monkeypatch.setattr(limit, "check", lambda request: (_ for _ in ()).throw(gr.Error("too fast")))
    monkeypatch.setattr(jobs, "rate_limit", limit)
    calls = (
        jobs.sticker("a", visitor(), **panel()),
        jobs.keyframes("a", visitor(), **panel()),
        jobs.continued(HEART_STICKER, visitor(), 3, "a"),
        jobs.export(HEART_STICKER, visitor(), ["slack"]),
    )
    for call in calls:
        with pytest.raises(gr.Error, match="too fast"):
            next(call)
    (page,) = [page for page in gr.Blocks.get_instances() if page.local_url == address]
    assert page._queue.max_size == 24 and page.delete_cache == (1800, 7200)


def test_defaults_of_a_large_model_are_within_what_visitors_may_set(monkeypatch):
    other = load_example("space/jobs.py")
    settings = {"num_inference_steps": 50, "guidance_scale": 12.5}
    monkeypatch.setattr(other, "generation_settings", lambda model: settings)
    assert other.defaults() == {
        "num_inference_steps": 30,
        "guidance_scale": 10,
        "image_guidance_scale": 7.5,
        "eta": 1.0,
    }


def test_drawing_and_fitting_end_at_their_time_limits(monkeypatch):
    monkeypatch.setattr(jobs, "DRAW_SECONDS", -1)
    monkeypatch.setattr(jobs, "EXPORT_SECONDS", -2)
    with pytest.raises(gr.Error, match="Stopped after -1 seconds"):
        list(jobs.sticker("a", visitor(), **panel()))
    with pytest.raises(gr.Error, match="Stopped after -2 seconds"):
        list(jobs.export(HEART_STICKER, visitor(), ["slack"]))


def test_drawing_ends_when_the_visitor_leaves():
    settings = jobs.settings_of("a", **panel(num_inference_steps=30))
    drawing = jobs.draw([None] * 8, settings)
    step, frames = next(drawing)
    assert step == jobs.PREVIEW_STEPS and len(frames) == 8
    drawing.close()
    waiting = jobs.worker.submit(lambda: "the worker is free")
    assert waiting.result(timeout=30) == "the worker is free"


def test_words_of_files_and_visitors_are_shown_as_text():
    with pytest.raises(gr.Error) as error, jobs.errors_shown():
        raise ValueError("<img src=x onerror=alert(1)>")
    assert "<" not in error.value.message


# ZeroGPU


def test_scales_that_visitors_move_count_with_several_pictures_too(monkeypatch):
    other = load_example("space/jobs.py")
    scales = {"guidance_scale": 4.0, "continuation_guidance_scale": 2.0, "continuation_image_guidance_scale": 3.0}
    monkeypatch.setattr(other, "generation_settings", lambda model: scales)
    untouched = {"seed": 1, "loop": True, "fps": 8, "negative_prompt": "", "guidance_scale": 4.0}
    settings = other.settings_of("a", **untouched)
    assert settings["continuation_guidance_scale"] == 2.0
    settings = other.settings_of("a", **untouched | {"guidance_scale": 5.0})
    assert settings["guidance_scale"] == 5.0 and "continuation_guidance_scale" not in settings
    assert settings["continuation_image_guidance_scale"] == 3.0


def test_drawing_is_lent_a_gpu_where_there_is_zerogpu(monkeypatch):
    lent = []

    def borrow(duration):
        return lambda function: lent.append((function.__name__, duration)) or function

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=borrow))
    zero = load_example("space/jobs.py")
    ((name, duration),) = lent
    assert name == "draw" and duration([None], {"num_inference_steps": 12, "loop": False}) == 17
    assert duration([None], {"num_inference_steps": 12, "loop": True}) == 29
    assert jobs.spaces is None and zero.spaces is not None


# Links


def test_links_carry_the_settings_and_fill_the_fields():
    settings = {"software": "x", "prompt": "a <b> & c", "picture": "heart", "loop": True, "seed": 5, "fps": 12}
    query = links.link(settings)
    assert "<" not in query and "software" not in query
    request = visitor()
    request.query_params = dict(httpx.URL(query).params)
    fields = links.from_link(request)
    assert fields["prompt"] == "a <b> & c" and fields["picture"] == HEART
    assert (fields["loop"], fields["seed"], fields["fps"]) == (True, 5, 12)
    assert fields["negative_prompt"] == "" and fields["guidance_scale"] == gr.skip()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("seed", "nan", gr.skip()),
        ("seed", "-1", -1),
        ("seed", "-2", gr.skip()),
        ("fps", "1e9", gr.skip()),
        ("fps", "fast", gr.skip()),
        ("guidance_scale", "2.5", 2.5),
        ("picture", "../../../etc/passwd", None),
        ("picture", "yours", None),
        ("prompt", "a" * 999, "a" * 200),
        ("loop", "False", False),
    ],
)
def test_links_with_impossible_values_change_nothing(name, text, value):
    assert links.linked_value(name, text) == value


def test_pages_without_a_link_begin_as_they_are():
    request = visitor()
    request.query_params = {"__theme": "dark"}
    assert set(map(str, links.from_link(request).values())) == {str(gr.skip())}


# Cards


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory) -> list[Path]:
    """A flickering opaque animation and an empty still in every format."""
    flicker = np.zeros((70, 24, 40, 4), np.uint8)
    flicker[::2, ..., :3] = 255
    flicker[..., 3] = 255
    folder, files = tmp_path_factory.mktemp("bad"), []
    for format, suffix in (("gif", ".gif"), ("webm", ".webm"), ("apng", ".png"), ("webp", ".webp")):
        for name, frames in {"flicker": flicker, "empty": flicker[:1] * 0}.items():
            files.append(folder / f"{name}{suffix}")
            files[-1].write_bytes(encode(frames, format, fps=12))
    return files


@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
def test_cards_list_every_rule_that_a_file_breaks(platform, bad_files):
    for path in bad_files:
        broken = {violation.rule for violation in check(path, platform)}
        assert broken == {rule.name for rule in cards.judge(path, platform) if not rule.kept}


def test_card_of_a_platform_that_takes_no_stills_says_why(tmp_path):
    still = read_animation(HEART)
    card = cards.make_card(still, PLATFORMS["telegram-emoji"])
    assert card.path is None and "no still pictures" in card.notes[0]
    assert cards.pack([card]) is None


def test_webm_is_previewed_as_webp_with_its_transparency(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    card = cards.make_card(read_animation(HEART_STICKER), PLATFORMS["telegram-emoji"])
    assert card.path.endswith(".webm") and card.preview.endswith(".webp")
    shown = read_animation(card.preview)
    assert shown.frames.shape[1:] == (100, 100, 4) and shown.frames[..., 3].min() == 0
    assert shown.durations.sum() == read_animation(card.path).durations.sum()
    with zipfile.ZipFile(io.BytesIO(Path(cards.pack([card])).read_bytes())) as archive:
        assert archive.namelist() == ["telegram-emoji.webm", "report.json"]
