# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Animated stickers from a prompt, a picture, or pictures at any places of the clip (RDTF, arXiv 2503.17735).

    from PIL import Image
    from rdtf_diffusers import StickerGenerationPipeline

    pipe = StickerGenerationPipeline.from_pretrained("path/or/hub-id")
    frames = pipe("a dog jumping", image=Image.open("dog.png")).frames[0]  # 8 PIL images, RGBA if the VAE has alpha

One call serves every task of the paper's dual mask: pictures that are given become clean condition
latents, all other places of the condition are zero, and noise is predicted for the whole clip.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import IPAdapterMixin, StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.models import AutoencoderDC, AutoencoderKL, AutoencoderTiny, ImageProjection
from diffusers.pipelines.free_init_utils import FreeInitMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..models.known_frame_refiner import CELL, KnownFrameRefiner
from ..models.unet_discrete_frame import UNetDiscreteFrameModel
from .pipeline_inputs import (
    Picture,
    complete_pair,
    count_clips,
    letterbox,
    list_pictures,
    picture_to_rgba,
    repeat_rows,
    text_gate,
)
from .pipeline_output import StickerGenerationPipelineOutput
from .pipeline_plan import guidance_passes, merge_passes, put_frames, take_frames, window_starts


logger = logging.get_logger(__name__)

MAX_TEXT_TOKENS = 77


