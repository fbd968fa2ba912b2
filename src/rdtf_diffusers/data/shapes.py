"""Stickers drawn by code: pictures with captions for tests and first steps that need no files.

```python
picture, caption = draw_shape(np.random.default_rng(0))
picture  # (4, 96, 96) in [0, 1], premultiplied RGBA
caption  # "a green ghost"
```
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw

from .animation import premultiply


Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

COLOURS: dict[str, Colour] = {
    "red": (228, 52, 56),
    "orange": (246, 142, 36),
    "yellow": (252, 208, 44),
    "green": (76, 178, 84),
    "blue": (66, 134, 236),
    "purple": (146, 88, 208),
    "pink": (250, 128, 172),
    "brown": (158, 104, 66),
    "grey": (150, 156, 166),
    "white": (246, 247, 250),
}
DARK: Colour = (44, 40, 52)
WHITE: Colour = (255, 255, 255)
EDGE = 0.07  # width of outlines
SUPERSAMPLING = 4


def with_article(noun: str) -> str:
    """ "orange star" -> "an orange star"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def darker(colour: Colour) -> Colour:
    return tuple(round(0.66 * value) for value in colour)


class Brush:
    """Draws on a transparent square in coordinates from -1 to 1, x to the right and y down, with smooth edges.

    Args:
        size: height and width of the picture in pixels.
    """

    def __init__(self, size: int):
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGBA", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [((x + 1) / 2 * self.side, (y + 1) / 2 * self.side) for x, y in points]

    def line(self, points: Points, colour: Colour, width: float = EDGE) -> None:
        """A stroke with round ends and corners."""
        pixels, thickness = self._pixels(points), max(round(width / 2 * self.side), 1)
        self.draw.line(pixels, fill=colour, width=thickness, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            self.draw.circle((x, y), thickness / 2, fill=colour)

    def polygon(self, points: Points, colour: Colour, edge: Colour | None = None) -> None:
        """A filled polygon with a darker outline, or one of colour `edge`."""
        self.draw.polygon(self._pixels(points), fill=colour)
        self.line([*points, points[0]], edge or darker(colour))

    def disc(self, x: float, y: float, radius: float, colour: Colour, height: float | None = None) -> None:
        """A filled circle, or an ellipse of half height `height`, without an outline."""
        height = height or radius
        (left, top), (right, bottom) = self._pixels([(x - radius, y - height), (x + radius, y + height)])
        self.draw.ellipse((left, top, right, bottom), fill=colour)

    def picture(self) -> torch.Tensor:
        """Premultiplied RGBA (4, size, size) in [0, 1]."""
        fine = premultiply(np.array(self.image)[None])
        return torch.nn.functional.avg_pool2d(fine, SUPERSAMPLING)[0]


def circle(x: float, y: float, radius: float, height: float | None = None) -> Points:
    """Outline of a circle, or of an ellipse of half height `height`."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return [(x + radius * math.cos(angle), y + (height or radius) * math.sin(angle)) for angle in angles]


def arc(x: float, y: float, radius: float, first: float, last: float) -> Points:
    """Part of a circle from angle `first` to `last` in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(first, last, 24))
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def star_outline(points: int, inner: float) -> Points:
    """A star with one point up; its dents are at `inner` times the radius, which is 0.86."""
    angles = -math.pi / 2 + math.pi / points * np.arange(2 * points)
    radii = np.where(np.arange(2 * points) % 2, 0.86 * inner, 0.86)
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles)]


def heart_outline() -> Points:
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    x = 16 * np.sin(angles) ** 3
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles))
    return list(zip(x / 20, y / 20 + 0.06))


