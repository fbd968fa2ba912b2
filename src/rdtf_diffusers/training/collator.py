"""From rows to a training batch: padding, condition masks, dropped text and dropped words.

Every row carries the seed of its sample. All that is random about the sample comes from that seed, so a row gets the
same draw in any batch, on any rank and after any resume. Source: RDTF (arXiv 2503.17735), section on the dual mask.

    collator = DualMaskCollator(num_frames=8)
    batch = collator(rows, curriculum.draw(step_seed))
    noise = torch.stack([torch.randn(shape, generator=row_generator(row["seed"], "noise")) for row in rows])
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .tasks import TASKS, draw_condition_mask


# A run of letters is a word; so is each kana and each Chinese character, which are written without spaces.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def row_generator(seed: int, stream: str) -> torch.Generator:
    """CPU generator for one purpose of one sample, independent of rank, batch and every other stream.

    Args:
        seed: Seed of the sample, unique in the run (for example hashed from run seed, epoch and row number).
        stream: What is drawn. The collator uses "condition_mask", "drop", "ends", "gap" and "words"; a trainer adds
            its own, such as "noise" and "timestep".
    """
    digest = hashlib.sha256(f"{seed}:{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def pad_clips(
    clips: Sequence[torch.Tensor], num_frames: int, padding: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads clips at the end and stacks them.

    In pixels in [-1, 1] zero is mid grey with 3 channels (the paper's padding) and, being premultiplied, half
    transparent white with 4. Latents are padded with the latent of such a frame.

    Args:
        clips: Tensors (n, C, H, W) with 1 <= n <= `num_frames` and equal C, H, W.
        num_frames: F, the length to pad to.
        padding: A padded frame (C, H, W); zeros by default.

    Returns:
        (B, C, F, H, W) clips and (B, F) bool `frame_mask`, True where a frame is real.

    Raises:
        ValueError: A clip has no frame, too many frames, or another frame shape than the first clip.
    """
    frame_shape = clips[0].shape[1:]
    padded = clips[0].new_zeros((len(clips), num_frames, *frame_shape))  # (B, F, C, H, W)
    if padding is not None:
        padded[:] = padding
    frame_mask = torch.zeros(len(clips), num_frames, dtype=torch.bool)
    for index, clip in enumerate(clips):
        if clip.ndim != 4 or not 1 <= len(clip) <= num_frames or clip.shape[1:] != frame_shape:
            raise ValueError(
                f"clip {index} must be (n, C, H, W) with n in 1..{num_frames} and (C, H, W) = {tuple(frame_shape)}, "
                f"got {tuple(clip.shape)}"
            )
        padded[index, : len(clip)] = clip
        frame_mask[index, : len(clip)] = True
    return padded.transpose(1, 2).contiguous(), frame_mask


def replace_words(caption: str, probability: float, placeholder: str, generator: torch.Generator) -> str:
    """Replaces each word of `caption` by `placeholder` with `probability`; spaces stay as they are."""
    return WORD.sub(
        lambda word: placeholder if torch.rand((), generator=generator) < probability else word[0], caption
    )


