"""Customize-A-Video (arXiv 2402.14780) on PEFT's LoRA: motion in the temporal attention, appearance kept out of it.

    model = CustomizeAVideoModel(unet, CustomizeAVideoConfig(rank=4))  # `unet` now predicts with the adapter
    model.load_absorber("absorber")                                    # optional, while training
    optimizer = torch.optim.AdamW(model.trainable_parameters())
    model.save_pretrained("adapter")

Stage "appearance" (optional) trains LoRA on the spatial attention while the temporal layers are bypassed, so that it
learns what single frames look like. Stage "temporal" trains LoRA on the temporal attention, with such an absorber
frozen beside it or without one. Only the temporal LoRA is kept for drawing. Both are saved as ordinary PEFT LoRA.

Works on `UNetDiscreteFrameModel` and diffusers' `UNetMotionModel` and `UNet3DConditionModel`.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import set_adapter
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import nn

from ..models.unet_discrete_frame import (
    PixelTransformerBlock,
    SpatialTemporalInteraction,
    TemporalConvolutions,
    TemporalTransformer,
)


ADAPTER, ABSORBER = "customize_a_video", "appearance_absorber"  # names within PEFT
PROJECTIONS = r"\..*\battn[12]\.to_(q|k|v|out\.0)"
TARGETS = {  # of LoRA: every projection of these transformers' attentions, by stage
    "temporal": r"(.*\.)?(motion_modules_in|transformer_in|(motion_modules|temp_attentions)\.\d+)" + PROJECTIONS,
    "appearance": r".*\.attentions\.\d+" + PROJECTIONS,
}
# what mixes frames and adds to its input, in ours and in diffusers' UNets
RESIDUAL_LAYERS = (
    TemporalTransformer,
    TemporalConvolutions,
    PixelTransformerBlock,
    AnimateDiffTransformer3D,
    TemporalConvLayer,
)


@dataclass(frozen=True)
class CustomizeAVideoConfig:
    """What is trained.

    Args:
        rank: of the low-rank matrices; their product is added with factor 1.
        stage: "temporal", or "appearance" for the absorber.

    Raises:
        ValueError: rank below 1, or another stage.
    """

    rank: int = 4
    stage: Literal["temporal", "appearance"] = "temporal"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {self.rank}.")
        if self.stage not in TARGETS:
            raise ValueError(f"`stage` must be one of {tuple(TARGETS)}, got {self.stage!r}.")

    def lora(self) -> LoraConfig:
        """The same in PEFT's words, as it is saved."""
        return LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=TARGETS[self.stage])

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "CustomizeAVideoConfig":
        """The configuration of a saved adapter, in a folder or on the Hub.

        Raises:
            ValueError: it is an adapter of another kind.
        """
        saved = PeftConfig.from_pretrained(os.fspath(folder))
        stages = [stage for stage, targets in TARGETS.items() if targets == getattr(saved, "target_modules", None)]
        if not stages or saved.lora_alpha != saved.r:
            raise ValueError(f"{folder} holds an adapter of another kind ({saved.peft_type}) than Customize-A-Video.")
        return cls(rank=saved.r, stage=stages[0])


def without_frame_mixing(layer: nn.Module) -> Callable | None:
    """A forward function for `layer` in which no frame sees another; None if it mixes none.

    Residual layers give back their input. STI is none: of it the input under its norm is left.
    """
    if isinstance(layer, RESIDUAL_LAYERS):
        return lambda hidden_states, *args, **kwargs: hidden_states
    if isinstance(layer, TransformerTemporalModel):  # asked for a tuple
        return lambda hidden_states, *args, **kwargs: (hidden_states,)
    if isinstance(layer, SpatialTemporalInteraction):
        return lambda x, num_frames: layer.norm((layer.semantic_weight + layer.detail_weight) * x)
    return None


