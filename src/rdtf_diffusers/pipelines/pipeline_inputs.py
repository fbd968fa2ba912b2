# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the sticker pipeline may be given, pictures and texts, brought into one form."""

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F


Picture = PIL.Image.Image | np.ndarray | torch.Tensor
MAX_WINDOWS = 16  # a clip is at most this many times as long as the model's window


def list_pictures(
    image: Picture | list[Picture | None] | None,
    image_index: int,
    frames: list[Picture | None] | list[list[Picture | None]] | None,
    num_frames: int | None,
    window: int,
) -> list[list[Picture | None]]:
    """The two forms of giving pictures as one: per clip a list of its frames, None where nothing is known.

    Without `num_frames` a clip is as long as `frames`, or as the model's `window`.

    Raises:
        ValueError: if both forms are used, or lengths and places do not fit each other.
    """
    if frames is not None and not (isinstance(frames, (list, tuple)) and len(frames)):
        raise ValueError(f"`frames` must be a list of pictures and None, but is {frames!r:.40}.")
    nested = frames is not None and all(isinstance(clip, (list, tuple)) for clip in frames)
    if num_frames is None:
        num_frames = window if frames is None else len(frames[0] if nested else frames)
    if not isinstance(num_frames, int) or not 1 <= num_frames <= MAX_WINDOWS * window:
        raise ValueError(
            f"A clip has from 1 to {MAX_WINDOWS * window} frames, {MAX_WINDOWS} times the model's {window}, "
            f"but `num_frames` is {num_frames}."
        )
    if frames is None:
        if not 0 <= image_index < num_frames:
            raise ValueError(f"`image_index` must be between 0 and {num_frames - 1}, but is {image_index}.")
        batched = isinstance(image, (list, tuple)) or getattr(image, "ndim", 3) == 4
        images = list(image) if batched else [image]
        return [[picture if i == image_index else None for i in range(num_frames)] for picture in images]
    if image is not None:
        raise ValueError("Give either `image` or `frames`, not both: put the image into `frames` at its place.")
    clips = [list(clip) for clip in frames] if nested else [list(frames)]
    lengths = sorted({len(clip) for clip in clips})
    if lengths != [num_frames]:
        raise ValueError(
            f"`frames` must have one entry for each of the {num_frames} frames, None where a frame is to be made, "
            f"but has {' or '.join(map(str, lengths))}."
        )
    return clips


def picture_to_rgba(picture: Picture) -> torch.Tensor:
    """A picture of any kind as float32 RGBA (4, H, W) in [0, 1], colours multiplied by alpha.

    Args:
        picture: an image of any mode; an array (H, W) or (H, W, C) or a tensor (C, H, W), C = 1, 3 or 4 with straight
            alpha, uint8 or floats in [0, 1].

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(picture, PIL.Image.Image):
        if picture.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8 instead of scaling them
            picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        picture = np.array(picture.convert("RGBA"))
    if isinstance(picture, np.ndarray):
        picture = torch.from_numpy(np.atleast_3d(picture).copy()).permute(2, 0, 1)
    if not isinstance(picture, torch.Tensor):
        raise ValueError(f"A picture must be a PIL image, an array or a tensor, but is a {type(picture).__name__}.")
    if picture.ndim != 3 or picture.shape[0] not in (1, 3, 4) or picture.numel() == 0:
        raise ValueError(
            f"A picture must have 1, 3 or 4 channels, (C, H, W) as a tensor or (H, W, C) as an array, "
            f"but its channels, height and width are {tuple(picture.shape)}."
        )
    pixels = picture.cpu().float() / (255.0 if picture.dtype == torch.uint8 else 1.0)
    if not (pixels.min() >= 0.0 and pixels.max() <= 1.0):
        raise ValueError(
            f"A picture must be uint8 or lie in [0, 1], but goes from {pixels.min():.3g} to {pixels.max():.3g}."
        )
    alpha = pixels[3:] if pixels.shape[0] == 4 else torch.ones_like(pixels[:1])
    return torch.cat([pixels[:3].expand(3, -1, -1) * alpha, alpha])


def letterbox(rgba: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Fits premultiplied RGBA (4, H, W) into (4, `height`, `width`): never stretched, centred, the rest transparent.

    A picture that fits already is not resampled.
    """
    scale = min(height / rgba.shape[1], width / rgba.shape[2])
    size = (max(round(rgba.shape[1] * scale), 1), max(round(rgba.shape[2] * scale), 1))
    if size != rgba.shape[1:]:
        rgba = F.interpolate(rgba[None], size, mode="bicubic", antialias=True)[0].clamp(0.0, 1.0)
        rgba = torch.minimum(rgba, rgba[3:])  # no colour outshines its alpha
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return F.pad(rgba, (left, width - size[1] - left, top, height - size[0] - top))


