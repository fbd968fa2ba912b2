# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a sticker is sampled: the passes of the network in each step, and the windows of a long clip."""

from typing import NamedTuple

import torch


class GuidancePass(NamedTuple):
    """One evaluation of the UNet: what it sees, and the weight of its noise in the sum, (B, 1, 1, 1, 1) if clips have
    their own."""

    use_frames: bool
    use_text: bool
    weight: float | torch.Tensor


def guidance_passes(
    guidance_scale: float, image_guidance_scale: float, has_frames: bool = True, has_text: bool = True
) -> list[GuidancePass]:
    """The cheapest passes whose weighted sum is the dual guidance (RDTF, table 6; order of InstructPix2Pix)

    `e = e(0,0) + s_I (e(c,0) - e(0,0)) + s_T (e(c,T) - e(c,0))`, c the known frames and T the text.

    Passes of weight zero are left out: equal scales need two passes. Without known frames, c = 0, this is text
    guidance alone; without text, T = 0, image guidance alone.

    Args:
        guidance_scale, image_guidance_scale: s_T and s_I.
        has_frames, has_text: whether there is a known frame, or a text, at all.
    """
    text_scale = guidance_scale if has_text else 0.0
    image_scale = image_guidance_scale if has_frames else text_scale
    passes = [
        GuidancePass(False, False, 1.0 - image_scale),
        GuidancePass(has_frames, False, image_scale - text_scale),
        GuidancePass(has_frames, True, text_scale),
    ]
    return [guidance_pass for guidance_pass in passes if guidance_pass.weight != 0.0]


def merge_passes(
    usual: list[GuidancePass], continuing: list[GuidancePass], continues: torch.Tensor
) -> list[GuidancePass]:
    """The passes for a batch of which the clips of `continues` (B,) want `continuing`, and the others `usual`."""
    if not continues.any() or usual == continuing:
        return usual
    if continues.all():
        return continuing
    weights: dict[tuple[bool, bool], torch.Tensor] = {}
    for passes, rows in ((usual, ~continues), (continuing, continues)):
        for use_frames, use_text, weight in passes:
            summed = weights.setdefault((use_frames, use_text), torch.zeros(len(rows), device=rows.device))
            summed[rows] = weight
    return [GuidancePass(*sees, weight.view(-1, 1, 1, 1, 1)) for sees, weight in sorted(weights.items())]


def window_starts(num_frames: int, window: int, first_known: int, loop: bool) -> list[int]:
    """First frames of the windows that cover a clip longer than the model's, in the order of sampling.

    Every window after the first shares at least half of its frames, rounded down, with what is known already and
    continues from there: forwards like the paper's post-prediction, and backwards like pre-prediction when the first
    known frame lies beyond the first window. In a loop frame numbers go on modulo `num_frames`, and the last window
    has known frames at both ends, those before the end of the clip and its first ones, which closes it. A loop of one
    window keeps the first half of it, and a second one, from the last frame that is kept on, closes it.
    """
    if num_frames <= window:
        return [first_known, first_known + (num_frames - 1) // 2] if loop else [0]
    stride = window - window // 2
    if loop:
        last = num_frames - window + max(window // 4, 1)
        return [first_known + start for start in (*range(0, num_frames - window, stride), last)]
    anchor = 0 if first_known < window else min(first_known, num_frames - window)
    forwards = [*range(anchor, num_frames - window, stride), num_frames - window]
    backwards = [*range(anchor - stride, 0, -stride), 0] if anchor else []
    return forwards + backwards


def take_frames(clips: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Out of every clip (B, C, F, h, w) its own window of frames: `places` (B, W) to (B, C, W, h, w)."""
    return torch.stack([clip[:, place] for clip, place in zip(clips, places)])


def put_frames(clips: torch.Tensor, places: torch.Tensor, window: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Clips (B, C, F, h, w) with `window` (B, C, W, h, w) at `places` (B, W), except where `keep` (B, F) says so."""
    clips = clips.clone()
    for clip, place, frames, kept in zip(clips, places, window, keep):
        new = ~kept[place]
        clip[:, place[new]] = frames[:, new]
    return clips