def attach(unet: nn.Module, config: LoraConfig, adapter_name: str) -> None:
    """Adds a LoRA that starts as the identity beside those that are active in `unet`, and freezes everything.

    Raises:
        ValueError: `unet` has a LoRA of that name already, or none of the layers.
    """
    if adapter_name in getattr(unet, "peft_config", {}):
        raise ValueError(f"`unet` has an adapter {adapter_name!r} already; `unload()` it first.")
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    active = dict.fromkeys(other for layer in layers for other in layer.active_adapters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is wanted
        inject_adapter_in_model(config, unet, adapter_name)
    set_adapter(unet, [*active, adapter_name], layer_cls=LoraLayer)
    unet.requires_grad_(False)


def named_weights(unet: nn.Module, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of an attached LoRA by their names in a file, which are PEFT's."""
    for name, parameter in unet.named_parameters():
        if f".{adapter_name}." in name:
            yield "base_model.model." + name.replace(f".{adapter_name}.", "."), parameter


@torch.no_grad()
def load_weights(unet: nn.Module, adapter_name: str, folder: str | os.PathLike) -> None:
    """Reads saved weights into an attached LoRA, in place.

    Raises:
        ValueError: they are of another network.
    """
    saved, weights = load_peft_weights(os.fspath(folder), device="cpu"), dict(named_weights(unet, adapter_name))
    for name in sorted(weights.keys() | saved.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (saved, weights)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{folder} is of another network: {name} is {shapes[0]} there and {shapes[1]} here.")
        weights[name].copy_(saved[name])


class CustomizeAVideoModel(nn.Module):
    """A UNet with the LoRA of one stage; called like the UNet, which is changed in place.

    Everything else is frozen. Stage "temporal" changes nothing at the start; "appearance" bypasses the temporal layers
    for as long as it is attached and switched on. A user's LoRA beside it stays as it is, frozen.

    Args:
        unet: the network, also at `model`.
        config: what is trained, also at `config`.

    Raises:
        ValueError: `unet` has such an adapter already, or no layer that it could go to.
    """

    def __init__(self, unet: nn.Module, config: CustomizeAVideoConfig):
        super().__init__()
        self.model, self.config = unet, config
        attach(unet, config.lora(), ADAPTER)
        self._train_own()
        self._bypass_temporal_layers(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The UNet's output with the adapter."""
        return self.model(*args, **kwargs)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The LoRA's two matrices for every projection, for an optimiser."""
        return [parameter for _, parameter in self.named_weights()]

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same by their names in a file, which are PEFT's."""
        return named_weights(self.model, ADAPTER)

    def _train_own(self) -> None:
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)

    def _bypass_temporal_layers(self, bypassed: bool) -> None:
        """Lets stage "appearance" process every frame for itself, or undoes it."""
        if self.config.stage != "appearance":
            return
        for layer in self.model.modules():
            if replacement := without_frame_mixing(layer):
                if bypassed:
                    layer.forward = replacement
                else:
                    layer.__dict__.pop("forward", None)  # the class's own comes to light

    def load_absorber(self, folder: str | os.PathLike) -> None:
        """Puts a trained appearance absorber beside the temporal LoRA, frozen; it is neither saved nor merged.

        Raises:
            ValueError: this is not stage "temporal", or the folder holds no absorber of this network.
        """
        absorber = CustomizeAVideoConfig.from_pretrained(folder)
        if (self.config.stage, absorber.stage) != ("temporal", "appearance"):
            raise ValueError(
                "An absorber goes from stage 'appearance' to stage 'temporal', "
                f"but {folder} is of {absorber.stage!r} and this model of {self.config.stage!r}."
            )
        attach(self.model, absorber.lora(), ABSORBER)
        load_weights(self.model, ABSORBER, folder)
        self._train_own()

    @contextmanager
    def without_absorber(self) -> Iterator[None]:
        """The network as it will draw: an absorber, if there is one, is off in this block."""
        self._scale(ABSORBER, 0.0)
        try:
            yield
        finally:
            self._scale(ABSORBER, 1.0)

    def _scale(self, name: str, scale: float) -> None:
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.set_scale(name, scale)

    def disable_adapter_layers(self) -> None:
        """Switches everything off that this model brought: the output is the base's again."""
        self._scale(ADAPTER, 0.0)
        self._scale(ABSORBER, 0.0)
        self._bypass_temporal_layers(False)

    def enable_adapter_layers(self) -> None:
        """Undoes `disable_adapter_layers`."""
        self._scale(ADAPTER, 1.0)
        self._scale(ABSORBER, 1.0)
        self._bypass_temporal_layers(True)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors`, which PEFT also loads by itself."""
        folder = Path(folder)
        self.config.lora().save_pretrained(folder)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.named_weights()}
        save_file(weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, unet: nn.Module, folder: str | os.PathLike) -> "CustomizeAVideoModel":
        """`unet` with a saved adapter, from a folder or the Hub.

        Raises:
            ValueError: the adapter is of another kind or network.
        """
        model = cls(unet, CustomizeAVideoConfig.from_pretrained(folder))
        try:
            load_weights(unet, ADAPTER, folder)
        except ValueError:
            model.unload()
            raise
        return model

    def unload(self) -> nn.Module:
        """Removes what this model brought, absorber included; a user's LoRA stays. Returns the UNet."""
        self._bypass_temporal_layers(False)
        for path, layer in list(self.model.named_modules()):
            if not isinstance(layer, LoraLayer):
                continue
            for name in (ADAPTER, ABSORBER):
                layer.delete_adapter(name)
            if not layer.lora_A:  # the last one is gone
                parent, _, child = path.rpartition(".")
                setattr(self.model.get_submodule(parent), child, layer.get_base_layer())
        for name in (ADAPTER, ABSORBER):
            self.model.peft_config.pop(name, None)
        if not self.model.peft_config:
            del self.model.peft_config
        return self.model

    def merge_and_unload(self) -> nn.Module:
        """Adds the trained products to the weights of the UNet, and removes the rest. Returns the UNet."""
        self.enable_adapter_layers()
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
                layer.get_base_layer().weight.data += layer.get_delta_weight(ADAPTER)
        return self.unload()