def drop_outline() -> Points:
    """A drop of water, its tip up."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return list(zip(0.56 * np.sin(angles) * np.sin(angles / 2) ** 1.5, 0.82 * -np.cos(angles)))


def _eyes(brush: Brush, y: float, gap: float = 0.28) -> None:
    for x in (-gap, gap):
        brush.disc(x, y, 0.09, DARK, 0.13)


def _ball(brush: Brush, colour: Colour) -> None:
    brush.polygon(circle(0, 0, 0.84), colour)
    brush.line([(-0.8, 0.12), (-0.4, 0.3), (0, 0.35), (0.4, 0.3), (0.8, 0.12)], darker(colour), 0.12)
    brush.disc(-0.32, -0.4, 0.16, WHITE)


def _star(brush: Brush, colour: Colour) -> None:
    brush.polygon(star_outline(5, 0.5), colour)


def _heart(brush: Brush, colour: Colour) -> None:
    brush.polygon(heart_outline(), colour)
    brush.disc(-0.4, -0.32, 0.13, WHITE)


def _smiling_face(brush: Brush, colour: Colour) -> None:
    brush.polygon(circle(0, 0, 0.84), colour)
    _eyes(brush, -0.2)
    brush.line(arc(0, 0.02, 0.46, 20, 160), DARK, 0.09)


def _sad_face(brush: Brush, colour: Colour) -> None:
    brush.polygon(circle(0, 0, 0.84), colour)
    _eyes(brush, -0.12)
    brush.line(arc(0, 0.66, 0.38, 215, 325), DARK, 0.09)


def _ghost(brush: Brush, colour: Colour) -> None:
    hem = [(0.66 - 0.33 * step, 0.84 if step % 2 == 0 else 0.62) for step in range(5)]
    brush.polygon([*arc(0, -0.18, 0.66, 180, 360), *hem], colour)
    _eyes(brush, -0.2)
    brush.disc(0, 0.14, 0.13, DARK, 0.1)


def _cat(brush: Brush, colour: Colour) -> None:
    for side in (-1, 1):
        brush.polygon([(side * 0.72, -0.86), (side * 0.2, -0.5), (side * 0.72, 0.0)], colour)
    brush.polygon(circle(0, 0.14, 0.8, 0.66), colour)
    _eyes(brush, 0.02)
    brush.polygon([(-0.08, 0.24), (0.08, 0.24), (0, 0.32)], COLOURS["pink"])
    for side in (-1, 1):
        brush.line([(side * 0.36, 0.32), (side * 0.86, 0.22)], DARK, 0.04)
        brush.line([(side * 0.36, 0.42), (side * 0.84, 0.5)], DARK, 0.04)


def _fish(brush: Brush, colour: Colour) -> None:
    brush.polygon([(0.3, 0), (0.88, -0.5), (0.74, 0), (0.88, 0.5)], colour)
    brush.polygon(circle(-0.18, 0, 0.68, 0.48), colour)
    brush.line(arc(-0.62, 0, 0.44, -40, 40), darker(colour))
    brush.disc(-0.52, -0.12, 0.09, DARK)


def _flower(brush: Brush, colour: Colour) -> None:
    for angle in np.arange(6) * math.pi / 3:
        brush.polygon(circle(0.5 * math.cos(angle), 0.5 * math.sin(angle), 0.34), colour)
    brush.polygon(circle(0, 0, 0.3), COLOURS["brown"])


def _cloud(brush: Brush, colour: Colour) -> None:
    puffs = ((-0.46, 0.12, 0.36), (0, -0.14, 0.46), (0.48, 0.12, 0.34), (0, 0.18, 0.34))
    for x, y, radius in puffs:
        brush.disc(x, y, radius + EDGE / 2, darker(colour))
    for x, y, radius in puffs:
        brush.disc(x, y, radius - EDGE / 2, colour)


def _balloon(brush: Brush, colour: Colour) -> None:
    brush.line([(0, 0.5), (0.1, 0.66), (-0.06, 0.78), (0.02, 0.92)], DARK, 0.04)
    brush.polygon([(-0.1, 0.58), (0.1, 0.58), (0, 0.44)], colour)
    brush.polygon(circle(0, -0.2, 0.6, 0.7), colour)
    brush.disc(-0.24, -0.46, 0.12, WHITE, 0.16)


def _mushroom(brush: Brush, colour: Colour) -> None:
    brush.polygon([(-0.28, 0), (0.28, 0), (0.34, 0.84), (-0.34, 0.84)], COLOURS["white"])
    brush.polygon(arc(0, 0.06, 0.84, 180, 360), colour)
    for x, y, radius in ((-0.42, -0.22, 0.14), (0.06, -0.48, 0.16), (0.46, -0.16, 0.12)):
        brush.disc(x, y, radius, WHITE)


SHAPES: dict[str, Callable[[Brush, Colour], None]] = {
    "ball": _ball,
    "star": _star,
    "heart": _heart,
    "smiling face": _smiling_face,
    "sad face": _sad_face,
    "ghost": _ghost,
    "cat": _cat,
    "fish": _fish,
    "flower": _flower,
    "cloud": _cloud,
    "balloon": _balloon,
    "mushroom": _mushroom,
}


def draw_shape(
    rng: np.random.Generator, size: int = 96, shape: str | None = None, colour: str | None = None
) -> tuple[torch.Tensor, str]:
    """Draw a simple sticker.

    Args:
        rng: draws what is not given.
        size: height and width in pixels.
        shape: a key of `SHAPES`.
        colour: a key of `COLOURS`.

    Returns:
        The picture (4, size, size), premultiplied RGBA in [0, 1], and a caption such as "a red star".

    Raises:
        ValueError: there is no such shape or colour, or the size is below 1.
    """
    for name, value, known in (("shape", shape, SHAPES), ("colour", colour, COLOURS)):
        if value is not None and value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
    if size < 1:
        raise ValueError(f"`size` must be at least 1 pixel, got {size}.")
    shape = shape or str(rng.choice(list(SHAPES)))
    colour = colour or str(rng.choice(list(COLOURS)))
    brush = Brush(size)
    SHAPES[shape](brush, COLOURS[colour])
    return brush.picture(), with_article(f"{colour} {shape}")
