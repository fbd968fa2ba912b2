"""Pictures set in motion, with words that say how: endless training clips from still stickers.

    clip = animate(picture, np.random.default_rng(0))
    clip.frames    # (8, 4, 64, 64) in [-1, 1], premultiplied RGBA
    clip.phrase    # "spinning counterclockwise quickly"

A motion is a function of time that gives a `Pose` per frame: an affine warp, an opacity and a ripple. At time 0 every
cyclic motion is at rest and the picture stands as it is; after the last frame the cycle closes. Motions that run once
(sliding in, falling) start or end at rest. Layers, such as hearts that float up, come on top; see `layers`.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F

from .animation import pad_to_square, resize_premultiplied
from .layers import LAYERS, Particles, draw_layer, stamp


TWO_PI = 2 * math.pi
THINNEST = 0.06  # a coin seen from its edge is this wide, so that its warp stays invertible


@dataclass(frozen=True)
class Pose:
    """Where the picture is in each frame, relative to rest; every field is a number or an array (num_frames,).

    Attributes:
        x, y: shift to the right and down, as a share of the canvas.
        scale_x, scale_y: size; negative mirrors.
        angle: clockwise turn in radians.
        opacity: 0 to 1.
        ripple: sideways shift of the rows, as a share of the picture, is ripple * (sin(row - phase) - sin(row)).
        phase: phase of the ripple in radians.
        offset_x, offset_y: shift to the right and down, as a share of half the picture.
    """

    x: np.ndarray | float = 0.0
    y: np.ndarray | float = 0.0
    scale_x: np.ndarray | float = 1.0
    scale_y: np.ndarray | float = 1.0
    angle: np.ndarray | float = 0.0
    opacity: np.ndarray | float = 1.0
    ripple: float = 0.0
    phase: np.ndarray | float = 0.0
    offset_x: np.ndarray | float = 0.0
    offset_y: np.ndarray | float = 0.0

    def about(self, height: float) -> "Pose":
        """The same turn and scale about another fixed point: -1 the top of the picture, 0 its centre, 1 its bottom."""
        # What keeps (0, height) in place: offset = pivot - turn @ stretch @ pivot
        offset_x = np.sin(self.angle) * self.scale_y * height
        return replace(self, offset_x=offset_x, offset_y=(1 - np.cos(self.angle) * self.scale_y) * height)

    def combine(self, other: "Pose") -> "Pose":
        """Both motions at once; the ripple is taken from the pose that has one."""
        return Pose(
            self.x + other.x,
            self.y + other.y,
            self.scale_x * other.scale_x,
            self.scale_y * other.scale_y,
            self.angle + other.angle,
            self.opacity * other.opacity,
            self.ripple or other.ripple,
            self.phase if self.ripple else other.phase,
            self.offset_x + other.offset_x,
            self.offset_y + other.offset_y,
        )

    def moved_fields(self) -> set[str]:
        """Names of the fields that are not at rest."""
        return {field.name for field in fields(self) if np.any(getattr(self, field.name) != field.default)}


# Each motion: time (num_frames,), amount in [0, 1] and side (-1 or 1) -> Pose. Cyclic motions count time in cycles,
# the others run from 0 to 1.
def _bounce(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(y=-(0.14 + 0.26 * amount) * np.abs(np.sin(math.pi * time)))


def _jump(time: np.ndarray, amount: float, side: int) -> Pose:
    u = time % 1
    crouch = np.where(u < 0.25, np.sin(4 * math.pi * u), 0)  # bends the knees, leaps, lands
    height = np.where(u < 0.25, 0, 1 - ((u - 0.625) / 0.375) ** 2)
    stretch = 1 - 0.25 * crouch + 0.1 * height
    return Pose(y=-(0.18 + 0.26 * amount) * height, scale_x=2 - stretch, scale_y=stretch).about(1)


def _spin(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(angle=side * TWO_PI * time)


def _flip(time: np.ndarray, amount: float, side: int) -> Pose:
    turn = np.cos(TWO_PI * time)
    return Pose(scale_x=np.where(turn < 0, -1, 1) * np.maximum(np.abs(turn), THINNEST))


def _shake(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(x=side * (0.08 + 0.14 * amount) * np.sin(TWO_PI * time))


def _tremble(time: np.ndarray, amount: float, side: int) -> Pose:
    wiggle = np.sin(TWO_PI * 2 * time + 0.9) - math.sin(0.9)
    return Pose(x=side * (0.03 + 0.05 * amount) * wiggle, angle=side * (0.08 + 0.14 * amount) * wiggle)


def _swing(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(angle=side * (0.3 + 0.5 * amount) * np.sin(TWO_PI * time)).about(-1)


def _sway(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(angle=side * (0.22 + 0.35 * amount) * np.sin(TWO_PI * time)).about(1)


def _pulse(time: np.ndarray, amount: float, side: int) -> Pose:
    scale = 1 + side * (0.12 + 0.23 * amount) * (1 - np.cos(TWO_PI * time)) / 2
    return Pose(scale_x=scale, scale_y=scale)


def _squash(time: np.ndarray, amount: float, side: int) -> Pose:
    squeeze = (0.2 + 0.3 * amount) * (1 - np.cos(TWO_PI * time)) / 2
    return Pose(scale_x=1 + 0.6 * squeeze, scale_y=1 - squeeze).about(1)


def _float(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(x=side * 0.05 * np.sin(2 * TWO_PI * time), y=-(0.12 + 0.2 * amount) * (1 - np.cos(TWO_PI * time)) / 2)


def _circle(time: np.ndarray, amount: float, side: int) -> Pose:
    radius = 0.1 + 0.12 * amount
    return Pose(x=side * radius * np.sin(TWO_PI * time), y=radius * (1 - np.cos(TWO_PI * time)))


def _blink(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(opacity=np.where(time % 1 < 0.5, 1.0, 0.35 * (1 - amount)))


def _wave(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(ripple=0.07 + 0.09 * amount, phase=side * TWO_PI * time)


def _roll(time: np.ndarray, amount: float, side: int) -> Pose:
    # A share of a whole turn to one side and back, as far as a wheel of this size would travel.
    turn = side * (0.9 + 1.5 * amount) * np.sin(TWO_PI * time)
    return Pose(x=0.16 * turn, angle=turn)


def _slide_in(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(x=-side * (1 - time) ** 2)


def _slide_out(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(x=side * time**2)


def _fade_in(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(opacity=0.1 + 0.9 * time)


def _fade_out(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(opacity=1 - 0.95 * time)


def _zoom_in(time: np.ndarray, amount: float, side: int) -> Pose:
    scale = 1 + (0.5 + 0.7 * amount) * time
    return Pose(scale_x=scale, scale_y=scale)


def _zoom_out(time: np.ndarray, amount: float, side: int) -> Pose:
    scale = 1 - (0.45 + 0.35 * amount) * time
    return Pose(scale_x=scale, scale_y=scale)


def _fall_in(time: np.ndarray, amount: float, side: int) -> Pose:
    # Falls for 60 % of the time, then bounces once.
    fall, rebound = np.minimum(time / 0.6, 1), np.clip((time - 0.6) / 0.4, 0, 1)
    return Pose(y=-(1 - fall**2) - (0.1 + 0.15 * amount) * 4 * rebound * (1 - rebound))


def _fall_out(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(y=time**2, angle=side * 0.6 * amount * time)


def _rise_out(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(y=-(time**2))


@dataclass(frozen=True)
class Motion:
    """How a motion moves and what it is called.

    Attributes:
        pose: (time, amount, side) -> Pose.
        verbs: what to call it.
        sides: words for side -1 and side 1; none if it has no direction.
        amounts: words for a small and for a large amount; none if it has no amount.
        cyclic: whether it closes its cycle within the clip, once (slowly) or twice (quickly).
        weight: how often it is drawn, relative to the others.
    """

    pose: Callable[[np.ndarray, float, int], Pose]
    verbs: tuple[str, ...]
    sides: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    amounts: tuple[tuple[str, ...], tuple[str, ...]] | None = (("a little", "gently"), ("a lot", "strongly"))
    cyclic: bool = True
    weight: float = 1.0


LEFT_RIGHT = (("to the left", "left"), ("to the right", "right"))
FROM = (("from the right",), ("from the left",))
TURNS = (("counterclockwise", "to the left"), ("clockwise", "to the right"))
HEIGHTS = (("a little", "low"), ("high", "very high"))
FAR = (("a little", "slightly"), ("a lot", "far"))

MOTIONS: dict[str, Motion] = {
    "bounce": Motion(
        _bounce, ("bouncing", "bouncing up and down", "bobbing up and down"), amounts=HEIGHTS, weight=1.5
    ),
    "jump": Motion(
        _jump, ("jumping", "hopping", "jumping up", "leaping", "doing a jump"), amounts=HEIGHTS, weight=2.0
    ),
    "spin": Motion(_spin, ("spinning", "spinning around", "rotating", "turning around"), TURNS, None, weight=1.5),
    "flip": Motion(_flip, ("flipping like a coin", "turning like a coin", "spinning like a coin"), None, None),
    "shake": Motion(_shake, ("shaking", "shaking from side to side", "moving from side to side", "shaking its head")),
    "tremble": Motion(_tremble, ("trembling", "shivering", "wiggling", "jittering")),
    "swing": Motion(_swing, ("swinging", "swinging back and forth", "swinging like a pendulum"), amounts=FAR),
    "sway": Motion(_sway, ("swaying", "rocking from side to side", "dancing", "swaying back and forth"), amounts=FAR),
    "grow": Motion(
        _pulse, ("pulsing", "beating like a heart", "growing and shrinking"), (("inwards",), ("outwards",))
    ),
    "squash": Motion(_squash, ("squashing", "being squashed", "squishing down", "squashing and stretching")),
    "float": Motion(_float, ("floating", "hovering", "floating in the air", "flying"), amounts=HEIGHTS),
    "circle": Motion(
        _circle,
        ("moving in a circle", "circling", "going round in circles"),
        TURNS,
        (("narrowly", "tightly"), ("widely", "far out")),
    ),
    "blink": Motion(_blink, ("blinking", "flashing", "flickering", "blinking on and off")),
    "wave": Motion(_wave, ("waving like a flag", "rippling", "wobbling like jelly", "waving")),
    "roll": Motion(_roll, ("rolling", "rolling back and forth", "rolling on the ground"), LEFT_RIGHT, FAR),
    "slide in": Motion(_slide_in, ("sliding in", "coming in", "entering", "moving in"), FROM, None, False, 0.5),
    "slide out": Motion(
        _slide_out, ("sliding away", "leaving", "running away", "going away"), LEFT_RIGHT, None, False
    ),
    "fade in": Motion(_fade_in, ("fading in", "appearing", "becoming visible"), None, None, False, 0.5),
    "fade out": Motion(_fade_out, ("fading out", "fading away", "disappearing", "vanishing"), None, None, False),
    "zoom in": Motion(_zoom_in, ("zooming in", "growing", "getting bigger", "coming closer"), cyclic=False),
    "zoom out": Motion(_zoom_out, ("zooming out", "shrinking", "getting smaller", "moving away"), cyclic=False),
    "drop": Motion(
        _fall_in, ("dropping in", "falling from above", "falling down and landing"), None, None, False, 0.5
    ),
    "fall": Motion(_fall_out, ("falling down", "dropping out of sight", "falling"), None, None, False),
    "rise": Motion(_rise_out, ("flying up and away", "taking off", "rising up"), None, None, False),
}
ALIASES = {"coin flip": "flip", "pulse": "grow"}
ENTRANCES, EXITS = {"slide in", "fade in", "drop"}, {"slide out", "fade out", "fall", "rise"}


def _partners() -> dict[str, set[str]]:
    """Which motions go together: those that move different things, so that both captions stay true."""
    times = np.arange(1, 8) / 8
    moved = {name: motion.pose(times, 0.9, 1).moved_fields() for name, motion in MOTIONS.items()}
    return {
        name: {
            other
            for other in MOTIONS
            if not moved[name] & moved[other]
            and not (name in ENTRANCES and other in EXITS)
            and not (name in EXITS and other in ENTRANCES)
        }
        for name in MOTIONS
    }


PARTNERS = _partners()
SPEEDS = (("slowly", "in slow motion"), ("quickly", "fast"))
WORD_PROBABILITY = 0.8
MEDIUM = 0.15  # an amount that is not said is within this of the middle, 0.5
PAIR_PROBABILITY = 0.2
LAYER_PROBABILITY = 0.2
STILL_PROBABILITY = 0.4  # of the clips with a layer


@dataclass(frozen=True)
class ProceduralClip:
    """A picture in motion.

    Attributes:
        frames: float tensor (num_frames, 4, size, size) in [-1, 1], premultiplied RGBA.
        phrase: what moves how, for the caption: "jumping high and fading out slowly", "spinning with hearts rising".
        motions: the names of its motions, keys of `MOTIONS`.
        layer: the name of its layer, a key of `LAYERS`, if it has one.
    """

    frames: torch.Tensor
    phrase: str
    motions: tuple[str, ...]
    layer: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a picture rests: a square of `side` pixels, its corner at pixel (`left`, `top`) of a canvas of `size`."""

    size: int
    side: int
    left: int
    top: int


