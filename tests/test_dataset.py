import itertools
import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from torch.utils.data import DataLoader

from rdtf_diffusers.data.animation import Animation, frames_to_clip, read_animation
from rdtf_diffusers.data.dataset import ClipMaker, StickerClips, describe
from rdtf_diffusers.data.rows import read_row
from rdtf_diffusers.data.streaming import StreamedClips


COLOURS = [(255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)]


def square(colour, left=4, size=32):
    pixels = np.zeros((size, size, 4), dtype=np.uint8)
    pixels[6:26, left : left + 20] = colour
    return Picture.fromarray(pixels)


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    """`datasets` sleeps for five seconds at the end of every epoch of Parquet files."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


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


def test_a_stream_goes_on_in_other_orders_and_a_good_row_stands_in_for_a_bad_one(folder, caplog, monkeypatch):
    (folder / "1.png").write_bytes(b"broken")
    stream = StreamedClips([folder], ClipMaker(size=16, procedural_fraction=0))
    samples = [sample for sample, _ in zip(stream, range(20))]
    assert [sample["index"] for sample in samples] == list(range(20))
    assert len({sample["seed"] for sample in samples}) == 20
    captions = [sample["caption"] for sample in samples]
    assert len({tuple(captions[i : i + 4]) for i in range(0, 20, 4)}) > 2
    assert all(
        captions.count(row["text"]) >= 4
        for row in StickerClips([folder], ClipMaker()).rows
        if "ice" not in row["text"]
    )
    assert "1.png: " in caplog.text
    for path in folder.glob("*.*p*"):
        path.unlink()
    write_metadata(folder, [{"file_name": "0.png", "text": "gone"}])
    monkeypatch.setattr("rdtf_diffusers.data.streaming.MAX_UNREADABLE", 9)
    with pytest.raises(ValueError, match=r"9 files in a row cannot be read; the last: .*0\.png"):
        next(iter(StreamedClips([folder], ClipMaker())))


@pytest.fixture
def pictures(tmp_path):
    """Eleven stills, two of them unreadable, in a folder (many pieces) and in one Parquet file (one piece)."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(11):
        Picture.new("RGBA", (8, 8), (20 * number, 0, 0, 255)).save(folder / f"{number}.png")
    for number in (4, 9):
        (folder / f"{number}.png").write_bytes(b"broken")
    write_metadata(folder, [{"file_name": f"{number}.png", "text": f"{number}"} for number in range(11)])
    columns = {"image": [os.fspath(folder / f"{n}.png") for n in range(11)], "text": [f"{n}" for n in range(11)]}
    features = Features({"image": Image(decode=False), "text": Value("string")})
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "parquet" / "0.parquet")
    return {"folder": folder, "parquet": tmp_path / "parquet"}


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_a_resumed_stream_goes_on_exactly(pictures, kind, workers, rank, world_size):
    def batches(done, count):
        maker = ClipMaker(num_frames=2, size=8, min_keyframes=1, max_keyframes=2)
        stream = StreamedClips([pictures[kind]], maker, seed=5, rank=rank, world_size=world_size, buffer_size=4)
        stream.resume(samples=3 * done, batch_size=3)
        loader = DataLoader(stream, batch_size=3, num_workers=workers, collate_fn=list)
        return [batch for batch, _ in zip(loader, range(count))]

    whole = batches(0, 16)  # 48 samples are more than four epochs
    assert len({sample["index"] for batch in whole for sample in batch}) == 48
    for done in (5, 12) if workers else (1, 2, 3, 6, 11):
        for ours, theirs in zip(batches(done, 4), whole[done:]):
            for resumed, uninterrupted in zip(ours, theirs, strict=True):
                assert torch.equal(resumed.pop("clip"), uninterrupted["clip"])
                assert resumed == {name: value for name, value in uninterrupted.items() if name != "clip"}


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6])
def test_parts_of_a_stream_are_all_rows_and_past_epochs_are_passed_over(pictures, kind, parts):
    stream = StreamedClips([pictures[kind]], ClipMaker(), buffer_size=4)
    epochs = [[], [], []]
    for part in range(parts):
        length = len(range(part, 11, parts))
        rows = stream.rows_of_part(part, parts, first=0)
        for epoch in epochs:
            epoch += [row["text"] for row in itertools.islice(rows, length)]
        next(stream.rows_of_part(part, parts, first=10**12))  # would not end if epochs were read one by one
    assert all(sorted(epoch, key=int) == [str(number) for number in range(11)] for epoch in epochs)


def test_a_resumed_stream_decodes_nothing_that_is_past(pictures, monkeypatch):
    read = []
    monkeypatch.setattr("rdtf_diffusers.data.dataset.read_row", lambda row: read.append(row) or read_row(row))
    stream = StreamedClips([pictures["folder"]], ClipMaker(size=8))
    stream.resume(samples=30, batch_size=2)
    next(iter(stream))
    assert len(read) <= 3
    with pytest.raises(ValueError, match="`samples` must be whole batches of 2, got 31"):
        stream.resume(samples=31, batch_size=2)


