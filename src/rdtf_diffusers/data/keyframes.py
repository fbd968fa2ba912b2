"""Which k frames stand for an animation: clustering (the paper's choice), even spacing or the largest changes.

```python
table = keyframe_table(animation)              # once per animation: {3: indices, ..., 8: indices}
frames = animation.frames[table[5]]            # every time it is drawn
indices = ping_pong(table[5], count=8)         # if the clip must be full: 0 1 2 3 4 3 2 1
```

An animation is clustered in the space of `features`: a callable that maps frames (N, H, W, 4) uint8 to (N, D) float32.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .animation import Animation, evenly_timed, frames_to_clip


KEYFRAME_METHODS = ("cluster", "uniform", "difference")
PIXEL_GRID = 16
VGG_SIZE = 256
RESTARTS = 2  # of KMeans; with one the frame missed most is 2 % further away, with four 1 % closer at half the speed

Features = Callable[[np.ndarray], np.ndarray]


def pixel_features(frames: np.ndarray) -> np.ndarray:
    """Frames averaged to 16x16 premultiplied RGBA: no weights, and alpha tells white from nothing.

    Args:
        frames: (N, H, W, 4) uint8, straight RGBA. They are compared with each other only, so the grid is stretched.

    Returns:
        (N, 1024) float32 in [0, 1].
    """
    size = (PIXEL_GRID, PIXEL_GRID)
    small = [Image.fromarray(frame).convert("RGBa").resize(size, Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(picture) for picture in small]).reshape(len(frames), -1) / np.float32(255)


def _first_equal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First occurrences (n,) of the distinct rows, in order, and for each of the N rows which of them it equals."""
    first: dict[bytes, int] = {}
    occurrence = [first.setdefault(row.tobytes(), index) for index, row in enumerate(rows)]
    return np.unique(occurrence, return_inverse=True)


