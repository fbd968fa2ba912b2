"""Animated stickers with Hugging Face Diffusers: the RDTF method (arXiv 2503.17735).

Names are imported when they are first used (PEP 562), so that `import rdtf_diffusers` costs nothing.
"""

from importlib import import_module


__version__ = "0.1.0"

_ROOMS = {
    "AnimationError": "data.animation",
    "Animation": "data.animation",
    "read_animation": "data.animation",
    "UNetDiscreteFrameModel": "models.unet_discrete_frame",
    "KnownFrameRefiner": "models.known_frame_refiner",
    "StickerGenerationPipeline": "pipelines.pipeline_sticker_generation",
    "StickerGenerationPipelineOutput": "pipelines.pipeline_output",
    "DualMaskCollator": "training.collator",
    "make_curriculum": "training.curriculum",
    "dual_mask_loss": "training.losses",
    "save_sticker": "stickers.encode",
    "demo_checkpoint": "checkpoints",
}

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
