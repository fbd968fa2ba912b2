"""The benchmarks run, on models of a few thousand parameters, and count what they say they count."""

import json

import pytest
import torch
from example_scripts import load_example
from PIL import Image, ImageDraw
from tiny_models import TINY_UNET, make_pipeline


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
    sampling = load_example("benchmarks/sampling.py")
    picture = torch.tensor([0.5, 0.25, 0.0, 0.5]).view(4, 1, 1)
    assert sampling.straight(picture).flatten().tolist() == [1.0, 0.5, 0.0, 0.5]
    clips = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1, 1)
    assert sampling.motion(clips) == 0.75


def test_data_table(tmp_path, pictures, base, capsys):
    data = load_example("benchmarks/data.py")
    data.train_rdtf.PRESETS["tiny"] = TINY_UNET
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