def _pick(choices: Sequence, rng: np.random.Generator):
    return choices[rng.integers(len(choices))]


def _draw_name(weights: dict[str, float], rng: np.random.Generator) -> str:
    """Draw one of the names by weight."""
    sums = list(itertools.accumulate(weights.values()))
    return list(weights)[bisect.bisect(sums, rng.random() * sums[-1])]


def check_motion_weights(weights: Mapping[str, float]) -> None:
    """Raises a ValueError if these are no factors on chances of motions."""
    if unknown := weights.keys() - MOTIONS.keys():
        raise ValueError(f"`motion_weights` names must be among {', '.join(MOTIONS)}, got {sorted(unknown)}.")
    if not all(0.0 < weight < math.inf for weight in weights.values()):
        raise ValueError(f"`motion_weights` must be finite and above 0, got {dict(weights)}.")


def _draw_names(rng: np.random.Generator, factors: Mapping[str, float]) -> tuple[tuple[str, ...], str | None]:
    """Draw the motions and the layer of a clip; `factors` on the motions' weights."""
    layer = None
    if rng.random() < LAYER_PROBABILITY:
        layer = _draw_name({name: entry.weight for name, entry in LAYERS.items()}, rng)
        if rng.random() < STILL_PROBABILITY:
            return (), layer
    weights = {name: motion.weight * factors.get(name, 1.0) for name, motion in MOTIONS.items()}
    first = _draw_name(weights, rng)
    if layer is None and rng.random() < PAIR_PROBABILITY:
        return (first, _draw_name({name: weights[name] for name in MOTIONS if name in PARTNERS[first]}, rng)), None
    return (first,), layer