class DualMaskCollator:
    """Makes a training batch of one task out of rows.

    RDTF (arXiv 2503.17735), section on the dual mask.

    Args:
        num_frames: F, the clip length of the network.
        joint_drop_prob: Probability that text and frames are both dropped, whatever the task. Guidance at sampling
            starts from this case, so leave it at 0.05-0.1.
        text_drop_prob: Probability that the text alone is dropped where the task keeps it (`i2v` always drops it).
        text_word_drop_prob: Probability that a word is replaced by `word_placeholder`.
        word_placeholder: What stands for a dropped word.
        padding: A padded frame (C, H, W) in place of zeros, for rows of latents.
        interpolation_ends_prob: Probability that a clip of the task `interpolation` shows its first and its last frame
            alone, which is what people have between two pictures. Not in the paper, whose patterns have smaller gaps.
        interpolation_gap_prob: Probability that it shows all frames but those of one gap, from 2 frames to all between
            the ends, which is what closes a loop. Not in the paper, either.
        first_frame_prob: Probability that a clip of `i2v` or `it2v` shows its first frame, which is what people have,
            instead of the paper's random one.

    Raises:
        ValueError: `num_frames` is below 1, a probability is outside [0, 1], or those of `interpolation` exceed 1
            together.
    """

    def __init__(
        self,
        num_frames: int = 8,
        joint_drop_prob: float = 0.1,
        text_drop_prob: float = 0.0,
        text_word_drop_prob: float = 0.2,
        word_placeholder: str = "_",
        padding: torch.Tensor | None = None,
        interpolation_ends_prob: float = 0.0,
        interpolation_gap_prob: float = 0.0,
        first_frame_prob: float = 0.0,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"`num_frames` must be at least 1, got {num_frames}")
        probabilities = {
            "joint_drop_prob": joint_drop_prob,
            "text_drop_prob": text_drop_prob,
            "text_word_drop_prob": text_word_drop_prob,
            "interpolation_ends_prob": interpolation_ends_prob,
            "interpolation_gap_prob": interpolation_gap_prob,
            "first_frame_prob": first_frame_prob,
        }
        for name, probability in probabilities.items():
            if not 0.0 <= probability <= 1.0:
                raise ValueError(f"`{name}` must be in [0, 1], got {probability}")
        if interpolation_ends_prob + interpolation_gap_prob > 1.0:
            raise ValueError(
                f"`interpolation_ends_prob` and `interpolation_gap_prob` must not exceed 1 together, got "
                f"{interpolation_ends_prob} and {interpolation_gap_prob}"
            )
        self.num_frames = num_frames
        self.joint_drop_prob = joint_drop_prob
        self.text_drop_prob = text_drop_prob
        self.text_word_drop_prob = text_word_drop_prob
        self.interpolation_ends_prob = interpolation_ends_prob
        self.interpolation_gap_prob = interpolation_gap_prob
        self.first_frame_prob = first_frame_prob
        self.word_placeholder = word_placeholder
        self.padding = padding

    def __call__(self, rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Collates `rows` for `task`.

        Args:
            rows: Mappings with "caption" (str), "seed" (int, the sample's own) and either "clip", (n, C, H, W) pixels
                in [-1, 1], or "latents", (n, c, h, w); n <= `num_frames`, the same key and frame shape in all rows.
            task: A name in `TASKS`, drawn once per optimiser step by the curriculum.

        Returns:
            "pixel_values" or "latents": (B, C, F, H, W), padded after the real frames; "captions": list of B strings;
            "frame_mask": (B, F) bool, real frames; "condition_mask": (B, F) bool, given frames; "text_mask": (B,)
            float, 0 where the text is dropped or empty; "task".

        Raises:
            ValueError: No rows, a row without clip or latents, unequal or too long clips, or an unknown task.
        """
        if not rows:
            raise ValueError("`rows` must hold at least one row, got none")
        source = "latents" if "latents" in rows[0] else "clip"
        if any(source not in row for row in rows):
            raise ValueError(f'`rows` must all have "clip" or all have "latents", got {[sorted(row) for row in rows]}')
        clips, frame_mask = pad_clips([row[source] for row in rows], self.num_frames, self.padding)
        draws = [self.draw_condition(row, task, mask) for row, mask in zip(rows, frame_mask, strict=True)]
        captions, condition_masks, text_kept = zip(*draws, strict=True)
        return {
            "latents" if source == "latents" else "pixel_values": clips,
            "captions": list(captions),
            "frame_mask": frame_mask,
            "condition_mask": torch.stack(condition_masks),
            "text_mask": torch.tensor(text_kept, dtype=torch.float32),
            "task": task,
        }

    def draw_condition(
        self, row: Mapping[str, Any], task: str, frame_mask: torch.Tensor
    ) -> tuple[str, torch.Tensor, bool]:
        """What the network is told of one row: caption, (F,) bool `condition_mask`, whether the text is kept."""
        seed, caption = row["seed"], row["caption"]
        condition_mask = self.draw_use(seed, task, int(frame_mask.sum()))
        if condition_mask is None:
            condition_mask = draw_condition_mask(task, frame_mask, row_generator(seed, "condition_mask"))
        joint, text = torch.rand(2, generator=row_generator(seed, "drop")).tolist()
        drop_all = joint < self.joint_drop_prob
        keep_text = TASKS[task].keeps_text and bool(caption.strip()) and not drop_all and text >= self.text_drop_prob
        caption = replace_words(caption, self.text_word_drop_prob, self.word_placeholder, row_generator(seed, "words"))
        return caption, condition_mask & (not drop_all), keep_text

    def draw_use(self, seed: int, task: str, real: int) -> torch.Tensor | None:
        """The (F,) bool mask of a clip with `real` frames, if it is to be as people use the model; else None."""
        chance = float(torch.rand((), generator=row_generator(seed, "ends")))
        mask = torch.zeros(self.num_frames, dtype=torch.bool)
        if task in ("i2v", "it2v") and chance < self.first_frame_prob:
            mask[0] = True
            return mask
        if task != "interpolation" or chance >= self.interpolation_ends_prob + self.interpolation_gap_prob:
            return None
        first, last = 1, real - 1  # hidden, `last` not among them
        if chance >= self.interpolation_ends_prob and real > 3:
            generator = row_generator(seed, "gap")
            length = int(torch.randint(2, real - 1, (), generator=generator))
            first = int(torch.randint(1, real - length, (), generator=generator))
            last = first + length
        mask[:first] = True
        mask[last:real] = True
        return mask
