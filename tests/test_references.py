"""Trivial references against slow loops: known frames exact, hidden ones as defined, nothing else looked at."""

import pytest
import torch

from rdtf_diffusers.metrics import references
from rdtf_diffusers.metrics.references import (
    NearestTrainingClip,
    blend_known_frames,
    hold_known_frames,
    nearest_caption,
)


F = 8
PATTERNS = ["10000000", "00000001", "00010000", "10010010", "01010101", "11110000", "00001111", "11111111"]
PATTERN_MASK = torch.tensor([[letter == "1" for letter in pattern] for pattern in PATTERNS])
EVERY_MASK = torch.tensor([[bits >> frame & 1 == 1 for frame in range(F)] for bits in range(1, 2**F)])


def noise(seed: int, batch: int, channels: int = 4, side: int = 6) -> torch.Tensor:
    return torch.rand(batch, F, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_held_frames_are_the_last_known_or_the_first_known():
    clips = noise(0, len(EVERY_MASK), side=2)
    held = hold_known_frames(clips, EVERY_MASK)
    for clip, result, known in zip(clips, held, EVERY_MASK):
        numbers = known.nonzero().flatten().tolist()
        for frame in range(F):
            before = [number for number in numbers if number <= frame]
            assert torch.equal(result[frame], clip[before[-1] if before else numbers[0]])


def test_blended_frames_are_linear_between_known_ones():
    clips = noise(0, len(EVERY_MASK), side=2)
    blended = blend_known_frames(clips, EVERY_MASK)
    for clip, result, known in zip(clips, blended, EVERY_MASK):
        numbers = known.nonzero().flatten().tolist()
        for frame in range(F):
            before = max((number for number in numbers if number <= frame), default=numbers[0])
            after = min((number for number in numbers if number >= frame), default=numbers[-1])
            share = (frame - before) / (after - before) if after > before else 0
            expected = (1 - share) * clip[before] + share * clip[after]
            torch.testing.assert_close(result[frame], expected)
    assert torch.equal(blended[EVERY_MASK], clips[EVERY_MASK])  # to the bit


def test_a_blend_in_premultiplied_colour_has_no_dark_fringe():
    red = torch.tensor([1.0, -1, -1, 1]).view(4, 1, 1)
    nothing = torch.full((4, 1, 1), -1.0)
    clip = torch.stack([red, red, nothing])[None]
    middle = blend_known_frames(clip, torch.tensor([[True, False, True]]))[0, 1]
    assert middle.flatten().tolist() == [0, -1, -1, 0]  # half transparent, and as red as before


@pytest.mark.parametrize("reference", [hold_known_frames, blend_known_frames])
def test_hidden_frames_are_not_looked_at(reference):
    clips = noise(0, len(PATTERNS))
    others = torch.where(PATTERN_MASK[:, :, None, None, None], clips, noise(1, len(PATTERNS)))
    assert torch.equal(reference(clips, PATTERN_MASK), reference(others, PATTERN_MASK))
    assert torch.equal(reference(clips, PATTERN_MASK)[PATTERN_MASK], clips[PATTERN_MASK])


@pytest.mark.parametrize("reference", [hold_known_frames, blend_known_frames])
def test_refuses_a_clip_without_known_frames(reference):
    with pytest.raises(ValueError, match="must show a frame of every clip, got none for clip 1"):
        reference(noise(0, 2), torch.tensor([[True] * F, [False] * F]))
    with pytest.raises(ValueError, match=r"must be bool \(2, 8\)"):
        reference(noise(0, 2), torch.ones(2, F))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("side", [6, 40])
def test_nearest_clip_is_that_of_a_slow_search(monkeypatch, chunk, side):
    monkeypatch.setattr(references, "CHUNK", chunk)
    training, clips = noise(0, 7, side=side), noise(1, len(PATTERNS), side=side)
    found = NearestTrainingClip(training)(clips, PATTERN_MASK)
    for clip, result, known in zip(clips, found, PATTERN_MASK):
        cells = torch.nn.functional.adaptive_avg_pool2d
        size = min(side, 16)
        distances = [
            float((cells(clip[known], size) - cells(other[known], size)).square().mean()) for other in training
        ]
        assert torch.equal(result[~known], training[distances.index(min(distances))][~known])
        assert torch.equal(result[known], clip[known])


def test_nearest_clip_of_a_damaged_copy_is_the_original():
    training = noise(0, 5)
    clips = (0.9 * training + 0.1 * noise(1, 5)).clamp(-1, 1)
    first = (torch.arange(F) == 0).expand(5, F)
    found = NearestTrainingClip(list(training))(clips, first)  # any sequence of clips
    assert torch.equal(found[:, 1:], training[:, 1:])
    assert torch.equal(found[:, 0], clips[:, 0])


def test_without_known_frames_captions_decide():
    training = noise(0, 3)
    captions = ["a red ball", "A blue ball, jumping", "two cats"]
    nearest = NearestTrainingClip(training, captions)
    nothing = torch.zeros(2, F, dtype=torch.bool)
    found = nearest(noise(1, 2), nothing, ["a jumping blue cat", "cats"])
    assert torch.equal(found, training[[1, 2]])
    assert nearest_caption("nothing in common", captions) == 0
    for reference, texts in ((nearest, None), (NearestTrainingClip(training), ["a", "b"])):
        with pytest.raises(ValueError, match="shows no frame of clip 0, so `texts` and the training `captions`"):
            reference(noise(1, 2), nothing, texts)


def test_refuses_training_clips_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one clip, got none"):
        NearestTrainingClip([])
    with pytest.raises(ValueError, match=r"one shape, got \(8, 4, 6, 6\) and \(8, 4, 5, 5\)"):
        NearestTrainingClip([noise(0, 1)[0], noise(0, 1, side=5)[0]])
    with pytest.raises(ValueError, match=r"`training_clips\[1\]` must be in .* nan"):
        NearestTrainingClip([noise(0, 1)[0], noise(0, 1)[0] * torch.nan])
    with pytest.raises(ValueError, match="`captions` must be 2, one per training clip, got 1"):
        NearestTrainingClip(noise(0, 2), ["one"])
    with pytest.raises(ValueError, match=r"shape \(8, 4, 6, 6\), got \(8, 3, 6, 6\)"):
        NearestTrainingClip(noise(0, 2))(noise(0, 1, channels=3), PATTERN_MASK[:1])
