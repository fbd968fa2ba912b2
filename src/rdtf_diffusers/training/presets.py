"""Named sizes of a training run: the UNet, the frozen parts around it, and the arguments that suit them.

```python
preset = PRESETS["paper"]
unet = UNetDiscreteFrameModel(**preset.unet, in_channels=8, out_channels=4, cross_attention_dim=1024, ...)
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


# Stable Diffusion's noise levels, diffusers' name for the paper's "linear" schedule from 0.00085 to 0.0120.
PAPER_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Preset:
    """What `--preset` stands for.

    Attributes:
        unet: sizes of `UNetDiscreteFrameModel`; what follows from resolution, autoencoder and text encoders (sample
            size, latent channels, text widths) is not among them.
        parts: Hub ids of the frozen parts, `vae`, `text_encoder` (CLIP) and, where there is a second stream,
            `text_encoder_2` (T5); empty: those of the bundled model.
        scheduler: config of the DDIM scheduler that goes with `parts`.
        arguments: defaults of the training script's arguments that differ with the size.
    """

    unet: Mapping[str, Any]
    parts: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)


PRESETS = {
    # 4.7 M parameters, for a CPU: the bundled model, but for its layers beyond the paper
    "tiny": Preset(
        unet={
            "block_out_channels": (80, 112),
            "layers_per_block": 1,
            "attention_head_dim": 16,
            "norm_num_groups": 16,
            "sti_num_heads": 4,
            "sti_head_dim": 16,
        },
        arguments={"resolution": 64, "learning_rate": 1e-3},
    ),
    # 274 M parameters, for one card of 12 GB
    "small": Preset(
        unet={"block_out_channels": (192, 384, 512, 640)},
        parts={"vae": "stabilityai/sd-vae-ft-mse", "text_encoder": "openai/clip-vit-large-patch14"},
        scheduler=PAPER_SCHEDULER
        | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        arguments={"resolution": 256, "learning_rate": 1e-4},
    ),
    # RDTF (arXiv 2503.17735), table 6: 960 M parameters
    "paper": Preset(
        unet={},
        parts={
            "vae": "stabilityai/sd-vae-ft-mse",
            "text_encoder": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "text_encoder_2": "google-t5/t5-base",
        },
        scheduler=PAPER_SCHEDULER,
        arguments={
            "resolution": 256,
            "learning_rate": 1e-5,
            "validation_inference_steps": 50,
            "validation_guidance_scale": 7.5,
            "validation_eta": 1.0,
        },
    ),
}
