"""Clips to files that people can post."""

from .encode import encode, save_sticker


__all__ = ["encode", "save_sticker"]
