"""Small things that move over a picture: hearts that float up, tears that run down, and the words for them.

```python
particles, phrase = draw_layer("hearts", np.random.default_rng(0), num_frames=8)
phrase  # "with lots of pink hearts floating up"
```

A layer is a handful of particles, copies of one sprite or of several, on paths around a box: the part of the canvas
that the picture covers. Paths are functions of a phase that closes its cycle with the clip, so every layer loops.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .shapes import COLOURS, DARK, WHITE, Brush, Colour, arc, drop_outline, heart_outline, star_outline, with_article


TWO_PI = 2 * math.pi


@dataclass(frozen=True)
class Particles:
    """Where the particles of a layer are in each frame; arrays (num_particles, num_frames).

    Attributes:
        x, y: centres, relative to a box that reaches from -1 to 1.
        size: height of the sprite, as a share of the picture.
        angle: clockwise turn in radians.
        opacity: 0 to 1.
        sprites: name and colour of each particle's sprite, as `draw_sprite` takes them.
    """

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    opacity: np.ndarray
    sprites: tuple[tuple[str, str], ...] = ()


def _star_sprite(brush: Brush, colour: Colour) -> None:
    brush.polygon(star_outline(5, 0.5), colour)


def _heart_sprite(brush: Brush, colour: Colour) -> None:
    brush.polygon(heart_outline(), colour)


def _drop_sprite(brush: Brush, colour: Colour) -> None:
    brush.polygon(drop_outline(), colour)
    brush.disc(-0.18, 0.4, 0.14, WHITE)


def _sparkle_sprite(brush: Brush, colour: Colour) -> None:
    brush.polygon(star_outline(4, 0.34), colour)


def _glyph(brush: Brush, strokes: tuple[list[tuple[float, float]], ...], colour: Colour, width: float) -> None:
    """Thick strokes with a dark outline; a stroke of one point is a dot."""
    for shade, thickness in ((DARK, width + 0.16), (colour, width)):
        for stroke in strokes:
            brush.line(stroke if len(stroke) > 1 else stroke * 2, shade, thickness)


def _question_sprite(brush: Brush, colour: Colour) -> None:
    hook = [*arc(0, -0.34, 0.36, 180, 405), (0, 0.14), (0, 0.26)]
    _glyph(brush, (hook, [(0, 0.68)]), colour, 0.26)


def _exclamation_sprite(brush: Brush, colour: Colour) -> None:
    _glyph(brush, ([(0, -0.7), (0, 0.16)], [(0, 0.66)]), colour, 0.3)


def _z_sprite(brush: Brush, colour: Colour) -> None:
    _glyph(brush, ([(-0.5, -0.56), (0.5, -0.56), (-0.5, 0.56), (0.5, 0.56)],), colour, 0.26)


def _note_sprite(brush: Brush, colour: Colour) -> None:
    for shade, extra in ((WHITE, 0.08), (colour, 0)):  # a light outline, to be seen on any picture
        brush.line([(0.08, 0.52), (0.08, -0.72), (0.54, -0.34)], shade, 0.22 + 2 * extra)
        brush.disc(-0.16, 0.54, 0.34 + extra, shade, 0.28 + extra)


def _anger_sprite(brush: Brush, colour: Colour) -> None:
    for angle in np.arange(4) * math.pi / 2:
        corner = [(0.86, 0.22), (0.44, 0.26), (0.26, 0.44), (0.22, 0.86)]
        turn = [
            (x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)) for x, y in corner
        ]
        brush.line(turn, colour, 0.24)


def _puff_sprite(brush: Brush, colour: Colour) -> None:
    for shade, extra in ((COLOURS["grey"], 0.06), (colour, -0.06)):
        for x, y, radius in ((-0.36, 0.16, 0.42), (0.34, 0.2, 0.42), (0.02, -0.26, 0.46)):
            brush.disc(x, y, radius + extra, shade)


def _paper_sprite(brush: Brush, colour: Colour) -> None:
    brush.polygon([(-0.3, -0.6), (0.3, -0.6), (0.3, 0.6), (-0.3, 0.6)], colour)


def _streak_sprite(brush: Brush, colour: Colour) -> None:
    brush.line([(0, -0.8), (0, 0.8)], colour, 0.24)


SPRITES: dict[str, Callable[[Brush, Colour], None]] = {
    "heart": _heart_sprite,
    "sparkle": _sparkle_sprite,
    "drop": _drop_sprite,
    "star": _star_sprite,
    "question": _question_sprite,
    "exclamation": _exclamation_sprite,
    "z": _z_sprite,
    "note": _note_sprite,
    "anger": _anger_sprite,
    "puff": _puff_sprite,
    "paper": _paper_sprite,
    "streak": _streak_sprite,
}
SPRITE_COLOURS = COLOURS | {"light blue": (126, 206, 250), "golden": (255, 196, 40), "black": DARK}


@lru_cache(maxsize=256)
def draw_sprite(name: str, colour: str, size: int) -> torch.Tensor:
    """Premultiplied RGBA (4, size, size) in [0, 1]; the same tensor each time, not to be written to."""
    brush = Brush(size)
    SPRITES[name](brush, SPRITE_COLOURS[colour])
    return brush.picture()


# Each path: phase (num_particles, num_frames) in [0, 1), side (-1 or 1) and what draws the rest -> Particles.
def _appear(phase: np.ndarray) -> np.ndarray:
    """Opacity that comes at the start of a path and goes at its end, so that starting anew is not seen."""
    return np.clip(np.minimum(6 * phase + 0.15, 4 * (1 - phase)), 0, 1)


def _spread(count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Places (count, 1) from -reach to reach, about evenly apart, in any order."""
    places = (rng.permutation(count) + rng.uniform(0.2, 0.8, count)) / count
    return reach * (2 * places[:, None] - 1)


