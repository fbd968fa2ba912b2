"""A small network that has seen stickers: what moves in a clip, how, and which words go with it.

    encoder = load_sticker_encoder()                # the bundled one
    encoder.encode_clips(clips)                     # (B, D) unit vectors
    encoder.encode_texts(["a dog jumping high"])    # (1, D) unit vectors
    encoder.clip_features(clips)                    # (B, W), for Frechet distances
    encoder.motions[encoder.classify_motion(clips)[0].argmax()]

Clips and captions are trained to meet in one space, as in CLIP (arXiv 2103.00020); the words come from the frozen text
encoder of the bundled model, the clips from a network of convolutions per frame and a transformer over frames and
places. All of it was trained on stickers alone: its figures, `sticker-CLIP` and `sticker-FVD`, are in-domain proxies.
They compare stickers with stickers, on one footing for all models, and cannot be compared with CLIPSIM or FVD. What
the text encoder does not know, they do not see; and a model trained on the same data may share their blind spots.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints import demo_checkpoint, sticker_encoder_checkpoint
from ..data.animation import pad_to_square, resize_premultiplied
from ..data.latents import fingerprint
from .clip_measures import check_clips


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions on (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class StickerEncoderModel(ModelMixin, ConfigMixin):
    """The trained part of the sticker encoder.

    Args:
        sample_size: height and width of the clips, a multiple of 16.
        num_frames: frames for which places in time are learned; clips of other lengths are spread over them.
        widths: channels at 1/4, 1/8 and 1/16 of the size; the last is W, of the transformer and of the features.
        num_layers, num_heads: of the transformer.
        embed_dim: D of the space that clips and captions share.
        text_dim: width of the text encoder's states.
        motions: names of the motions that it tells apart.
        text_encoder: fingerprint of the text encoder that it was trained with.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        num_frames: int = 8,
        widths: tuple[int, int, int] = (48, 96, 192),
        num_layers: int = 3,
        num_heads: int = 6,
        embed_dim: int = 192,
        text_dim: int = 384,
        motions: tuple[str, ...] = (),
        text_encoder: str = "",
    ):
        super().__init__()
        first, second, width = widths
        # Each frame goes in with what has changed since the one before it: motion is then seen at full resolution.
        self.frame_layers = nn.Sequential(
            nn.Conv2d(8, first, 4, stride=4),
            ResidualBlock(first),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            ResidualBlock(second),
            nn.Conv2d(second, width, 3, stride=2, padding=1),
        )
        self.places = nn.Parameter(0.02 * torch.randn((sample_size // 16) ** 2, width))
        self.times = nn.Parameter(0.02 * torch.randn(num_frames, width))
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.clip_projection = nn.Linear(width, embed_dim)
        self.motion_head = nn.Linear(width, len(motions))
        self.word_weight = nn.Linear(text_dim, 1)
        self.text_projection = nn.Sequential(
            nn.Linear(text_dim, embed_dim), nn.GELU(), nn.Linear(embed_dim, embed_dim)
        )
        self.logit_scale = nn.Parameter(torch.tensor(2.66))  # ln(1 / 0.07)

    def clip_states(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips (B, F, 4, S, S) in [-1, 1] -> features (B, W): the mean over frames and places."""
        batch, frames = clips.shape[:2]
        changes = torch.cat([torch.zeros_like(clips[:, :1]), clips.diff(dim=1)], dim=1)
        x = torch.cat([clips, changes], dim=2).flatten(0, 1)  # (B*F, 8, S, S)
        x = self.frame_layers(x.contiguous(memory_format=torch.channels_last))  # (B*F, W, S/16, S/16)
        x = x.flatten(2).transpose(1, 2).view(batch, frames, -1, x.shape[1])  # (B, F, S/16 * S/16, W)
        x = x + self.places + self._times(frames)[:, None]
        return self.transformer(x.flatten(1, 2)).mean(dim=1)

    def _times(self, frames: int) -> torch.Tensor:
        """Places in time of a clip's frames (F, W)."""
        if frames == len(self.times):
            return self.times
        if frames == 1:
            return self.times[:1]
        return F.interpolate(self.times.T[None], size=frames, mode="linear", align_corners=True)[0].T

    def embed_clips(self, states: torch.Tensor) -> torch.Tensor:
        """Features (B, W) -> unit vectors (B, D)."""
        return F.normalize(self.clip_projection(states), dim=-1)

    def embed_texts(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The text encoder's states (B, L, text_dim) and which tokens are words (B, L) -> unit vectors (B, D)."""
        weights = self.word_weight(states)[..., 0].masked_fill(~mask.bool(), -torch.inf).softmax(dim=-1)
        pooled = torch.einsum("bl,blc->bc", weights, states)
        return F.normalize(self.text_projection(pooled), dim=-1)


class FrozenText:
    """The tokenizer and text encoder of a pipeline's folder, as the sticker encoder's eyes for words.

    Args:
        folder: a pipeline's folder or Hub id.

    Raises:
        ValueError: there is no text encoder.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        folder = folder or demo_checkpoint()
        if Path(folder).is_dir() and not (Path(folder) / "text_encoder" / "config.json").is_file():
            raise ValueError(f"{folder}: no pipeline with a text encoder")
        try:
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
            self.model: PreTrainedModel = AutoModel.from_pretrained(
                folder, subfolder="text_encoder", dtype=torch.float32
            )
        except OSError as error:
            raise ValueError(f"{folder}: no such pipeline with a text encoder: {error}") from error
        self.model.eval().requires_grad_(False)
        self.fingerprint = fingerprint(self.model)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts -> states (B, L, C) and which tokens count (B, L)."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)
        self.model.to(device)
        return self.model(**tokens).last_hidden_state, tokens.attention_mask


class StickerEncoder:
    """Clips and captions as vectors, and the motion of a clip, without gradients.

    Args:
        model: the trained network.
        text: the text encoder that it was trained with.
        batch_size: clips at a time.

    Raises:
        ValueError: the text encoder is another one.
    """

    def __init__(self, model: StickerEncoderModel, text: FrozenText, batch_size: int = 32):
        if model.config.text_encoder != text.fingerprint:
            raise ValueError(
                f"the sticker encoder was trained with text encoder {model.config.text_encoder}, not with "
                f"{text.fingerprint}: train it again with examples/train_sticker_encoder.py"
            )
        self.model, self.text, self.batch_size = model.eval(), text, batch_size
        self.motions: tuple[str, ...] = tuple(model.config.motions)

    def to(self, device: str | torch.device) -> "StickerEncoder":
        """Move the networks to a device."""
        self.model.to(device)
        return self

    def _prepared(self, clips: torch.Tensor) -> Iterator[torch.Tensor]:
        """Clips in batches, RGBA in the network's size: RGB becomes opaque, and what is not square is padded."""
        check_clips(clips)
        size = self.model.config.sample_size
        for batch in clips.split(self.batch_size):
            batch = batch.to(self.model.device, torch.float32)
            if batch.shape[2] == 3:
                batch = torch.cat([batch, torch.ones_like(batch[:, :, :1])], dim=2)
            if batch.shape[-2:] != (size, size):
                pixels = pad_to_square(batch.flatten(0, 1).add(1).div(2))
                batch = resize_premultiplied(pixels, size).mul(2).sub(1).unflatten(0, batch.shape[:2])
            yield batch

    @torch.inference_mode()
    def clip_features(self, clips: torch.Tensor) -> torch.Tensor:
        """Features of clips for Frechet distances (`sticker-FVD`), before the space of captions.

        Args:
            clips: (B, F, C, H, W) in [-1, 1], premultiplied RGBA or RGB over white, of any size and length. RGB is
                taken as opaque, as a sticker with a white background would be.

        Returns:
            (B, W).

        Raises:
            ValueError: these are no clips; see `check_clips`.
        """
        return torch.cat([self.model.clip_states(batch).cpu() for batch in self._prepared(clips)])

    @torch.inference_mode()
    def encode_clips(self, clips: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) of clips as in `clip_features`, to be multiplied with those of captions."""
        states = self.clip_features(clips).to(self.model.device)
        return self.model.embed_clips(states).cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors (B, D) of captions."""
        return self.model.embed_texts(*self.text(texts, self.model.device)).cpu()

    @torch.inference_mode()
    def classify_motion(self, clips: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) over `motions`: which procedural motion a clip as in `clip_features` shows.

        Motions that look alike (a bounce and a jump) are mixed up now and then, real ones too: compare the share of
        right answers with that of clips whose motion is known.
        """
        states = self.clip_features(clips).to(self.model.device)
        return self.model.motion_head(states).cpu()


def load_sticker_encoder(folder: str | os.PathLike | None = None) -> StickerEncoder:
    """The sticker encoder in a folder, by default the bundled one, with the bundled model's text encoder.

    Raises:
        ValueError: there is no sticker encoder, or it was trained with another text encoder.
    """
    folder = Path(folder or sticker_encoder_checkpoint())
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no sticker encoder; examples/train_sticker_encoder.py makes one")
    model = StickerEncoderModel.from_pretrained(folder, dtype=torch.float32)
    return StickerEncoder(model, FrozenText())
