"""Prepared data is what training would have worked out itself, whole after any kill, the same from any processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from example_scripts import EXAMPLES, load_example

from rdtf_diffusers import StickerGenerationPipeline
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips
from rdtf_diffusers.data.latents import LatentClips, Preparation, read_dropped, shard_path
from rdtf_diffusers.data.procedural import MOTIONS
from rdtf_diffusers.utils.files import write_whole


@pytest.fixture(scope="module")
def script():
    return load_example("prepare_dataset.py")


def arguments(base, stickers, output_dir, *more):
    return [
        *("--pretrained_model_name_or_path", str(base), "--train_data_dir", str(stickers)),
        *("--output_dir", str(output_dir), "--resolution", "16", "--rows_per_shard", "2"),
        *("--min_motion", "0", "--min_colour_bits", "0"),
        *map(str, more),
    ]


@pytest.fixture(scope="module")
def prepared(script, base, stickers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    assert script.main(arguments(base, stickers, folder, "--text_word_drop_prob", 0)) == 0
    return folder


def assert_same_shards(ours, theirs):
    """Equal but for rounding, which depends on the number of threads."""
    names = [sorted(file.name for file in (folder / "shards").iterdir()) for folder in (ours, theirs)]
    assert names[0] == names[1]
    for shard in range(len(names[0])):
        rows = [pq.read_table(shard_path(folder, shard)).to_pylist() for folder in (ours, theirs)]
        arrays = [
            [clip.pop(name) for row in side for clip in row["clips"] for name in ("latents", "text")] for side in rows
        ]
        assert rows[0] == rows[1]
        for pair in zip(*arrays, strict=True):
            np.testing.assert_allclose(*(np.frombuffer(data, np.float16) for data in pair), atol=5e-3)


def test_cache_and_files_give_the_same_samples(prepared, base, stickers):
    pipeline = StickerGenerationPipeline.from_pretrained(base, unet=None)
    cached = LatentClips(prepared, procedural_fraction=0, seed=3)
    read = StickerClips([stickers], ClipMaker(size=16, procedural_fraction=0), seed=3)
    assert len(cached) == len(read) == 6
    for number in range(24):
        ours, theirs = cached[number], read[number]
        assert [ours[key] for key in ("index", "caption", "seed")] == [
            theirs[key] for key in ("index", "caption", "seed")
        ]
        with torch.no_grad():
            latents = pipeline.encode_frames(theirs["clip"])
            text = pipeline.encode_prompt([theirs["caption"]])[0][0]
        torch.testing.assert_close(ours["latents"], latents, atol=2e-3, rtol=2e-3)  # halves
        torch.testing.assert_close(ours["encoder_hidden_states"], text, atol=2e-3, rtol=2e-3)


def test_cache_and_files_draw_the_same_rows(prepared, stickers):
    for window in (2**30, 1):
        cached = LatentClips(prepared, procedural_fraction=0, seed=3, max_samples=4, cache_bytes=window)
        read = StickerClips([stickers], ClipMaker(size=16, procedural_fraction=0), seed=3, max_samples=4)
        assert len(cached) == len(read) == 4
        ours, theirs = ([clips[number]["caption"] for number in range(12)] for clips in (cached, read))
        assert sorted(ours) == sorted(theirs) and (window == 1 or ours == theirs)
    with pytest.raises(ValueError, match="`max_samples` must be at least 1, got 0"):
        LatentClips(prepared, max_samples=0)


def test_a_picture_has_motions_of_its_own(prepared):
    cached = LatentClips(prepared, procedural_fraction=1)
    samples = [cached[number] for number in range(120)]
    stills = [sample for sample in samples if sample["index"] >= 3]
    assert {len(sample["latents"]) for sample in stills} == {8}
    captions = {sample["caption"] for sample in stills if sample["index"] == 3}
    assert 2 <= len(captions) <= 4 and all("red ball" in caption for caption in captions)
    animations = [sample for sample in samples if sample["index"] < 3]
    assert {len(sample["latents"]) for sample in animations} == {3, 4, 5, 6, 7, 8}


def test_the_padding_is_the_latent_of_a_grey_frame(prepared, base):
    pipeline = StickerGenerationPipeline.from_pretrained(base, unet=None)
    with torch.no_grad():
        expected = pipeline.encode_frames(torch.zeros(1, 4, 16, 16))[0]
    torch.testing.assert_close(LatentClips(prepared).padding, expected, atol=2e-3, rtol=2e-3)


def test_an_epoch_has_every_row_once_and_its_order_fits_into_memory(script, base, stickers, tmp_path):
    assert script.main(arguments(base, stickers, tmp_path, "--rows_per_shard", 1, "--text_variants", 0)) == 0
    cached = LatentClips(tmp_path, cache_bytes=1)
    orders = [[cached[epoch * 6 + number]["index"] for number in range(6)] for epoch in range(5)]
    assert all(sorted(order) == list(range(6)) for order in orders) and len(set(map(tuple, orders))) > 1
    assert len(cached.tables) == 1
    assert cached[7]["index"] == orders[1][1] and "encoder_hidden_states" not in cached[0]


def test_words_are_dropped_otherwise_in_every_variant(script, base, stickers, tmp_path):
    assert (
        script.main(arguments(base, stickers, tmp_path, "--text_word_drop_prob", 0.5, "--motions_per_picture", 0)) == 0
    )
    row = pq.read_table(shard_path(tmp_path, 0))["clips"][0].as_py()[0]
    variants = np.frombuffer(row["text"], np.float16).reshape(4, -1)
    assert row["caption"] == "a red ball" and len(np.unique(variants, axis=0)) > 1
    with pytest.raises(ValueError, match=r"without motions; `procedural_fraction` must be 0, not 0\.5"):
        LatentClips(tmp_path)
    assert len(LatentClips(tmp_path, procedural_fraction=0)) == 6


def test_dropped_files_are_reported(script, base, stickers, tmp_path, capsys):
    rows = [json.loads(line) for line in (stickers / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        (tmp_path / row["file_name"]).write_bytes((stickers / row["file_name"]).read_bytes())
    (tmp_path / "1.webp").write_bytes(b"broken")
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert script.main(arguments(base, tmp_path, out, "--min_motion", 1)) == 0
    printed = capsys.readouterr().out
    assert "3 of 6 rows kept in 3 shards" in printed and "dropped 1: unreadable" in printed
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert [row["row"] for row in dropped] == [0, 1, 2] and "near-static" in dropped[0]["reason"]
    assert dropped[1]["file"].endswith("1.webp") and not dropped[1]["reason"].count("1.webp")
    assert read_dropped(out, 1) == dropped[2:]
    assert "configs:" in (out / "README.md").read_text()
    assert len(LatentClips(out)) == 3
    assert script.main(arguments(base, tmp_path, tmp_path / "none", "--min_colour_bits", 99)) == 2
    assert "was kept" in capsys.readouterr().err


def test_what_was_killed_goes_on_and_ends_the_same(script, prepared, base, stickers, tmp_path):
    args = arguments(base, stickers, tmp_path, "--text_word_drop_prob", 0)
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "prepare_dataset.py"), *args],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not shard_path(tmp_path, 0).is_file() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "shards").glob("0*.parquet")}
    assert times
    assert script.main(args) == 0
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())  # nothing is done twice
    assert_same_shards(tmp_path, prepared)


def test_two_processes_write_disjoint_shards_whose_union_is_one_processes(prepared, base, stickers, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += [str(EXAMPLES / "prepare_dataset.py"), *arguments(base, stickers, tmp_path, "--text_word_drop_prob", 0)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_shards(tmp_path, prepared)


def test_settings_that_differ_are_named(script, prepared, base, stickers, tmp_path, capsys):
    assert script.main(arguments(base, stickers, prepared, "--text_word_drop_prob", 0.1)) == 2
    assert "text_word_drop_prob: 0.0, now 0.1" in capsys.readouterr().err
    look = ("--center_crop", "--image_interpolation_mode", "lanczos")
    assert script.main(arguments(base, stickers, prepared, "--text_word_drop_prob", 0, *look)) == 2
    error = capsys.readouterr().err
    assert "center_crop: False, now True" in error
    assert "image_interpolation_mode: 'bicubic', now 'lanczos'" in error
    with pytest.raises(ValueError, match="was prepared for 3 to 8 keyframes, not for 2 to 8"):
        LatentClips(prepared, min_keyframes=2)
    with pytest.raises(ValueError, match=r"there is no preparation\.json"):
        LatentClips(stickers)
    made = Preparation.load(prepared)
    assert made.num_shards == 3 and [list(made.rows_of_shard(i)) for i in range(3)] == [[0, 1], [2, 3], [4, 5]]
    made.save(tmp_path)
    with pytest.raises(ValueError, match=r"3 of 3 shards are missing, 00000\.parquet first"):
        LatentClips(tmp_path)
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        shard_path(tmp_path, shard).write_bytes(shard_path(prepared, shard).read_bytes()[: -9 if shard == 1 else None])
    (tmp_path / "padding.safetensors").write_bytes((prepared / "padding.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"00001\.parquet: a broken shard"):
        LatentClips(tmp_path)


def test_motions_are_drawn_by_weight_and_this_is_written_down(script, base, stickers, tmp_path):
    weights = [f"{name}=1e-9" for name in MOTIONS if name != "spin"]
    assert script.main(arguments(base, stickers, tmp_path, "--text_variants", 0, "--motion_weights", *weights)) == 0
    made = Preparation.load(tmp_path)
    assert made.motion_weights.keys() == MOTIONS.keys() - {"spin"} and set(made.motion_weights.values()) == {1e-9}
    rows = [row for shard in range(3) for row in pq.read_table(shard_path(tmp_path, shard))["clips"].to_pylist()]
    moved = [clip["caption"] for row in rows for clip in row[1:]]
    assert len(moved) == 12  # a few have a layer alone
    assert sum(any(verb in caption for verb in MOTIONS["spin"].verbs) for caption in moved) > 8
    file = tmp_path / "preparation.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in values.items() if name != "motion_weights"}))
    assert Preparation.load(tmp_path).motion_weights == {}  # of a folder that is older


def test_nothing_of_other_data_or_of_the_user_is_mixed_in(script, base, stickers, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(stickers, copy)
    args = arguments(base, copy, tmp_path / "out", "--text_variants", 0, "--motions_per_picture", 0)
    assert script.main(args) == 0
    shard_path(tmp_path / "out", 1).unlink()
    (tmp_path / "out" / "shards" / ".00001.parquet.99").write_bytes(b"of a killed process")
    assert script.main(args) == 0 and not list((tmp_path / "out" / "shards").glob(".*"))
    lines = (copy / "metadata.jsonl").read_text().replace("red", "green")
    (copy / "metadata.jsonl").write_text(lines)
    capsys.readouterr()
    assert script.main(args) == 2 and "was prepared otherwise (rows: " in capsys.readouterr().err
    assert script.main(arguments(base, stickers, copy)) == 2
    assert "holds something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--resolution", 0), "--resolution must be at least 1"),
        (("--resolution", 15), "must be a multiple of 2"),
        (("--min_keyframes", 9), "must rise and stay within `num_frames` 8"),
        (("--text_word_drop_prob", 2), "between 0 and 1"),
        (("--motions_per_picture", -1), "must not be negative"),
        (("--motion_weights", "teleport=2"), "`motion_weights` names must be among bounce"),
        (("--caption_column", "words"), "no column `words`"),
    ],
)
def test_user_errors_end_in_one_line(script, base, stickers, tmp_path, capsys, more, message):
    try:
        code = script.main(arguments(base, stickers, tmp_path, *more))
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "page.html", "no bytes")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page.html", "old")]
    write_whole(tmp_path / "page.html", b"new")
    assert (tmp_path / "page.html").read_text() == "new"
