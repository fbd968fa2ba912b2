"""The masked loss against closed forms: padding counts for nothing, visible condition frames count."""

import pytest
import torch

from rdtf_diffusers.training import dual_mask_loss


def clips(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 8, 5, 6, generator=torch.Generator().manual_seed(seed))  # (B, C, F, H, W)


def frame_mask_of(*real: int) -> torch.Tensor:
    return torch.arange(8) < torch.tensor(real)[:, None]  # (B, F)


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_loss_is_the_slow_sum(reduction):
    prediction, target, frame_mask = clips(0), clips(1), frame_mask_of(3, 8, 1)
    total = 0.0
    for clip in range(3):
        for frame in range(8):
            if frame_mask[clip, frame]:
                total += float(((prediction[clip, :, frame] - target[clip, :, frame]).double() ** 2).sum())
    count = 3 * 8 * 120 if reduction == "all" else (3 + 8 + 1) * 120
    assert float(dual_mask_loss(prediction, target, frame_mask, reduction)) == pytest.approx(total / count, rel=1e-5)


def test_the_default_is_the_paper_form():
    prediction, target, frame_mask = clips(0), clips(1), frame_mask_of(3, 8, 1)
    expected = torch.nn.functional.mse_loss(
        prediction * frame_mask[:, None, :, None, None], target * frame_mask[:, None, :, None, None]
    )
    torch.testing.assert_close(dual_mask_loss(prediction, target, frame_mask), expected)


@pytest.mark.parametrize("reduction", ["all", "valid"])
@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_only_real_frames_change_the_loss(reduction, value):
    prediction, target, frame_mask = clips(0), clips(1), frame_mask_of(3, 8, 1)
    loss = dual_mask_loss(prediction, target, frame_mask, reduction)
    for changed in range(8):  # a frame that the condition shows is no exception: the loss does not know of it
        other = prediction.clone()
        other[0, :, changed] = value
        same = torch.equal(dual_mask_loss(other, target, frame_mask, reduction), loss)
        assert same == (changed >= 3), changed


@pytest.mark.parametrize("real", range(1, 9))
def test_a_short_clip_weighs_its_share_or_fully(real):
    target = clips(1)[:1]
    prediction = target + 2.0  # squared error 4 everywhere
    frame_mask = frame_mask_of(real)
    assert float(dual_mask_loss(prediction, target, frame_mask, "all")) == pytest.approx(4.0 * real / 8, rel=1e-5)
    assert float(dual_mask_loss(prediction, target, frame_mask, "valid")) == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_gradient_is_zero_on_padding_and_nowhere_else(reduction):
    prediction, frame_mask = clips(0).requires_grad_(), frame_mask_of(3, 8, 1)
    dual_mask_loss(prediction, clips(1), frame_mask, reduction).backward()
    touched = prediction.grad.abs().amin(dim=(1, 3, 4)) > 0  # (B, F): every element has a gradient
    untouched = prediction.grad.abs().amax(dim=(1, 3, 4)) == 0  # (B, F): no element has one
    assert torch.equal(touched, frame_mask)
    assert torch.equal(untouched, ~frame_mask)


def test_half_precision_is_summed_in_float32():
    target = torch.zeros(1, 4, 8, 64, 64, dtype=torch.float16)
    prediction = torch.full_like(target, 300.0)  # 300 ** 2 overflows float16
    loss = dual_mask_loss(prediction, target, torch.ones(1, 8, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(90_000.0)


def test_refuses_an_unknown_reduction():
    with pytest.raises(ValueError, match=r"`reduction` must be .* got 'sum'"):
        dual_mask_loss(clips(0), clips(1), frame_mask_of(8, 8, 8), "sum")
