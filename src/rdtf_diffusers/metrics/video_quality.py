"""How good clips look, with no true clip beside them: measures that need no weights, and a user's own DOVER.

```python
sharpness = Sharpness(real_clips)
sharpness(clips).mean(), sharpness(real_clips).mean()  # read the one against the other
```

Clips are (B, F, C, H, W) in [-1, 1], premultiplied RGBA (C = 4) or RGB over white (C = 3).
"""

import importlib
import math
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
import yaml

from ..data.animation import over_white
from .clip_measures import check_clips


GRID_STEP = 2 * 10 / 255  # in [-1, 1]: what a step between pixels counts at most as a sign of a grid
GRID_FLOOR = 1e-4  # so that clips without any step have a blockiness of 0
# Of DOVER's own scripts: the mean and deviation of RGB, the least height and width that it takes as they are, and the
# mean, deviation and weight of its two scores.
DOVER_RGB = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
DOVER_SIDE = 224
DOVER_FUSION = {"technical": (0.1107, 0.07355, 0.6104), "aesthetic": (-0.08285, 0.03774, 0.3896)}


class VideoQualityMetric(Protocol):
    """A score of clips without references.

    Attributes:
        name: shown in tables, with whatever has to be known to compare figures.
        higher_is_better: the direction.
    """

    name: str
    higher_is_better: bool

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, F, C, H, W) in [-1, 1] -> scores (B,) float32."""
        ...


class Sharpness:
    """How close the edges of a clip are to those of real stickers in sharpness.

    The gradient energy of a clip over that of the same clip at half size hardly depends on what is drawn, and not on
    contrast; blur lowers it, grain raises it. r is this quotient by its median over real clips, and the score is
    min(r, 1 / r). A measure of this package.
    Unit: share in [0, 1]; 1 is as sharp as the median real clip, and a blank clip is 0. Higher is better, up to what
    real clips have on average, about 0.9: drawing styles differ.
    Hides: whether there is anything worth seeing; blur and grain can cancel out. `ratio` tells on which side it is.

    Args:
        real_clips: (B, F, C, H, W) in [-1, 1], of the size of the clips to be measured.
    """

    name = "sharpness (1: as real)"
    higher_is_better = True

    def __init__(self, real_clips: torch.Tensor):
        check_clips(real_clips, "real_clips")
        if min(real_clips.shape[-2:]) < 4:
            raise ValueError(f"`real_clips` must be at least 4 pixels a side, got {tuple(real_clips.shape[-2:])}.")
        self.frame_shape = tuple(real_clips.shape[2:])
        self.real_fineness = _fineness(real_clips).quantile(0.5)
        if self.real_fineness == 0:
            raise ValueError("`real_clips` must show something, got blank clips.")

    def ratio(self, clips: torch.Tensor) -> torch.Tensor:
        """(B,) float32: below 1 softer than real clips, above 1 harder or grainy; 0 for blank clips."""
        check_clips(clips)
        if tuple(clips.shape[2:]) != self.frame_shape:
            raise ValueError(f"`clips` must have real frames' shape {self.frame_shape}, got {tuple(clips.shape[2:])}.")
        return _fineness(clips) / self.real_fineness.to(clips.device)

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        ratio = self.ratio(clips)
        return torch.minimum(ratio, 1 / ratio)  # 1 / 0 is infinite


def _fineness(clips: torch.Tensor) -> torch.Tensor:
    """Gradient energy by that at half size, (B,) float32; 0 without any gradient."""

    def energy(frames: torch.Tensor) -> torch.Tensor:
        return frames.diff(dim=-1).square().sum() + frames.diff(dim=-2).square().sum()

    fine = torch.stack([energy(clip.float()) for clip in clips])
    coarse = torch.stack([energy(F.avg_pool2d(clip.float(), 2)) for clip in clips])
    # A checkerboard has no energy left at half size; nothing at all has none at either.
    return fine / coarse.clamp(min=torch.finfo(torch.float32).tiny)


class Blockiness:
    """How much of a regular grid is seen: steps at the borders of square blocks against steps elsewhere.

    (b - i) / (b + i) with the mean absolute difference of neighbouring pixels b across borders and i within blocks.
    Differences count up to 10 levels of 255 only, so that the outlines of a drawing, which are larger, weigh little
    (after Wang, Bovik and Evans 2000, who compare the same two differences).
    Unit: in [-1, 1]; 0 is no grid, 1 nothing but a grid. Lower is better, down to what real clips have.
    Hides: grids of other block sizes or shifted ones; pixel art on the very grid counts as blocky.

    Args:
        block_size: pixels; 8 is the reach of one latent of the usual autoencoders and a block of JPEG.
    """

    higher_is_better = False

    def __init__(self, block_size: int = 8):
        if block_size < 2:
            raise ValueError(f"`block_size` must be at least 2 pixels, got {block_size}.")
        self.block_size = block_size
        self.name = f"blockiness ({block_size} px)"

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        check_clips(clips)
        if min(clips.shape[-2:]) <= self.block_size:
            raise ValueError(
                f"`clips` must be larger than one block of {self.block_size} pixels, got {tuple(clips.shape[-2:])}."
            )
        across, within = torch.zeros(2, len(clips), device=clips.device)
        for dim in (-2, -1):
            steps = clips.float().diff(dim=dim).abs().clamp(max=GRID_STEP)
            steps = steps.movedim(dim, 1).flatten(2).mean(dim=2)  # (B, H - 1) or (B, W - 1)
            border = torch.arange(1, steps.shape[1] + 1, device=clips.device) % self.block_size == 0
            across = across + steps[:, border].mean(dim=1)
            within = within + steps[:, ~border].mean(dim=1)
        return (across - within) / (across + within + GRID_FLOOR)


class DoverQuality:
    """Overall quality by DOVER, of the user's own installation (arXiv 2211.04894).

    The technical view (fragments of the frames as they are) and the aesthetic one (frames resized to 224 pixels) of a
    clip over white, fused as DOVER's `evaluate_one_video.py` does. DOVER and its weights have terms of their own and
    are not part of this package:

        git clone https://github.com/VQAssessment/DOVER     # and pip install . in it
        # DOVER.pth from the releases there -> DOVER/pretrained_weights

    Its constructor fetches ImageNet weights of ConvNeXt once.
    Unit: in [0, 1]. Higher is better.
    Padding: frames are held until the clip has the 32 frames that DOVER looks at, 8 frames 4 times each; real and
    generated clips alike.
    Hides: it was trained on camera videos of some seconds, not on drawings of 8 frames: compare methods with it, on
    equal clips, and nothing with published figures.

    Args:
        path: folder of the clone, with `dover`, `dover.yml` and the weights that it names.
        device: where it runs.

    Raises:
        ValueError: `path` is no such folder, or another `dover` is imported already.
    """

    name = "DOVER (frames held to 32)"
    higher_is_better = True

    def __init__(self, path: str | Path, device: str | torch.device = "cpu"):
        path = Path(path).resolve()
        options = yaml.safe_load((path / "dover.yml").read_text()) if (path / "dover.yml").is_file() else {}
        weights = path / options.get("test_load_path", "pretrained_weights/DOVER.pth")
        missing = [str(part) for part in (path / "dover", path / "dover.yml", weights) if not part.exists()]
        if missing:
            raise ValueError(f"`path` must be a clone of DOVER with its weights, got {path} without {missing}.")
        self.views: dict[str, dict[str, Any]] = options["data"]["val-l1080p"]["args"]["sample_types"]
        sys.path.insert(0, str(path))
        try:
            models = importlib.import_module("dover.models")
            self.single_view = importlib.import_module("dover.datasets").get_single_view
        finally:
            sys.path.remove(str(path))
        if path not in Path(models.__file__).parents:
            raise ValueError(f"`path` must hold the `dover` that is imported, got {path} and {models.__file__}.")
        self.device = device
        self.model = models.DOVER(**options["model"]["args"]).to(device)
        self.model.load_state_dict(torch.load(weights, map_location=device, weights_only=True))

    def view(self, video: torch.Tensor, name: str) -> torch.Tensor:
        """What DOVER sees of a clip (F, 3, H, W) in levels of 255: (1, 3, T, h, w), normalised."""
        options = self.views[name]
        frames = torch.arange(options["clip_len"]) * len(video) // options["clip_len"]  # held, in order
        with torch.random.fork_rng(devices=[]):  # fragments are drawn at random: the same for every clip
            torch.manual_seed(0)
            view = self.single_view(video[frames].transpose(0, 1), name, **options)  # (3, T, h, w)
        mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in DOVER_RGB)
        return ((view - mean) / std)[None].to(self.device)

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        check_clips(clips)
        scores = []
        for clip in clips.float().cpu():
            video = (over_white(clip) if clip.shape[1] == 4 else clip).add(1).mul(127.5)
            scale = DOVER_SIDE / min(video.shape[-2:])
            if scale > 1:  # DOVER's own enlargement keeps the old size for its grid and looks at a corner only
                video = F.interpolate(video, size=[round(side * scale) for side in video.shape[-2:]], mode="bilinear")
            results = self.model({name: self.view(video, name) for name in self.views})  # in the order of the views
            fused = 0.0
            for name, result in zip(self.views, results, strict=True):
                mean, std, weight = DOVER_FUSION[name]
                fused += weight * (float(result.mean()) - mean) / std
            scores.append(1 / (1 + math.exp(-fused)))
        return torch.tensor(scores)
