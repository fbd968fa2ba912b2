# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What PEFT and diffusers keep of an adapter: its two files in PEFT's form, and its entry in the UNet."""

import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import nn


CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]")  # a repository in the Hub's cache


def hub_id(unet: nn.Module) -> str | None:
    """The repository on the Hub that a UNet was loaded from, alone or with its pipeline; None if it is not known."""
    source = os.fspath(getattr(unet, "config", {}).get("_name_or_path") or "")
    if cached := CACHED.search(source):  # where it lies when its pipeline was loaded
        return "/".join(cached.groups())
    return source if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) and not os.path.exists(source) else None


def save_adapter(
    folder: str | os.PathLike,
    unet: nn.Module,
    config: PeftConfig,
    weights: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None,
) -> None:
    """Writes `adapter_config.json`, which names the UNet's repository, and `adapter_model.safetensors`."""
    config.base_model_name_or_path = config.base_model_name_or_path or hub_id(unet)
    config.save_pretrained(os.fspath(folder))
    tensors = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in weights}
    save_file(tensors, os.path.join(folder, SAFETENSORS_WEIGHTS_NAME), metadata={"format": "pt"})


@torch.no_grad()
def load_weights(folder: str | os.PathLike, weights: Iterable[tuple[str, torch.Tensor]], **download: Any) -> None:
    """Reads what `save_adapter` wrote, in place; `download` is of `huggingface_hub.hf_hub_download`.

    Raises:
        ValueError: the adapter is one of another UNet. Nothing has changed then.
    """
    saved, weights = load_peft_weights(os.fspath(folder), device="cpu", **download), dict(weights)
    for name in sorted(weights.keys() | saved.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, weights)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{folder} must fit the UNet, but {name} is {shapes[0]} there and {shapes[1]} here.")
    for name, weight in weights.items():
        weight.copy_(saved[name])


def forget(unet: nn.Module, *adapter_names: str) -> None:
    """Takes the configurations of adapters off a UNet, where PEFT and diffusers look for them."""
    configs = getattr(unet, "peft_config", {})
    for name in adapter_names:
        configs.pop(name, None)
    if not configs:
        unet.__dict__.pop("peft_config", None)
        unet._hf_peft_config_loaded = False
