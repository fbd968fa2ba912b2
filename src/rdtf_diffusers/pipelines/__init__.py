"""From a prompt and pictures to sticker frames."""

from .pipeline_output import StickerGenerationPipelineOutput
from .pipeline_sticker_generation import StickerGenerationPipeline


__all__ = ["StickerGenerationPipeline", "StickerGenerationPipelineOutput"]