def _draw_motion(
    name: str, num_frames: int, quick: bool, say_speed: bool, rng: np.random.Generator
) -> tuple[Pose, str]:
    """Draw amount and side of a motion; return its poses and a phrase that says them.

    What is not said is as usual: of medium amount, to side 1, slow. A picture that shakes could as well start to the
    left as to the right, but a network that must expect both learns neither.
    """
    motion = MOTIONS[name]
    say_side, say_amount, say_slow = rng.random(3) < WORD_PROBABILITY
    side = -1 if motion.sides and say_side and rng.random() < 0.5 else 1
    amount = rng.uniform(-MEDIUM, MEDIUM)
    if motion.amounts and say_amount:
        amount = rng.uniform(MEDIUM, 0.5) * (-1 if rng.random() < 0.5 else 1)
    amount += 0.5
    index = np.arange(num_frames)
    if motion.cyclic:
        time = index / num_frames * (2 if quick else 1)
    else:
        time = np.minimum(index / max(num_frames - 1, 1) * (1.75 if quick else 1), 1)
    words = [_pick(motion.verbs, rng)]
    if motion.sides and say_side:
        words.append(_pick(motion.sides[side > 0], rng))
    if motion.amounts and say_amount:
        words.append(_pick(motion.amounts[amount > 0.5], rng))
    if quick or say_speed or say_slow:
        words.append(_pick(SPEEDS[quick], rng))
    return motion.pose(time, amount, side), " ".join(words)


