"""A domain to learn motion on that holds no stickers: textured shapes, drawn by code, with captions.

    write_source_pictures(Path("source"), number=2000, seed=0)

gives a folder of pictures and metadata.jsonl as `--train_data_dir` takes it; `--procedural_fraction 1` moves them.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from rdtf_diffusers.data.shapes import COLOURS, draw_shape, with_article
from rdtf_diffusers.utils.files import write_whole


SIZE = 96  # pixels
METADATA_FILE = "metadata.jsonl"


def stripes(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    return np.sin(rng.uniform(12, 24) * (x * np.cos(angle) + y * np.sin(angle)) + phase) > 0


def dots(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    period, (left, top) = rng.uniform(0.25, 0.5), rng.uniform(0, 1, 2)
    return np.hypot((x / period + left) % 1 - 0.5, (y / period + top) % 1 - 0.5) < 0.3


def checks(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    period, (left, top) = rng.uniform(0.25, 0.5), rng.uniform(0, 1, 2)
    return ((x / period + left) % 1 > 0.5) ^ ((y / period + top) % 1 > 0.5)


def shade(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.clip(0.5 + 0.6 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)


def grain(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.random((12, 12)).astype(np.float32))
    return np.asarray(coarse.resize(x.shape[::-1], Image.Resampling.BICUBIC)).clip(0, 1)


def plain(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.zeros_like(x)


# Each: places (H, W) from -1 to 1, random numbers -> share of the second colour (H, W)
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "striped": stripes,
    "dotted": dots,
    "checked": checks,
    "shaded": shade,
    "rough": grain,
    "plain": plain,
}


def draw_textured_shape(rng: np.random.Generator, size: int = SIZE) -> tuple[Image.Image, str]:
    """A shape with a texture, turned a little, and a caption such as "a dotted red star"."""
    picture, caption = draw_shape(rng, size)
    texture, second = str(rng.choice(list(TEXTURES))), COLOURS[str(rng.choice(list(COLOURS)))]
    pixels = picture.permute(1, 2, 0).numpy()  # (H, W, 4), premultiplied
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    share = 0.7 * TEXTURES[texture](x, y, rng)[..., None]
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    mixed = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
    mixed = (1 - share) * mixed + share * np.array(second) / 255
    straight = np.concatenate([mixed, alpha], axis=2).clip(0, 1)
    image = Image.fromarray((255 * straight).round().astype(np.uint8))
    image = image.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC)
    return image, with_article(f"{texture} {caption.split(' ', 1)[1]}")


def write_source_pictures(folder: Path, number: int, seed: int) -> None:
    """Write `number` pictures, each from the seed and its own number, and last of all metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(number):
        image, caption = draw_textured_shape(np.random.default_rng([seed, index]))
        rows.append({"file_name": f"{index:06d}.png", "text": caption})
        image.save(folder / rows[-1]["file_name"])
    write_whole(folder / METADATA_FILE, "".join(json.dumps(row) + "\n" for row in rows).encode())
