"""Saving, loading and extending StickerGenerationPipeline: folders, LoRA, IP-Adapter and the rest.

Loading by a Hub id, which takes a fresh process, is in test_hub.py.
"""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_models import (
    SECOND_TEXT_WIDTH,
    TEXT_WIDTH,
    make_components,
    make_pipeline,
    make_t5_encoder,
    make_t5_tokenizer,
    make_unet,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from rdtf_diffusers import StickerGenerationPipeline, UNetDiscreteFrameModel


PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8))


@pytest.fixture
def pipe():
    return make_pipeline()


def run(pipe, prompt="a dog", **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, image=PICTURE, num_inference_steps=2, generator=generator, output_type="pt", **kwargs).frames


# --- folders


def test_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["rdtf_diffusers", "UNetDiscreteFrameModel"]
    assert index["_class_name"] == "StickerGenerationPipeline"
    loaded = StickerGenerationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.unet, UNetDiscreteFrameModel) and loaded.text_encoder_2 is None
    torch.testing.assert_close(run(loaded), run(pipe))
    half = StickerGenerationPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.unet.dtype == half.vae.dtype == torch.float16


def test_folder_with_all_components(tmp_path):
    pipe = make_pipeline(
        unet=make_unet(second_text_dim=SECOND_TEXT_WIDTH),
        text_encoder_2=make_t5_encoder(),
        tokenizer_2=make_t5_tokenizer(),
        **make_image_encoder(),
    )
    pipe.save_pretrained(tmp_path)
    loaded = StickerGenerationPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(loaded, negative_prompt="cat"), run(pipe, negative_prompt="cat"))