def _draw_motions(names: tuple[str, ...], num_frames: int, rng: np.random.Generator) -> tuple[Pose, str]:
    """Draw how the motions go; return the poses of all of them at once and a phrase."""
    quick = rng.integers(2, size=len(names)).astype(bool)
    differ = bool(quick.any() and not quick.all())  # then each speed is said, lest one be taken for both
    pose, phrases = Pose(), []
    for name, is_quick in zip(names, quick):
        other, phrase = _draw_motion(name, num_frames, bool(is_quick), differ, rng)
        pose = pose.combine(other)
        phrases.append(phrase)
    return pose, f" {_pick(('and', 'while'), rng)} ".join(phrases)


def _join(phrase: str, layer_phrase: str, rng: np.random.Generator) -> str:
    """ "jumping" and "with hearts rising" or "crying" -> "jumping with hearts rising", "jumping while crying"."""
    if not phrase:
        return layer_phrase
    if layer_phrase.startswith(("with ", "in ", "surrounded ")):
        return f"{phrase} {layer_phrase}"
    return f"{phrase} {_pick(('and', 'while'), rng)} {layer_phrase}"


def _per_frame(value: np.ndarray | float, num_frames: int) -> torch.Tensor:
    """A field of a pose as a tensor (num_frames, 1, 1)."""
    return torch.from_numpy(np.broadcast_to(value, num_frames).astype(np.float32)).view(-1, 1, 1)