class _ModelFeatures:
    """Runs a network on the distinct frames, in batches; equal frames get exactly equal features."""

    def __init__(self, device: str | torch.device, batch_size: int):
        self.device, self.batch_size = torch.device(device), batch_size

    def embed(self, frames: np.ndarray) -> torch.Tensor:
        """One batch (B, H, W, 4) uint8 -> (B, D)."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """(N, H, W, 4) uint8 -> (N, D) float32."""
        distinct, inverse = _first_equal(frames)
        batches = [
            self.embed(frames[distinct[start : start + self.batch_size]])
            for start in range(0, len(distinct), self.batch_size)
        ]
        return torch.cat(batches).float().cpu().numpy()[inverse]


class VisionFeatures(_ModelFeatures):
    """Features of any vision model of transformers, frames padded to a square on white.

    The image embedding where the model has one (CLIP, SigLIP); else the pooled output, or the first token (CLS) if the
    checkpoint has no weights for the pooler.

        features = VisionFeatures("facebook/dinov2-small", device="cuda")

    Args:
        model: Hub id or folder with a model that `AutoModel` and `AutoImageProcessor` load.
        device: where it runs, in float32.
        batch_size: frames per forward pass.
    """

    def __init__(self, model: str, device: str | torch.device = "cpu", batch_size: int = 32):
        from transformers import AutoImageProcessor, AutoModel

        super().__init__(device, batch_size)
        self.processor = AutoImageProcessor.from_pretrained(model)
        self.model, report = AutoModel.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
        self.model.to(self.device)
        # Classifiers are saved without a pooler, and transformers would fill in random numbers.
        self.has_pooler = not any("pooler" in name for name in report["missing_keys"])

    def embed(self, frames: np.ndarray) -> torch.Tensor:
        clip = frames_to_clip(frames, max(frames.shape[1:3]), channels=3)
        pictures = clip.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()  # (B, S, S, 3)
        inputs = self.processor(images=list(pictures), input_data_format="channels_last", return_tensors="pt")
        run = getattr(self.model, "get_image_features", self.model)
        output = run(pixel_values=inputs["pixel_values"].to(self.device))
        pooled = getattr(output, "pooler_output", None)
        if self.has_pooler and pooled is not None:
            return pooled.flatten(1)
        return output.last_hidden_state[:, 0]


class TimmFeatures(_ModelFeatures):
    """The first fully connected layer (4096 numbers) of timm's VGG-16: the features of the authors' release.

    Frames are padded to a square on white, resized to 256x256 and normalised as the weights expect. As in the original
    VGG code, the last feature map is pooled to 7x7 so that the layer fits; its output is taken before the ReLU.

    Args:
        model: a VGG of timm.
        device: where it runs.
        batch_size: frames per forward pass.

    Raises:
        ImportError: timm or a torchvision that fits torch is not installed.
    """

    def __init__(self, model: str = "vgg16", device: str | torch.device = "cpu", batch_size: int = 32):
        try:
            import timm
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
            raise ImportError(
                "TimmFeatures needs timm and a torchvision that fits the installed torch: "
                f"pip install 'rdtf_diffusers[vision]' ({error})"
            ) from error
        super().__init__(device, batch_size)
        vgg = timm.create_model(model, pretrained=True, num_classes=0).eval()
        self.layers = vgg.features.to(self.device)
        self.fully_connected = vgg.pre_logits.fc1.to(self.device)  # a 7x7 convolution
        self.mean, self.std = (
            torch.tensor(vgg.pretrained_cfg[name], device=self.device).view(3, 1, 1) for name in ("mean", "std")
        )

    def embed(self, frames: np.ndarray) -> torch.Tensor:
        pixels = frames_to_clip(frames, VGG_SIZE, channels=3).to(self.device).add(1).div(2)
        feature_map = self.layers((pixels - self.mean) / self.std)  # (B, 512, 8, 8)
        return self.fully_connected(F.adaptive_avg_pool2d(feature_map, 7)).flatten(1)  # (B, 4096)


def load_features(name: str, device: str | torch.device = "cpu") -> Features:
    """Features by name: "pixels", "timm:vgg16" (the release's), or a transformers vision model by id or folder."""
    if name == "pixels":
        return pixel_features
    if name.startswith("timm:"):
        return TimmFeatures(name.removeprefix("timm:"), device)
    return VisionFeatures(name, device)


@cache  # finding the libraries takes longer than a clustering
def _thread_pools():
    """The controller of all BLAS and OpenMP threads that KMeans may use."""
    import sklearn.cluster  # noqa: F401 - loads them
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _cluster(features: np.ndarray, durations: np.ndarray, k: int, seed: int) -> np.ndarray:
    distinct, inverse = _first_equal(features)
    if len(distinct) <= k:
        return distinct
    from sklearn.cluster import KMeans

    kmeans = KMeans(k, n_init=RESTARTS, tol=0, random_state=seed)
    with _thread_pools().limit(limits=1):  # the task is tiny, and on busy cores waiting for a second thread costs most
        # n points span at most n dimensions: R of the QR decomposition has the same distances and is much smaller.
        points = np.linalg.qr(features[distinct].T.astype(np.float64), mode="r").T
        labels = kmeans.fit(points, sample_weight=np.bincount(inverse, durations)).labels_
    return distinct[np.sort(np.unique(labels, return_index=True)[1])]


def _largest_differences(features: np.ndarray, k: int) -> np.ndarray:
    change = np.linalg.norm(np.diff(features, axis=0), axis=1)
    largest = np.argsort(-change, kind="stable")[: k - 1]
    return np.sort(np.append(largest[change[largest] > 0] + 1, 0))


def extract_keyframes(
    features: np.ndarray, durations: np.ndarray, k: int, method: str = "cluster", seed: int = 42
) -> np.ndarray:
    """At most `k` frames that stand for an animation (PAPER: frame extraction by feature clustering).

    - "cluster": KMeans with k clusters; the first frame in time of each. A frame weighs as long as it is shown:
      encoders merge equal frames or not, and both files give the same keyframes.
    - "uniform": evenly spaced in time.
    - "difference": frame 0 and the frames that differ most from the one before.

    Args:
        features: (N, D); "uniform" looks at N only.
        durations: (N,), how long each frame is shown, in milliseconds.
        k: how many frames.
        method: one of `KEYFRAME_METHODS`.
        seed: of KMeans.

    Returns:
        Indices (n,) in time order, none twice. n is below k if there are fewer frames, fewer distinct frames
        ("cluster"), fewer changes ("difference"), or frames that stand longer than a step ("uniform").

    Raises:
        ValueError: no such method, `k` below 1, or not one duration per frame.
    """
    if method not in KEYFRAME_METHODS:
        raise ValueError(f"`method` must be one of {', '.join(KEYFRAME_METHODS)}, got {method!r}.")
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    if len(features) != len(durations) or len(features) == 0:
        raise ValueError(f"One duration per frame is needed, got {len(durations)} for {len(features)} frames.")
    if method == "uniform":
        return np.unique(evenly_timed(durations, k))
    if method == "difference":
        return _largest_differences(features, k)
    return _cluster(features, durations, k, seed)


def keyframe_table(
    animation: Animation,
    features: Features = pixel_features,
    method: str = "cluster",
    min_k: int = 3,
    max_k: int = 8,
    seed: int = 42,
) -> dict[int, np.ndarray]:
    """The keyframes of an animation for every k that training may draw, computed once, to be kept with the animation.

    Args:
        animation: N frames.
        features: (N, H, W, 4) uint8 -> (N, D); see `load_features`. Not called for "uniform".
        method: one of `KEYFRAME_METHODS`.
        min_k, max_k: bounds of k, both included; 3 and 8 in the paper.
        seed: of KMeans.

    Returns:
        `{k: indices}` as of `extract_keyframes`.

    Raises:
        ValueError: as `extract_keyframes`, or `max_k` below `min_k`.
    """
    if max_k < min_k:
        raise ValueError(f"`max_k` must be at least `min_k`, got {max_k} and {min_k}.")
    frames = animation.frames
    values = np.empty((len(frames), 0)) if method == "uniform" else features(frames)
    return {k: extract_keyframes(values, animation.durations, k, method, seed) for k in range(min_k, max_k + 1)}


def ping_pong(indices: np.ndarray, count: int) -> np.ndarray:
    """Extend keyframes to `count` by playing them back and forth, turning frames not repeated: 0 1 2 1 0 1 2 1.

    A single frame stays one frame: it is no motion, and the loss mask hides the padding. `count` or more stay as they
    are.
    """
    if len(indices) < 2 or len(indices) >= count:
        return indices
    position = np.arange(count) % (2 * len(indices) - 2)
    return indices[np.minimum(position, 2 * len(indices) - 2 - position)]
