"""Adapter tuning of a UNet that is already trained: what RDTF is compared with (arXiv 2503.17735, tables 1 to 4).

Each method is a configuration and a tuner on PEFT's base classes: `Model(unet, Config())` attaches it in place.
Names are imported when they are used, as in the package itself.
"""

from importlib import import_module


_ROOMS = {
    "CustomizeAVideoConfig": "customize_a_video",
    "CustomizeAVideoModel": "customize_a_video",
    "I2VAdapterConfig": "i2v_adapter",
    "I2VAdapterModel": "i2v_adapter",
    "SimDAConfig": "simda",
    "SimDAModel": "simda",
    "clean_first_frame": "i2v_adapter",
    "frame_similarity_prior": "i2v_adapter",
    "keep_first_frame": "i2v_adapter",
}
__all__ = [*_ROOMS]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