class StickerGenerationPipeline(
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    IPAdapterMixin,
    StableDiffusionLoraLoaderMixin,
    FreeInitMixin,
):
    """Animated stickers from text, pictures, or both, with [`UNetDiscreteFrameModel`].

    Load it by its own name, `StickerGenerationPipeline.from_pretrained(...)`: `DiffusionPipeline.from_pretrained`
    does not know classes outside diffusers. LoRA, IP-Adapter, textual inversion, FreeU and FreeInit work as in
    diffusers; slicing and tiling are switched on at the autoencoder, `pipe.vae.enable_slicing()`.

    Args:
        vae: autoencoder of single pictures with 3 channels, or with 4 for transparent stickers (premultiplied RGBA).
        text_encoder: any encoder whose last hidden state is `unet.config.cross_attention_dim` wide (CLIP, BERT, ...).
        tokenizer: its tokenizer.
        unet: the denoiser.
        scheduler: any diffusers scheduler; the paper samples with DDIM.
        text_encoder_2: second encoder (T5), `unet.config.second_text_dim` wide; unused when that is None.
        tokenizer_2: its tokenizer.
        image_encoder, feature_extractor: for an IP-Adapter.
        refiner: puts what the known frames show back into the frames that were drawn.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->unet->vae->refiner"
    _optional_components = ["text_encoder_2", "tokenizer_2", "image_encoder", "feature_extractor", "refiner"]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_embeds_2",
        "negative_prompt_embeds_2",
    ]
    _interrupt, _cross_attention_kwargs = False, None  # until a call

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | AutoencoderDC,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        unet: UNetDiscreteFrameModel,
        scheduler: KarrasDiffusionSchedulers,
        text_encoder_2: PreTrainedModel | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        refiner: KnownFrameRefiner | None = None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            refiner=refiner,
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along height and width."""
        ratio = getattr(self.vae, "spatial_compression_ratio", None)
        return ratio or 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def has_alpha(self) -> bool:
        """Whether the autoencoder knows transparency."""
        return self.vae.config.in_channels == 4

    @property
    def guidance_scale(self) -> float:
        """s_T; callbacks may set `_guidance_scale`."""
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float:
        """s_I; callbacks may set `_image_guidance_scale`."""
        return self._image_guidance_scale

    @property
    def continuation_scales(self) -> tuple[float, float]:
        """s_T and s_I where several frames are known; callbacks may set `_continuation_scales`."""
        usual = (self.guidance_scale, self.image_guidance_scale)
        return tuple(own if scale is None else scale for scale, own in zip(self._continuation_scales, usual))

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether one pass per step is not enough."""
        return any(
            scale != 1.0 for scale in (self.guidance_scale, self.image_guidance_scale, *self.continuation_scales)
        )

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Passed to the UNet; `scale` is the strength of LoRA."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Steps of one sampling loop."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to stop after its step."""
        return self._interrupt

    def embed_text(
        self,
        text: str | list[str] | None,
        tokenizer: PreTrainedTokenizerBase | None,
        text_encoder: PreTrainedModel | None,
        clip_skip: int | None = None,
    ) -> torch.Tensor | None:
        """Last hidden state (B, S, D) of one text encoder, S = 77 or the tokenizer's own limit.

        Encoders of the CLIP family see their padding, as they did in training and as in diffusers; others get the
        attention mask. `use_attention_mask` in the encoder's config overrules this.
        """
        if text is None:
            return None
        if text_encoder is None or tokenizer is None:
            raise ValueError(f"There is no text encoder or no tokenizer for {text!r:.40}: give embeddings instead.")
        text = [text] if isinstance(text, str) else [entry or "" for entry in text]
        text = self.maybe_convert_prompt(text, tokenizer)
        max_length = min(tokenizer.model_max_length, MAX_TEXT_TOKENS)
        tokens = tokenizer(text, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
        longest = tokenizer(text, padding="longest", return_tensors="pt").input_ids.shape[1]
        if longest > max_length:
            logger.warning(f"A text has {longest} tokens; what is beyond {max_length} tokens is not read.")
        config = text_encoder.config
        use_mask = getattr(config, "use_attention_mask", not config.model_type.startswith("clip"))
        output = text_encoder(
            tokens.input_ids.to(self._execution_device),
            attention_mask=tokens.attention_mask.to(self._execution_device) if use_mask else None,
            output_hidden_states=clip_skip is not None,
        )
        if clip_skip is None:
            return output.last_hidden_state
        if not 0 <= clip_skip < len(output.hidden_states):
            raise ValueError(f"`clip_skip` must be between 0 and {len(output.hidden_states) - 1}, but is {clip_skip}.")
        skipped = output.hidden_states[-(clip_skip + 1)]
        text_model = getattr(text_encoder, "text_model", text_encoder)  # CLIP, before and since transformers 5.6
        return text_model.final_layer_norm(skipped) if hasattr(text_model, "final_layer_norm") else skipped

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_2: torch.Tensor | None = None,
        negative_prompt_embeds_2: torch.Tensor | None = None,
        num_videos_per_prompt: int = 1,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """Encodes texts with both encoders.

        Args:
            prompt, negative_prompt: B texts, or one; None gives None.
            prompt_embeds, negative_prompt_embeds, prompt_embeds_2, negative_prompt_embeds_2: (B, S, D) tensors that
                are taken instead of encoding.
            num_videos_per_prompt: every text is repeated so often, copies next to each other.
            lora_scale: strength of a LoRA in the first encoder.
            clip_skip: layers of the first encoder to leave out at its end.

        Returns:
            `prompt_embeds`, `negative_prompt_embeds` and the same of the second encoder, each (B, S, D) or None.
        """
        has_lora_scale = lora_scale is not None and self.text_encoder is not None
        has_second = self.text_encoder_2 is not None and (self.unet is None or self.unet.config.second_text_dim)
        first, second = (self.tokenizer, self.text_encoder, clip_skip), (self.tokenizer_2, self.text_encoder_2)
        streams = [(prompt, first, prompt_embeds), (negative_prompt, first, negative_prompt_embeds)]
        streams += [
            (prompt if has_second else None, second, prompt_embeds_2),
            (negative_prompt if has_second else None, second, negative_prompt_embeds_2),
        ]
        if has_lora_scale:
            self._lora_scale = lora_scale
            scale_lora_layers(self.text_encoder, lora_scale)
        embeds = [self.embed_text(text, *encoder) if given is None else given for text, encoder, given in streams]
        if has_lora_scale:
            unscale_lora_layers(self.text_encoder, lora_scale)
        dtype = next((module.dtype for module in (self.unet, self.text_encoder) if module is not None), torch.float32)
        prompt_embeds, negative_prompt_embeds, prompt_embeds_2, negative_prompt_embeds_2 = (
            None if e is None else e.to(self._execution_device, dtype).repeat_interleave(num_videos_per_prompt, dim=0)
            for e in embeds
        )
        return prompt_embeds, negative_prompt_embeds, prompt_embeds_2, negative_prompt_embeds_2

    def prepare_embeds(self, num_clips: int, *encoded: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
        """The results of [`encode_prompt`] by name, `num_clips` rows each, prompt and negative prompt both there.

        Raises:
            ValueError: if the two encoders' embeddings do not go together, or do not fit the UNet.
        """
        rows = [None if embeds is None else len(embeds) for embeds in encoded]
        if rows[2:] not in ([None, None], rows[:2]):
            raise ValueError(f"Embeddings of the second encoder have {rows[2:]} rows, those of the first {rows[:2]}.")
        config, first, second = self.unet.config, encoded[:2], encoded[2:]
        if rows[:2] == [None, None]:
            first = (torch.zeros(1, 1, config.cross_attention_dim, device=self._execution_device), None)
        pairs = (
            *complete_pair(*first, config.cross_attention_dim),
            *complete_pair(*second, config.second_text_dim),
        )
        names = ("prompt_embeds", "negative_prompt_embeds", "prompt_embeds_2", "negative_prompt_embeds_2")
        return {
            name: None if embeds is None else repeat_rows(embeds.to(self.unet.dtype), num_clips)
            for name, embeds in zip(names, pairs)
        }

    def encode_image(self, image: Any, hidden_states: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeds the pictures of one IP-Adapter: (1, N, D), or with `hidden_states` (1, N, S, D), without and with."""
        if not isinstance(image, torch.Tensor):
            image = self.feature_extractor(image, return_tensors="pt").pixel_values
        image = image.to(self._execution_device, self.image_encoder.dtype)
        if hidden_states:
            pictures = (torch.zeros_like(image), image)
            dropped, given = (self.image_encoder(p, output_hidden_states=True).hidden_states[-2] for p in pictures)
        else:
            given = self.image_encoder(image).image_embeds
            dropped = torch.zeros_like(given)
        return dropped[None], given[None]

    def prepare_ip_adapter_image_embeds(
        self, ip_adapter_image: Any, ip_adapter_image_embeds: list[torch.Tensor] | None, num_clips: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One pair (dropped, given) of embeddings with `num_clips` rows for every loaded IP-Adapter."""
        pairs = []
        if ip_adapter_image_embeds is not None:
            for embeds in ip_adapter_image_embeds:
                if self.do_classifier_free_guidance and embeds.shape[0] % 2 == 0:
                    pairs.append(tuple(embeds.chunk(2)))
                else:
                    pairs.append((torch.zeros_like(embeds), embeds))
        elif ip_adapter_image is not None:
            images = ip_adapter_image if isinstance(ip_adapter_image, list) else [ip_adapter_image]
            layers = self.unet.encoder_hid_proj.image_projection_layers
            if len(images) != len(layers):
                raise ValueError(f"`ip_adapter_image` has {len(images)} entries for {len(layers)} IP-Adapters.")
            pairs = [self.encode_image(i, not isinstance(layer, ImageProjection)) for i, layer in zip(images, layers)]
        place = {"device": self._execution_device, "dtype": self.unet.dtype}
        return [tuple(repeat_rows(embeds.to(**place), num_clips) for embeds in pair) for pair in pairs]

    def prepare_known_frames(
        self, clips: list[list[Picture | None]], height: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures as the autoencoder takes them.

        Returns:
            float32 pixels (B, C, F, H, W) in [-1, 1], premultiplied RGBA or on white, zeros where nothing is known;
            `condition_mask` (B, F), which frames are known.
        """
        condition_mask = torch.tensor([[picture is not None for picture in clip] for clip in clips])
        pixels = torch.zeros(len(clips), 4 if self.has_alpha else 3, len(clips[0]), height, width)
        for clip, frame in condition_mask.nonzero().tolist():
            rgba = letterbox(picture_to_rgba(clips[clip][frame]), height, width)
            pixels[clip, :, frame] = 2.0 * (rgba if self.has_alpha else rgba[:3] + 1.0 - rgba[3:]) - 1.0
        return pixels.to(self._execution_device), condition_mask.to(self._execution_device)

    def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Scaled latents (K, C, h, w) of frames (K, C, H, W) in [-1, 1]: the mode, nothing is drawn."""
        encoded = self.vae.encode(frames.to(self.vae.dtype))
        if hasattr(encoded, "latent_dist"):
            encoded = encoded.latent_dist.mode()
        else:
            encoded = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return (encoded - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor

    def encode_known_frames(self, pixels: torch.Tensor, condition_mask: torch.Tensor) -> torch.Tensor:
        """Condition latents (B, C, F, h, w): clean, scaled latents of the known frames, zeros elsewhere."""
        batch_size, _, num_frames, height, width = pixels.shape
        size = (self.unet.config.out_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        latents = torch.zeros(batch_size, num_frames, *size, device=pixels.device, dtype=self.unet.dtype)
        if condition_mask.any():
            frames = pixels.transpose(1, 2)[condition_mask]  # (K, C, H, W)
            latents[condition_mask] = self.encode_frames(frames).to(latents.dtype)
        return latents.transpose(1, 2)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, F, h, w) to float32 pixels (B, C, F, H, W) in about [-1, 1], one clip at a time."""
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
        clips = [self.vae.decode(clip.transpose(0, 1).to(self.vae.dtype)).sample for clip in latents]
        return torch.stack(clips).transpose(1, 2).float()

    def postprocess(
        self, pixels: torch.Tensor, output_type: str
    ) -> list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor:
        """Pixels (B, C, F, H, W) in [-1, 1], premultiplied if C = 4, as frames with straight alpha in [0, 1]."""
        frames = (pixels / 2.0 + 0.5).clamp(0.0, 1.0).transpose(1, 2)  # (B, F, C, H, W)
        if frames.shape[2] == 4:
            colour, alpha = frames[:, :, :3], frames[:, :, 3:]
            frames = torch.cat([torch.where(alpha > 0.0, (colour / alpha).clamp(max=1.0), 0.0), alpha], dim=2)
        if output_type == "pt":
            return frames
        frames = frames.permute(0, 1, 3, 4, 2).cpu().numpy()
        return frames if output_type == "np" else [VaeImageProcessor.numpy_to_pil(clip) for clip in frames]

    def prepare_extra_step_kwargs(
        self, generator: torch.Generator | list[torch.Generator] | None, eta: float
    ) -> dict[str, Any]:
        """`generator` and `eta`, as far as the scheduler's step takes them."""
        accepted = inspect.signature(self.scheduler.step).parameters
        # From a step without any signal (zero terminal SNR), eta = 1 leaves DDIM the root of 0, or of a rounding error
        # below it; a ten-thousandth less noise keeps that number positive.
        eta = min(eta, 1.0 - 1e-4)
        return {name: value for name, value in (("generator", generator), ("eta", eta)) if name in accepted}

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Standard noise (B, C, F, h, w), drawn clip by clip when there is a list of generators.

        Raises:
            ValueError: for a list of generators of the wrong length or latents of the wrong shape.
        """
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise ValueError(f"`generator` has {len(generator)} entries, but {shape[0]} clips are to be made.")
        if latents is None:
            latents = randn_tensor(shape, generator, self._execution_device, self.unet.dtype)
        elif latents.shape != shape:
            raise ValueError(f"`latents` must have the shape {tuple(shape)}, but has {tuple(latents.shape)}.")
        return latents.to(self._execution_device, self.unet.dtype)

    def check_inputs(
        self,
        height: int,
        width: int,
        num_inference_steps: int,
        num_videos_per_prompt: int,
        guidance_stop: float,
        eta: float,
        output_type: str,
        callback_on_step_end_tensor_inputs: list[str],
        has_ip_adapter_image: bool,
    ) -> None:
        """Checks the components against each other, and all arguments that are no text or picture.

        Raises:
            ValueError: naming the argument, its value and what would be right.
        """
        vae_channels, unet_channels = self.vae.config.latent_channels, self.unet.config.out_channels
        if vae_channels != unet_channels:
            raise ValueError(f"The VAE's latents have {vae_channels} channels, those of the UNet {unet_channels}.")
        counts = {"num_inference_steps": num_inference_steps, "num_videos_per_prompt": num_videos_per_prompt}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number from 1 on, but is {value}.")
        if self.refiner is not None and self.refiner.config.in_channels != self.vae.config.in_channels:
            raise ValueError(
                f"The refiner takes pictures of {self.refiner.config.in_channels} channels, the VAE of "
                f"{self.vae.config.in_channels}."
            )
        refines = self.refiner is not None and output_type != "latent"
        cell = math.lcm(self.vae_scale_factor, CELL) if refines else self.vae_scale_factor
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, int) or value < 1 or value % cell:
                raise ValueError(f"`{name}` must be a positive multiple of {cell}, but is {value}.")
        for name, value in (("guidance_stop", guidance_stop), ("eta", eta)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}` must lie between 0 and 1, but is {value}.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"`output_type` must be 'pil', 'np', 'pt' or 'latent', but is {output_type!r}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` may hold {self._callback_tensor_inputs}, not {sorted(unknown)}."
            )
        if has_ip_adapter_image != (self.unet.encoder_hid_proj is not None):
            raise ValueError(
                "An IP-Adapter is loaded but has no picture: give `ip_adapter_image` or `ip_adapter_image_embeds`."
                if self.unet.encoder_hid_proj is not None
                else "`ip_adapter_image` and `ip_adapter_image_embeds` need an IP-Adapter: call `load_ip_adapter`."
            )

    def predict_noise(
        self,
        tensors: dict[str, torch.Tensor | None],
        timestep: torch.Tensor,
        condition_latents: torch.Tensor,
        text_gates: tuple[torch.Tensor, torch.Tensor],
        image_embeds: list[tuple[torch.Tensor, torch.Tensor]],
        continues: torch.Tensor,
        guided: bool = True,
    ) -> torch.Tensor:
        """The guided noise (B, C, F, h, w): all passes of [`guidance_passes`] in one batch.

        Args:
            tensors: the latents and the embeddings of both encoders, named as in `_callback_tensor_inputs`.
            timestep: of the scheduler.
            condition_latents: (B, C, F, h, w).
            text_gates, image_embeds: pairs without and with text, and the same for each IP-Adapter.
            continues: (B,) bool, which clips have several known frames, and with them the scales for that.
            guided: False takes all scales as 1, which is one pass.
        """
        latents = self.scheduler.scale_model_input(tensors["latents"], timestep)
        num_frames, window = latents.shape[2], self.unet.config.num_frames
        order = torch.arange(window, device=latents.device) % num_frames  # a short loop goes on in the window
        given = {
            "has_frames": bool(condition_latents.any()),
            "has_text": bool(image_embeds or any(gate.any() for gate in text_gates)),
        }
        scales = (self.guidance_scale, self.image_guidance_scale), self.continuation_scales
        usual, continuing = (guidance_passes(*(pair if guided else (1.0, 1.0)), **given) for pair in scales)
        passes = merge_passes(usual, continuing, continues)

        def stack(dropped: torch.Tensor | None, given: torch.Tensor | None) -> torch.Tensor | None:
            return None if given is None else torch.cat([given if p.use_text else dropped for p in passes])

        noise = self.unet(
            torch.cat([latents[:, :, order]] * len(passes)),
            timestep,
            encoder_hidden_states=stack(tensors["negative_prompt_embeds"], tensors["prompt_embeds"]),
            condition_latents=torch.cat([condition_latents[:, :, order] * p.use_frames for p in passes]),
            encoder_hidden_states_2=stack(tensors["negative_prompt_embeds_2"], tensors["prompt_embeds_2"]),
            text_mask=stack(*text_gates),
            added_cond_kwargs={"image_embeds": [stack(*pair) for pair in image_embeds]} if image_embeds else None,
            cross_attention_kwargs=self.cross_attention_kwargs,
            return_dict=False,
        )[0]
        noise = noise[:, :, :num_frames]
        weights = [p.weight.to(noise.dtype) if torch.is_tensor(p.weight) else p.weight for p in passes]
        return sum(weight * part for weight, part in zip(weights, noise.chunk(len(passes))))

    def denoise(
        self,
        latents: torch.Tensor,
        condition_latents: torch.Tensor,
        continues: torch.Tensor,
        embeds: dict[str, torch.Tensor | None],
        text_gates: tuple[torch.Tensor, torch.Tensor],
        image_embeds: list[tuple[torch.Tensor, torch.Tensor]],
        scales: tuple[float, float, tuple[float | None, float | None]],
        num_inference_steps: int,
        guidance_stop: float,
        eta: float,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable[..., dict[str, Any]] | None = None,
        callback_tensor_inputs: Sequence[str] = (),
        first_step: int = 0,
    ) -> torch.Tensor:
        """Samples clips (B, C, F, h, w) no longer than the model's window from noise; see [`predict_noise`].

        With a `first_step`, earlier ones are left out, and `latents` are as noisy as the scheduler's `add_noise` makes
        them for it; not with FreeInit.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        self._guidance_scale, self._image_guidance_scale, self._continuation_scales = scales  # callbacks change them
        tensors = {"latents": latents if first_step else latents * self.scheduler.init_noise_sigma, **embeds}
        extra_step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        for iteration in range(self._free_init_num_iters if self.free_init_enabled else 1):
            if self.free_init_enabled:
                tensors["latents"], _ = self._apply_free_init(
                    tensors["latents"], iteration, num_inference_steps, latents.device, latents.dtype, generator
                )
            begin = first_step * self.scheduler.order
            if begin and hasattr(self.scheduler, "set_begin_index"):
                self.scheduler.set_begin_index(begin)
            timesteps = self.scheduler.timesteps[begin:]
            steps = math.ceil(len(self.scheduler.timesteps) / self.scheduler.order)
            guided = int(guidance_stop * steps + 0.5) * self.scheduler.order - begin
            self._num_timesteps = len(timesteps)
            with self.progress_bar(total=self._num_timesteps) as progress_bar:
                for step, timestep in enumerate(timesteps):
                    if self.interrupt:
                        break
                    noise = self.predict_noise(
                        tensors, timestep, condition_latents, text_gates, image_embeds, continues, step < guided
                    )
                    tensors["latents"] = self.scheduler.step(
                        noise, timestep, tensors["latents"], **extra_step_kwargs
                    ).prev_sample
                    if callback is not None:
                        tensors |= callback(
                            self, step, timestep, {name: tensors[name] for name in callback_tensor_inputs}
                        )
                    progress_bar.update()
        return tensors["latents"]

    def sample_windows(
        self,
        noise: torch.Tensor,
        condition_latents: torch.Tensor,
        condition_mask: torch.Tensor,
        loop: bool,
        denoise: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Samples clips (B, C, F, h, w) of any length window by window, see [`window_starts`].

        Args:
            noise, condition_latents: (B, C, F, h, w).
            condition_mask: (B, F), which frames are known.
            loop: whether the clip closes.
            denoise: samples one window from its noise, its condition latents, and which of them (B,) hold several
                known frames.
        """
        num_frames = noise.shape[2]
        window = min(self.unet.config.num_frames, num_frames)
        first_known = condition_mask.int().argmax(dim=1).tolist()  # 0 where nothing is known
        plans = [window_starts(num_frames, window, first, loop) for first in first_known]
        latents, sampled = noise, torch.zeros_like(condition_mask)
        for turn in range(max(map(len, plans))):
            starts = torch.tensor([plan[min(turn, len(plan) - 1)] for plan in plans], device=noise.device)
            places = (starts[:, None] + torch.arange(window, device=noise.device)) % num_frames  # (B, window)
            if sampled.gather(1, places).all():
                continue
            continues = condition_mask.gather(1, places).sum(dim=1) > 1
            result = denoise(take_frames(noise, places), take_frames(condition_latents, places), continues)
            if turn == 0 and loop and num_frames == window and not self.interrupt:
                # the second half belongs to the window that closes the loop
                places, result = places[:, : (window + 1) // 2], result[:, :, : (window + 1) // 2]
            latents = put_frames(latents, places, result, keep=sampled)
            condition_latents = put_frames(condition_latents, places, result, keep=condition_mask)
            sampled, condition_mask = sampled.scatter(1, places, True), condition_mask.scatter(1, places, True)
        return latents

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Picture | list[Picture | None] | None = None,
        image_index: int = 0,
        frames: list[Picture | None] | list[list[Picture | None]] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        image_guidance_scale: float = 7.5,
        continuation_guidance_scale: float | None = None,
        continuation_image_guidance_scale: float | None = None,
        guidance_stop: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_embeds_2: torch.Tensor | None = None,
        negative_prompt_embeds_2: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        loop: bool = False,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> StickerGenerationPipelineOutput | tuple:
        """Makes animated stickers. Every clip needs a text or a picture.

        A list of prompts, a list of images, a list of lists in `frames`, and rows of embeddings make a batch: the i-th
        entries belong together, and single ones serve all clips. The default values are the paper's (RDTF, table 6).

        Args:
            prompt: what happens; an empty text is no text.
            image: one picture: PIL, array (H, W, C) or tensor (C, H, W), straight alpha, uint8 or in [0, 1]. It is
                fitted into the clip without stretching, on transparency or, if the VAE has no alpha, on white, and
                comes back exactly like that.
            image_index: the frame that `image` is, from 0.
            frames: the clip as a list, pictures where frames are known and None elsewhere (instead of `image`).
            num_frames: length of the clip; by default that of `frames`, else the model's window
                (`unet.config.num_frames`). A shorter clip is the beginning of a window. A longer one, up to 16 times
                the window, is made of windows that continue from known frames and share half their frames with them.
            height, width: pixels, multiples of the VAE's factor; by default the model's own size.
            num_inference_steps: denoising steps.
            guidance_scale, image_guidance_scale: how much the text, and the known frames, count; 1 adds nothing and 0
                leaves them out. Equal scales cost two passes of the UNet, different ones three, and a clip without
                picture or text two.
            continuation_guidance_scale, continuation_image_guidance_scale: the same where several frames are known: in
                interpolation and prediction, and in the windows of long clips and loops that go on from others. None:
                as the others.
            guidance_stop: share of the steps, from the first on, in which the scales count; in the others all are 1,
                also those that a callback sets, which takes one pass.
            negative_prompt: what to stay away from, in place of "no text".
            num_videos_per_prompt: clips per prompt, next to each other in the output.
            eta: noise that is added again in each step, 0 (none) to 1; only for schedulers that know it (DDIM).
            generator: one for the whole batch, or a list of one per clip: then a clip comes out the same in any batch.
            latents: noise (B, C, F, height / factor, width / factor) to start from, F at least the model's window
                unless `loop`.
            prompt_embeds, negative_prompt_embeds: (B, S, cross_attention_dim), instead of texts.
            prompt_embeds_2, negative_prompt_embeds_2: (B, S, second_text_dim), the same for the second encoder.
            ip_adapter_image: picture for an IP-Adapter, or a list with one entry for each loaded adapter.
            ip_adapter_image_embeds: embeddings instead, (B, N, D) for each adapter; an even number of rows under
                guidance holds the negative ones first, as in diffusers.
            loop: whether the last frame leads back to the first one. The second half of the clip, or the end of a
                longer one, is drawn between what is before it and the beginning, which takes another window.
            cross_attention_kwargs: passed to the attention processors; `scale` is the strength of LoRA.
            clip_skip: layers of the first text encoder to leave out at its end.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: whether to return an output object or a tuple.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step; returns the
                tensors to go on with. It may set `_guidance_scale`, `_image_guidance_scale`, `_continuation_scales`
                and `_interrupt`; steps count from 0, and scales begin anew, in each window of a long clip or loop.
            callback_on_step_end_tensor_inputs: names out of `_callback_tensor_inputs` that the callback gets.

        Returns:
            [`StickerGenerationPipelineOutput`], or a tuple with its frames. With "latent" they are as sampled; in all
            other types the known frames are the given pictures.

        Raises:
            ValueError: naming the argument that is wrong, its value and what would be right.
        """
        # 0. Defaults
        height = self.unet.config.sample_size * self.vae_scale_factor if height is None else height
        width = self.unet.config.sample_size * self.vae_scale_factor if width is None else width
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self._guidance_scale, self._image_guidance_scale = guidance_scale, image_guidance_scale
        self._continuation_scales = (continuation_guidance_scale, continuation_image_guidance_scale)
        self._cross_attention_kwargs, self._interrupt = cross_attention_kwargs, False

        # 1. Check the inputs; every clip has a list of frames and two text gates, 1 where there is a text
        has_ip_adapter_image = ip_adapter_image is not None or ip_adapter_image_embeds is not None
        self.check_inputs(
            height,
            width,
            num_inference_steps,
            num_videos_per_prompt,
            guidance_stop,
            eta,
            output_type,
            callback_on_step_end_tensor_inputs,
            has_ip_adapter_image,
        )
        clips = list_pictures(image, image_index, frames, num_frames, self.unet.config.num_frames)
        text_gates = (text_gate(negative_prompt, negative_prompt_embeds), text_gate(prompt, prompt_embeds))
        num_clips = count_clips(clips, text_gates, has_ip_adapter_image) * num_videos_per_prompt
        num_frames, window = len(clips[0]), self.unet.config.num_frames

        # 2. Text
        text = self.encode_prompt(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            prompt_embeds_2,
            negative_prompt_embeds_2,
            lora_scale=(cross_attention_kwargs or {}).get("scale"),
            clip_skip=clip_skip,
        )
        embeds = self.prepare_embeds(num_clips, *text)
        image_embeds = self.prepare_ip_adapter_image_embeds(ip_adapter_image, ip_adapter_image_embeds, num_clips)

        # 3. Known frames, and room for the whole window
        pixels, condition_mask = self.prepare_known_frames(clips, height, width)
        condition_latents = repeat_rows(self.encode_known_frames(pixels, condition_mask), num_clips)
        pixels, condition_mask = repeat_rows(pixels, num_clips), repeat_rows(condition_mask, num_clips)
        padding = 0 if loop else max(window - num_frames, 0)
        condition_latents = F.pad(condition_latents, (0, 0, 0, 0, 0, padding))

        # 4. Noise
        noise = self.prepare_latents(condition_latents.shape, generator, latents)

        # 5. Denoise, window by window
        denoise = partial(
            self.denoise,
            embeds=embeds,
            text_gates=tuple(repeat_rows(gate.to(pixels.device), num_clips) for gate in text_gates),
            image_embeds=image_embeds,
            scales=(self._guidance_scale, self._image_guidance_scale, self._continuation_scales),
            num_inference_steps=num_inference_steps,
            guidance_stop=guidance_stop,
            eta=eta,
            generator=generator,
            callback=callback_on_step_end,
            callback_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        latents = self.sample_windows(noise, condition_latents, F.pad(condition_mask, (0, padding)), loop, denoise)
        latents = latents[:, :, :num_frames]

        # 6. Decode; known frames come back as they were given
        if output_type == "latent":
            result = latents
        else:
            decoded = self.decode_latents(latents)
            if self.refiner is not None:
                decoded = self.refiner(decoded, pixels, condition_mask, loop=loop)
            decoded = torch.where(condition_mask[:, None, :, None, None], pixels, decoded)
            result = self.postprocess(decoded, output_type)

        # 7. Offload all models
        self.maybe_free_model_hooks()
        return StickerGenerationPipelineOutput(frames=result) if return_dict else (result,)
