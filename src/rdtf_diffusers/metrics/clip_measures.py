"""What can be measured on the pixels of a clip alone: fidelity to given frames, motion, flicker, loops, shape.

motion_log_ratio(clips, truth).mean()  # 0: as much motion as the real clips

Clips are (B, F, C, H, W) in [-1, 1], premultiplied RGBA (C = 4) or RGB over white (C = 3); every result is (B,)
float32. Distances in colour are taken on premultiplied values, so that what nobody sees does not count.
"""

import torch
import torch.nn.functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


# Motion is looked at in frames averaged to this many cells a side, as in `data.quality.motion`: an 8-pixel latent cell
# of a 256-pixel frame each, where grain and dithering average out and real motion does not.
CELLS = 32
# Added to both sides of a ratio of motions, share of the range from black to white: a quarter of a level of 255. Two
# clips that stand still are then equal, and a clip that stands still where it should move is finitely wrong.
MOTION_FLOOR = 1e-3
MAX_PSNR = 100.0  # dB, for what is identical
SSIM_WINDOW = 11  # pixels, of the Gaussian window of Wang et al.


def check_clips(
    clips: torch.Tensor, name: str = "clips", min_frames: int = 1, like: torch.Tensor | None = None
) -> None:
    """Refuse what is not a batch of clips.

    Args:
        clips: (B, F, C, H, W) in [-1, 1], C = 3 or 4.
        name: of the argument, for the message.
        min_frames: the least F.
        like: clips that must have the same shape.

    Raises:
        ValueError: another shape, no clip, integers, values that are not finite or that leave [-1, 1].
    """
    shape = tuple(clips.shape)
    if clips.ndim != 5 or shape[2] not in (3, 4) or 0 in shape or not clips.is_floating_point():
        raise ValueError(f"`{name}` must be floats (B, F, C, H, W) with 3 or 4 channels, got {clips.dtype} {shape}.")
    if shape[1] < min_frames:
        raise ValueError(f"`{name}` must have at least {min_frames} frames, got {shape[1]}.")
    if like is not None and shape != tuple(like.shape):
        raise ValueError(f"`{name}` must have the shape of the clips {tuple(like.shape)}, got {shape}.")
    low, high = clips.aminmax()  # NaN goes through both
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"`{name}` must be in [-1, 1], got values from {low:.4g} to {high:.4g}.")


def check_condition_mask(
    condition_mask: torch.Tensor, clips: torch.Tensor, shows: bool = False, hides: bool = False
) -> None:
    """Refuse a mask that does not fit the clips.

    Args:
        condition_mask: (B, F) bool, 1 = known.
        clips: (B, F, C, H, W).
        shows: at least one frame of every clip must be known.
        hides: at least one frame of every clip must be hidden.

    Raises:
        ValueError: it is otherwise.
    """
    if condition_mask.dtype != torch.bool or condition_mask.shape != clips.shape[:2]:
        raise ValueError(
            f"`condition_mask` must be bool {tuple(clips.shape[:2])}, got {condition_mask.dtype} "
            f"{tuple(condition_mask.shape)}."
        )
    for needed, frames, verb in ((shows, condition_mask, "show"), (hides, ~condition_mask, "hide")):
        if needed and not frames.any(dim=1).all():
            number = int((~frames.any(dim=1)).nonzero()[0])
            raise ValueError(f"`condition_mask` must {verb} a frame of every clip, got none for clip {number}.")


def _hidden_frames(clips: torch.Tensor, truth: torch.Tensor, condition_mask: torch.Tensor) -> list[tuple]:
    """Of each clip the hidden frames and the true ones, both (N, C, H, W) in [0, 1]."""
    check_clips(clips)
    check_clips(truth, "truth", like=clips)
    check_condition_mask(condition_mask, clips, hides=True)
    unit, true_unit = clips.float().add(1).div(2), truth.float().add(1).div(2)
    return [(unit[clip, hidden], true_unit[clip, hidden]) for clip, hidden in enumerate(~condition_mask)]


