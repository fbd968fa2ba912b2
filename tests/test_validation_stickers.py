"""Validation cases of a run, and the warning about stickers that stand still."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from example_scripts import load_example
from PIL import Image
from tiny_models import make_pipeline

from rdtf_diffusers.data.animation import Animation
from rdtf_diffusers.data.quality import motion


@pytest.fixture(scope="module")
def module():
    return load_example("validation_stickers.py")


def pictures(number: int, step: int = 1) -> np.ndarray:
    """A white square that goes right, (number, 8, 8, 4)."""
    frames = np.zeros((number, 8, 8, 4), dtype=np.uint8)
    for index in range(number):
        left = index * step % 6
        frames[index, 2:5, left : left + 3] = 255
    return frames


def animation(number: int) -> Animation:
    return Animation(pictures(number), np.full(number, 125.0), "square.webp")


def known(case) -> str:
    return "".join("0" if frame is None else "1" for frame in case.frames)


def test_cases_show_every_family_of_tasks(module):
    cases = module.make_cases(["a square", ""], [animation(8), animation(1)], num_frames=8)
    shown = {case.name: (known(case), case.prompt, len(case.truth)) for case in cases}
    assert shown == {
        "0-generation": ("10000000", "a square", 8),
        "0-interpolation": ("10010010", "a square", 8),
        "0-prediction": ("11110000", "a square", 8),
        "1-generation": ("10000000", "", 0),
    }
    (words,) = module.make_cases(["a square"], [], num_frames=5)
    assert (words.name, known(words), words.truth) == ("0-generation", "00000", ())
    assert known(module.make_cases(["x"], [animation(3)], 5)[2]) == "11100"


def test_drawing_keeps_what_is_given_and_depends_on_the_seed(module):
    pipe = make_pipeline()
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
    for case in (*module.make_cases(["a dog"], [animation(8)], 8), *module.make_cases(["a dog"], [], 8)):
        frames = module.draw(pipe, case, 0, **settings)
        assert len(frames) == 8
        for frame, given in zip(frames, case.frames):
            if given is not None:
                visible = np.asarray(given.convert("RGBa"))
                np.testing.assert_allclose(np.asarray(frame.convert("RGBa")), visible, atol=1)
        again, other = (module.draw(pipe, case, seed, **settings) for seed in (0, 1))
        assert [f.tobytes() for f in again] == [f.tobytes() for f in frames] != [f.tobytes() for f in other]


def test_motion_counts_frames_that_were_drawn_and_static_ones_are_named(module, caplog):
    cases = module.make_cases(["a square"], [animation(8)], 8)
    truth = list(cases[0].truth)
    static = [truth[0]] * 8
    continued = truth[:4] + [truth[3]] * 4  # what a model repeats that has only learnt to copy
    with caplog.at_level(logging.WARNING):
        scores = module.motion_scores(cases, [truth, truth, truth])
    assert not caplog.text
    assert scores["generation"] == pytest.approx(motion(pictures(8)[1:]))
    assert scores["prediction"] == pytest.approx(motion(pictures(8)[4:]))
    assert scores["real"] == pytest.approx(
        np.mean([scores[name] for name in ("generation", "interpolation", "prediction")])
    )
    between = [frame if frame is not None else truth[0] for frame in cases[1].frames]
    scores = module.motion_scores(cases, [static, between, continued])
    assert scores["generation"] == scores["interpolation"] == scores["prediction"] == 0
    assert "stand still" in caplog.text and "0.0015" in caplog.text


def test_what_a_browser_shows_moves(module, tmp_path):
    class Writer:
        def __init__(self):
            self.file_writer, self.events = self, []

        def add_summary(self, summary, step):
            self.events.append((summary, step))

    class Tracker:
        name, writer = "tensorboard", Writer()

    frames = [Image.fromarray(frame) for frame in pictures(8)]
    module.log_animation(Tracker, "validation/0", frames, 7)
    ((summary, step),) = Tracker.writer.events
    (tmp_path / "x.gif").write_bytes(summary.value[0].image.encoded_image_string)
    with Image.open(tmp_path / "x.gif") as gif:
        assert step == 7 and summary.value[0].tag == "validation/0" and gif.n_frames == 8
        assert gif.convert("RGB").getpixel((7, 7)) == (255, 255, 255)


def test_wandb_gets_a_moving_picture(module, monkeypatch):
    logged = []
    wandb = SimpleNamespace(Video=lambda data, format: (data.getvalue()[:6], format))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: logged.append((values, step)))
    module.log_animation(tracker, "validation/0", [Image.fromarray(frame) for frame in pictures(8)], 3)
    assert logged == [({"validation/0": (b"GIF89a", "gif")}, 3)]
