"""Condition masks of the six tasks against a literal, slow reading of RDTF (arXiv 2503.17735), table 7."""

import math
from collections import Counter

import pytest
import torch

from rdtf_diffusers.training import FAMILIES, TASKS, draw_condition_mask, mask_condition_latents


def reference_masks(task: str, num_frames: int, real: int) -> list[tuple[bool, ...]]:
    """All equally likely masks of a task, written out frame by frame; equal masks can occur more than once."""
    patterns = {
        "i2v": [[f == known for f in range(num_frames)] for known in range(real)],
        "t2v": [[False] * num_frames],
        "it2v": [[f == known for f in range(num_frames)] for known in range(real)],
        "interpolation": [
            [digit == "1" for digit in (word * 16)[:num_frames]] for word in ("10", "01", "100")
        ],  # 10101010, 01010101, 10010010 and so on
        "pre_prediction": [[f >= start for f in range(num_frames)] for start in range(1, math.floor(real / 2) + 2)],
        "post_prediction": [[f < end for f in range(num_frames)] for end in range(math.floor(real / 2), real)],
    }
    return [tuple(visible and f < real for f, visible in enumerate(pattern)) for pattern in patterns[task]]


def frame_mask_of(num_frames: int, real: int) -> torch.Tensor:
    return torch.arange(num_frames) < real


def draw_many(task: str, num_frames: int, real: int, count: int) -> Counter:
    generator = torch.Generator().manual_seed(1000 * num_frames + real)
    mask = frame_mask_of(num_frames, real)
    return Counter(tuple(draw_condition_mask(task, mask, generator).tolist()) for _ in range(count))


def test_six_tasks_in_three_families():
    assert {name: (task.name, task.family, task.keeps_text) for name, task in TASKS.items()} == {
        "i2v": ("i2v", "generation", False),
        "t2v": ("t2v", "generation", True),
        "it2v": ("it2v", "generation", True),
        "interpolation": ("interpolation", "interpolation", True),
        "pre_prediction": ("pre_prediction", "prediction", True),
        "post_prediction": ("post_prediction", "prediction", True),
    }
    assert dict(FAMILIES) == {
        "generation": ("i2v", "t2v", "it2v"),
        "interpolation": ("interpolation",),
        "prediction": ("pre_prediction", "post_prediction"),
    }


def test_reference_reads_the_printed_patterns():
    printed = {tuple(digit == "1" for digit in word) for word in ("10101010", "01010101", "10010010")}
    assert set(reference_masks("interpolation", 8, 8)) == printed


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_frames", range(1, 17))
def test_every_mask_of_the_table_and_no_other_is_drawn(task, num_frames):
    for real in range(1, num_frames + 1):
        assert set(draw_many(task, num_frames, real, 150)) == set(reference_masks(task, num_frames, real)), real


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("real", range(1, 9))
def test_masks_are_drawn_as_often_as_the_table_says(task, real):
    count = 1500
    expected = reference_masks(task, 8, real)
    drawn = draw_many(task, 8, real, count)
    for mask, times in Counter(expected).items():
        probability = times / len(expected)
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(drawn[mask] - count * probability) <= 4 * deviation, mask


@pytest.mark.parametrize(
    ("task", "real", "sometimes_nothing"),
    [
        ("i2v", 1, False),
        ("it2v", 1, False),
        ("interpolation", 1, True),
        ("interpolation", 2, False),
        ("pre_prediction", 1, True),
        ("pre_prediction", 2, True),
        ("pre_prediction", 3, False),
        ("post_prediction", 1, True),
        ("post_prediction", 2, False),
    ],
)
def test_which_short_clips_can_be_left_without_a_visible_frame(task, real, sometimes_nothing):
    assert any(not any(mask) for mask in draw_many(task, 8, real, 100)) == sometimes_nothing


@pytest.mark.parametrize("task", ["i2v", "it2v", "interpolation", "pre_prediction", "post_prediction"])
def test_only_the_generator_decides(task):
    mask = frame_mask_of(8, 7)

    def draws(seed: int, global_seed: int) -> list[list[bool]]:
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(seed)
        return [draw_condition_mask(task, mask, generator).tolist() for _ in range(20)]

    assert draws(1, 0) == draws(1, 99)
    assert draws(1, 0) != draws(2, 0)


@pytest.mark.parametrize(
    "frame_mask",
    [
        torch.zeros(8, dtype=torch.bool),
        torch.tensor([True, False, True]),
        torch.tensor([False, True]),
        torch.ones(2, 4, dtype=torch.bool),
        torch.ones(8),
    ],
    ids=["empty", "hole", "late", "batch", "float"],
)
def test_refuses_a_frame_mask_that_is_not_real_frames_then_padding(frame_mask):
    with pytest.raises(ValueError, match=r"frame_mask.*real frames first"):
        draw_condition_mask("t2v", frame_mask, torch.Generator())


def test_refuses_an_unknown_task():
    with pytest.raises(ValueError, match="post_prediction, got 'v2v'"):
        draw_condition_mask("v2v", frame_mask_of(8, 8), torch.Generator())


def test_condition_latents_are_clean_where_known_and_zero_elsewhere():
    latents = torch.randn(2, 4, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    condition_mask = torch.rand(2, 8, generator=torch.Generator().manual_seed(1)) < 0.5
    frame_mask = torch.stack([frame_mask_of(8, 5), frame_mask_of(8, 8)])
    assert (condition_mask & ~frame_mask).any()  # a known frame in the padding must stay hidden too
    result = mask_condition_latents(latents, condition_mask, frame_mask)
    for clip in range(2):
        for f in range(8):
            known = float(condition_mask[clip, f]) * float(frame_mask[clip, f])
            assert torch.equal(result[clip, :, f], latents[clip, :, f] * known)
