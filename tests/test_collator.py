"""The collator: padding, drops at their rates, and draws that depend on nothing but the seed of the row."""

import math

import pytest
import torch

from rdtf_diffusers.training import TASKS, DualMaskCollator, draw_condition_mask, replace_words, row_generator


CAPTION = "a small red dog jumps over the green box"


def make_row(seed: int, frames: int = 8, channels: int = 4, caption: str = CAPTION, key: str = "clip") -> dict:
    clip = torch.rand(frames, channels, 2, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return {key: clip, "caption": caption, "seed": seed}


def assert_rate(hits: int, count: int, probability: float) -> None:
    assert abs(hits - count * probability) <= 4 * math.sqrt(count * probability * (1 - probability)), hits / count


@pytest.mark.parametrize(("key", "output"), [("clip", "pixel_values"), ("latents", "latents")])
@pytest.mark.parametrize("channels", [3, 4])
def test_clips_are_padded_at_the_end_with_zeros(key, output, channels):
    lengths = [1, 5, 8]
    rows = [make_row(seed, frames, channels, key=key) for seed, frames in enumerate(lengths)]
    batch = DualMaskCollator(num_frames=8)(rows, "it2v")
    names = {output, "captions", "frame_mask", "condition_mask", "text_mask", "task"}
    assert set(batch) == names and batch["task"] == "it2v"
    assert batch[output].shape == (3, channels, 8, 2, 3)
    for index, frames in enumerate(lengths):
        clip = batch[output][index].transpose(0, 1)  # (F, C, H, W)
        assert torch.equal(clip[:frames], rows[index][key])
        assert not clip[frames:].any()
        assert batch["frame_mask"][index].tolist() == [True] * frames + [False] * (8 - frames)
    assert batch["frame_mask"].dtype == batch["condition_mask"].dtype == torch.bool
    assert batch["condition_mask"].shape == (3, 8)
    assert batch["text_mask"].shape == (3,) and batch["text_mask"].dtype == torch.float32


@pytest.mark.parametrize("task", TASKS)
def test_without_drops_the_task_alone_decides(task):
    rows = [make_row(seed, frames=1 + seed % 8) for seed in range(64)]
    batch = DualMaskCollator(joint_drop_prob=0.0, text_word_drop_prob=0.0)(rows, task)
    assert batch["text_mask"].tolist() == [float(task != "i2v")] * 64
    assert batch["captions"] == [CAPTION] * 64
    for row, frame_mask, condition_mask in zip(rows, batch["frame_mask"], batch["condition_mask"], strict=True):
        expected = draw_condition_mask(task, frame_mask, row_generator(row["seed"], "condition_mask"))
        assert torch.equal(condition_mask, expected)


def test_joint_drop_hides_text_and_frames_together_at_its_rate():
    rows = [make_row(seed) for seed in range(3000)]
    batch = DualMaskCollator(joint_drop_prob=0.1)(rows, "it2v")
    no_text, no_frames = batch["text_mask"] == 0, ~batch["condition_mask"].any(dim=1)
    assert torch.equal(no_text, no_frames)
    assert_rate(int(no_frames.sum()), 3000, 0.1)


def test_joint_drop_reaches_the_task_without_text():
    batch = DualMaskCollator(joint_drop_prob=0.1)([make_row(seed) for seed in range(3000)], "i2v")
    assert not batch["text_mask"].any()
    assert_rate(int((~batch["condition_mask"].any(dim=1)).sum()), 3000, 0.1)


def test_plain_text_drop_leaves_the_frames():
    collator = DualMaskCollator(joint_drop_prob=0.1, text_drop_prob=0.3)
    batch = collator([make_row(seed) for seed in range(3000)], "it2v")
    no_text, no_frames = batch["text_mask"] == 0, ~batch["condition_mask"].any(dim=1)
    assert_rate(int(no_frames.sum()), 3000, 0.1)
    assert_rate(int(no_text.sum()), 3000, 1 - 0.9 * 0.7)
    assert no_text[no_frames].all()


def test_some_interpolations_show_their_ends_alone():
    rows = [make_row(seed, frames=1 + seed % 8) for seed in range(2400)]
    collator = DualMaskCollator(joint_drop_prob=0.0, interpolation_ends_prob=0.4)
    batch, usual = collator(rows, "interpolation"), DualMaskCollator(joint_drop_prob=0.0)(rows, "interpolation")
    ends = torch.zeros(len(rows), 8, dtype=torch.bool)
    for index, frames in enumerate(batch["frame_mask"].sum(dim=1)):
        ends[index, [0, frames - 1]] = True
    shown = (batch["condition_mask"] == ends).all(dim=1)
    assert torch.equal(batch["condition_mask"][~shown], usual["condition_mask"][~shown])
    longest = batch["frame_mask"].sum(dim=1) > 4  # to which no pattern of the paper looks the same
    assert_rate(int(shown[longest].sum()), int(longest.sum()), 0.4)
    for task in ("it2v", "post_prediction"):
        masks = [made(rows, task)["condition_mask"] for made in (collator, DualMaskCollator(joint_drop_prob=0.0))]
        assert torch.equal(*masks)


def test_some_interpolations_show_all_but_one_gap():
    rows = [make_row(seed, frames=1 + seed % 8) for seed in range(2400)]
    collator = DualMaskCollator(joint_drop_prob=0.0, interpolation_ends_prob=0.2, interpolation_gap_prob=0.8)
    gaps = set()
    for mask, frames in zip(*(collator(rows, "interpolation")[key] for key in ("condition_mask", "frame_mask"))):
        hidden, real = (~mask & frames).nonzero().flatten().tolist(), int(frames.sum())
        assert hidden == list(range(min(hidden, default=0), max(hidden, default=-1) + 1))
        assert mask[0] and mask[real - 1] and not mask[real:].any()
        if real > 3:
            assert 2 <= len(hidden) <= real - 2
            gaps.add((real, hidden[0], len(hidden)))
    slow = {
        (real, first, length)
        for real in range(4, 9)
        for first in range(1, real - 2)
        for length in range(2, real - first)
    }
    assert gaps == slow


def test_more_pictures_in_motion_start_from_their_first_frame():
    rows = [make_row(seed) for seed in range(2400)]
    collator = DualMaskCollator(joint_drop_prob=0.0, first_frame_prob=0.6)
    for task in ("i2v", "it2v"):
        mask = collator(rows, task)["condition_mask"]
        assert (mask.sum(dim=1) == 1).all()
        assert_rate(int(mask[:, 0].sum()), len(rows), 0.6 + 0.4 / 8)
    for task in ("t2v", "post_prediction"):
        masks = [made(rows, task)["condition_mask"] for made in (collator, DualMaskCollator(joint_drop_prob=0.0))]
        assert torch.equal(*masks)


@pytest.mark.parametrize("caption", ["", "  "])
def test_an_empty_caption_counts_as_dropped_text(caption):
    rows = [make_row(0, caption=caption), make_row(0)]
    assert DualMaskCollator(joint_drop_prob=0.0)(rows, "t2v")["text_mask"].tolist() == [0.0, 1.0]


def test_words_are_replaced_one_by_one_at_their_rate():
    rows = [make_row(seed) for seed in range(600)]
    captions = DualMaskCollator(text_word_drop_prob=0.2, word_placeholder="[gone]")(rows, "t2v")["captions"]
    original = CAPTION.split()
    replaced = 0
    for caption in captions:
        words = caption.split(" ")
        assert len(words) == len(original)
        assert all(word in (kept, "[gone]") for word, kept in zip(words, original, strict=True))
        replaced += words.count("[gone]")
    assert_rate(replaced, 600 * len(original), 0.2)
    assert len({caption.index("[gone]") for caption in captions if "[gone]" in caption}) > 5


@pytest.mark.parametrize(
    ("caption", "expected"),
    [("a dog's  day", "_ _  _"), ("跑步 dog", "__ _"), ("イヌ runs", "__ _"), ("", "")],
)
def test_what_counts_as_a_word(caption, expected):
    assert replace_words(caption, 1.0, "_", torch.Generator()) == expected
    assert replace_words(caption, 0.0, "_", torch.Generator()) == caption


@pytest.mark.parametrize("task", ["i2v", "it2v", "interpolation", "pre_prediction", "post_prediction"])
def test_a_row_gets_the_same_draw_in_any_batch(task):
    collator = DualMaskCollator(joint_drop_prob=0.3, text_drop_prob=0.3)
    rows = [make_row(seed, frames=3 + seed % 6) for seed in range(32)]
    torch.manual_seed(0)
    batch = collator(rows, task)
    torch.manual_seed(1)
    backwards = collator(rows[::-1], task)
    names = ("pixel_values", "frame_mask", "condition_mask", "text_mask")
    for index, row in enumerate(rows):
        alone = collator([row], task)
        for name in names:
            assert torch.equal(alone[name][0], batch[name][index])
            assert torch.equal(backwards[name][31 - index], batch[name][index])
        assert alone["captions"][0] == batch["captions"][index] == backwards["captions"][31 - index]
    other_seeds = collator([row | {"seed": row["seed"] + 100} for row in rows], task)
    assert not torch.equal(other_seeds["condition_mask"], batch["condition_mask"])
    assert other_seeds["captions"] != batch["captions"]


def test_row_generators_differ_by_seed_and_by_stream():
    def numbers(seed: int, stream: str) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=row_generator(seed, stream)).tolist())

    assert numbers(7, "noise") == numbers(7, "noise")
    drawn = {numbers(seed, stream) for seed in (0, 1, 7, -3, 2**63, 10**30) for stream in ("noise", "timestep")}
    assert len(drawn) == 12


