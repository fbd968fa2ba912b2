"""Measures of generated stickers: against real ones, against their text, and on their own."""
