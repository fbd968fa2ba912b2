"""The benchmarks run, on models of a few thousand parameters, and count what they say they count."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tiny_models import make_pipeline


FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    sampling = load("sampling")
    make_pipeline().save_pretrained(tmp_path / "model")
    args = ["--model", str(tmp_path / "model"), "--data", str(pictures), "--count", "2", "--settings", "2,2,1,0"]
    sampling.main([*args, "--json", str(tmp_path / "table.json")])
    assert len(capsys.readouterr().out.splitlines()) == 4
    table = json.loads((tmp_path / "table.json").read_text())
    (row,) = table["rows"]
    assert {key: row[key] for key in sampling.parse_settings("2,2,1,0")} == sampling.parse_settings("2,2,1,0")
    assert table["still_error"] > 0 and row["error"] > 0 and row["motion"] > 0
    with pytest.raises(SystemExit):
        sampling.main([*args[:-1], "2,2"])


def test_sampling_compares_premultiplied_pictures():
    sampling = load("sampling")
    picture = torch.tensor([0.5, 0.25, 0.0, 0.5]).view(4, 1, 1)
    assert sampling.straight(picture).flatten().tolist() == [1.0, 0.5, 0.0, 0.5]
    clips = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1, 1)
    assert sampling.motion(clips) == 0.75