def known_frame_error(clips: torch.Tensor, truth: torch.Tensor, condition_mask: torch.Tensor) -> torch.Tensor:
    """The largest difference that any value of a known frame has from the frame that was given.

    Unit: levels of 255, premultiplied. Lower is better. A pipeline that returns known frames as they came owes 0,
    where both sides went through the same rounding to 8 bits.
    Hides: how many values differ; one pixel is enough.

    Args:
        clips, truth: (B, F, C, H, W) in [-1, 1].
        condition_mask: (B, F) bool, 1 = known; at least one frame of every clip.
    """
    check_clips(clips)
    check_clips(truth, "truth", like=clips)
    check_condition_mask(condition_mask, clips, shows=True)
    error = (clips.float() - truth.float()).abs().amax(dim=(2, 3, 4))  # (B, F)
    return error.masked_fill(~condition_mask, 0).amax(dim=1) * 127.5


def average_to_cells(clips: torch.Tensor, cells: int = CELLS) -> torch.Tensor:
    """(B, F, C, H, W) in [-1, 1] -> means of areas in [0, 1], (B, F, C, h, w) float32, at most `cells` a side."""
    size = [min(side, cells) for side in clips.shape[-2:]]
    return F.adaptive_avg_pool2d(clips.float().flatten(0, 1), size).unflatten(0, clips.shape[:2]).add(1).div(2)


def motion_energy(clips: torch.Tensor) -> torch.Tensor:
    """How much changes from one frame to the next.

    The mean absolute difference of neighbouring frames over all cells and channels, frames averaged to 32 x 32 cells.
    Unit: share of the range from black to white, in [0, 1]; 0 for clips that stand still. No direction: compare it
    with that of real clips, `motion_log_ratio`.
    Hides: what moves and whether it makes sense; a large area counts more than a fast little one; jitter counts as
    motion (see `flicker`). It falls with the frame rate: compare clips of the same time only.

    Args:
        clips: (B, F, C, H, W) in [-1, 1], at least 2 frames.
    """
    check_clips(clips, min_frames=2)
    return average_to_cells(clips).diff(dim=1).abs().mean(dim=(1, 2, 3, 4))


def motion_log_ratio(clips: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """How far the amount of motion is from that of the real clip, too little and too much alike.

    |log2((e + f) / (e_true + f))| with the motion energies e and the floor f = 0.001.
    Unit: doublings; 0 is as much motion as the real clip, 1 twice or half as much; lower is better. A clip that stands
    still has log2(1 + 1000 e_true), about 5 for usual stickers; two still clips have 0.
    Hides: the kind of motion; and one text allows for more motions than the real clip's, so read the mean of many.

    Args:
        clips, truth: (B, F, C, H, W) in [-1, 1], at least 2 frames.
    """
    check_clips(truth, "truth", like=clips)
    return ((motion_energy(clips) + MOTION_FLOOR) / (motion_energy(truth) + MOTION_FLOOR)).log2().abs()


def flicker(clips: torch.Tensor) -> torch.Tensor:
    """How much of a frame is neither in the frame before nor in the one after.

    The mean absolute difference of each frame from the median of itself and its two neighbours, pixel by pixel: the
    residual of a temporal median filter of three. What rises or falls, at whatever speed, has none; what jumps and
    jumps back has: alternating brightness, grain, boiling textures, single broken frames.
    Unit: levels of 255. Lower is better, down to what real clips have.
    Hides: thin things that cross a pixel within one frame, blinks and fast to-and-fro motion count, too, so real clips
    are not at 0, but a clip that stands still is; slow drifts of colour are not seen.

    Args:
        clips: (B, F, C, H, W) in [-1, 1], at least 3 frames.
    """
    check_clips(clips, min_frames=3)
    before, frame, after = clips[:, :-2].float(), clips[:, 1:-1].float(), clips[:, 2:].float()
    lower, upper = torch.minimum(before, after), torch.maximum(before, after)
    median = torch.minimum(torch.maximum(frame, lower), upper)
    return (frame - median).abs().mean(dim=(1, 2, 3, 4)) * 127.5


def loop_seam(clips: torch.Tensor) -> torch.Tensor:
    """How much larger the step from the last frame back to the first is than the steps within the clip.

    (s + f) / (m + f): s the mean absolute difference across the seam, m the motion energy of the clip, the mean of its
    other steps, f = 0.001. Not their median: stickers that rest and then move at once have a median near 0.
    Unit: ratio; 1 is a loop without a seam, and a clip that stands still; above 1 a jump is seen; below 1 the last
    frame is close to the first. Lower is better, down to 1.
    Hides: whether the direction of the motion goes on; a broken frame makes all other steps look small; clips that are
    not meant to loop are no worse for a seam (real clips, cut anywhere, have about 1.3 on average).

    Args:
        clips: (B, F, C, H, W) in [-1, 1], at least 3 frames.
    """
    check_clips(clips, min_frames=3)
    cells = average_to_cells(clips)
    seam = (cells[:, 0] - cells[:, -1]).abs().mean(dim=(1, 2, 3))
    return (seam + MOTION_FLOOR) / (cells.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) + MOTION_FLOOR)