def test_a_stream_with_fewer_rows_than_parts_is_refused(folder):
    with pytest.raises(ValueError, match="5 processes and workers share the data; too few rows for all"):
        for rank in range(5):
            next(iter(StreamedClips([folder], ClipMaker(size=8), rank=rank, world_size=5)))


def test_some_rows_can_be_used(pictures):
    def captions(seed, **options):
        clips = StickerClips([pictures["folder"]], ClipMaker(size=8), seed=seed, **options)
        return [
            frozenset(clips.rows[clips.shuffled(i)]["text"] for i in range(e, e + len(clips))) for e in (0, len(clips))
        ]

    drawn = [captions(seed, max_samples=5) for seed in range(3)]
    assert all(first == second and len(first) == 5 for first, second in drawn) and len({row[0] for row in drawn}) > 1
    assert drawn[0] == captions(0, max_samples=5) and captions(0, max_samples=99) == captions(0)
    for kind in pictures:
        rows = set()
        for rank in range(2):
            stream = StreamedClips([pictures[kind]], ClipMaker(), rank=rank, world_size=2, max_samples=5)
            rows |= {row["text"] for row in itertools.islice(stream.rows_of_part(rank, 2, 0), 20)}
        assert rows == {"0", "1", "2", "3", "4"}
    for kind in (StickerClips, StreamedClips):
        with pytest.raises(ValueError, match="`max_samples` must be at least 1, got 0"):
            kind([pictures["folder"]], ClipMaker(), max_samples=0)


@pytest.mark.parametrize("kind", [StickerClips, StreamedClips])
def test_data_that_cannot_be_learnt_from_is_refused(folder, kind):
    kind([folder], ClipMaker()).check()
    for path in folder.glob("*.*p*"):
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="No file of the data set can be read, 4 were tried"):
        kind([folder], ClipMaker()).check()
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="No sticker has a caption"):
        kind([folder], ClipMaker()).check()


def flipped_share(row, frames=1, draws=200):
    """How often samples of a picture that is lighter on the right are mirrored."""
    pixels = np.tile(np.arange(8, dtype=np.uint8)[:, None] * 30, (frames, 8, 1, 4))
    animation = Animation(pixels, np.full(frames, 100.0), "drawn")
    table = {k: np.arange(k) % frames for k in range(3, 9)} if frames > 1 else None
    plain, maker = (ClipMaker(size=8, procedural_fraction=0, random_flip=flip) for flip in (False, True))
    expected = plain.clip(animation.frames[:1])[0]
    count = 0
    for draw in range(draws):
        clip = maker.sample(animation, row, table, np.random.default_rng(draw))["clip"]
        assert all(torch.equal(frame, clip[0]) for frame in clip)
        assert torch.equal(clip[0], expected) or torch.equal(clip[0], expected.flip(-1))
        count += torch.equal(clip[0], expected.flip(-1))
    return count / draws


@pytest.mark.parametrize("frames", [1, 4])
def test_half_of_the_samples_are_mirrored(frames):
    assert 0.4 < flipped_share({"text": "a bright fish"}, frames) < 0.6
    assert 0.4 < flipped_share({"text": "copyright", "ocr": None}, frames) < 0.6


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a fish swimming to the Left"},
        {"text": "right-hand turn"},
        {"text": "drifting leftwards"},
        {"text": "turning anticlockwise"},
        {"text": "一条鱼向左游"},
        {"text": "a fish", "ocr": "HELLO"},
    ],
)
def test_sides_and_written_words_are_never_mirrored(row):
    assert flipped_share(row, draws=20) == 0


def test_a_picture_is_mirrored_before_it_is_set_in_motion(folder):
    animation = read_animation(folder / "0.png")
    mirrored = replace(animation, frames=animation.frames[:, :, ::-1])
    maker = ClipMaker(size=16, procedural_fraction=1, random_flip=True)
    seen = set()
    for draw in range(8):
        sample = maker.sample(animation, {"text": "a fish"}, None, np.random.default_rng(draw))
        rng = np.random.default_rng(draw)
        seed, flip = int(rng.integers(2**63)), rng.random() < 0.5
        rng.random()  # whether it is set in motion
        clip, caption, motions = maker.set_in_motion(mirrored if flip else animation, "a fish", rng)
        assert sample["motions"] == motions
        assert torch.equal(sample["clip"], clip) and (sample["caption"], sample["seed"]) == (caption, seed)
        seen.add(flip)
    assert seen == {False, True}


def test_cropping_and_filters_reach_the_clips():
    pixels = np.random.default_rng(0).integers(256, size=(1, 20, 32, 4), dtype=np.uint8)
    animation = Animation(pixels, np.array([100.0]), "drawn")
    maker = ClipMaker(size=8, center_crop=True, interpolation="lanczos")
    expected = frames_to_clip(pixels[:, :, 6:26], 8, interpolation="lanczos")
    assert torch.equal(maker.clip(pixels), expected)
    cut = replace(animation, frames=pixels[:, :, 6:26])
    moving = [maker.set_in_motion(picture, "", np.random.default_rng(0))[0] for picture in (animation, cut)]
    assert torch.equal(*moving)
