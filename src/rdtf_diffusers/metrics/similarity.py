"""How well clips fit their texts: CLIP similarity of frames, and the sticker encoder's of whole clips.

```python
similarity = load_text_similarity("clip:openai/clip-vit-base-patch32")
similarity(clips, ["a red ball jumps", "a cat waves"])    # (2,) cosines
```
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from .features import FrameFeatures, loading, source_name
from .sticker_encoder import load_sticker_encoder


class TextSimilarity(Protocol):
    """How well clips fit their texts.

    Attributes:
        name: for tables.
    """

    name: str

    def __call__(self, clips: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Clips (B, F, C, H, W) in [-1, 1], premultiplied RGBA or RGB over white, and B texts -> cosines (B,)."""
        ...


def _check_texts(clips: torch.Tensor, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or len(texts) != len(clips):
        raise ValueError(f"`texts` must be a list with one text for each of {len(clips)} clips, got {texts!r}.")


class ClipTextSimilarity:
    """CLIPSIM: the mean over frames of the cosine between the text's and the frame's embedding.

    Unit: cosine, in [-1, 1]; with CLIP, pictures and their texts have about 0.2 to 0.35. Higher is better, up to what
    real clips with their captions reach. Figures of different networks cannot be compared.
    Source: CLIP (arXiv 2103.00020); CLIPSIM of GODIVA (arXiv 2104.14806). Frames are shown over white.
    Hides: motion, and any order of frames; what a verb adds to a still picture; languages that the network was not
    trained on; the end of a text longer than it takes (77 tokens for CLIP). A sharp picture of the wrong thing may
    beat a poor one of the right thing.

    Args:
        source: Hub id or folder with a network of text and pictures that `AutoModel` loads (CLIP, SigLIP, AltCLIP,
            Chinese CLIP), its tokenizer and its image processor.
        device: where it runs, in float32.

    Raises:
        ValueError: the network has no text side. OSError: there is nothing.
    """

    def __init__(self, source: str, device: str | torch.device = "cpu"):
        self.frames = FrameFeatures(source, device)
        if not hasattr(self.frames.model, "get_text_features"):
            raise ValueError(f"{source} is {type(self.frames.model).__name__}, which has no text side as CLIP has.")
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        positions = self.frames.model.config.get_text_config().max_position_embeddings
        self.max_length = min(self.tokenizer.model_max_length, positions)
        self.name = f"CLIPSIM ({source_name(source)})"

    @torch.inference_mode()
    def __call__(self, clips: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        _check_texts(clips, texts)
        # Padded to the full length whatever the batch: CLIP does not mind, and SigLIP was trained so.
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        words = self.frames.model.get_text_features(**tokens.to(self.frames.device)).pooler_output  # (B, D)
        pictures = self.frames.embed_frames(clips)  # (B, F, D)
        return F.cosine_similarity(pictures, words[:, None], dim=-1).mean(dim=1).cpu()


class StickerTextSimilarity:
    """sticker-CLIP: the cosine between a text and a whole clip, by the package's own sticker encoder.

    Unit: cosine, in [-1, 1]. Higher is better, up to what real stickers with their captions reach. Unlike CLIPSIM it
    sees motion. An in-domain proxy: it cannot be compared with CLIPSIM.
    Source: `metrics.sticker_encoder`; the training of CLIP (arXiv 2103.00020).
    Hides: whatever the words and stickers it was trained on do not have; a model trained on the same ones may share
    its blind spots.

    Args:
        folder: of a sticker encoder; the bundled one by default.
        device: where it runs.

    Raises:
        ValueError: there is no sticker encoder.
    """

    def __init__(self, folder: str | None = None, device: str | torch.device = "cpu"):
        self.encoder = load_sticker_encoder(folder).to(device)
        self.name = f"sticker-CLIP ({source_name(folder) if folder else 'bundled encoder'}; in-domain proxy)"

    def __call__(self, clips: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        _check_texts(clips, texts)
        return (self.encoder.encode_clips(clips) * self.encoder.encode_texts(texts)).sum(dim=-1)


def load_text_similarity(spec: str, device: str | torch.device = "cpu") -> TextSimilarity:
    """A text similarity by name: "clip:ID" with a Hub id or folder, "sticker" or "sticker:FOLDER".

    Raises:
        ValueError: `spec` says none of these or cannot be loaded.
    """
    kind, _, source = spec.partition(":")
    with loading(spec):
        if kind == "sticker":
            return StickerTextSimilarity(source or None, device)
        if kind == "clip" and source:
            return ClipTextSimilarity(source, device)
    raise ValueError(f'`spec` must be "clip:ID" or "sticker[:FOLDER]", got {spec!r}.')
