"""Pictures set in motion, with words that say how: endless training clips from still stickers.

    clip = animate(picture, np.random.default_rng(0))
    clip.frames    # (8, 4, 64, 64) in [-1, 1], premultiplied RGBA
    clip.phrase    # "spinning counterclockwise quickly"

A motion is a function of time that gives a `Pose` per frame: an affine warp, an opacity and a ripple. At time 0 every
cyclic motion is at rest and the picture stands as it is; after the last frame the cycle closes. Motions that run once
(sliding in, falling) start or end at rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .animation import pad_to_square, resize_premultiplied


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
        pivot: height of the fixed point of scale and angle: -1 top, 0 centre, 1 bottom of the picture.
    """

    x: np.ndarray | float = 0.0
    y: np.ndarray | float = 0.0
    scale_x: np.ndarray | float = 1.0
    scale_y: np.ndarray | float = 1.0
    angle: np.ndarray | float = 0.0
    opacity: np.ndarray | float = 1.0
    ripple: float = 0.0
    phase: np.ndarray | float = 0.0
    pivot: float = 0.0

    def combine(self, other: "Pose") -> "Pose":
        """Both motions at once; the pivot and the ripple are taken from the pose that has one."""
        return Pose(
            self.x + other.x,
            self.y + other.y,
            self.scale_x * other.scale_x,
            self.scale_y * other.scale_y,
            self.angle + other.angle,
            self.opacity * other.opacity,
            self.ripple or other.ripple,
            self.phase if self.ripple else other.phase,
            self.pivot or other.pivot,
        )


