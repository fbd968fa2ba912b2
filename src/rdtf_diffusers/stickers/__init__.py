"""Clips to files that people can post."""

from .encode import encode, save_sticker
from .fit import Report, encode_for


__all__ = ["Report", "encode", "encode_for", "save_sticker"]
