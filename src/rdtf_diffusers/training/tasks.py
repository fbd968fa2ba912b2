"""The six training tasks: which frames of a clip are given to the network, and whether it reads the text.

Everything the model can do at sampling (image-to-sticker, interpolation, prediction, keyframes) is learnt from these
masks. Source: RDTF (arXiv 2503.17735), section on the dual mask and table 7.

    mask = draw_condition_mask("i2v", frame_mask, row_generator(seed, "condition_mask"))
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch


@dataclass(frozen=True)
class Task:
    """One way to hide frames: its name, the family that the curriculum weighs, and whether the text is kept."""

    name: str
    family: str
    keeps_text: bool


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("i2v", "generation", keeps_text=False),
            Task("t2v", "generation", keeps_text=True),
            Task("it2v", "generation", keeps_text=True),
            Task("interpolation", "interpolation", keeps_text=True),
            Task("pre_prediction", "prediction", keeps_text=True),
            Task("post_prediction", "prediction", keeps_text=True),
        )
    }
)

FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        family: tuple(task.name for task in TASKS.values() if task.family == family)
        for family in ("generation", "interpolation", "prediction")
    }
)

# Printed for 8 frames as 10101010, 01010101 and 10010010: (first visible frame, period), so that any length works.
INTERPOLATION_PATTERNS = ((0, 2), (1, 2), (0, 3))


def draw_condition_mask(task: str, frame_mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draws the frames that `task` shows of one clip, as RDTF (arXiv 2503.17735), table 7 lists them.

    With N real frames: one frame (`i2v`, `it2v`), no frame (`t2v`), every second or third frame (`interpolation`), the
    frames from a start in 1..N/2+1 on (`pre_prediction`), the frames before an end in N/2..N-1 (`post_prediction`);
    N/2 is rounded down. Padding is never visible. The shortest clips can be left with no visible frame, which makes
    them text-to-video samples: a still (N = 1) always under either prediction task and in one of the three
    interpolation patterns, two frames (N = 2) under `pre_prediction` when the start is 2.

    Args:
        task: A name in `TASKS`.
        frame_mask: (F,) bool, the real frames: N >= 1 times True, then padding.
        generator: CPU generator of this sample; the only source of randomness.

    Returns:
        (F,) bool on the CPU, True where a frame is given.

    Raises:
        ValueError: `task` is unknown, or `frame_mask` is not real frames followed by padding.
    """
    frame_mask = frame_mask.cpu()
    real = int(frame_mask.sum())
    if frame_mask.dtype != torch.bool or frame_mask.ndim != 1 or real == 0 or not frame_mask[:real].all():
        raise ValueError(f"`frame_mask` must be (F,) bool, real frames first, at least one, got {frame_mask.tolist()}")

    def uniform(low: int, high: int) -> int:  # both ends included
        return int(torch.randint(low, high + 1, (), generator=generator))

    frame = torch.arange(len(frame_mask))  # (F,)
    match task:
        case "i2v" | "it2v":
            visible = frame == uniform(0, real - 1)
        case "t2v":
            visible = torch.zeros_like(frame_mask)
        case "interpolation":
            first, period = INTERPOLATION_PATTERNS[uniform(0, len(INTERPOLATION_PATTERNS) - 1)]
            visible = frame % period == first
        case "pre_prediction":
            visible = frame >= uniform(1, real // 2 + 1)
        case "post_prediction":
            visible = frame < uniform(real // 2, real - 1)
        case _:
            raise ValueError(f"`task` must be one of {', '.join(TASKS)}, got {task!r}")
    return visible & frame_mask


def mask_condition_latents(
    latents: torch.Tensor, condition_mask: torch.Tensor, frame_mask: torch.Tensor
) -> torch.Tensor:
    """Condition latents c = z0 * condition_mask * frame_mask; hidden frames are zero latents.

    RDTF (arXiv 2503.17735), section on the dual mask.

    Args:
        latents: (B, C, F, H, W) clean scaled latents z0.
        condition_mask: (B, F) bool, the frames that are given.
        frame_mask: (B, F) bool, the frames that are real.

    Returns:
        (B, C, F, H, W) in the dtype of `latents`.
    """
    hidden = ~(condition_mask & frame_mask)
    return latents.masked_fill(hidden[:, None, :, None, None], 0.0)  # (B, 1, F, 1, 1) over (B, C, F, H, W)
