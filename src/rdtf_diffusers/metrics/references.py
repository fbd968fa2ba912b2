"""Clips that anyone can make without a model: trivial baselines that every figure of a model has to be better than.

```python
held = hold_known_frames(clips, condition_mask)
blended = blend_known_frames(clips, condition_mask)
nearest = NearestTrainingClip(training_clips)(clips, condition_mask)
```

Clips are (B, F, C, H, W) in [-1, 1], premultiplied RGBA or RGB, condition masks (B, F) bool, 1 = known. What hidden
frames hold is not looked at; known frames come back exactly.
"""

import re
from collections.abc import Sequence

import torch

from .clip_measures import average_to_cells, check_clips, check_condition_mask


SEARCH_CELLS = 16  # clips are compared in frames averaged to this many cells a side
CHUNK = 256  # training clips compared at once: 8 MB of RGBA cells


def _neighbours(clips: torch.Tensor, condition_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each frame the numbers (B, F) of the last known frame up to it and the first known frame from it on.

    Before the first known frame both are the first, after the last one both are the last.
    """
    check_clips(clips)
    check_condition_mask(condition_mask, clips, shows=True)
    num_frames = condition_mask.shape[1]
    frame = torch.arange(num_frames, device=condition_mask.device).expand_as(condition_mask)
    before = frame.masked_fill(~condition_mask, -1).cummax(dim=1).values  # -1: none
    after = frame.masked_fill(~condition_mask, num_frames).flip(1).cummin(dim=1).values.flip(1)  # F: none
    return torch.where(before < 0, after, before), torch.where(after == num_frames, before, after)


def hold_known_frames(clips: torch.Tensor, condition_mask: torch.Tensor) -> torch.Tensor:
    """Each hidden frame is the last known one before it, or the first known one after it.

    With the first frame known, that is a still picture: no motion, and the best fidelity to the picture there is.

    Args:
        clips: (B, F, C, H, W) in [-1, 1].
        condition_mask: (B, F) bool, at least one known frame in every clip.
    """
    before, _ = _neighbours(clips, condition_mask)
    return clips[torch.arange(len(clips), device=clips.device)[:, None], before]


def blend_known_frames(clips: torch.Tensor, condition_mask: torch.Tensor) -> torch.Tensor:
    """Hidden frames are cross-fades, linear in premultiplied RGBA, of the known ones around them; held outside.

    A mean of two pictures: PSNR likes it, eyes do not (everything that moves is there twice, half transparent).

    Args:
        clips: (B, F, C, H, W) in [-1, 1].
        condition_mask: (B, F) bool, at least one known frame in every clip.
    """
    before, after = _neighbours(clips, condition_mask)
    frame = torch.arange(clips.shape[1], device=clips.device)
    weight = ((frame - before) / (after - before).clamp(min=1)).clamp(0, 1).to(clips.dtype)  # 0 outside and if known
    rows = torch.arange(len(clips), device=clips.device)[:, None]
    return clips[rows, before].lerp(clips[rows, after], weight[:, :, None, None, None])


def nearest_caption(text: str, captions: Sequence[str]) -> int:
    """The number of the caption whose words overlap most with those of `text` (Jaccard); the first of equals."""
    words = set(re.findall(r"\w+", text.lower()))
    others = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    overlaps = [len(words & other) / max(len(words | other), 1) for other in others]
    return max(range(len(overlaps)), key=overlaps.__getitem__)


class NearestTrainingClip:
    """The training clip whose frames come nearest to the known ones, with the known ones put in its place.

    A model that only learnt its training set by heart does no better. Near is the mean squared difference of the known
    frames, averaged to 16 x 16 cells; where no frame is known, the largest word overlap of the captions.

    Args:
        training_clips: N clips (F, C, H, W) by number: a tensor (N, F, C, H, W), a list, or a data set that reads them
            from the disk. Only their cells are kept in memory, 32 KB for 8 frames of RGBA.
        captions: N texts, for clips without any known frame.
    """

    def __init__(self, training_clips: Sequence[torch.Tensor], captions: Sequence[str] | None = None):
        if not len(training_clips):
            raise ValueError("`training_clips` must hold at least one clip, got none.")
        if captions is not None and len(captions) != len(training_clips):
            raise ValueError(f"`captions` must be {len(training_clips)}, one per training clip, got {len(captions)}.")
        self.training_clips = training_clips
        self.captions = captions
        self.clip_shape = tuple(training_clips[0].shape)
        self.cells = torch.stack([self._cells(number) for number in range(len(training_clips))])  # (N, F, C, h, w)

    def _cells(self, number: int) -> torch.Tensor:
        clip = self.training_clips[number]
        check_clips(clip[None], f"training_clips[{number}]")
        if tuple(clip.shape) != self.clip_shape:
            raise ValueError(f"`training_clips` must have one shape, got {self.clip_shape} and {tuple(clip.shape)}.")
        return average_to_cells(clip[None], SEARCH_CELLS)[0]

    def nearest(self, clip: torch.Tensor, known: torch.Tensor) -> int:
        """The number of the training clip nearest to `clip` (F, C, H, W) in the frames `known` (F,) bool."""
        cells = average_to_cells(clip[None], SEARCH_CELLS)[0, known]
        distances = [(chunk[:, known] - cells).square().mean(dim=(1, 2, 3, 4)) for chunk in self.cells.split(CHUNK)]
        return int(torch.cat(distances).argmin())

    def __call__(
        self, clips: torch.Tensor, condition_mask: torch.Tensor, texts: Sequence[str] | None = None
    ) -> torch.Tensor:
        """Clips (B, F, C, H, W) whose hidden frames are those of a training clip.

        Args:
            clips: (B, F, C, H, W) in [-1, 1], of the training clips' F, C, H and W.
            condition_mask: (B, F) bool.
            texts: B captions, needed where no frame is known.

        Raises:
            ValueError: other shapes; a clip without a known frame, and `texts` or the training captions are missing.
        """
        check_clips(clips)
        check_condition_mask(condition_mask, clips)
        if tuple(clips.shape[1:]) != self.clip_shape:
            raise ValueError(
                f"`clips` must have the training clips' shape {self.clip_shape}, got {tuple(clips.shape[1:])}."
            )
        blind = ~condition_mask.any(dim=1)
        if blind.any() and (texts is None or self.captions is None):
            raise ValueError(
                f"`condition_mask` shows no frame of clip {int(blind.nonzero()[0])}, so `texts` and the training "
                "`captions` are needed to find the nearest."
            )
        found = []
        for number, known in enumerate(condition_mask):
            if blind[number]:
                nearest = nearest_caption(texts[number], self.captions)
            else:
                nearest = self.nearest(clips[number], known)
            found.append(self.training_clips[nearest])
        return torch.where(condition_mask[:, :, None, None, None], clips, torch.stack(found).to(clips))
