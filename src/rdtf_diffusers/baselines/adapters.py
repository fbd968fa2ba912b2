# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What I2V-Adapter and SimDA share: adapters that hang on the layers of a UNet instead of taking their place.

PEFT's own layers wrap a module, which renames its weights and hides them from every LoRA that is added later. These
are children of the module, called by a hook after it: all names stay, and a LoRA may come before or after.
"""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, NoReturn, Self

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from torch.utils.hooks import RemovableHandle

from .adapter_files import forget, load_weights, save_adapter


@dataclass
class AdapterConfig(PeftConfig):
    """A PEFT configuration of a method that is not in PEFT's own list. What is adapted, the tuner knows."""

    target_modules: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Self:
        """The configuration with the values of an `adapter_config.json`.

        Raises:
            ValueError: they are those of another method.
        """
        if kwargs.get("peft_type") != cls.peft_type:
            found = kwargs.get("peft_type")
            raise ValueError(f"`peft_type` of a {cls.__name__} must be {cls.peft_type!r}, got {found!r}.")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(kwargs.keys() - known):
            warnings.warn(f"Ignored options, which this {cls.__name__} does not know: {unknown}", stacklevel=2)
        return cls(**{name: value for name, value in kwargs.items() if name in known})


@dataclass
class ClipShape:
    """Frames, height and width of the latents in the UNet, which its layers see as (B*F, H*W, C)."""

    num_frames: int = 0
    height: int = 0
    width: int = 0

    def read(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the forward of a UNet, whose `sample` is (B, C, F, H, W)."""
        sample = args[0] if args else kwargs["sample"]
        self.num_frames, self.height, self.width = sample.shape[2:]

    def grid(self, num_tokens: int) -> tuple[int, int]:
        """Height and width of the resolution that has so many tokens per frame."""
        height, width = self.height, self.width
        while height * width > num_tokens:
            height, width = (height + 1) // 2, (width + 1) // 2  # as convolutions with stride 2 do
        return height, width


class NoAdapter(nn.Module):
    """What is left of a layer when diffusers' `unload_lora_weights` removes everything of PEFT.

    Attributes:
        hooks: of the module that the layer is a child of, by which the layer is called.
    """

    def __init__(self):
        super().__init__()
        self.hooks: list[RemovableHandle] = []

    def forward(self, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return outputs


class AdapterLayer(nn.Module, BaseTunerLayer):
    """Corrects the output of the module that it is a child of.

    Args:
        adapter_name: PEFT's name of the adapter.
        adapter: called as `adapter(module, inputs, outputs, clip_shape)`; what it returns is added to `outputs`.
        clip_shape: shared by all layers of a UNet.
    """

    adapter_layer_names = ("adapters",)
    lora_A: ClassVar[dict[str, nn.Module]] = {}  # in which diffusers' `set_lora_device` looks up its LoRA

    def __init__(self, adapter_name: str, adapter: nn.Module, clip_shape: ClipShape):
        super().__init__()
        self.base_layer = NoAdapter()
        self.adapters = nn.ModuleDict({adapter_name: adapter})
        self.clip_shape = clip_shape
        self.set_adapter(adapter_name)

    @property
    def is_on(self) -> bool:
        """Whether the adapter is neither switched off nor deleted. It may be on beside PEFT's "active" adapter."""
        return not self.disable_adapters and len(self.adapters) > 0

    def forward(self, module: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        if not self.is_on:
            return outputs
        (adapter,) = self.adapters.values()
        return outputs + adapter(module, inputs, outputs, self.clip_shape)

    def set_scale(self, adapter: str, scale: float) -> None:
        """What `set_adapters` of diffusers calls on every layer of PEFT.

        Raises:
            ValueError: it asks for a weight of this adapter.
        """
        if adapter in self.adapters and scale != 1.0:
            raise ValueError(f"The weight of {adapter!r} must be 1, but is {scale}: its corrections have no strength.")

    # Diffusers calls these to weight a LoRA and to fuse it, on all layers of PEFT. Here they have nothing to do.
    def scale_layer(self, scale: float) -> None: ...

    def unscale_layer(self, scale: float | None = None) -> None: ...

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None: ...

    def unmerge(self) -> None: ...


def call_layer(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: torch.Tensor
) -> torch.Tensor:
    """A hook after the forward of `module`: its child `name` corrects the outputs."""
    inputs = (*args, *kwargs.values())[0]
    return getattr(module, name)(module, inputs, outputs)


def remove_layer(module: nn.Module, name: str) -> None:
    """Takes the child `name` off its module, be it a layer, what is left of one, or not there."""
    if hasattr(module, name):
        layer = getattr(module, name)
        for hook in getattr(layer, "base_layer", layer).hooks:
            hook.remove()
        delattr(module, name)


def spatial_layers(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of every spatial transformer's blocks, each with that of the resnet before the transformer.

    In all UNets of diffusers' form `attentions[i]` of a block follows its `resnets[i]`, also in the middle.
    """
    for name, block in unet.named_modules():
        if re.fullmatch(r"(down|up)_blocks\.\d+|mid_block", name):
            for i, transformer in enumerate(getattr(block, "attentions", ())):
                for k in range(len(transformer.transformer_blocks)):
                    yield f"{name}.attentions.{i}.transformer_blocks.{k}", f"{name}.resnets.{i}"


class AdapterModel(BaseTuner):
    """Adapters on a UNet, attached in place: the UNet is then called, trained and sampled with as before.

    All weights of the UNet are frozen, but for a LoRA that is there already. The output is the same until the adapter
    is trained. Calls and unknown attributes go to the UNet.

    Args:
        model: a video UNet with spatial transformers that is called with `sample` (B, C, F, H, W):
            `UNetDiscreteFrameModel`, or diffusers' `UNetMotionModel` and `UNet3DConditionModel`.
        config: of the method.
        adapter_name: by which PEFT and diffusers know the adapter; by default the method's.

    Raises:
        ValueError: the UNet has such an adapter, or one of that name, or nothing that it fits.
    """

    prefix = "adapters"
    method: str  # as its authors call it
    paper: str  # on arXiv
    config_class: type[AdapterConfig]
    layer_name: str  # of the child that a module gets
    why_not_mergeable: str

    def __init__(self, model: nn.Module, config: AdapterConfig, adapter_name: str | None = None):
        adapter_name = adapter_name or self.layer_name
        if any(isinstance(module, self.tuner_layer_cls) and module.adapters for module in model.modules()):
            raise ValueError(f"`model` has a {self.layer_name} adapter already; unload it first.")
        if adapter_name in getattr(model, "peft_config", {}):
            raise ValueError(f"`adapter_name` must be new, but `model` has an adapter {adapter_name!r}.")
        self.adapter_name, self.adapter_config = adapter_name, config
        self.targets = set(self.find_targets(model))
        if not self.targets:
            raise ValueError(f"`model` must be a UNet with spatial transformers, got {type(model).__name__}.")
        self.clip_shape = ClipShape()
        self.hook = model.register_forward_pre_hook(self.clip_shape.read, with_kwargs=True)
        super().__init__(model, config, adapter_name)  # attaches, for which it needs the above
        model._hf_peft_config_loaded = True  # diffusers' way to know that there is a `peft_config`

    def find_targets(self, unet: nn.Module) -> Iterator[str]:
        """Names of the modules that get an adapter."""
        raise NotImplementedError

    def make_adapter(self, module: nn.Module, name: str) -> nn.Module:
        """The adapter of a module, on its device and in its dtype, which changes nothing yet.

        Args:
            module: one of the targets.
            name: the last part of its name.
        """
        raise NotImplementedError

    def _check_target_module_exists(self, peft_config: AdapterConfig, key: str) -> bool:
        return key in self.targets

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        remove_layer(target, self.layer_name)  # of an adapter that PEFT deleted or diffusers unloaded
        layer = self.tuner_layer_cls(adapter_name, self.make_adapter(target, target_name), self.clip_shape)
        layer.base_layer.hooks = self.make_hooks(target, target_name)
        target.add_module(self.layer_name, layer)

    def make_hooks(self, module: nn.Module, name: str) -> list[RemovableHandle]:
        """Hooks of a module, by which its adapter is called; arguments as of `make_adapter`."""
        return [module.register_forward_hook(partial(call_layer, self.layer_name), with_kwargs=True)]

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        for module in self.model.modules():
            if isinstance(module, self.tuner_layer_cls):  # and no LoRA
                module.enable_adapters(enabled)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapter's parameters by their names in a file, which are PEFT's."""
        for path, layer in self.model.named_modules():
            if isinstance(layer, self.tuner_layer_cls):
                for adapter in layer.adapters.values():
                    for name, parameter in adapter.named_parameters():
                        yield f"base_model.model.{path}.adapters.{name}", parameter

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters, for an optimiser."""
        return [parameter for _, parameter in self.named_weights()]

    def merge_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: raises a ValueError."""
        raise ValueError(f"{self.layer_name} cannot be merged: {self.why_not_mergeable}")

    merge_and_unload = merge_adapter

    def unload(self) -> nn.Module:
        """The UNet as it was, with every other adapter; its weights stay frozen."""
        self.hook.remove()
        for name in self.targets:
            remove_layer(self.model.get_submodule(name), self.layer_name)
        forget(self.model, self.adapter_name)
        return self.model

    def save_pretrained(self, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Writes the adapter alone: `adapter_config.json` and `adapter_model.safetensors`.

        Args:
            folder: made if it is not there.
            dtype: of the weights in the file, such as `torch.float16` for half the size; None leaves them as they are.
        """
        save_adapter(folder, self.model, self.adapter_config, self.named_weights(), dtype)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        folder: str | os.PathLike,
        adapter_name: str | None = None,
        is_trainable: bool = False,
        **download: Any,
    ) -> Self:
        """Attaches a saved adapter, on the device and in the dtype of the UNet.

        Args:
            model: the UNet.
            folder: of `save_pretrained`, or a repository on the Hub.
            adapter_name: as for the class.
            is_trainable: whether the adapter's weights get gradients.
            download: `revision`, `token` and so on, of `huggingface_hub.hf_hub_download`.

        Raises:
            ValueError: the adapter is not there, or one of another method, or of another UNet.
        """
        config = cls.config_class.from_pretrained(os.fspath(folder), **download)
        config.inference_mode = not is_trainable
        adapted = cls(model, config, adapter_name)
        try:
            load_weights(folder, adapted.named_weights(), **download)
        except Exception:
            adapted.unload()
            raise
        return adapted
