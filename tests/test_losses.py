"""The masked loss against closed forms: padding counts for nothing, visible condition frames count."""

import pytest
import torch
from diffusers import DDIMScheduler

from rdtf_diffusers.training import dual_mask_loss, min_snr_weights, timestep_chances


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


@pytest.mark.parametrize("reduction", ["all", "valid"])
def test_clips_weigh_as_they_are_told(reduction):
    prediction, target, frame_mask = clips(0), clips(1), frame_mask_of(3, 8, 1)
    weights = torch.tensor([0.5, 0.0, 2.0])
    alone = [
        float(dual_mask_loss(prediction[i : i + 1], target[i : i + 1], frame_mask[i : i + 1], reduction))
        for i in range(3)
    ]
    shares = torch.tensor([3.0, 8.0, 1.0]) / 12 if reduction == "valid" else torch.full((3,), 1 / 3)
    expected = float((torch.tensor(alone) * weights * shares).sum())
    assert float(dual_mask_loss(prediction, target, frame_mask, reduction, weights)) == pytest.approx(
        expected, rel=1e-5
    )


def test_micro_batches_that_know_of_each_other_add_up_to_one_batch():
    prediction, target, frame_mask = clips(0), clips(1), frame_mask_of(3, 8, 1)
    pieces = [
        dual_mask_loss(prediction[part], target[part], frame_mask[part], "valid", real_frames=12 / 2)
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(pieces) / 2, dual_mask_loss(prediction, target, frame_mask, "valid"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights(prediction_type):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    timesteps = torch.tensor([0, 100, 500, 999])
    signal = scheduler.alphas_cumprod[timesteps].tolist()
    snr = [s / (1 - s) for s in signal]
    divisor = 1.0 if prediction_type == "v_prediction" else 0.0
    expected = [min(x, 5.0) / (x + divisor) for x in snr]
    assert min_snr_weights(scheduler, timesteps, 5.0).tolist() == pytest.approx(expected, rel=1e-4)


def test_min_snr_weighs_pure_noise_with_nothing():
    zero = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert min_snr_weights(zero, torch.tensor([999]), 5.0).tolist() == pytest.approx([0.0])


def test_preferred_noise_levels_are_drawn_as_much_more_often():
    chances = timestep_chances(1000, 5.0, begin=650)
    assert chances.sum() == pytest.approx(1.0) and chances.shape == (1000,)
    assert chances[650:].unique() == pytest.approx(5 / (650 + 5 * 350)) == 5 * chances[:650].unique()
    assert timestep_chances(1000, 1.0).tolist() == pytest.approx([0.001] * 1000)
    rare = timestep_chances(10, 0.25, 2, 4)
    assert rare.tolist() == pytest.approx([(0.25 if step in (2, 3) else 1) / 8.5 for step in range(10)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiplier": 0.0}, "`multiplier` must be above 0 and finite, got 0.0"),
        ({"multiplier": float("inf")}, "`multiplier` must be above 0 and finite, got inf"),
        ({"multiplier": 2.0, "begin": 1000}, "`begin` and `end` must be a part of 0 to 1000, got 1000 to 1000"),
        ({"multiplier": 2.0, "begin": -1}, "got -1 to 1000"),
        ({"multiplier": 2.0, "end": 1001}, "got 0 to 1001"),
    ],
)
def test_noise_levels_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        timestep_chances(1000, **options)
