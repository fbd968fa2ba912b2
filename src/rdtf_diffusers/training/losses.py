"""The masked noise-prediction loss: padding frames do not count, visible condition frames do; which noise it sees.

Source: RDTF (arXiv 2503.17735), section on the dual mask.
"""

import torch
from diffusers import DDIMScheduler


def dual_mask_loss(
    prediction: torch.Tensor,
    target: torch.Tensor,
    frame_mask: torch.Tensor,
    reduction: str = "all",
    clip_weights: torch.Tensor | None = None,
    real_frames: float | None = None,
) -> torch.Tensor:
    """Mean squared error over the real frames of a batch of clips, in float32.

    RDTF (arXiv 2503.17735), section on the dual mask.

    Args:
        prediction: (B, C, F, H, W) output of the network.
        target: (B, C, F, H, W) what it should have been (noise, or velocity).
        frame_mask: (B, F) bool, the frames that are real; at least one in the batch.
        reduction: "all" divides by all elements, padding included, so that a clip with N real frames weighs N/F (the
            paper's form); "valid" divides by the unmasked elements, so that short clips weigh no less per frame.
        clip_weights: (B,) factors on the clips' errors; 1 by default.
        real_frames: what "valid" takes for the number of real frames. By default that of this batch. With the mean
            over all micro-batches of an optimiser step, the mean of their losses is that of one large batch.

    Returns:
        Scalar float32.

    Raises:
        ValueError: `reduction` is neither "all" nor "valid".
    """
    padding = ~frame_mask[:, None, :, None, None]  # (B, 1, F, 1, 1)
    squared_error = (prediction.float() - target.float()).masked_fill(padding, 0.0).square()
    if clip_weights is not None:
        squared_error = squared_error * clip_weights.view(-1, 1, 1, 1, 1)
    if reduction == "all":
        return squared_error.mean()
    if reduction == "valid":
        frames = frame_mask.sum() if real_frames is None else real_frames
        return squared_error.sum() / (frames * prediction[0, :, 0].numel())
    raise ValueError(f'`reduction` must be "all" or "valid", got {reduction!r}')


def timestep_chances(levels: int, multiplier: float, begin: int = 0, end: int | None = None) -> torch.Tensor:
    """Chances of noise levels to be trained, some of which are trained `multiplier` times as often as the others.

    What the text says counts where the noise is strong; elsewhere the noisy frames show it themselves.

    Args:
        levels: how many there are, such as the scheduler's `num_train_timesteps`.
        multiplier: 1 for all alike.
        begin, end: the preferred levels, from `begin` up to, but without, `end`; `end` is `levels` by default.

    Returns:
        (levels,) float32 that sums to 1, as `torch.multinomial` takes it.

    Raises:
        ValueError: `multiplier` is not positive and finite, or `begin` to `end` is not a part of the levels.
    """
    end = levels if end is None else end
    if not 0 < multiplier < float("inf"):
        raise ValueError(f"`multiplier` must be above 0 and finite, got {multiplier}")
    if not 0 <= begin < end <= levels:
        raise ValueError(f"`begin` and `end` must be a part of 0 to {levels}, got {begin} to {end}")
    weights = torch.ones(levels)
    weights[begin:end] = multiplier
    return weights / weights.sum()


def min_snr_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights of clips by their noise level: min(SNR, gamma), in the terms of what is predicted.

    Min-SNR (arXiv 2303.09556), equation 6: over SNR for noise, over SNR + 1 for velocity.

    Args:
        scheduler: its `alphas_cumprod` give the signal-to-noise ratio, its config the prediction type.
        timesteps: (B,) int.
        gamma: the largest ratio that counts; 5.0 is usual.

    Returns:
        (B,) float32.
    """
    signal = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = signal / (1 - signal)
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    return snr.clamp(max=gamma) / (snr + 1 if is_velocity else snr)