def _rise(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    sway = 0.12 * np.sin(TWO_PI * (phase + rng.random()))
    x = _spread(len(phase), 0.85, rng) + sway
    return Particles(x, 0.75 - 1.75 * phase, 0.6 + 0.4 * phase, 1.5 * sway, _appear(phase))


def _flutter(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = _spread(len(phase), 1.0, rng) + 0.1 * np.sin(TWO_PI * phase)
    return Particles(x, 2.4 * phase - 1.2, 0 * phase + 1, side * TWO_PI * phase + 3 * x, _appear(phase))


def _pour(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    return Particles(
        _spread(len(phase), 1.0, rng) + 0 * phase, 2.4 * phase - 1.2, 0 * phase + 1, 0 * phase, _appear(phase)
    )


def _twinkle(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    count = len(phase)
    around = TWO_PI / count * (np.arange(count) + rng.random() + rng.uniform(-0.2, 0.2, count))[:, None]
    radius = rng.uniform(0.7, 1.0, (count, 1)) + 0 * phase
    glow = np.sin(math.pi * phase) ** 2
    return Particles(radius * np.cos(around), radius * np.sin(around), 0.3 + 0.7 * glow, 0 * phase, np.sqrt(glow))


def _weep(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = side * (rng.uniform(0.3, 0.42) + 0.08 * phase)
    return Particles(x, 0.05 + 0.95 * phase**1.5, 0.65 + 0.35 * phase, 0 * phase, _appear(phase))


def _sweat(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = side * (rng.uniform(0.6, 0.75) + 0.1 * phase)
    return Particles(x, -0.6 + 0.7 * phase, 0.7 + 0.3 * phase, 0 * phase, _appear(phase))


def _pop(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = side * (rng.uniform(0.6, 0.8) + 0 * phase)
    size = np.interp(phase, [0, 0.15, 0.3, 0.45], [0.3, 1.15, 0.92, 1])
    return Particles(x, -0.7 - 0 * phase, size, 0.2 * x, np.clip(5 * (1 - phase), 0, 1))


def _throb(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = side * (rng.uniform(0.5, 0.7) + 0 * phase)
    return Particles(x, -0.65 + 0 * phase, 1 - 0.25 * np.cos(TWO_PI * phase), 0 * phase, 0 * phase + 1)


def _doze(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = side * (0.1 + 1.1 * phase)
    return Particles(x, -0.1 - 1.05 * phase, 0.45 + 0.65 * phase, 0.25 * side * np.sin(TWO_PI * phase), _appear(phase))


def _puff(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    x = side * (0.55 + 0.45 * phase)
    return Particles(x, -0.25 - 0.6 * phase, 0.5 + 0.7 * phase, side * phase, _appear(phase))


def _orbit(phase: np.ndarray, side: int, rng: np.random.Generator) -> Particles:
    depth = np.sin(TWO_PI * phase)  # in front of the head at 1, behind it at -1
    x = 0.75 * side * -np.cos(TWO_PI * phase)
    return Particles(x, -0.72 + 0.2 * depth, 0.8 + 0.25 * depth, 0 * phase, 0 * phase + 1)


@dataclass(frozen=True)
class Layer:
    """What a layer shows, how it moves and what it is called.

    Attributes:
        path: (phase, side, rng) -> Particles.
        sprite: a key of `SPRITES`.
        nouns: for one and for several; None if no phrase needs one.
        phrases: what to say; `{}` becomes the noun with number, size and colour.
        colours: one of these is drawn, keys of `SPRITE_COLOURS`.
        counts: fewest and most particles, of each side if there are two.
        sizes: smallest and largest size, as a share of the picture.
        space: "picture" if it moves with the picture, as if painted on it; "air" if it stays around the picture's
            place at rest; "canvas" if it fills the canvas.
        sided: whether it is drawn on one side, chosen at random, or mirrored on both.
        mixed: whether each particle has a colour of its own.
        weight: how often it is drawn, relative to the others.
    """

    path: Callable[[np.ndarray, int, np.random.Generator], Particles]
    sprite: str
    nouns: tuple[str, str] | None
    phrases: tuple[str, ...]
    colours: tuple[str, ...]
    counts: tuple[int, int]
    sizes: tuple[float, float]
    space: str = "picture"
    sided: bool = False
    mixed: bool = False
    weight: float = 1.0


LAYERS: dict[str, Layer] = {
    "hearts": Layer(
        _rise,
        "heart",
        ("heart", "hearts"),
        ("with {} floating up", "with {} rising", "with {} flying up", "in love, with {} floating up"),
        ("red", "pink", "purple"),
        (1, 7),
        (0.18, 0.3),
        space="air",
        weight=2.0,
    ),
    "sparkles": Layer(
        _twinkle,
        "sparkle",
        ("sparkle", "sparkles"),
        ("with {}", "with {} twinkling around it", "sparkling", "glittering", "surrounded by {}"),
        ("yellow", "golden", "white", "light blue"),
        (4, 8),
        (0.2, 0.36),
        weight=1.5,
    ),
    "tears": Layer(
        _weep,
        "drop",
        ("tear", "tears"),
        ("crying", "weeping", "in tears", "with {} running down", "crying, with {} rolling down"),
        ("light blue",),
        (1, 2),
        (0.16, 0.24),
        sided=True,
        weight=2.0,
    ),
    "sweat": Layer(
        _sweat,
        "drop",
        ("drop of sweat", "drops of sweat"),
        ("sweating", "with {}", "sweating, with {} running down", "nervous, with {}"),
        ("light blue",),
        (1, 2),
        (0.18, 0.28),
        sided=True,
        weight=1.5,
    ),
    "question marks": Layer(
        _pop,
        "question",
        ("question mark", "question marks"),
        ("with {}", "confused, with {}", "with {} popping up", "puzzled"),
        ("yellow", "red", "blue"),
        (1, 1),
        (0.34, 0.48),
        sided=True,
    ),
    "exclamation marks": Layer(
        _pop,
        "exclamation",
        ("exclamation mark", "exclamation marks"),
        ("with {}", "surprised, with {}", "with {} popping up", "alarmed"),
        ("red", "yellow", "orange"),
        (1, 1),
        (0.34, 0.48),
        sided=True,
    ),
    "zzz": Layer(
        _doze,
        "z",
        None,
        ("sleeping", "snoring", "asleep, with zzz rising", "with zzz floating up"),
        ("white", "light blue"),
        (2, 3),
        (0.28, 0.36),
    ),
    "anger": Layer(
        _throb,
        "anger",
        ("anger mark", "anger marks"),
        ("angry", "with {}", "angry, with {}", "furious, with {}"),
        ("red",),
        (1, 1),
        (0.26, 0.38),
        sided=True,
    ),
    "steam": Layer(
        _puff,
        "puff",
        None,
        ("fuming", "steaming", "with steam coming out of its ears", "steaming with anger"),
        ("white",),
        (2, 2),
        (0.3, 0.4),
        sided=True,
        weight=0.7,
    ),
    "stars": Layer(
        _orbit,
        "star",
        ("star", "stars"),
        ("with {} circling around its head", "dizzy, with {} circling above", "dizzy", "seeing stars"),
        ("yellow",),
        (3, 5),
        (0.2, 0.28),
    ),
    "notes": Layer(
        _rise,
        "note",
        ("music note", "music notes"),
        ("with {} floating up", "singing", "making music, with {} in the air", "with {} rising"),
        ("black", "purple", "blue"),
        (2, 5),
        (0.34, 0.46),
        space="air",
    ),
    "confetti": Layer(
        _flutter,
        "paper",
        None,
        ("with confetti falling", "celebrating, with confetti", "in a rain of confetti", "with colourful confetti"),
        ("red", "yellow", "green", "blue", "pink", "purple", "orange"),
        (8, 12),
        (0.13, 0.18),
        space="canvas",
        mixed=True,
    ),
    "rain": Layer(
        _pour,
        "streak",
        None,
        ("in the rain", "with rain falling", "getting wet in the rain"),
        ("light blue", "blue"),
        (7, 10),
        (0.18, 0.25),
        space="canvas",
        weight=0.7,
    ),
}
# Words of a layer besides its own phrases.
NUMBERS = (("two", "a couple of"), ("a few", "some"), ("lots of", "many"))
SIZES = (("small", "tiny"), ("big", "large"))
SIDES = (("on the left",), ("on the right",))
WORD_PROBABILITY = 0.6
BOTH_PROBABILITY = 0.5


def _noun(layer: Layer, count: int, colour: str, size: float, rng: np.random.Generator) -> str:
    """ "a big red heart", "lots of small hearts": what is drawn; `size` from 0, the smallest, to 1."""
    words = [layer.nouns[count > 1]]
    if len(layer.colours) > 1 and rng.random() < WORD_PROBABILITY:
        words.insert(0, colour)
    if abs(size - 0.5) > 0.3 and rng.random() < WORD_PROBABILITY:
        words.insert(0, SIZES[size > 0.5][rng.integers(2)])
    noun = " ".join(words)
    if count == 1:
        return with_article(noun)
    number = NUMBERS[(count > 2) + (count > 4)][rng.integers(2)]
    return f"{number} {noun}" if rng.random() < WORD_PROBABILITY else noun


def draw_layer(name: str, rng: np.random.Generator, num_frames: int) -> tuple[Particles, str]:
    """Draw number, size, colour, side and start of a layer; return its particles and a phrase that says what they are.

    Args:
        name: a key of `LAYERS`.
        rng: draws everything.
        num_frames: length of the clip; the layer closes its cycle after it.
    """
    layer = LAYERS[name]
    side = int(rng.choice([-1, 1]))
    both = layer.sided and rng.random() < BOTH_PROBABILITY
    count = int(rng.integers(layer.counts[0], layer.counts[1] + 1))
    colours = [layer.colours[index] for index in rng.integers(len(layer.colours), size=count)]
    colours = colours if layer.mixed else colours[:1] * count
    start = (rng.random() + rng.permutation(count)) / count  # evenly apart, so that there is always something to see
    particles = layer.path((np.arange(num_frames) / num_frames + start[:, None]) % 1, side, rng)
    size = rng.random()
    smallest, largest = layer.sizes
    particles = replace(
        particles,
        size=particles.size * (smallest + size * (largest - smallest)),
        sprites=tuple((layer.sprite, colour) for colour in colours),
    )
    phrase = layer.phrases[rng.integers(len(layer.phrases))]
    if "{}" in phrase:
        phrase = phrase.format(_noun(layer, count * (1 + both), colours[0], size, rng))
        if layer.sided and not both and rng.random() < WORD_PROBABILITY:
            phrase = f"{phrase} {SIDES[side > 0][0]}"
    return _mirrored(particles) if both else particles, phrase


def _mirrored(particles: Particles) -> Particles:
    """The particles and their mirror images on the other side."""
    x, y, size, angle, opacity = (
        np.concatenate([getattr(particles, name), sign * getattr(particles, name)])
        for name, sign in (("x", -1), ("y", 1), ("size", 1), ("angle", -1), ("opacity", 1))
    )
    return Particles(x, y, size, angle, opacity, particles.sprites * 2)


def stamp(clip: torch.Tensor, particles: Particles) -> None:
    """Draw particles over a clip, in place.

    Args:
        clip: (num_frames, 4, H, W) in [-1, 1], premultiplied RGBA.
        particles: with centres and sizes in pixels, pixel (0, 0) reaching from 0 to 1.
    """
    reach = math.ceil(particles.size.max()) + 2  # pixels of a patch that holds any particle
    corner_x = np.floor(particles.x - reach / 2 + 0.5).astype(int)
    corner_y = np.floor(particles.y - reach / 2 + 0.5).astype(int)
    height, width = clip.shape[-2:]
    on_canvas = (corner_x > -reach) & (corner_x < width) & (corner_y > -reach) & (corner_y < height)
    which, frame = np.nonzero(on_canvas & (particles.opacity > 0.01))  # (N,) patches
    if not len(which):
        return
    resolution = 4 * math.ceil(particles.size.max() / 4)  # few sizes, so that sprites are seldom drawn anew
    sprites = torch.stack([draw_sprite(*sprite, resolution) for sprite in particles.sprites])
    left, top = corner_x[which, frame], corner_y[which, frame]
    pixel = np.arange(reach) + 0.5
    across = pixel + (left - particles.x[which, frame])[:, None]  # (N, reach), from the particle's centre
    down = pixel + (top - particles.y[which, frame])[:, None]
    # Points are complex numbers x + iy, which a turn multiplies.
    turn = np.exp(-1j * particles.angle[which, frame]) / (particles.size[which, frame] / 2)
    columns, rows = (turn[:, None] * across).astype(np.complex64), (1j * turn[:, None] * down).astype(np.complex64)
    grid = torch.view_as_real(torch.from_numpy(columns[:, None, :] + rows[:, :, None]))  # (N, reach, reach, 2)
    opacity = torch.from_numpy(particles.opacity[which, frame].astype(np.float32)).view(-1, 1, 1, 1)
    patches = F.grid_sample(sprites[which], grid, align_corners=False).mul_(opacity).numpy()
    rest, patches = 1 - patches[:, 3:], 2 * patches
    canvas = clip.numpy()
    canvas += 1  # premultiplied colours from 0, as "over" needs them
    for patch, through, number, x, y in zip(patches, rest, frame, left.tolist(), top.tolist()):
        region = canvas[number, :, max(y, 0) : y + reach, max(x, 0) : x + reach]
        rows, columns = slice(max(-y, 0), height - y), slice(max(-x, 0), width - x)  # of the patch on the canvas
        region *= through[:, rows, columns]
        region += patch[:, rows, columns]
    canvas -= 1
