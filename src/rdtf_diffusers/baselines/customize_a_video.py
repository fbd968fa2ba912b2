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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import set_adapter
from torch import nn

from .adapter_files import forget, load_weights, save_adapter
from .frame_by_frame import bypass_temporal_layers


ADAPTER, ABSORBER = "customize_a_video", "appearance_absorber"  # names within PEFT
PROJECTIONS = r"\..*\battn[12]\.to_(q|k|v|out\.0)"
TARGETS = {  # of LoRA: every projection of these transformers' attentions, by stage
    "temporal": r"(.*\.)?(motion_modules_in|transformer_in|(motion_modules|temp_attentions)\.\d+)" + PROJECTIONS,
    "appearance": r".*\.attentions\.\d+" + PROJECTIONS,
}


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
    def from_pretrained(cls, folder: str | os.PathLike, **download: Any) -> "CustomizeAVideoConfig":
        """The configuration of a saved adapter, in a folder or on the Hub.

        Raises:
            ValueError: it is an adapter of another kind.
        """
        try:
            saved = PeftConfig.from_pretrained(os.fspath(folder), **download)
        except KeyError as kind:  # a method that is not PEFT's
            raise ValueError(f"{folder} holds an adapter of another kind ({kind}) than Customize-A-Video.") from kind
        stages = [stage for stage, targets in TARGETS.items() if targets == getattr(saved, "target_modules", None)]
        if not stages or saved.lora_alpha != saved.r:
            raise ValueError(f"{folder} holds an adapter of another kind ({saved.peft_type}) than Customize-A-Video.")
        return cls(rank=saved.r, stage=stages[0])


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
    unet._hf_peft_config_loaded = True  # diffusers' way to know that there is a `peft_config`


def detach(unet: nn.Module, *adapter_names: str) -> None:
    """Removes LoRA, all others stay; names that are not there are no error."""
    for path, layer in list(unet.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        for name in adapter_names:
            layer.delete_adapter(name)
        if not layer.lora_A:  # the last one is gone
            parent, _, child = path.rpartition(".")
            setattr(unet.get_submodule(parent), child, layer.get_base_layer())
    forget(unet, *adapter_names)


def named_weights(unet: nn.Module, adapter_name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of an attached LoRA by their names in a file, which are PEFT's."""
    for name, parameter in unet.named_parameters():
        if f".{adapter_name}." in name:
            yield "base_model.model." + name.replace(f".{adapter_name}.", "."), parameter


class CustomizeAVideoModel(nn.Module):
    """A UNet with the LoRA of one stage; called like the UNet, which is changed in place.

    Everything else is frozen. Stage "temporal" changes nothing at the start; "appearance" bypasses the temporal layers
    until `unload` or `disable_adapter_layers` (diffusers' own functions do not know of that). A user's LoRA beside it
    stays as it is, frozen.

    Args:
        unet: the network, also at `model`.
        config: what is trained, also at `config`.

    Raises:
        ValueError: `unet` has such an adapter already, or no layer that it could go to.
    """

    method, paper = "Customize-A-Video", "2402.14780"
    config_class = CustomizeAVideoConfig

    def __init__(self, unet: nn.Module, config: CustomizeAVideoConfig):
        super().__init__()
        self.model, self.config = unet, config
        attach(unet, config.lora(), ADAPTER)
        self._train_own(True)
        self._bypass(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The UNet's output with the adapter."""
        return self.model(*args, **kwargs)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The LoRA's two matrices for every projection, for an optimiser."""
        return [parameter for _, parameter in self.named_weights()]

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same by their names in a file, which are PEFT's."""
        return named_weights(self.model, ADAPTER)

    def _train_own(self, is_trainable: bool) -> None:
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(is_trainable)

    def _bypass(self, bypassed: bool) -> None:
        if self.config.stage == "appearance":
            bypass_temporal_layers(self.model, bypassed)

    def load_absorber(self, folder: str | os.PathLike, **download: Any) -> None:
        """Puts a trained appearance absorber beside the temporal LoRA, frozen; it is neither saved nor merged.

        Args:
            folder: of the absorber's `save_pretrained`, or a repository on the Hub.
            download: as for `from_pretrained`.

        Raises:
            ValueError: this is not stage "temporal", or the folder holds no absorber of this network.
        """
        absorber = CustomizeAVideoConfig.from_pretrained(folder, **download)
        if (self.config.stage, absorber.stage) != ("temporal", "appearance"):
            raise ValueError(
                "An absorber goes from stage 'appearance' to stage 'temporal', "
                f"but {folder} is of {absorber.stage!r} and this model of {self.config.stage!r}."
            )
        attach(self.model, absorber.lora(), ABSORBER)
        self._train_own(True)
        try:
            load_weights(folder, named_weights(self.model, ABSORBER), **download)
        except Exception:
            detach(self.model, ABSORBER)
            raise

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
        self._bypass(False)

    def enable_adapter_layers(self) -> None:
        """Undoes `disable_adapter_layers`."""
        self._scale(ADAPTER, 1.0)
        self._scale(ABSORBER, 1.0)
        self._bypass(True)

    def save_pretrained(self, folder: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors`, which PEFT also loads by itself.

        Args:
            folder: made if it is not there.
            dtype: of the weights in the file, such as `torch.float16` for half the size; None leaves them as they are.
        """
        save_adapter(folder, self.model, self.config.lora(), self.named_weights(), dtype)

    @classmethod
    def from_pretrained(
        cls, unet: nn.Module, folder: str | os.PathLike, is_trainable: bool = False, **download: Any
    ) -> "CustomizeAVideoModel":
        """`unet` with a saved adapter.

        Args:
            unet: the network.
            folder: of `save_pretrained`, or a repository on the Hub.
            is_trainable: whether the adapter's weights get gradients.
            download: `revision`, `token` and so on, of `huggingface_hub.hf_hub_download`.

        Raises:
            ValueError: the adapter is not there, or of another kind or network.
        """
        model = cls(unet, CustomizeAVideoConfig.from_pretrained(folder, **download))
        try:
            load_weights(folder, model.named_weights(), **download)
        except Exception:
            model.unload()
            raise
        model._train_own(is_trainable)
        return model

    def unload(self) -> nn.Module:
        """Removes what this model brought, absorber included; a user's LoRA stays. Returns the UNet."""
        self._bypass(False)
        detach(self.model, ADAPTER, ABSORBER)
        return self.model

    def merge_and_unload(self) -> nn.Module:
        """Adds the trained products to the weights of the UNet, and removes the rest. Returns the UNet."""
        self.enable_adapter_layers()
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
                layer.get_base_layer().weight.data += layer.get_delta_weight(ADAPTER)
        return self.unload()