def test_from_pipe(pipe):
    other = StickerGenerationPipeline.from_pipe(pipe, scheduler=DDIMScheduler.from_config(pipe.scheduler.config))
    other.set_progress_bar_config(disable=True)
    assert other.unet is pipe.unet and other.vae is pipe.vae
    torch.testing.assert_close(run(other), run(pipe))
    parts = {name: pipe.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    animate = AnimateDiffPipeline(**parts, unet=None, motion_adapter=None)
    sticker = StickerGenerationPipeline.from_pipe(animate, unet=pipe.unet)
    assert sticker.vae is pipe.vae and sticker.text_encoder is pipe.text_encoder
    still = StableDiffusionPipeline.from_pipe(
        sticker, unet=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    assert still.vae is pipe.vae


# --- LoRA


def save_lora(folder: Path, unet_targets: str = r".*\.to_(q|k|v|out\.0)") -> None:
    pipe = make_pipeline()
    layers = {}
    for name, targets in (("unet", unet_targets), ("text_encoder", ["q_proj", "v_proj"])):
        module = pipe.components[name]
        module.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights="gaussian"))
        torch.manual_seed(3)
        for parameter_name, parameter in module.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.5)
        layers[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
    pipe.save_lora_weights(folder, **layers)


def test_lora(pipe, tmp_path):
    save_lora(tmp_path)
    plain = run(pipe)
    plain_embeds = pipe.encode_prompt("a dog")[0]
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    assert pipe.get_list_adapters() == {"unet": ["style"], "text_encoder": ["style"]}
    full = run(pipe)
    assert not torch.allclose(full, plain, atol=1e-3)
    assert not torch.allclose(pipe.encode_prompt("a dog")[0], plain_embeds, atol=1e-3)

    torch.testing.assert_close(run(pipe, cross_attention_kwargs={"scale": 0.0}), plain)  # unet and text encoder
    assert not torch.allclose(run(pipe, cross_attention_kwargs={"scale": 0.5}), full, atol=1e-3)
    torch.testing.assert_close(run(pipe), full)
    pipe.set_adapters("style", 0.5)
    assert not torch.allclose(run(pipe), full, atol=1e-3)
    pipe.set_adapters("style", 1.0)

    pipe.fuse_lora(lora_scale=1.0)
    torch.testing.assert_close(run(pipe), full, atol=1e-3, rtol=0)
    pipe.unfuse_lora()
    torch.testing.assert_close(run(pipe), full, atol=1e-3, rtol=0)
    pipe.disable_lora()
    torch.testing.assert_close(run(pipe), plain)
    pipe.enable_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(run(pipe), plain)


def test_lora_strength_per_block(pipe, tmp_path):
    save_lora(tmp_path, unet_targets=r".*\.attentions\..*to_[qkv]")
    plain = run(pipe)
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    full = run(pipe)
    pipe.set_adapters("style", {"unet": {"down": 0.5}, "text_encoder": 1.0})
    assert not torch.allclose(run(pipe), full, atol=1e-3)
    pipe.set_adapters("style", {"unet": {"down": 0.0, "mid": 0.0, "up": 0.0}, "text_encoder": 0.0})
    torch.testing.assert_close(run(pipe), plain)


def test_lora_scale_without_text_encoder(pipe, tmp_path):
    save_lora(tmp_path)
    pipe.load_lora_weights(tmp_path)
    prompt_embeds = pipe.encode_prompt("a dog", lora_scale=0.5)[0]
    expected = run(pipe, cross_attention_kwargs={"scale": 0.5})
    pipe.register_modules(text_encoder=None, tokenizer=None)
    frames = run(pipe, None, prompt_embeds=prompt_embeds, cross_attention_kwargs={"scale": 0.5})
    torch.testing.assert_close(frames, expected)


# --- IP-Adapter


def make_image_encoder() -> dict:
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    encoder = CLIPVisionModelWithProjection(config).eval()
    return {"image_encoder": encoder, "feature_extractor": CLIPImageProcessor(size=8, crop_size=8)}


def make_ip_adapter(unet: UNetDiscreteFrameModel) -> dict:
    """Weights as in IP-Adapter's own files: projections of each cross-attention, numbered 1, 3, 5, ..."""
    torch.manual_seed(5)
    names = [name.removesuffix(".processor") for name in unet.attn_processors if ".attentions." in name]
    layers = [unet.get_submodule(name) for name in names if name.endswith("attn2")]
    projections = {
        f"{2 * i + 1}.to_{kind}_ip.weight": torch.randn(layer.to_k.out_features, TEXT_WIDTH)
        for i, layer in enumerate(layers)
        for kind in "kv"
    }
    image_projection = {
        "proj.weight": torch.randn(4 * TEXT_WIDTH, 10),
        "proj.bias": torch.zeros(4 * TEXT_WIDTH),
        "norm.weight": torch.ones(TEXT_WIDTH),
        "norm.bias": torch.zeros(TEXT_WIDTH),
    }
    return {"image_proj": image_projection, "ip_adapter": projections}


def test_ip_adapter():
    pipe = make_pipeline(**make_image_encoder())
    plain = run(pipe)
    pipe.load_ip_adapter(make_ip_adapter(pipe.unet), subfolder="", weight_name="")
    style = PIL.Image.new("RGB", (8, 8), "orange")
    with pytest.raises(ValueError, match="ip_adapter_image"):
        run(pipe)
    pipe.set_ip_adapter_scale(0.0)
    torch.testing.assert_close(run(pipe, ip_adapter_image=style), plain, atol=1e-4, rtol=0)
    pipe.set_ip_adapter_scale(1.0)
    styled = run(pipe, ip_adapter_image=style)
    assert not torch.allclose(styled, plain, atol=1e-3)

    for value, expected in ((0.0, plain), (1.0, styled)):  # masks say which places see the picture
        masks = {"ip_adapter_masks": [torch.full((1, 1, 8, 8), value)]}
        masked = run(pipe, ip_adapter_image=style, cross_attention_kwargs=masks)
        torch.testing.assert_close(masked, expected, atol=1e-4, rtol=0)
    ((dropped, given),) = pipe.prepare_ip_adapter_image_embeds(style, None, 1)
    assert given.shape == (1, 1, 10) and not dropped.any()
    torch.testing.assert_close(run(pipe, ip_adapter_image_embeds=[given]), styled)
    torch.testing.assert_close(run(pipe, ip_adapter_image_embeds=[torch.cat([dropped, given])]), styled)
    batch = run(pipe, ["a dog", "cat"], ip_adapter_image=style, num_videos_per_prompt=2)
    assert batch.shape[0] == 4
    unguided = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
    assert run(pipe, ip_adapter_image_embeds=[given], **unguided).shape == styled.shape
    alone = pipe(ip_adapter_image=style, num_inference_steps=1, output_type="pt").frames  # the only picture
    assert alone.isfinite().all()
    with pytest.raises(ValueError, match="2 entries for 1"):
        run(pipe, ip_adapter_image=[style, style])
    pipe.unload_ip_adapter()
    torch.testing.assert_close(run(pipe), plain)


# --- textual inversion, FreeU, FreeInit, fused projections


def test_textual_inversion(pipe):
    vectors = torch.randn(2, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    pipe.load_textual_inversion({"<sketch>": vectors}, token="<sketch>")
    assert pipe.maybe_convert_prompt("a <sketch>", pipe.tokenizer) == "a <sketch> <sketch>_1"
    embeds = pipe.encode_prompt("a <sketch> dog")[0]
    ids = pipe.tokenizer("a <sketch> <sketch>_1 dog", padding="max_length", return_tensors="pt").input_ids
    torch.testing.assert_close(pipe.text_encoder.get_input_embeddings()(ids)[0, 2:4], vectors)
    torch.testing.assert_close(embeds, pipe.text_encoder(ids).last_hidden_state)
    assert run(pipe, "a <sketch> dog").isfinite().all()


def test_freeu(pipe):
    plain = run(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert not torch.allclose(run(pipe), plain, atol=1e-4)
    pipe.disable_freeu()
    torch.testing.assert_close(run(pipe), plain)


@pytest.mark.parametrize("use_fast_sampling", [False, True])
def test_free_init(pipe, use_fast_sampling):
    plain = run(pipe)
    state = torch.random.get_rng_state()
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        return tensors

    pipe.enable_free_init(num_iters=2, use_fast_sampling=use_fast_sampling)
    again = run(pipe, callback_on_step_end=callback)
    assert steps == ([0, 0, 1] if use_fast_sampling else [0, 1, 0, 1])
    assert not torch.allclose(again, plain, atol=1e-4) and torch.random.get_rng_state().equal(state)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    clips = pipe(["a dog", "cat"], generator=generators, num_inference_steps=2, output_type="pt", num_frames=11).frames
    assert clips.shape[:2] == (2, 11)
    pipe.disable_free_init()
    torch.testing.assert_close(run(pipe), plain)


def test_fused_projections(pipe):
    plain = run(pipe)
    pipe.fuse_qkv_projections()
    torch.testing.assert_close(run(pipe), plain, atol=1e-4, rtol=0)
    pipe.unfuse_qkv_projections()
    torch.testing.assert_close(run(pipe), plain)


# --- devices


def test_offload_order_names_all_models():
    order = StickerGenerationPipeline.model_cpu_offload_seq.split("->")
    models = ["text_encoder", "text_encoder_2", "image_encoder", "unet", "vae", "refiner"]
    assert order == models and set(models) < set(make_components()) | {"text_encoder_2", "image_encoder", "refiner"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload(pipe, offload):
    plain = run(pipe)
    getattr(pipe, offload)()
    torch.testing.assert_close(run(pipe).cpu(), plain, atol=1e-3, rtol=0)
    assert all(parameter.device.type != "cuda" for parameter in pipe.unet.parameters())