def test_neighbouring_seeds_give_unrelated_noise():
    noise = torch.stack([torch.randn(400, generator=row_generator(seed, "noise")) for seed in range(50)])
    correlation = torch.corrcoef(noise) - torch.eye(50)
    assert correlation.abs().max() < 5 / math.sqrt(400)


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([], "t2v", "`rows` must hold at least one row"),
        ([make_row(0)], "v2v", "`task` must be one of .* got 'v2v'"),
        ([make_row(0), make_row(1, key="latents")], "t2v", '`rows` must all have "clip" or all have "latents"'),
        ([make_row(0), make_row(1, frames=9)], "t2v", r"clip 1 must be .* n in 1..8 .* got \(9, 4, 2, 3\)"),
        ([make_row(0, frames=0)], "t2v", r"clip 0 must be .* got \(0, 4, 2, 3\)"),
        ([make_row(0), make_row(1, channels=3)], "t2v", r"\(C, H, W\) = \(4, 2, 3\), got \(8, 3, 2, 3\)"),
    ],
)
def test_refuses_rows_that_make_no_batch(rows, task, message):
    with pytest.raises(ValueError, match=message):
        DualMaskCollator()(rows, task)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1, got 0"),
        ({"joint_drop_prob": 1.5}, r"`joint_drop_prob` must be in \[0, 1\], got 1.5"),
        ({"text_drop_prob": -0.1}, r"`text_drop_prob` must be in \[0, 1\], got -0.1"),
        ({"interpolation_ends_prob": -1}, r"`interpolation_ends_prob` must be in \[0, 1\], got -1"),
        (
            {"interpolation_ends_prob": 0.6, "interpolation_gap_prob": 0.5},
            "must not exceed 1 together, got 0.6 and 0.5",
        ),
        ({"text_word_drop_prob": 2}, r"`text_word_drop_prob` must be in \[0, 1\], got 2"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualMaskCollator(**arguments)
