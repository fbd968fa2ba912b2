"""Clips to files that people can post. Names are imported when they are used, as in the package itself."""

from importlib import import_module


_ROOMS = {"Report": "fit", "encode_for": "fit", "save_sticker": "encode"}
__all__ = [*_ROOMS]


def __getattr__(name: str):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
