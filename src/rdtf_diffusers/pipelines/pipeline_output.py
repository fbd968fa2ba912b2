# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the sticker pipeline returns."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class StickerGenerationPipelineOutput(BaseOutput):
    """Output of [`StickerGenerationPipeline`]: B clips of F frames, RGBA with straight alpha or RGB.

    Args:
        frames: by `output_type`: "pil" a list of B lists of F images; "np" an array (B, F, H, W, C) and "pt" a tensor
            (B, F, C, H, W), both in [0, 1]; "latent" a tensor (B, C, F, H / factor, W / factor).
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
