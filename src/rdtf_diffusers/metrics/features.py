"""Networks that turn clips into the features of Frechet distances: I3D, VideoMAE, pictures' networks, stickers' own.

```python
network = load_feature_network("videomae:MCG-NJU/videomae-base-finetuned-ssv2", padding="repeat", device="cuda")
distance = frechet_distance(extract_features(network, clips), extract_features(network, real_clips))
```

I3D and VideoMAE want more frames than a sticker of 8 has. How a clip is made longer changes the figure, so nothing is
padded until a rule is named, and the rule is part of the network's name in every table.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    PreTrainedModel,
    VideoMAEForVideoClassification,
)

from ..data.animation import over_white, pad_to_square
from .clip_measures import check_clips
from .sticker_encoder import load_sticker_encoder


PADDING_RULES = ("repeat",)
I3D_MIN_FRAMES = 9  # with fewer, nothing is left of the time axis before the last pooling


class FeatureNetwork(Protocol):
    """What `extract_features` runs.

    Attributes:
        name: for tables: the network, and how clips were padded for it.
        padding: the rule by which short clips are made longer, or None.
    """

    name: str
    padding: str | None

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, F, C, H, W) in [-1, 1], premultiplied RGBA or RGB over white -> features (B, D) float32."""
        ...


def check_padding(rule: str | None) -> None:
    """Refuse a rule that is neither None nor one of `PADDING_RULES`, with a ValueError."""
    if rule is not None and rule not in PADDING_RULES:
        raise ValueError(f"`padding` must be one of {', '.join(PADDING_RULES)} or None, got {rule!r}.")


