"""Measures of clips against slow loops and closed forms, and that each answers to the damage it is for."""

import math

import numpy as np
import pytest
import torch

from rdtf_diffusers.metrics.clip_measures import (
    MAX_PSNR,
    alpha_iou,
    average_to_cells,
    check_clips,
    flicker,
    known_frame_error,
    loop_closes,
    loop_seam,
    motion_energy,
    motion_log_ratio,
    psnr,
    ssim,
)


F, SIDE = 6, 24
FIRST = torch.arange(F) == 0


def noise(seed: int, batch: int = 2, channels: int = 4, side: int = SIDE) -> torch.Tensor:
    return torch.rand(batch, F, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def grey(*levels: float) -> torch.Tensor:
    """A clip (1, F, 4, SIDE, SIDE) of opaque frames of one level each, in [0, 1]."""
    frames = torch.tensor(levels).view(1, -1, 1, 1, 1).expand(-1, -1, 4, SIDE, SIDE).clone()
    frames[:, :, 3] = 1
    return frames * 2 - 1


def disc(centres: list[float], radius: float = 6) -> torch.Tensor:
    """A white disc (1, F, 4, SIDE, SIDE) with a soft edge on nothing; its centre moves along x."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    frames = [(radius + 0.5 - ((x - centre) ** 2 + (y - SIDE / 2) ** 2).sqrt()).clamp(0, 1) for centre in centres]
    return torch.stack(frames)[None, :, None].expand(-1, -1, 4, -1, -1) * 2 - 1


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def test_known_frame_error_is_the_largest_in_known_frames_only():
    truth = noise(0)
    clips = truth.clone()
    clips[0, 1:] = 0.5  # hidden frames do not matter
    clips[1, 3, 2, 5, 7] += -2 / 255 * math.copysign(3, truth[1, 3, 2, 5, 7])
    error = known_frame_error(clips, truth, mask("100000", "100100"))
    assert error.tolist() == pytest.approx([0, 3], abs=1e-3)
    assert known_frame_error(clips, truth, mask("100000", "100000")).tolist() == [0, 0]


def test_cells_are_means_of_areas():
    clips = noise(0, side=64)
    cells = average_to_cells(clips)
    assert cells.shape == (2, F, 4, 32, 32)
    assert float(cells[1, 2, 3, 4, 5]) == pytest.approx(float(clips[1, 2, 3, 8:10, 10:12].mean() + 1) / 2, abs=1e-6)


def test_motion_energy_is_the_mean_step():
    clips = noise(0)
    steps = [
        [np.abs(clip[t].numpy() - clip[t - 1].numpy()).mean(dtype=np.float64) / 2 for t in range(1, F)]
        for clip in clips
    ]
    assert motion_energy(clips).tolist() == pytest.approx(np.mean(steps, axis=1).tolist(), rel=1e-5)
    assert motion_energy(grey(*[0.3] * F)).item() == 0


def test_grain_is_hardly_motion():
    still = disc([10] * F).expand(1, F, 4, SIDE, SIDE).repeat_interleave(4, -1).repeat_interleave(4, -2)
    grain = (still + 0.2 * noise(1, 1, side=4 * SIDE)).clamp(-1, 1)
    plain = float(grain.diff(dim=1).abs().mean()) / 2
    assert motion_energy(grain).item() < plain / 2


@pytest.mark.parametrize(("levels", "doublings"), [((0.0, 0.2), 1), ((0.0, 0.05), 1), ((0.0, 0.1), 0)])
def test_too_much_and_too_little_motion_count_alike(levels, doublings):
    truth, clips = grey(*(0.0, 0.1) * 3), grey(*levels * 3)
    assert motion_log_ratio(clips, truth).item() == pytest.approx(doublings, abs=0.03)  # the floor


def test_a_still_clip_is_finitely_wrong():
    truth = grey(*(0.0, 0.1) * 3)  # 0.075, as alpha stands still
    still = grey(*[0.5] * F)
    assert motion_log_ratio(still, truth).item() == pytest.approx(math.log2(76), rel=1e-4)
    assert motion_log_ratio(still, grey(*[0.1] * F)).item() == 0


def test_flicker_is_the_distance_from_the_median_of_three():
    clips = noise(0)
    slow = [
        np.mean([np.abs(clip[t] - np.median(clip[t - 1 : t + 2], axis=0)).mean() for t in range(1, F - 1)]) * 127.5
        for clip in clips.numpy()
    ]
    assert flicker(clips).tolist() == pytest.approx(slow, rel=1e-5)


def test_flicker_sees_what_jumps_back_and_nothing_that_goes_on():
    assert flicker(grey(0.1, 0.2, 0.2, 0.5, 0.9, 1.0)).item() == 0
    assert flicker(grey(0.4, 0.5, 0.4, 0.5, 0.4, 0.5)).item() == pytest.approx(0.75 * 25.5, rel=1e-4)  # alpha is still
    assert flicker(grey(0.4, 0.4, 0.9, 0.4, 0.4, 0.4)).item() == pytest.approx(0.75 * 127.5 / 4, rel=1e-4)


def test_flicker_grows_with_damage_and_little_with_motion():
    moving = disc([6, 8, 10, 12, 14, 16])
    alternating = moving.clone()
    alternating[:, ::2] = alternating[:, ::2] * 0.8 - 0.2  # a fifth darker
    shuffled = moving[:, [0, 3, 1, 5, 2, 4]]
    assert flicker(moving).item() < flicker(disc([6, 12, 18, 12, 6, 12])).item()
    assert 5 * flicker(moving).item() < flicker(alternating).item()
    assert 5 * flicker(moving).item() < flicker(shuffled).item()


def test_loop_seam_compares_the_last_step_with_the_others():
    assert loop_seam(grey(0, 0.2, 0.4, 0.6, 0.4, 0.2)).item() == pytest.approx(1)
    assert loop_seam(grey(0, 0.1, 0.2, 0.3, 0.4, 0.5)).item() == pytest.approx(5, abs=0.1)
    assert loop_seam(grey(0, 0.2, 0.4, 0.4, 0.2, 0)).item() < 0.01  # the last frame is the first
    assert loop_seam(grey(*[0.7] * F)).item() == 1


def test_a_loop_closes_with_a_step_like_the_median():
    assert loop_closes(grey(0, 0.2, 0.4, 0.6, 0.4, 0.2)).item() == 1
    assert loop_closes(grey(0, 0.1, 0.2, 0.3, 0.4, 0.5)).item() == 0
    assert loop_closes(grey(0, 0.3, 0.6, 0.5, 0.3, 0.2)).item() == 1  # steps 0.3, 0.3, 0.1, 0.2, 0.1: median 0.2
    assert loop_closes(grey(0, 0.3, 0.6, 0.6, 0.5, 0.3)).item() == 0  # 0.3, 0.3, 0, 0.1, 0.2
    assert loop_closes(grey(*[0.7] * F)).item() == 1


def test_alpha_iou_is_the_mean_of_frames():
    clips, truth = noise(0), noise(1)
    slow = []
    for clip, true_clip in zip(clips.numpy(), truth.numpy()):
        inside, truly = clip[:, 3] > 0, true_clip[:, 3] > 0
        slow.append(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(inside, truly)]))
    assert alpha_iou(clips, truth).tolist() == pytest.approx(slow, rel=1e-5)
    assert alpha_iou(clips, clips).tolist() == [1, 1]


def test_alpha_iou_of_empty_frames_and_of_hidden_ones():
    empty, full = torch.full((1, F, 4, SIDE, SIDE), -1.0), torch.ones(1, F, 4, SIDE, SIDE)
    assert alpha_iou(empty, empty).item() == 1
    assert alpha_iou(empty, full).item() == 0
    mixed = torch.where(FIRST.view(1, F, 1, 1, 1), full, empty)
    assert alpha_iou(mixed, full).item() == pytest.approx(1 / F)
    assert alpha_iou(mixed, full, FIRST[None]).item() == 0


def test_psnr_is_that_of_the_hidden_frames():
    truth, clips = noise(0), noise(1)
    known = mask("100000", "010101")
    slow = []
    for clip, true_clip, row in zip(clips.numpy(), truth.numpy(), known.numpy()):
        slow.append(-10 * math.log10(np.mean(((clip[~row] - true_clip[~row]) / 2) ** 2, dtype=np.float64)))
    assert psnr(clips, truth, known).tolist() == pytest.approx(slow, rel=1e-5)
    assert psnr(truth, truth, known).tolist() == [MAX_PSNR] * 2


def test_ssim_is_the_formula_of_its_window():
    truth, clips = noise(0, 1), noise(1, 1)
    x = np.arange(11) - 5
    window = np.exp(-(x**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    planes = [frames[0, 1:].double().add(1).div(2).flatten(0, 1).numpy() for frames in (clips, truth)]
    planes = [np.pad(plane, ((0, 0), (5, 5), (5, 5)), mode="reflect") for plane in planes]
    scores = []
    for top in range(SIDE):
        for left in range(SIDE):
            p, q = (plane[:, top : top + 11, left : left + 11] for plane in planes)
            mean_p, mean_q, square_p, square_q, product = (
                (window * values).sum(axis=(1, 2)) for values in (p, q, p**2, q**2, p * q)
            )
            variances = square_p - mean_p**2 + square_q - mean_q**2
            structure = (2 * (product - mean_p * mean_q) + 0.03**2) / (variances + 0.03**2)
            scores.append((2 * mean_p * mean_q + 0.01**2) / (mean_p**2 + mean_q**2 + 0.01**2) * structure)
    assert ssim(clips, truth, FIRST[None]).item() == pytest.approx(np.mean(scores), abs=1e-4)
    assert ssim(truth, truth, FIRST[None]).item() == pytest.approx(1)


def test_clips_are_measured_one_by_one():
    clips, truth, known = noise(0, 3), noise(1, 3), mask("100000", "101010", "000000")
    for measure in (psnr, ssim, alpha_iou):
        whole = measure(clips, truth, known)
        single = torch.cat([measure(clips[i : i + 1], truth[i : i + 1], known[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(whole, single)
        assert whole.shape == (3,) and whole.dtype == torch.float32
    for measure in (motion_energy, flicker, loop_seam):
        torch.testing.assert_close(measure(clips), torch.cat([measure(clip[None]) for clip in clips]))


def test_rgb_and_half_precision():
    clips, truth = noise(0, channels=3), noise(1, channels=3)
    for measure in (psnr, ssim):
        half = measure(clips.half(), truth.half(), FIRST.expand(2, F))
        torch.testing.assert_close(half, measure(clips, truth, FIRST.expand(2, F)), rtol=1e-2, atol=1e-3)
    for measure in (motion_energy, flicker, loop_seam):
        torch.testing.assert_close(measure(clips.half()), measure(clips), rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="4 channels, got 3"):
        alpha_iou(clips, truth)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (noise(0)[0], r"\(B, F, C, H, W\) .* got torch.float32 \(6, 4, 24, 24\)"),
        (noise(0)[:, :, :2], "3 or 4 channels"),
        (noise(0)[:0], r"got torch.float32 \(0,"),
        (noise(0).mul(127).to(torch.uint8), "must be floats"),
        (noise(0).add(1), r"must be in \[-1, 1\], got values from"),
        (torch.where(torch.arange(24) == 3, torch.nan, noise(0)), "must be in .* nan"),
        (torch.where(torch.arange(24) == 3, torch.inf, noise(0)), "must be in .* inf"),
    ],
)
def test_refuses_what_is_no_batch_of_clips(clips, message):
    with pytest.raises(ValueError, match=message):
        check_clips(clips)


def test_refuses_what_cannot_be_measured():
    clips, truth = noise(0), noise(1)
    known = FIRST.expand(2, F)
    with pytest.raises(ValueError, match=r"`truth` must have the shape of the clips .* got \(2, 5"):
        psnr(clips, truth[:, 1:], known)
    with pytest.raises(ValueError, match="`truth` must be in"):
        motion_log_ratio(clips, truth * torch.nan)
    with pytest.raises(ValueError, match=r"must be bool \(2, 6\), got torch.bool \(6,\)"):
        ssim(clips, truth, FIRST)
    with pytest.raises(ValueError, match=r"must be bool .* got torch"):
        known_frame_error(clips, truth, known.float())
    for measure in (psnr, ssim, alpha_iou):
        with pytest.raises(ValueError, match="must hide a frame of every clip"):
            measure(clips, truth, mask("100000", "111111"))
    with pytest.raises(ValueError, match="must show a frame of every clip, got none for clip 0"):
        known_frame_error(clips, truth, mask("000000", "100000"))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(clips[..., :10], truth[..., :10], known)
    for measure, least in ((motion_energy, 2), (flicker, 3), (loop_seam, 3), (loop_closes, 3)):
        with pytest.raises(ValueError, match=f"at least {least} frames, got {least - 1}"):
            measure(clips[:, : least - 1])