# Each motion: time (num_frames,), amount in [0, 1] and side (-1 or 1) -> Pose. Cyclic motions count time in cycles,
# the others run from 0 to 1.
def _bounce(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(y=-(0.14 + 0.26 * amount) * np.abs(np.sin(math.pi * time)))


def _jump(time: np.ndarray, amount: float, side: int) -> Pose:
    u = time % 1
    crouch = np.where(u < 0.25, np.sin(4 * math.pi * u), 0)  # bends the knees, leaps, lands
    height = np.where(u < 0.25, 0, 1 - ((u - 0.625) / 0.375) ** 2)
    stretch = 1 - 0.25 * crouch + 0.1 * height
    return Pose(y=-(0.18 + 0.26 * amount) * height, scale_x=2 - stretch, scale_y=stretch, pivot=1.0)


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
    return Pose(angle=side * (0.3 + 0.5 * amount) * np.sin(TWO_PI * time), pivot=-1.0)


def _sway(time: np.ndarray, amount: float, side: int) -> Pose:
    return Pose(angle=side * (0.22 + 0.35 * amount) * np.sin(TWO_PI * time), pivot=1.0)


def _pulse(time: np.ndarray, amount: float, side: int) -> Pose:
    scale = 1 + side * (0.12 + 0.23 * amount) * (1 - np.cos(TWO_PI * time)) / 2
    return Pose(scale_x=scale, scale_y=scale)


def _squash(time: np.ndarray, amount: float, side: int) -> Pose:
    squeeze = (0.2 + 0.3 * amount) * (1 - np.cos(TWO_PI * time)) / 2
    return Pose(scale_x=1 + 0.6 * squeeze, scale_y=1 - squeeze, pivot=1.0)


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
        (("in a small circle",), ("in a big circle",)),
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
NAMES = tuple(MOTIONS)
WEIGHTS = np.array([motion.weight for motion in MOTIONS.values()]) / sum(m.weight for m in MOTIONS.values())
SPEEDS = (("slowly", "in slow motion"), ("quickly", "fast"))
WORD_PROBABILITY = 0.8
PAIR_PROBABILITY = 0.2


@dataclass(frozen=True)
class ProceduralClip:
    """A picture in motion.

    Attributes:
        frames: float tensor (num_frames, 4, size, size) in [-1, 1], premultiplied RGBA.
        phrase: what moves how, for the caption: "jumping high and fading out slowly".
        motions: the names of its motions, keys of `MOTIONS`.
    """

    frames: torch.Tensor
    phrase: str
    motions: tuple[str, ...]


def _draw_motion(name: str, num_frames: int, rng: np.random.Generator) -> tuple[Pose, str]:
    """Draw amount, side and speed of a motion; return its poses and a phrase that says them."""
    motion = MOTIONS[name]
    amount, side, quick = rng.random(), int(rng.choice([-1, 1])), bool(rng.integers(2))
    index = np.arange(num_frames)
    if motion.cyclic:
        time = index / num_frames * (2 if quick else 1)
    else:
        time = np.minimum(index / max(num_frames - 1, 1) * (1.75 if quick else 1), 1)
    words = [(motion.verbs, 1.0), (SPEEDS[quick], WORD_PROBABILITY)]
    if motion.sides:
        words.insert(1, (motion.sides[side > 0], WORD_PROBABILITY))
    if motion.amounts and abs(amount - 0.5) > 0.15:
        words.insert(-1, (motion.amounts[amount > 0.5], WORD_PROBABILITY))
    phrase = " ".join(str(rng.choice(choices)) for choices, probability in words if rng.random() < probability)
    return motion.pose(time, amount, side), phrase


def _theta(pose: Pose, num_frames: int, scale: float, centre: tuple[float, float]) -> torch.Tensor:
    """Affine maps (num_frames, 2, 3) from canvas to picture coordinates, both in [-1, 1], for `affine_grid`.

    Forward: canvas = centre + 2 shift + pivot + turn @ stretch @ (scale * picture - pivot).
    """
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    pivot = pose.pivot * scale
    origin_x, origin_y = centre[0] + 2 * pose.x, centre[1] + 2 * pose.y + pivot
    width, height = 1 / (scale * pose.scale_x), 1 / (scale * pose.scale_y)
    rows = [cosine * width, sine * width, -(cosine * origin_x + sine * origin_y) * width]
    rows += [-sine * height, cosine * height, (sine * origin_x - cosine * origin_y) * height + pose.pivot]
    return (
        torch.from_numpy(np.stack([np.broadcast_to(row, num_frames) for row in rows], axis=1)).float().view(-1, 2, 3)
    )


def render(picture: torch.Tensor, pose: Pose, num_frames: int, size: int, left: int, top: int) -> torch.Tensor:
    """Draw a picture in each pose.

    Args:
        picture: (4, S, S), premultiplied RGBA in [0, 1], already at its size on the canvas.
        pose: what moves; at rest the picture's corner is at pixel (`left`, `top`) and its pixels are kept exactly.
        num_frames: how many frames to draw.
        size: height and width of the canvas.

    Returns:
        Clip (num_frames, 4, size, size) in [-1, 1].
    """
    side = picture.shape[-1]
    centre = ((2 * left + side) / size - 1, (2 * top + side) / size - 1)
    grid = F.affine_grid(
        _theta(pose, num_frames, side / size, centre), (num_frames, 4, size, size), align_corners=False
    )
    if pose.ripple:
        phase = torch.from_numpy(np.broadcast_to(pose.phase, num_frames).astype(np.float32)).view(-1, 1, 1)
        row = 1.2 * TWO_PI * grid[..., 1] / 2
        grid[..., 0] += 2 * pose.ripple * ((row - phase).sin() - row.sin())
    # One tall canvas instead of a batch: (1, 4, F*size, size) -> (F, 4, size, size)
    pixels = F.grid_sample(picture[None], grid.view(1, num_frames * size, size, 2), align_corners=False)
    pixels = pixels.view(4, num_frames, size, size).transpose(0, 1)
    opacity = torch.from_numpy(np.broadcast_to(pose.opacity, num_frames).astype(np.float32)).view(-1, 1, 1, 1)
    return pixels * (2 * opacity) - 1


def _rest_corner(shift: np.ndarray | float, size: int, side: int, rng: np.random.Generator) -> int:
    """Draw the pixel where the picture rests, such that its shifts stay on the canvas if they can."""
    free = size - side
    if np.max(np.abs(shift)) > 0.6:  # it leaves anyway
        return int(rng.integers(free + 1))
    first = np.clip(math.ceil(-np.min(shift) * size), 0, free)
    last = np.clip(math.floor(free - np.max(shift) * size), 0, free)
    return int(rng.integers(min(first, last), max(first, last) + 1))


def animate(
    picture: torch.Tensor,
    rng: np.random.Generator,
    num_frames: int = 8,
    size: int = 64,
    motion: str | None = None,
) -> ProceduralClip:
    """Place a picture on the canvas and set it in motion.

    Args:
        picture: (4, H, W), premultiplied RGBA in [0, 1]; centred in a square if it is none.
        rng: decides everything that is drawn, so equal generators give equal clips.
        num_frames: length of the clip; cyclic motions close after it.
        size: height and width of the clip.
        motion: a key of `MOTIONS`; by default one is drawn by weight, and two for a fifth of the clips.

    Raises:
        ValueError: the picture is not (4, H, W), or there is no such motion.
    """
    if picture.ndim != 3 or picture.shape[0] != 4:
        raise ValueError(f"`picture` must be RGBA (4, H, W), got a tensor of shape {tuple(picture.shape)}.")
    if motion is not None and motion not in MOTIONS:
        raise ValueError(f"`motion` must be one of {', '.join(MOTIONS)}, got {motion!r}.")
    side = round(size * rng.uniform(0.6, 1.0))
    if motion is None:
        number = 2 if rng.random() < PAIR_PROBABILITY else 1
        names = tuple(str(name) for name in rng.choice(NAMES, size=number, replace=False, p=WEIGHTS))
    else:
        names = (motion,)
    pose, phrase = _draw_motion(names[0], num_frames, rng)
    for name in names[1:]:
        second, second_phrase = _draw_motion(name, num_frames, rng)
        pose = pose.combine(second)
        phrase = f"{phrase} {rng.choice(['and', 'while'])} {second_phrase}"
    square = resize_premultiplied(pad_to_square(picture[None]), side)[0]
    left, top = _rest_corner(pose.x, size, side, rng), _rest_corner(pose.y, size, side, rng)
    return ProceduralClip(render(square, pose, num_frames, size, left, top), phrase, names)