def _sampling_grid(pose: Pose, num_frames: int, place: Place) -> torch.Tensor:
    """Where each pixel of the canvas comes from in the picture, (num_frames, size, size, 2), for `grid_sample`.

    Forward, in units of half the canvas: canvas = rest + 2 shift + scale * (offset + turn @ stretch @ picture).
    """
    scale = place.side / place.size
    origin_x = (2 * place.left + place.side) / place.size - 1 + 2 * pose.x + scale * pose.offset_x
    origin_y = (2 * place.top + place.side) / place.size - 1 + 2 * pose.y + scale * pose.offset_y
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    width, height = 1 / (scale * pose.scale_x), 1 / (scale * pose.scale_y)
    # Points are complex numbers x + iy: a grid is then one sum of columns and rows, much faster than affine_grid.
    right = cosine * width - 1j * sine * height  # what a step to the right on the canvas is in the picture
    down = sine * width + 1j * cosine * height
    start = np.broadcast_to(origin_x * right + origin_y * down, num_frames)
    centres = np.arange(1, 2 * place.size, 2) / place.size - 1  # of the pixels
    columns = np.broadcast_to(right, num_frames)[:, None] * centres  # (F, size)
    rows = np.broadcast_to(down, num_frames)[:, None] * centres - start[:, None]
    columns, rows = (torch.from_numpy(points.astype(np.complex64)) for points in (columns, rows))
    return torch.view_as_real(columns[:, None, :] + rows[:, :, None])


def render(picture: torch.Tensor, pose: Pose, num_frames: int, place: Place) -> torch.Tensor:
    """Draw a picture in each pose.

    Args:
        picture: (4, side, side), premultiplied RGBA in [0, 1], already at its size on the canvas.
        pose: what moves.
        num_frames: how many frames to draw.
        place: where the picture rests; there its pixels are kept exactly.

    Returns:
        Clip (num_frames, 4, size, size) in [-1, 1].
    """
    size = place.size
    grid = _sampling_grid(pose, num_frames, place)
    if pose.ripple:
        row = 1.2 * TWO_PI * grid[..., 1] / 2
        grid[..., 0] += 2 * pose.ripple * ((row - _per_frame(pose.phase, num_frames)).sin() - row.sin())
    # One tall canvas instead of a batch: (1, 4, F*size, size) -> (F, 4, size, size)
    pixels = F.grid_sample(picture[None], grid.view(1, num_frames * size, size, 2), align_corners=False)
    pixels = pixels.view(4, num_frames, size, size)
    return pixels.mul_(2 * _per_frame(pose.opacity, num_frames)).sub_(1).transpose(0, 1)


def _visible_box(picture: torch.Tensor) -> tuple[float, float, float, float]:
    """What a picture (4, S, S) covers: x and y of the middle, half the width, half the height, in pixels."""
    seen = picture[3].numpy() > 0.1
    x, y = (np.flatnonzero(seen.any(axis=axis)) for axis in (0, 1))
    if not len(x):  # nothing can be seen
        x = y = np.array([0, picture.shape[-1] - 1])
    return (x[0] + x[-1] + 1) / 2, (y[0] + y[-1] + 1) / 2, (x[-1] - x[0] + 1) / 2, (y[-1] - y[0] + 1) / 2