def loop_closes(clips: torch.Tensor) -> torch.Tensor:
    """Whether the step from the last frame back to the first is at most the median of the steps within the clip.

    Unit: 1 or 0; the mean is the share of clips. Higher is better, but true loops of uneven steps often have a seam
    above their median, and a clip that stands still closes.
    Hides: by how much a seam is above it, which [`loop_seam`] says; whether the direction of the motion goes on.

    Args:
        clips: (B, F, C, H, W) in [-1, 1], at least 3 frames.
    """
    check_clips(clips, min_frames=3)
    cells = average_to_cells(clips)
    seam = (cells[:, 0] - cells[:, -1]).abs().mean(dim=(1, 2, 3))
    return (seam <= cells.diff(dim=1).abs().mean(dim=(2, 3, 4)).quantile(0.5, dim=1)).float()


def alpha_iou(clips: torch.Tensor, truth: torch.Tensor, condition_mask: torch.Tensor | None = None) -> torch.Tensor:
    """How well the silhouettes agree: intersection over union of alpha above 0.5, mean over the frames of a clip.

    Unit: share in [0, 1]; 1 is the same silhouette, and two empty frames. Higher is better.
    Hides: everything within the silhouette and how soft its edge is; large shapes are easier than thin ones.

    Args:
        clips, truth: (B, F, 4, H, W) in [-1, 1].
        condition_mask: (B, F) bool, 1 = known; if given, only hidden frames count.
    """
    if clips.ndim == 5 and clips.shape[2] == 3:
        raise ValueError("`clips` must have an alpha channel, 4 channels, got 3: RGB has no silhouette.")
    if condition_mask is None:
        condition_mask = torch.zeros(clips.shape[:2], dtype=torch.bool, device=clips.device)
    scores = []
    for frames, true_frames in _hidden_frames(clips, truth, condition_mask):
        inside, truly_inside = frames[:, 3] > 0.5, true_frames[:, 3] > 0.5  # (N, H, W)
        union = (inside | truly_inside).sum(dim=(1, 2))
        shared = (inside & truly_inside).sum(dim=(1, 2))
        scores.append(torch.where(union > 0, shared / union.clamp(min=1), 1.0).mean())
    return torch.stack(scores)


def psnr(clips: torch.Tensor, truth: torch.Tensor, condition_mask: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of the hidden frames of a clip.

    -10 log10 of the mean squared error over all hidden frames, values in [0, 1] (torchmetrics).
    Unit: dB, at most 100 (identical). Higher is better.
    Hides: a blurred mean of all possible frames scores better than a sharp, plausible other one, so it suits
    interpolation and prediction, not generation; the empty background of a sticker counts and is easy.

    Args:
        clips, truth: (B, F, C, H, W) in [-1, 1].
        condition_mask: (B, F) bool, 1 = known; at least one frame of every clip is hidden.
    """
    pairs = _hidden_frames(clips, truth, condition_mask)
    return torch.stack([peak_signal_noise_ratio(*pair, data_range=1.0) for pair in pairs]).clamp(max=MAX_PSNR)


def ssim(clips: torch.Tensor, truth: torch.Tensor, condition_mask: torch.Tensor) -> torch.Tensor:
    """Structural similarity of the hidden frames of a clip, mean over frames and channels.

    Wang et al. 2004, Gaussian window of 11 pixels, sigma 1.5, values in [0, 1], mirrored borders (torchmetrics).
    Unit: in [-1, 1]; 1 is identical. Higher is better.
    Hides: areas that are empty in both score 1, so stickers on a large empty canvas look good; like PSNR it prefers
    the place of the truth to a plausible other one.

    Args:
        clips, truth: (B, F, C, H, W) in [-1, 1], at least 11 pixels a side.
        condition_mask: (B, F) bool, 1 = known; at least one frame of every clip is hidden.
    """
    pairs = _hidden_frames(clips, truth, condition_mask)
    if min(clips.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"`clips` must be at least {SSIM_WINDOW} pixels a side, got {tuple(clips.shape[-2:])}.")
    return torch.stack([structural_similarity_index_measure(*pair, data_range=1.0) for pair in pairs])