def text_gate(text: str | list[str | None] | None, embeds: torch.Tensor | None) -> torch.Tensor:
    """(B,) ones where there is a text, the paper's gate of the text; an empty text is no text.

    Raises:
        ValueError: if both forms are given, or `text` is neither a string nor a list of strings.
    """
    if embeds is not None:
        if text is not None:
            raise ValueError("Give either a prompt or its embeddings, not both.")
        return torch.ones(embeds.shape[0])
    texts = list(text) if isinstance(text, (list, tuple)) else [text]
    if not all(isinstance(entry, str | None) for entry in texts):
        raise ValueError(f"A prompt must be a string or a list of strings, but is {text!r:.40}.")
    return torch.tensor([float(bool(entry and entry.strip())) for entry in texts])


def count_clips(
    clips: list[list[Picture | None]], text_gates: tuple[torch.Tensor, torch.Tensor], has_ip_adapter_image: bool
) -> int:
    """The batch size; single prompts and clips serve the whole batch.

    Raises:
        ValueError: if numbers differ, or a clip has neither text nor picture.
    """
    sizes = {"negative_prompt": len(text_gates[0]), "prompt": len(text_gates[1]), "image or frames": len(clips)}
    batch_size = max(sizes.values())
    for name, size in sizes.items():
        if size not in (1, batch_size):
            raise ValueError(f"`{name}` has {size} entries in a batch of {batch_size}: give one, or one per clip.")
    has_picture = torch.tensor([any(picture is not None for picture in clip) for clip in clips])
    is_empty = ~(text_gates[1].bool() | has_picture)
    if is_empty.any() and not has_ip_adapter_image:
        raise ValueError(f"Clip {int(is_empty.int().argmax())} has neither a text nor a picture: give at least one.")
    return batch_size


def complete_pair(
    given: torch.Tensor | None, dropped: torch.Tensor | None, width: int | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Embeddings of a prompt and of its negative; a missing one becomes zeros, which the closed gate hides anyway.

    Raises:
        ValueError: if they differ in length or are not `width` wide.
    """
    for embeds in (given, dropped):
        if embeds is not None and (embeds.ndim != 3 or embeds.shape[2] != width):
            raise ValueError(
                f"Text must have the shape (B, S, {width}), but has {tuple(embeds.shape)}."
                if width
                else "There is a second text, but the UNet has `second_text_dim=None`."
            )
    if given is None:
        return (None if dropped is None else torch.zeros_like(dropped)), dropped
    if dropped is None:
        return given, torch.zeros_like(given)
    if given.shape[1] != dropped.shape[1]:
        raise ValueError(f"Prompt and negative prompt have {given.shape[1]} and {dropped.shape[1]} tokens, not equal.")
    return given, dropped


def repeat_rows(rows: torch.Tensor, num_clips: int) -> torch.Tensor:
    """One row per clip, (B, ...) to (`num_clips`, ...): copies of a row stay next to each other."""
    if num_clips % len(rows):
        raise ValueError(f"{len(rows)} rows cannot be shared out among {num_clips} clips.")
    return rows.repeat_interleave(num_clips // len(rows), dim=0)