def _to_canvas(particles: Particles, pose: Pose, box: tuple[float, float, float, float], place: Place) -> Particles:
    """Particles around a box of the picture, in pixels of the canvas; they move with the picture as `pose` says."""
    half = place.side / 2
    x = pose.scale_x * (box[0] - half + box[2] * particles.x)
    y = pose.scale_y * (box[1] - half + box[3] * particles.y)
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    return replace(
        particles,
        x=place.left + half + place.size * pose.x + half * pose.offset_x + cosine * x - sine * y,
        y=place.top + half + place.size * pose.y + half * pose.offset_y + sine * x + cosine * y,
        size=particles.size * place.side * np.sqrt(np.abs(pose.scale_x * pose.scale_y)),
        angle=particles.angle + pose.angle,
        opacity=particles.opacity * pose.opacity,
    )


def _rest_corner(shift: np.ndarray | float, size: int, side: int, rng: np.random.Generator) -> int:
    """Draw the pixel where the picture rests, such that its shifts stay on the canvas if they can."""
    free = size - side
    lowest, highest = np.min(shift), np.max(shift)
    if max(-lowest, highest) > 0.6:  # it leaves anyway
        return int(rng.integers(free + 1))
    first = min(max(math.ceil(-lowest * size), 0), free)
    last = min(max(math.floor(free - highest * size), 0), free)
    return int(rng.integers(min(first, last), max(first, last) + 1))


def animate(
    picture: torch.Tensor,
    rng: np.random.Generator,
    num_frames: int = 8,
    size: int = 64,
    motion: str | None = None,
    layer: str | None = None,
    motion_weights: Mapping[str, float] | None = None,
) -> ProceduralClip:
    """Place a picture on the canvas and set it in motion, put a layer over it, or both.

    Where neither is named, both are drawn by weight: a fifth of the clips have a layer, some of these no motion, and a
    fifth of the others have two motions. Where one is named, the clip has that and nothing else.

    Args:
        picture: (4, H, W), premultiplied RGBA in [0, 1]; centred in a square if it is none.
        rng: decides everything that is drawn, so equal generators give equal clips.
        num_frames: length of the clip; cyclic motions and layers close after it.
        size: height and width of the clip.
        motion: a key of `MOTIONS` or of `ALIASES`.
        layer: a key of `LAYERS`.
        motion_weights: factors on the weights of motions by name; those that are not named keep 1.

    Raises:
        ValueError: the picture is not (4, H, W), there is no such motion or layer, or a weight is not above 0.
    """
    if picture.ndim != 3 or picture.shape[0] != 4:
        raise ValueError(f"`picture` must be RGBA (4, H, W), got a tensor of shape {tuple(picture.shape)}.")
    motion = ALIASES.get(motion, motion)
    for argument, name, known in (("motion", motion, MOTIONS), ("layer", layer, LAYERS)):
        if name is not None and name not in known:
            raise ValueError(f"`{argument}` must be one of {', '.join(known)}, got {name!r}.")
    check_motion_weights(motion_weights or {})
    side = round(size * rng.uniform(0.6, 1.0))
    names = () if motion is None else (motion,)
    if motion is None and layer is None:
        names, layer = _draw_names(rng, motion_weights or {})
    pose, phrase = _draw_motions(names, num_frames, rng)
    square = resize_premultiplied(pad_to_square(picture[None]), side)[0]
    place = Place(size, side, _rest_corner(pose.x, size, side, rng), _rest_corner(pose.y, size, side, rng))
    if names:
        frames = render(square, pose, num_frames, place)
    else:  # a still picture: one frame is drawn for all
        frames = render(square, pose, 1, place).repeat(num_frames, 1, 1, 1)
    if layer is not None:
        particles, layer_phrase = draw_layer(layer, rng, num_frames)
        if LAYERS[layer].space == "canvas":
            particles = _to_canvas(particles, Pose(), (size / 2,) * 4, Place(size, size, 0, 0))
        else:
            carried = pose if LAYERS[layer].space == "picture" else Pose()
            particles = _to_canvas(particles, carried, _visible_box(square), place)
        stamp(frames, particles)
        phrase = _join(phrase, layer_phrase, rng)
    return ProceduralClip(frames, phrase, names, layer)
