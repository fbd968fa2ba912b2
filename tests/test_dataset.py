import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from torch.utils.data import DataLoader

from rdtf_diffusers.data.dataset import ClipMaker, StickerClips, StreamedClips, describe


COLOURS = [(255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)]


def square(colour, left=4, size=32):
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[6:26, left : left + 20] = colour
    return Picture.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Three stills and one animation of four frames, the second of them long, in the ImageFolder layout."""
    for index, colour in enumerate(COLOURS):
        square(colour).save(tmp_path / f"{index}.png")
    frames = [square(COLOURS[0], left) for left in (0, 3, 6, 9)]
    frames[0].save(
        tmp_path / "moving.webp",
        save_all=True,
        append_images=frames[1:],
        duration=[100, 500, 100, 100],
        lossless=True,
    )
    names = ["red square, flat emoji", "ice cube, flat emoji", "blue square"]
    rows = [{"file_name": f"{index}.png", "text": name, "frame_ms": 5} for index, name in enumerate(names)]
    rows.append({"file_name": "moving.webp", "text": "a square sliding, flat cartoon", "frame_ms": [100, 500]})
    write_metadata(tmp_path, rows)
    return tmp_path


def write_metadata(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_row(clips, epoch=0):
    """The samples of one epoch, keyed by their rows."""
    samples = [clips[epoch * len(clips) + position] for position in range(len(clips))]
    return {item["index"]: item for item in samples}


def test_stills_and_animations_become_clips(folder):
    clips = StickerClips([folder], ClipMaker(size=32, procedural_fraction=0, keyframes="uniform"))
    items = by_row(clips)
    assert sorted(items) == [0, 1, 2, 3]  # every row comes once
    assert items[0]["clip"].shape == (1, 4, 32, 32) and items[0]["caption"] == "red square, flat emoji"
    torch.testing.assert_close(items[0]["clip"][0, :, 16, 16], torch.tensor([1.0, -1, -1, 1]))
    assert (items[0]["clip"][0, :, 0, 0] == -1).all()
    counts, lefts = set(), set()
    for epoch in range(40):
        item = by_row(clips, epoch)[3]
        counts.add(len(item["clip"]))
        lefts.add(tuple((item["clip"][:, 3, 16] > 0).int().argmax(dim=1).tolist()))
        assert item["caption"] == "a square sliding, flat cartoon"
    assert counts == {3, 4, 5, 6, 7, 8}
    assert (0, 3, 3, 3, 3, 3, 6, 9) in lefts  # even in time: the long frame is seen five times


def test_three_channels_are_over_white(folder):
    clip = by_row(StickerClips([folder], ClipMaker(size=32, channels=3, procedural_fraction=1)))[0]["clip"]
    assert clip.shape == (8, 3, 32, 32) and clip.min() >= -1 - 1e-4 and clip.max() <= 1 + 1e-4
    assert (clip[0] > 0.999).all(dim=0).any()


def test_stills_are_set_in_motion_with_the_given_probability(folder):
    clips = StickerClips([folder], ClipMaker(6, 32, procedural_fraction=0.5, max_keyframes=6))
    lengths = []
    for epoch in range(100):
        item = by_row(clips, epoch)[1]
        lengths.append(len(item["clip"]))
        assert "ice cube" in item["caption"]
        assert (item["caption"] == "ice cube, flat emoji") == (lengths[-1] == 1)
    assert set(lengths) == {1, 6} and 30 < lengths.count(6) < 70


def test_captions_of_moving_pictures_take_varied_forms():
    drawn = [describe("ice cube, flat emoji", "jumping high", np.random.default_rng(seed)) for seed in range(200)]
    assert all("ice cube" in caption and "jumping high" in caption for caption in drawn)
    assert 70 < sum(caption.endswith(", flat emoji") for caption in drawn) < 130
    assert len({caption.removesuffix(", flat emoji") for caption in drawn}) >= 3
    with_article = {describe("The sun", "jumping", np.random.default_rng(seed)) for seed in range(60)}
    assert with_article == {"The sun, jumping", "The sun jumping", "jumping The sun"}
    behind = {describe("dog", "with hearts", np.random.default_rng(seed), may_lead=False) for seed in range(60)}
    assert behind == {"dog, with hearts", "dog with hearts", "a dog with hearts"}
    assert describe("", "jumping", np.random.default_rng(0)) == "jumping"
    plain = {describe("dog", "jumping", np.random.default_rng(seed)) for seed in range(60)}
    assert "dog, jumping" in plain and not any(caption.endswith(", ") for caption in plain)


def test_samples_depend_on_seed_and_number_alone(folder):
    def collect(workers, seed=0, order=(0, 1, 2, 3, 4, 5)):
        clips = StickerClips([folder], ClipMaker(size=32, procedural_fraction=0.8), seed=seed)
        loader = DataLoader(clips, batch_size=None, sampler=list(order), num_workers=workers)
        return dict(zip(order, loader, strict=True))

    def equal(ours, theirs):
        return all(
            torch.equal(ours[i]["clip"], theirs[i]["clip"])
            and [ours[i][name] for name in ("caption", "index", "seed")]
            == [theirs[i][name] for name in ("caption", "index", "seed")]
            for i in range(6)
        )

    reference = collect(workers=0)
    assert equal(reference, collect(workers=2, order=(5, 3, 1, 0, 2, 4)))
    assert not equal(reference, collect(workers=0, seed=1))
    assert len({item["seed"] for item in reference.values()}) == 6


def test_bad_files_are_named_once_and_the_next_row_stands_in(folder, caplog):
    (folder / "1.png").write_bytes(b"broken")
    (folder / "2.png").unlink()
    clips = StickerClips([folder], ClipMaker(size=32))
    with caplog.at_level(logging.WARNING):
        rows = [clips[position]["index"] for position in range(8)]
    assert sorted(rows) == [0, 0, 3, 3, 3, 3, 3, 3]
    assert "1.png: not a GIF" in caplog.text and "2.png: No such file" in caplog.text
    assert len(caplog.records) == 2
    for name in ("0.png", "moving.webp"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="No file of the data set can be read"):
        StickerClips([folder], ClipMaker())[0]


def test_files_are_decoded_once_within_the_memory_bound(folder):
    maker = ClipMaker(size=32)
    whole, bounded = StickerClips([folder], maker), StickerClips([folder], maker, cache_bytes=2 * 32 * 32 * 4)
    before, _ = by_row(whole), by_row(bounded)
    assert len(whole.files) == 4 and whole.free_bytes == 2**30 - 7 * 32 * 32 * 4
    assert len(bounded.files) <= 2 and bounded.free_bytes >= 0
    for path in folder.glob("*.*"):
        path.unlink()
    assert all(torch.equal(item["clip"], before[row]["clip"]) for row, item in by_row(whole).items())


def test_sets_are_joined(folder):
    clips = StickerClips([folder, folder], ClipMaker(size=16))
    assert len(clips) == 8 and sorted(by_row(clips)) == list(range(8))
    with pytest.raises(IndexError):
        clips.rows[8]


def test_clustering_and_even_spacing_choose_their_own_frames(folder):
    def picks(**options):
        clips = StickerClips([folder], ClipMaker(size=32, min_keyframes=4, max_keyframes=4, **options))
        return (by_row(clips)[3]["clip"][:, 3, 16] > 0).int().argmax(dim=1).tolist()

    assert picks(keyframes="uniform") == [0, 3, 3, 6]
    assert picks(keyframes="cluster") == picks(keyframes="difference") == [0, 3, 6, 9]


def test_keyframes_of_the_data_set_go_before_clustering(folder):
    rows = [{"file_name": "moving.webp", "text": "a square", "keyframe_idx": [3, 1, 99, 1]}]
    write_metadata(folder, rows)
    clips = StickerClips([folder], ClipMaker(size=32, min_keyframes=3, max_keyframes=3))
    assert (clips[0]["clip"][:, 3, 16] > 0).int().argmax(dim=1).tolist() == [3, 9, 3]  # there and back


def test_keyframes_are_worked_out_once(folder):
    calls = []

    def features(frames):
        calls.append(len(frames))
        return frames.reshape(len(frames), -1).astype(np.float32)

    clips = StickerClips([folder], ClipMaker(size=16, features=features))
    for sample in range(40):
        clips[sample]
    assert calls == [4]


def test_folders_and_parquet_stream_together(folder, tmp_path):
    columns = {"image": [{"bytes": (folder / "0.png").read_bytes(), "path": None}], "caption": ["a red square"]}
    features = Features({"image": Image(), "caption": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "parquet" / "0.parquet")
    rows = [{"file_name": "moving.webp", "text": "a square", "keyframe_idx": [0, 3]}]
    write_metadata(folder, rows)
    for sources in ([folder, tmp_path / "parquet"], [tmp_path / "parquet", folder]):
        stream = StreamedClips(sources, ClipMaker(size=16, procedural_fraction=0))
        assert {sample["caption"] for sample, _ in zip(stream, range(2))} == {"a square", "a red square"}


def test_keyframe_bounds_must_rise():
    with pytest.raises(ValueError, match="must rise and stay within `num_frames` 8"):
        ClipMaker(min_keyframes=4, max_keyframes=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_every_row_of_an_epoch_to_one_process(folder, workers):
    maker = ClipMaker(size=16, procedural_fraction=0)
    captions = []
    for rank in range(2):
        stream = StreamedClips([folder, folder], maker, rank=rank, world_size=2)
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        captions += [sample["caption"] for sample, _ in zip(loader, range(4))]
    assert sorted(captions) == sorted(2 * [row["text"] for row in StickerClips([folder], maker).rows])


def test_a_stream_goes_on_in_other_orders_and_names_bad_files(folder, caplog):
    (folder / "1.png").write_bytes(b"broken")
    stream = StreamedClips([folder], ClipMaker(size=16, procedural_fraction=0))
    captions = [sample["caption"] for sample, _ in zip(stream, range(30))]
    epochs = {tuple(captions[i : i + 3]) for i in range(0, 30, 3)}
    assert len(epochs) > 2 and all(len(set(epoch)) == 3 for epoch in epochs)
    assert "1.png: " in caplog.text
    stream.first_epoch = 1
    assert [sample["caption"] for sample, _ in zip(stream, range(27))] == captions[3:]
    for path in folder.glob("*.*p*g"):
        path.unlink()
    (folder / "moving.webp").unlink()
    with pytest.raises(ValueError, match="No file of the data set can be read"):
        next(iter(stream))
