"""The training method of RDTF (arXiv 2503.17735) as small pieces: tasks, curriculum, collator, loss, optimiser."""

from .collator import DualMaskCollator, pad_clips, replace_words, row_generator
from .curriculum import AdaptiveCurriculum, Curriculum, LinearCurriculum, PIDTerms, make_curriculum
from .losses import dual_mask_loss, min_snr_weights, timestep_chances
from .muon import Muon
from .presets import PRESETS, Preset
from .tasks import FAMILIES, TASKS, Task, draw_condition_mask, mask_condition_latents


__all__ = [
    "FAMILIES",
    "TASKS",
    "AdaptiveCurriculum",
    "Curriculum",
    "DualMaskCollator",
    "LinearCurriculum",
    "Muon",
    "PIDTerms",
    "PRESETS",
    "Preset",
    "Task",
    "dual_mask_loss",
    "draw_condition_mask",
    "make_curriculum",
    "mask_condition_latents",
    "min_snr_weights",
    "pad_clips",
    "replace_words",
    "row_generator",
    "timestep_chances",
]