def pad_frames(clips: torch.Tensor, least: int, rule: str | None) -> torch.Tensor:
    """Clips with at least `least` frames; those that have them come back as they are.

    "repeat" shows each frame equally often, one after another: 8 frames become 16 for a network that needs 9. The clip
    then lasts as long, seen at a higher rate. Generated and real clips have to be padded alike.

    Args:
        clips: (B, F, C, H, W).
        least: frames that are needed.
        rule: one of `PADDING_RULES`, or None to refuse shorter clips.

    Returns:
        (B, k * F, C, H, W) with the smallest k for which k * F is at least `least`.

    Raises:
        ValueError: the clips are too short and `rule` is None; there is no such rule.
    """
    check_padding(rule)
    frames = clips.shape[1]
    if frames >= least:
        return clips
    if rule is None:
        raise ValueError(
            f'`clips` have {frames} frames, the network needs {least}; with `padding="repeat"` each frame is repeated '
            "equally often, which has to be said beside the figure."
        )
    return clips.repeat_interleave(-(-least // frames), dim=1)


def square_over_white(clips: torch.Tensor) -> torch.Tensor:
    """Clips (B, F, C, H, W) in [-1, 1] -> frames (B*F, 3, S, S) over white, S = max(H, W): no network sees alpha.

    Raises:
        ValueError: these are no clips; see `check_clips`.
    """
    check_clips(clips)
    frames = clips.flatten(0, 1).float()
    rgb = over_white(frames) if frames.shape[1] == 4 else frames
    return pad_to_square(rgb - 1) + 1  # padded with 0, which has to be white


class PicturePreparation:
    """Frames as a network of transformers was trained to see them: its size, filter, mean and standard deviation.

    The whole frame is kept, padded to a square, where the checkpoint's own image processor may cut off the border;
    stickers fill their canvas.

    Args:
        source: Hub id or folder with an image processor.

    Raises:
        ValueError: the processor has no size, or no mean and standard deviation, that say what to do.
    """

    def __init__(self, source: str):
        processor = AutoImageProcessor.from_pretrained(source)
        size = processor.crop_size if getattr(processor, "do_center_crop", None) else processor.size
        self.size = (size.get("height") or size.get("shortest_edge"), size.get("width") or size.get("shortest_edge"))
        mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        if not all(self.size) or mean is None or std is None:
            raise ValueError(f"{source}: the image processor must have a size, a mean and a standard deviation.")
        is_bicubic = processor.resample == Image.Resampling.BICUBIC
        self.filter = "bicubic" if is_bicubic else "bilinear"
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, F, C, H, W) in [-1, 1] -> (B*F, 3, height, width), on the clips' device."""
        frames = square_over_white(clips).add(1).div(2)
        frames = F.interpolate(frames, self.size, mode=self.filter, antialias=True, align_corners=False).clamp(0, 1)
        return (frames - self.mean.to(frames.device)) / self.std.to(frames.device)


def load_network(
    model_class: type, source: str, device: str | torch.device, optional: tuple[str, ...]
) -> tuple[PreTrainedModel, bool]:
    """A network of transformers in float32, and whether the checkpoint has all its weights.

    Raises:
        ValueError: weights are missing whose names have none of `optional` in them: transformers would draw them.
        OSError: there is no such checkpoint.
    """
    model, report = model_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    needed = [name for name in missing if not any(word in name for word in optional)]
    if needed:
        raise ValueError(f"{source} has no weights for {needed[0]} ({len(needed)} are missing).")
    return model.eval().to(device), not missing


def source_name(source: str) -> str:
    """A Hub id as it is; of a folder or file only the last part, without the suffix."""
    return Path(source).resolve().stem if Path(source).exists() else source


class I3DFeatures:
    """Features of I3D (arXiv 1705.07750), as in FVD (arXiv 1812.01717).

    The TorchScript file is called as `model(videos, rescale=True, resize=True, return_features=True)` with videos
    (B, 3, F, S, S) in [0, 255], as in StyleGAN-V (arXiv 2112.14683): it resizes them itself, so that figures agree
    with others that were made with this file. Trained on filmed human actions, I3D judges single frames more than
    motion (arXiv 2404.12391).

    Args:
        file: the TorchScript file.
        padding: rule for clips of fewer than 9 frames.
        device: where it runs.

    Raises:
        ValueError: there is no such file, or it holds no TorchScript.
    """

    def __init__(self, file: str, padding: str | None = None, device: str | torch.device = "cpu"):
        check_padding(padding)
        if not Path(file).is_file():
            raise ValueError(f"`file` must be I3D as TorchScript, there is no {file}.")
        try:
            self.model = torch.jit.load(file, map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"`file` must be I3D as TorchScript, {file} is none.") from error
        self.padding, self.device = padding, torch.device(device)
        note = f"; frames repeated to {I3D_MIN_FRAMES} or more" if padding else ""
        self.name = f"I3D ({source_name(file)}{note})"

    @torch.inference_mode()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        clips = pad_frames(clips.to(self.device), I3D_MIN_FRAMES, self.padding)
        frames = square_over_white(clips).add(1).mul(127.5)
        videos = frames.unflatten(0, clips.shape[:2]).transpose(1, 2)  # (B, 3, F, S, S)
        return self.model(videos, rescale=True, resize=True, return_features=True).float().cpu()


class VideoMAEFeatures:
    """Features of VideoMAE (arXiv 2203.12602): the mean over all patches of space and time.

    What the classifier sees where the checkpoint has one, as in content-debiased FVD (arXiv 2404.12391), which answers
    to broken motion more than I3D does.

    Args:
        source: Hub id or folder, with or without a classifier.
        padding: rule for clips of fewer frames than the network takes, mostly 16.
        device: where it runs.

    Raises:
        ValueError: this is no VideoMAE. OSError: there is nothing.
    """

    def __init__(self, source: str, padding: str | None = None, device: str | torch.device = "cpu"):
        check_padding(padding)
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "videomae":
            raise ValueError(f"`source` must be a VideoMAE, {source} is a {kind}.")
        self.prepare = PicturePreparation(source)
        self.model, _ = load_network(VideoMAEForVideoClassification, source, device, ("fc_norm", "classifier"))
        self.num_frames = self.model.config.num_frames
        self.padding, self.device = padding, torch.device(device)
        note = f"; frames repeated to {self.num_frames}" if padding else ""
        self.name = f"VideoMAE ({source_name(source)}{note})"

    @torch.inference_mode()
    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        padded = pad_frames(clips.to(self.device), self.num_frames, self.padding)
        if padded.shape[1] != self.num_frames:  # its positions are those of so many frames
            raise ValueError(
                f"`clips` have {clips.shape[1]} frames, {self.name} takes {self.num_frames} or a whole part of it."
            )
        videos = self.prepare(padded).unflatten(0, padded.shape[:2])  # (B, F, 3, S, S)
        features = self.model.videomae(videos).last_hidden_state.mean(dim=1)
        return (features if self.model.fc_norm is None else self.model.fc_norm(features)).cpu()


class FrameFeatures:
    """Features of a picture network of transformers, frame by frame: the mean over a clip's frames.

    The image embedding where the network has one (CLIP, SigLIP); else the pooled output, or the first token (CLS) if
    the checkpoint has no weights for the pooler. Hides all motion: the order of frames does not change anything.

    Args:
        source: Hub id or folder with a network that `AutoModel` loads, and its image processor.
        device: where it runs.

    Raises:
        ValueError: there are weights missing. OSError: there is nothing.
    """

    padding = None  # takes any number of frames

    def __init__(self, source: str, device: str | torch.device = "cpu"):
        self.prepare = PicturePreparation(source)
        self.model, self.is_whole = load_network(AutoModel, source, device, ("pooler",))
        self.device = torch.device(device)
        self.name = f"{source_name(source)}, mean over frames"

    @torch.inference_mode()
    def embed_frames(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, F, C, H, W) in [-1, 1] -> features of each frame (B, F, D)."""
        run = getattr(self.model, "get_image_features", self.model)
        output = run(pixel_values=self.prepare(clips.to(self.device)))
        pooled = getattr(output, "pooler_output", None) if self.is_whole else None
        features = output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return features.unflatten(0, clips.shape[:2])

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return self.embed_frames(clips).mean(dim=1).cpu()


class StickerFeatures:
    """Features of the package's own sticker encoder, for the in-domain proxy `sticker-FVD`.

    It knows stickers and their motions, and nothing else. Never to be compared with FVD by I3D or VideoMAE.

    Args:
        folder: of a sticker encoder; the bundled one by default.
        device: where it runs.

    Raises:
        ValueError: there is no sticker encoder.
    """

    padding = None  # takes any number of frames

    def __init__(self, folder: str | None = None, device: str | torch.device = "cpu"):
        self.encoder = load_sticker_encoder(folder).to(device)
        self.name = f"sticker-FVD ({source_name(folder) if folder else 'bundled encoder'}; in-domain proxy)"

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        return self.encoder.clip_features(clips)


@contextmanager
def loading(spec: str) -> Iterator[None]:
    """Says which `spec` could not be loaded, in one line, where transformers says it in several."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"`spec` {spec!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def load_feature_network(spec: str, padding: str | None = None, device: str | torch.device = "cpu") -> FeatureNetwork:
    """A feature network by name.

    Args:
        spec: "i3d:FILE", "videomae:ID", "frames:ID" (any picture network of transformers), with Hub ids or folders;
            "sticker" or "sticker:FOLDER".
        padding: rule for clips that are too short for I3D or VideoMAE, one of `PADDING_RULES`; None refuses them. The
            other networks take any number of frames and never pad.
        device: where it runs, in float32.

    Raises:
        ValueError: `spec` says none of these or cannot be loaded; there is no such rule.
    """
    check_padding(padding)
    kind, _, source = spec.partition(":")
    with loading(spec):
        if kind == "sticker":
            return StickerFeatures(source or None, device)
        if kind == "i3d" and source:
            return I3DFeatures(source, padding, device)
        if kind == "videomae" and source:
            return VideoMAEFeatures(source, padding, device)
        if kind == "frames" and source:
            return FrameFeatures(source, device)
    raise ValueError(f'`spec` must be "i3d:FILE", "videomae:ID", "frames:ID" or "sticker[:FOLDER]", got {spec!r}.')


def extract_features(network: FeatureNetwork, clips: Iterable[torch.Tensor], batch_size: int = 16) -> np.ndarray:
    """Features of many clips, batch by batch, as `frechet_distance` wants them.

    Args:
        network: of `load_feature_network`.
        clips: clips (F, C, H, W) in [-1, 1], all of one shape, or one tensor (N, F, C, H, W). They are read as they
            are needed, so a generator serves for more clips than memory holds.
        batch_size: clips at a time; it does not change the features, but for rounding.

    Returns:
        (N, D) float64.

    Raises:
        ValueError: fewer than 2 clips, different shapes, features that are not finite.
    """
    remaining, shape, rows = iter(clips), None, []
    while batch := list(islice(remaining, batch_size)):
        shape = shape or batch[0].shape
        for number, clip in enumerate(batch, start=len(rows)):
            if clip.shape != shape:
                raise ValueError(
                    f"`clips` must be of one shape, got {tuple(shape)} and, for clip {number}, {tuple(clip.shape)}."
                )
        features = network(torch.stack(batch)).double().numpy()
        if not np.isfinite(features).all():
            number = len(rows) + int(np.argwhere(~np.isfinite(features))[0, 0])
            raise ValueError(f"{network.name} gives features that are not finite for clip {number}.")
        rows.extend(features)
    if len(rows) < 2:
        raise ValueError(f"`clips` must be at least 2 to have a covariance, got {len(rows)}.")
    return np.stack(rows)
