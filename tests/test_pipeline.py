"""What StickerGenerationPipeline makes of prompts and pictures."""

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderDC,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)
from tiny_models import (
    SECOND_TEXT_WIDTH,
    TEXT_WIDTH,
    make_bert_tokenizer,
    make_clip_tokenizer,
    make_pipeline,
    make_t5_encoder,
    make_t5_tokenizer,
    make_unet,
    make_vae,
)
from transformers import BertConfig, BertModel

from rdtf_diffusers import StickerGenerationPipelineOutput
from rdtf_diffusers.pipelines.pipeline_inputs import letterbox, picture_to_rgba
from rdtf_diffusers.pipelines.pipeline_plan import guidance_passes, put_frames, take_frames, window_starts


STEPS = 2


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def draw_sticker(seed: int, size: tuple[int, int] = (8, 8)) -> PIL.Image.Image:
    """Random RGBA with clear, half-clear and opaque pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 4), dtype=np.uint8)
    pixels[..., 3] = rng.choice([0, 1, 77, 128, 255], size)
    return PIL.Image.fromarray(pixels)


def visible(picture: PIL.Image.Image) -> np.ndarray:
    """Pixels with the colour of clear places, which means nothing, set to 0."""
    pixels = np.array(picture)
    return pixels * (pixels[..., 3:] > 0)


def run(pipe, *args, seeds: list[int] | int = 0, **kwargs):
    """Frames of a short run; a list of seeds is a generator for each clip."""
    generator = [torch.Generator().manual_seed(s) for s in seeds] if isinstance(seeds, list) else None
    return pipe(
        *args,
        **{"num_inference_steps": STEPS, "output_type": "pt"} | kwargs,
        generator=generator or torch.Generator().manual_seed(seeds),
    ).frames


class Spy:
    """Stands in for the UNet's forward and keeps what it was called with."""

    def __init__(self, pipe, monkeypatch, forward=None):
        self.calls = []
        original = forward or pipe.unet.forward

        def spy(sample, timestep, **kwargs):
            self.calls.append(kwargs | {"sample": sample, "timestep": timestep})
            return original(sample, timestep, **kwargs)

        monkeypatch.setattr(pipe.unet, "forward", spy)

    def passes(self, num_clips: int = 1) -> list[int]:
        return [len(call["sample"]) // num_clips for call in self.calls]


# --- call forms


@pytest.mark.parametrize("prompt", [None, "a dog", ["a dog", "a cat"], ["a dog", ""]])
@pytest.mark.parametrize("pictures", ["none", "image", "images", "frames", "clips"])
def test_call_forms(pipe, prompt, pictures):
    one, two = draw_sticker(1), draw_sticker(2)
    clip, other = [one, *[None] * 6, two], [None, two, None, one, *[None] * 4]
    given = {
        "none": {},
        "image": {"image": one, "image_index": 3},
        "images": {"image": [one, two]},
        "frames": {"frames": clip},
        "clips": {"frames": [clip, other]},
    }[pictures]
    if pictures == "none" and prompt in (None, ["a dog", ""]):
        with pytest.raises(ValueError, match="neither a text nor a picture"):
            pipe(prompt, **given)
        return
    frames = run(pipe, prompt, **given, output_type="pil")
    batch_size = 2 if isinstance(prompt, list) or pictures in ("images", "clips") else 1
    assert len(frames) == batch_size and all(len(clip) == 8 for clip in frames)
    assert all(frame.mode == "RGBA" and frame.size == (8, 8) for clip in frames for frame in clip)
    known = {
        "none": [{}] * 2,
        "image": [{3: one}] * 2,
        "images": [{0: one}, {0: two}],
        "frames": [{0: one, 7: two}] * 2,
        "clips": [{0: one, 7: two}, {1: two, 3: one}],
    }[pictures]
    for frames_of_clip, known_of_clip in zip(frames, known):
        for index, picture in known_of_clip.items():
            np.testing.assert_array_equal(visible(frames_of_clip[index]), visible(picture))


@pytest.mark.parametrize("num_frames", [1, 5, 8, 11, 19])
@pytest.mark.parametrize("loop", [False, True])
def test_any_length(pipe, num_frames, loop):
    picture, index = draw_sticker(1), num_frames - 1
    frames = run(pipe, "a dog", image=picture, image_index=index, num_frames=num_frames, loop=loop, output_type="pil")
    assert len(frames[0]) == num_frames
    np.testing.assert_array_equal(visible(frames[0][index]), visible(picture))


def test_output_types(pipe):
    picture = draw_sticker(1)
    call = {"prompt": "a dog", "image": picture}
    tensor, array = run(pipe, **call), run(pipe, **call, output_type="np")
    assert tensor.shape == (1, 8, 4, 8, 8) and array.shape == (1, 8, 8, 8, 4)
    assert isinstance(array, np.ndarray) and array.min() >= 0 and array.max() <= 1
    np.testing.assert_array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), array)
    images = run(pipe, **call, output_type="pil")
    np.testing.assert_array_equal(np.stack(images[0]), (array[0] * 255).round().astype(np.uint8))
    assert run(pipe, **call, output_type="latent").shape == (1, 4, 8, 4, 4)
    output = pipe("a dog", num_inference_steps=1)
    assert isinstance(output, StickerGenerationPipelineOutput)
    (frames,) = pipe("a dog", num_inference_steps=1, return_dict=False)
    assert len(frames[0]) == 8


def test_short_clip_is_the_beginning_of_a_window(pipe):
    call = {"prompt": "a dog", "image": draw_sticker(1), "image_index": 2}
    torch.testing.assert_close(run(pipe, **call, num_frames=5), run(pipe, **call)[:, :5])


def test_length_follows_frames(pipe):
    assert run(pipe, frames=[draw_sticker(1), None, None]).shape[1] == 3


# --- pictures


def test_all_kinds_of_pictures_agree(pipe):
    picture = draw_sticker(1)
    array = np.array(picture)
    kinds = [picture, array, array / 255.0, torch.from_numpy(array).permute(2, 0, 1)]
    kinds.append(kinds[-1].float() / 255)
    clips = [run(pipe, image=kind) for kind in kinds]
    for clip in clips[1:]:
        torch.testing.assert_close(clip, clips[0])
    batch = run(pipe, image=np.stack([array, array]), seeds=[0, 0])
    assert len(batch) == 2


def test_sixteen_bits_are_scaled_not_clipped():
    picture = PIL.Image.fromarray(np.full((4, 4), 2**15, dtype=np.uint16))
    assert picture.mode == "I;16"
    assert picture_to_rgba(picture)[0].mean() == pytest.approx(128 / 255)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "CMYK"])
def test_image_modes(mode):
    picture = draw_sticker(1).convert("RGB").convert(mode)
    expected = np.array(picture.convert("RGBA")) / 255.0
    torch.testing.assert_close(picture_to_rgba(picture), torch.from_numpy(expected).float().permute(2, 0, 1))


def test_known_frames_return_as_floats(pipe):
    straight = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    straight[3, 0] = 0
    frame = run(pipe, image=straight)[0, 0]
    torch.testing.assert_close(frame[3], straight[3], atol=1e-6, rtol=0)
    torch.testing.assert_close(frame[:3], straight[:3] * (straight[3:] > 0), atol=1e-4, rtol=0)
    torch.testing.assert_close(run(pipe, image=frame)[0, 0], frame, atol=1e-4, rtol=0)


def test_without_alpha_pictures_lie_on_white():
    pipe = make_pipeline(vae=make_vae(channels=3))
    picture = draw_sticker(1)
    frame = run(pipe, image=picture, output_type="pil")[0][0]
    rgba = np.array(picture) / 255.0
    expected = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    assert frame.mode == "RGB"
    np.testing.assert_allclose(np.array(frame), expected * 255, atol=0.51)
    opaque = picture.convert("RGB")
    np.testing.assert_array_equal(np.array(run(pipe, image=opaque, output_type="pil")[0][0]), np.array(opaque))


def test_letterbox_never_stretches():
    wide = torch.ones(4, 4, 16)
    fitted = letterbox(wide, 8, 8)
    assert fitted[:, 3:5].eq(1).all() and fitted.sum() == 4 * 2 * 8
    square = torch.rand(4, 8, 8)
    assert letterbox(square, 8, 8).equal(square)
    assert letterbox(square, 8, 12)[..., 2:10].equal(square)
    red = torch.tensor([1.0, 0, 0, 1]).view(4, 1, 1).expand(4, 3, 3)
    edge = letterbox(F.pad(red, (3, 3, 3, 3)), 16, 16)
    assert edge.min() >= 0 and edge[:3].le(edge[3:]).all()
    torch.testing.assert_close(edge[0], edge[3])  # no dark fringe: colour and alpha shrink together


# --- condition and text gate


def test_condition_is_the_clean_latent_of_known_frames(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)
    picture = draw_sticker(1)
    run(pipe, "a dog", frames=[None, None, picture, *[None] * 5], guidance_scale=7.5, image_guidance_scale=3.0)
    condition = spy.calls[0]["condition_latents"]  # passes (0, 0), (c, 0), (c, T)
    pixels = (2 * picture_to_rgba(picture) - 1)[None]
    clean = (pipe.vae.encode(pixels).latent_dist.mode()[0] - 0.1) * 0.5
    assert condition.shape == (3, 4, 8, 4, 4)
    torch.testing.assert_close(condition[1, :, 2], clean)
    torch.testing.assert_close(condition[2], condition[1])
    assert not condition[0].any() and not condition[1, :, [0, 1, 3, 4, 5, 6, 7]].any()
    assert spy.calls[0]["text_mask"].tolist() == [0, 0, 1]
    assert spy.calls[0]["sample"][0].equal(spy.calls[0]["sample"][2])  # noise on all frames, the same in all passes


def test_gate_is_closed_without_text(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)
    run(pipe, image=draw_sticker(1))
    run(pipe, "", image=draw_sticker(1))
    assert all(not call["text_mask"].any() for call in spy.calls) and set(spy.passes()) == {2}
    spy.calls.clear()
    run(pipe, "a dog", negative_prompt="cat")
    assert spy.calls[0]["text_mask"].tolist() == [1, 1]
    negative, positive = spy.calls[0]["encoder_hidden_states"]
    torch.testing.assert_close(positive, pipe.encode_prompt("a dog")[0][0])
    torch.testing.assert_close(negative, pipe.encode_prompt("cat")[0][0])
    spy.calls.clear()
    run(pipe, negative_prompt="cat", image=draw_sticker(1))
    assert spy.calls[0]["text_mask"].tolist() == [1, 0] and spy.passes() == [2] * STEPS


def test_empty_texts_change_nothing(pipe):
    picture = draw_sticker(1)
    expected = run(pipe, image=picture)
    torch.testing.assert_close(run(pipe, " ", image=picture), expected)
    torch.testing.assert_close(run(pipe, image=picture, negative_prompt=""), expected)


# --- guidance


@pytest.mark.parametrize("text_scale", [0.0, 1.0, 2.5, 7.5])
@pytest.mark.parametrize("image_scale", [0.0, 1.0, 2.5, 7.5])
@pytest.mark.parametrize("has_frames", [True, False])
@pytest.mark.parametrize("has_text", [True, False])
def test_guidance_passes_equal_the_three_pass_formula(text_scale, image_scale, has_frames, has_text):
    def noise(use_frames, use_text):
        return 1.0 + 10.0 * (use_frames and has_frames) + 100.0 * (use_text and has_text) * (1 + has_frames)

    expected = noise(0, 0) + image_scale * (noise(1, 0) - noise(0, 0)) + text_scale * (noise(1, 1) - noise(1, 0))
    passes = guidance_passes(text_scale, image_scale, has_frames, has_text)
    assert sum(p.weight * noise(p.use_frames, p.use_text) for p in passes) == pytest.approx(expected)
    assert len({p[:2] for p in passes}) == len(passes) and all(p.weight for p in passes)
    assert len(passes) <= 1 + has_frames + has_text


@pytest.mark.parametrize(
    "scales, given, passes",
    [
        ((7.5, 7.5), "both", 2),
        ((7.5, 3.0), "both", 3),
        ((7.5, 1.0), "both", 2),
        ((1.0, 1.0), "both", 1),
        ((0.0, 3.0), "both", 2),
        ((7.5, 3.0), "text", 2),
        ((1.0, 3.0), "text", 1),
        ((7.5, 3.0), "image", 2),
        ((7.5, 1.0), "image", 1),
    ],
)
def test_cheapest_number_of_passes(pipe, monkeypatch, scales, given, passes):
    spy = Spy(pipe, monkeypatch)
    prompt = "a dog" if given != "image" else None
    image = draw_sticker(1) if given != "text" else None
    run(pipe, prompt, image=image, guidance_scale=scales[0], image_guidance_scale=scales[1])
    assert spy.passes() == [passes] * STEPS


def test_guided_noise_is_the_formula(pipe, monkeypatch):
    """One step of the real UNet, pass by pass, in the order of InstructPix2Pix."""
    spy = Spy(pipe, monkeypatch)
    taken = []
    step = pipe.scheduler.step
    monkeypatch.setattr(pipe.scheduler, "step", lambda noise, *a, **k: taken.append(noise) or step(noise, *a, **k))
    call = {"prompt": "a dog", "image": draw_sticker(1), "num_inference_steps": 1}
    run(pipe, **call, guidance_scale=7.5, image_guidance_scale=3.0)
    seen = spy.calls[0]
    text, condition = pipe.encode_prompt("a dog")[0], seen["condition_latents"][1:2]

    def noise(use_frames, use_text):
        conditions = {"condition_latents": condition * use_frames, "text_mask": torch.tensor([float(use_text)])}
        return pipe.unet(
            seen["sample"][:1], seen["timestep"], encoder_hidden_states=text, **conditions
        ).sample.detach()

    nothing, frames, both = noise(0, 0), noise(1, 0), noise(1, 1)
    expected = nothing + 3.0 * (frames - nothing) + 7.5 * (both - frames)
    torch.testing.assert_close(taken[0], expected, atol=1e-4, rtol=1e-4)
    run(pipe, **call, guidance_scale=4.0, image_guidance_scale=4.0)
    torch.testing.assert_close(taken[1], nothing + 4.0 * (both - nothing), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stop", "passes"), [(0.0, [1] * 4), (0.5, [3, 3, 1, 1]), (0.7, [3] * 3 + [1]), (1.0, [3] * 4)]
)
def test_guidance_ends_after_its_share_of_the_steps(pipe, monkeypatch, stop, passes):
    """From there on as with scales of 1, in all windows and with several known frames, too."""
    picture = draw_sticker(1)
    call = {"num_inference_steps": 4, "guidance_scale": 3, "image_guidance_scale": 2, "continuation_guidance_scale": 4}

    def end(pipe, step, timestep, tensors):
        if step + 1 == passes.count(3):
            pipe._guidance_scale = pipe._image_guidance_scale = 1
            pipe._continuation_scales = 1, 1
        return tensors

    scales = {"continuation_guidance_scale": 1, "guidance_scale": 1, "image_guidance_scale": 1} if not stop else {}
    expected = run(pipe, "a dog", image=picture, num_frames=12, **call | scales, callback_on_step_end=end)
    spy = Spy(pipe, monkeypatch)
    stopped = run(pipe, "a dog", image=picture, num_frames=12, **call, guidance_stop=stop)
    assert spy.passes() == passes * 2
    torch.testing.assert_close(stopped, expected)


def test_no_step_of_a_second_order_scheduler_is_half_guided(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "scheduler", HeunDiscreteScheduler.from_config(pipe.scheduler.config))
    for stop, guided in ((0.5, 4), (0.6, 4), (0.7, 6), (1.0, 7)):
        spy = Spy(pipe, monkeypatch)
        run(pipe, "a dog", num_inference_steps=4, guidance_scale=3, guidance_stop=stop)
        assert spy.passes() == [2] * guided + [1] * (7 - guided)
    spy = Spy(pipe, monkeypatch)
    run(pipe, "a dog", num_inference_steps=1, guidance_scale=3, guidance_stop=0.5)
    assert spy.passes() == [2]  # half of a step is one


# --- batches, generators, noise


def test_a_clip_is_the_same_in_any_batch(pipe):
    one, two = draw_sticker(1), draw_sticker(2)
    batch = run(pipe, ["a dog", "a cat", ""], image=[one, None, two], seeds=[1, 2, 3])
    for i, (prompt, image) in enumerate([("a dog", one), ("a cat", None), (None, two)]):
        alone = run(pipe, prompt, image=image, seeds=[i + 1])
        torch.testing.assert_close(alone[0], batch[i], atol=1e-4, rtol=0)


def test_a_long_clip_is_the_same_in_any_batch(pipe):
    one, two = draw_sticker(1), draw_sticker(2)
    clips = [[one] + [None] * 18, [None] * 14 + [two] + [None] * 4]
    batch = run(pipe, "a dog", frames=clips, seeds=[1, 2])
    for i, clip in enumerate(clips):
        torch.testing.assert_close(run(pipe, "a dog", frames=clip, seeds=[i + 1])[0], batch[i], atol=1e-4, rtol=0)


def test_num_videos_per_prompt_pairs_prompts_and_images(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)
    one, two = draw_sticker(1), draw_sticker(2)
    frames = run(pipe, ["a dog", "a cat"], image=[one, two], num_videos_per_prompt=2, output_type="pil")
    for frames_of_clip, picture in zip(frames, [one, one, two, two]):
        np.testing.assert_array_equal(visible(frames_of_clip[0]), visible(picture))
    dog, cat = pipe.encode_prompt(["a dog", "a cat"])[0]
    torch.testing.assert_close(spy.calls[0]["encoder_hidden_states"][4:], torch.stack([dog, dog, cat, cat]))
    assert np.abs(np.array(frames[0][5], int) - np.array(frames[1][5], int)).max() > 0


def test_global_random_state_is_left_alone(pipe):
    state = torch.random.get_rng_state()
    first = run(pipe, "a dog", image=draw_sticker(1), num_frames=11)
    assert torch.random.get_rng_state().equal(state)
    torch.manual_seed(99)
    torch.testing.assert_close(run(pipe, "a dog", image=draw_sticker(1), num_frames=11), first)


def test_given_latents(pipe):
    noise = torch.randn(1, 4, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    given = pipe("a dog", latents=noise, eta=0.0, num_inference_steps=STEPS, output_type="latent").frames
    drawn = run(pipe, "a dog", eta=0.0, output_type="latent")
    torch.testing.assert_close(given, drawn)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler])
def test_other_schedulers(pipe, scheduler):
    other = type(pipe)(**pipe.components | {"scheduler": scheduler.from_config(pipe.scheduler.config)})
    other.set_progress_bar_config(disable=True)
    frames = run(other, "a dog", num_inference_steps=3)
    assert frames.isfinite().all()
    torch.testing.assert_close(run(other, "a dog", num_inference_steps=3), frames)


@pytest.mark.parametrize("num_inference_steps", [3, 16, 25, 50])
def test_full_noise_from_a_step_without_signal(num_inference_steps):
    """At zero terminal SNR, DDIM with eta = 1 takes the root of a rounding error."""
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe = make_pipeline(scheduler=scheduler)
    latents = pipe("a dog", num_inference_steps=num_inference_steps, eta=1.0, output_type="latent").frames
    assert latents.isfinite().all()


def test_bfloat16(pipe):
    picture = draw_sticker(1)
    half = make_pipeline().to(dtype=torch.bfloat16)
    frames = run(half, "a dog", image=picture, output_type="pil")
    np.testing.assert_array_equal(visible(frames[0][0]), visible(picture))


# --- windows and loops


def test_windows_cover_a_clip_and_continue():
    for num_frames in range(1, 40):
        for first in range(num_frames):
            for loop in (False, True):
                sampled = set()
                for start in window_starts(num_frames, 8, first, loop):
                    places = [(start + i) % num_frames for i in range(min(8, num_frames))]
                    if loop and num_frames <= 8 and not sampled:
                        places = places[: (num_frames + 1) // 2]  # the others are drawn again
                    assert loop or 0 <= start <= max(num_frames - 8, 0)
                    assert not sampled or len(sampled & set(places)) >= min(4, (num_frames + 1) // 2)
                    sampled |= set(places)
                assert sampled == set(range(num_frames))
    assert window_starts(16, 8, 0, loop=False) == [0, 4, 8]
    assert window_starts(19, 8, 12, loop=False) == [11, 7, 3, 0]


def test_later_windows_see_the_frames_before(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)
    latents = run(pipe, "a dog", num_frames=12, num_inference_steps=1, output_type="latent")
    first, second = (call["condition_latents"][-1] for call in spy.calls)
    assert not first.any()
    torch.testing.assert_close(second[:, :4], latents[0, :, 4:8])
    assert not second[:, 4:].any()


def test_closing_window_sees_the_end_and_the_beginning(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)
    latents = run(pipe, "a dog", num_frames=12, num_inference_steps=1, loop=True, output_type="latent")
    assert len(spy.calls) == 2
    closing = spy.calls[1]["condition_latents"][-1]
    torch.testing.assert_close(closing[:, :2], latents[0, :, 6:8])
    assert not closing[:, 2:6].any()
    torch.testing.assert_close(closing[:, 6:], latents[0, :, :2])


def test_take_and_put_frames():
    clips = torch.arange(10.0).view(2, 1, 5, 1, 1)
    places = torch.tensor([[3, 4, 0], [0, 1, 2]])
    assert take_frames(clips, places).flatten().tolist() == [3, 4, 0, 5, 6, 7]
    keep = torch.tensor([[True, False, False, False, False], [False, True, False, False, False]])
    filled = put_frames(clips, places, -torch.ones(2, 1, 3, 1, 1), keep)
    assert filled.flatten().tolist() == [0, 1, 2, -1, -1, -1, 6, -1, 8, 9]


@pytest.mark.parametrize(("num_frames", "image_index"), [(8, None), (8, 3), (5, None), (3, 0)])
def test_a_short_loop_is_closed_from_its_middle(pipe, monkeypatch, num_frames, image_index):
    """The second half is drawn again, between the first half's end and its beginning."""
    spy = Spy(pipe, monkeypatch)
    image = {} if image_index is None else {"image": draw_sticker(1), "image_index": image_index}
    call = {"num_frames": num_frames, "num_inference_steps": 1, "output_type": "latent"}
    latents = run(pipe, "a dog", **call, **image, loop=True)[0]
    first, closing = (call["condition_latents"][-1] for call in spy.calls)
    assert first.abs().sum(dim=(0, 2, 3)).nonzero()[:, 0].tolist()[:1] == ([] if image_index is None else [0])
    kept = (num_frames + 1) // 2  # of the first window
    places = [((image_index or 0) + kept - 1 + frame) % num_frames for frame in range(8)]
    hidden = range(1, num_frames - kept + 1)
    for frame, place in enumerate(places[:num_frames]):
        shown = closing[:, frame]
        if frame in hidden:
            assert not shown.any()
        elif place != image_index:
            torch.testing.assert_close(shown, latents[:, place])


def test_a_loop_of_one_frame_needs_no_closing(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)
    run(pipe, "a dog", num_frames=1, num_inference_steps=1, loop=True)
    assert len(spy.calls) == 1


def test_several_known_frames_have_scales_of_their_own(pipe, monkeypatch):
    """Each clip of a batch is drawn as alone, and windows that go on from others count as known frames."""
    first, last = draw_sticker(1), draw_sticker(2)
    one, two = [first, *[None] * 7], [first, *[None] * 6, last]
    usual = {"guidance_scale": 3, "image_guidance_scale": 1}
    several = {"guidance_scale": 2.0, "image_guidance_scale": 4.0}
    continuation = {f"continuation_{name}": scale for name, scale in several.items()}

    def draw(frames, **scales):
        generator = [torch.Generator().manual_seed(7) for _ in frames]
        return pipe(
            ["a dog"] * len(frames),
            frames=frames,
            generator=generator,
            num_inference_steps=2,
            output_type="pt",
            **scales,
        ).frames

    torch.testing.assert_close(draw([two], **usual, **continuation), draw([two], **several))
    both = draw([one, two], **usual, **continuation)
    torch.testing.assert_close(both[1:], draw([two], **several))
    torch.testing.assert_close(both[:1], draw([one], **usual, **continuation))
    torch.testing.assert_close(both[:1], draw([one], **usual))
    assert pipe.continuation_scales == tuple(usual.values())  # of the last call

    spy = Spy(pipe, monkeypatch)
    run(pipe, "a dog", num_frames=12, num_inference_steps=1, **usual, **continuation)
    assert spy.passes() == [2, 3]
    run(pipe, "a dog", frames=two, num_inference_steps=1, continuation_image_guidance_scale=3.0, **usual)
    assert spy.passes()[2:] == [2]  # text and pictures count alike


# --- autoencoders and text encoders


def make_autoencoder_tiny():
    blocks = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    return AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()


def make_autoencoder_dc():
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": "ResBlock",
            "block_out_channels": (4, 8),
            "layers_per_block": (1, 1),
            "qkv_multiscales": ((), ()),
        }.items()
    }
    return AutoencoderDC(in_channels=4, latent_channels=4, **sides, scaling_factor=0.4).eval()


@pytest.mark.parametrize(
    "vae, unet",
    [
        (make_autoencoder_tiny, {}),
        (make_autoencoder_dc, {}),
        (lambda: make_vae(channels=3, latent_channels=6), {"in_channels": 12, "out_channels": 6}),
    ],
    ids=["tiny", "dc", "six latent channels"],
)
def test_autoencoders(vae, unet):
    pipe = make_pipeline(vae=vae(), unet=make_unet(**unet))
    assert pipe.vae_scale_factor == 2
    channels = pipe.vae.config.in_channels
    frames = run(pipe, "a dog", image=draw_sticker(1))
    assert frames.shape == (1, 8, channels, 8, 8) and frames.isfinite().all()
    latents = run(pipe, "a dog", image=draw_sticker(1), output_type="latent")
    torch.testing.assert_close(pipe.postprocess(pipe.decode_latents(latents), "pt")[:, 1:], frames[:, 1:])


def test_encoding_and_decoding_undo_each_other(pipe):
    pixels = torch.rand(1, 4, 8, 8, 8) * 2 - 1
    latents = pipe.encode_known_frames(pixels, torch.ones(1, 8, dtype=torch.bool))
    reconstruction = pipe.vae(pixels[0].transpose(0, 1)).sample.transpose(0, 1)
    torch.testing.assert_close(pipe.decode_latents(latents)[0], reconstruction)


def test_slicing_and_tiling(pipe):
    expected = run(pipe, "a dog", image=draw_sticker(1))
    pipe.vae.enable_slicing()
    torch.testing.assert_close(run(pipe, "a dog", image=draw_sticker(1)), expected, atol=1e-4, rtol=0)
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()
    assert run(pipe, "a dog", height=16, width=24).shape == (1, 8, 4, 16, 24)
    pipe.vae.disable_tiling()


def test_bert_reads_its_attention_mask():
    config = BertConfig(
        vocab_size=10, hidden_size=TEXT_WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert = BertModel(config).eval()
    pipe = make_pipeline(text_encoder=bert, tokenizer=make_bert_tokenizer())
    assert run(pipe, "a dog jumps").isfinite().all()
    tokens = pipe.tokenizer("a dog jumps", return_tensors="pt")
    embeds = pipe.encode_prompt("a dog jumps")[0]
    assert embeds.shape == (1, 20, TEXT_WIDTH)
    torch.testing.assert_close(embeds[:, :5], bert(**tokens).last_hidden_state)
    skipped = pipe.encode_prompt("a dog jumps", clip_skip=1)[0]
    torch.testing.assert_close(skipped[:, :5], bert(**tokens, output_hidden_states=True).hidden_states[-2])
    bert.config.use_attention_mask = False
    assert not torch.allclose(pipe.encode_prompt("a dog jumps")[0], embeds)


def test_second_text_encoder(monkeypatch):
    pipe = make_pipeline(
        unet=make_unet(second_text_dim=SECOND_TEXT_WIDTH),
        text_encoder_2=make_t5_encoder(),
        tokenizer_2=make_t5_tokenizer(),
    )
    spy = Spy(pipe, monkeypatch)
    frames = run(pipe, "a dog", negative_prompt="cat")
    embeds = pipe.encode_prompt("a dog", "cat")
    assert [tuple(e.shape) for e in embeds] == [(1, 20, TEXT_WIDTH)] * 2 + [(1, 77, SECOND_TEXT_WIDTH)] * 2
    torch.testing.assert_close(spy.calls[0]["encoder_hidden_states_2"], torch.cat([embeds[3], embeds[2]]))
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_embeds_2", "negative_prompt_embeds_2")
    torch.testing.assert_close(run(pipe, **dict(zip(names, embeds))), frames)
    assert not torch.allclose(run(pipe, "a dog", image=draw_sticker(1)), run(pipe, image=draw_sticker(1)))
    with pytest.raises(ValueError, match="rows"):
        run(pipe, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], prompt_embeds_2=embeds[2])
    idle = make_pipeline(text_encoder_2=make_t5_encoder(), tokenizer_2=make_t5_tokenizer())
    assert idle.encode_prompt("a dog")[2] is None and run(idle, "a dog").isfinite().all()


def test_clip_skip(pipe):
    layers = pipe.text_encoder(
        pipe.tokenizer("a dog", padding="max_length", return_tensors="pt").input_ids, output_hidden_states=True
    )
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    torch.testing.assert_close(pipe.encode_prompt("a dog")[0], layers.last_hidden_state)
    torch.testing.assert_close(pipe.encode_prompt("a dog", clip_skip=0)[0], layers.last_hidden_state)
    torch.testing.assert_close(pipe.encode_prompt("a dog", clip_skip=1)[0], norm(layers.hidden_states[-2]))
    assert not torch.allclose(run(pipe, "a dog", clip_skip=1), run(pipe, "a dog"))


def test_long_prompts_are_cut(pipe):
    assert pipe.encode_prompt("dog " * 50)[0].shape == (1, 20, TEXT_WIDTH)
    long = make_clip_tokenizer()
    long.model_max_length = 10**30
    pipe = make_pipeline(tokenizer=long)
    assert pipe.encode_prompt("dog " * 50)[0].shape == (1, 77, TEXT_WIDTH)


def test_embeddings_instead_of_texts(pipe):
    prompt_embeds, negative_prompt_embeds, *second = pipe.encode_prompt(["a dog", "cat"], "sad")
    assert second == [None, None]
    frames = run(pipe, ["a dog", "cat"], negative_prompt="sad", num_videos_per_prompt=2)
    embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
    torch.testing.assert_close(run(pipe, **embeds, num_videos_per_prompt=2), frames)


def test_encode_prompt_alone(pipe):
    names = ("vae", "unet", "scheduler")
    texts_only = type(pipe)(**pipe.components | dict.fromkeys(names))
    embeds = texts_only.encode_prompt("a dog", num_videos_per_prompt=3)[0]
    assert embeds.shape[0] == 3
    without_texts = type(pipe)(**pipe.components | {"text_encoder": None, "tokenizer": None})
    without_texts.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(without_texts, prompt_embeds=embeds[:1]), run(pipe, "a dog"))
    assert run(without_texts, image=draw_sticker(1)).shape == (1, 8, 4, 8, 8)
    with pytest.raises(ValueError, match="no text encoder"):
        run(without_texts, "a dog")


# --- callbacks


def test_callback_changes_guidance(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)

    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale, pipe._image_guidance_scale = (7.5, 3.0) if step == 0 else (1.0, 1.0)
        return tensors

    run(pipe, "a dog", image=draw_sticker(1), num_inference_steps=3, callback_on_step_end=callback)
    assert spy.passes() == [2, 3, 1]
    assert pipe.guidance_scale == 1.0 and pipe.num_timesteps == 3


def test_callback_gets_and_changes_tensors(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        if step == STEPS - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    names = pipe._callback_tensor_inputs
    call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    assert not run(pipe, "a dog", output_type="latent", **call).any()
    assert seen == [(step, sorted(names)) for step in range(STEPS)]


def test_interrupt(pipe, monkeypatch):
    spy = Spy(pipe, monkeypatch)

    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    run(pipe, "a dog", callback_on_step_end=callback)
    assert len(spy.calls) == 1
    run(pipe, "a dog")
    assert len(spy.calls) == 1 + STEPS
    noise = torch.randn(1, 4, 8, 4, 4)
    looped = run(pipe, "a dog", latents=noise, loop=True, callback_on_step_end=callback, output_type="latent")
    assert len(spy.calls) == 2 + STEPS
    assert not (looped == noise).any(dim=4).any()  # no frame is left as it was


def test_scales_that_a_callback_sets_hold_for_one_window(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, pipe.guidance_scale))
        pipe._guidance_scale = 1.0
        return tensors

    run(pipe, "a dog", num_inference_steps=2, guidance_scale=3.0, loop=True, callback_on_step_end=callback)
    assert seen == [(0, 3.0), (1, 1.0)] * 2


def test_clips_of_a_batch_of_loops_are_drawn_as_alone(pipe):
    one, two = draw_sticker(1), draw_sticker(2)
    clips = [[None, None, None, one, *[None] * 4], [one, *[None] * 5, two, None], [None] * 8]
    call = {"loop": True, "num_inference_steps": 2, "output_type": "pt", "continuation_guidance_scale": 2.0}

    def draw(frames):
        generator = [torch.Generator().manual_seed(7) for _ in frames]
        return pipe(["a dog"] * len(frames), frames=frames, generator=generator, **call).frames

    both = draw(clips)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(both[row : row + 1], draw([clip]))


def test_progress_bar(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    run(pipe, "a dog", num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    run(pipe, "a dog")
    assert capsys.readouterr().err == ""


# --- bad input


@pytest.mark.parametrize(
    "call, message",
    [
        ({}, "neither a text nor a picture"),
        ({"prompt": ""}, "neither a text nor a picture"),
        ({"frames": [None] * 8}, "neither a text nor a picture"),
        ({"prompt": 3}, "string"),
        ({"prompt": ["a"], "prompt_embeds": torch.zeros(1, 20, 16)}, "not both"),
        ({"prompt_embeds": torch.zeros(1, 20, 15)}, r"\(B, S, 16\)"),
        ({"prompt": "a", "negative_prompt_embeds": torch.zeros(1, 7, 16)}, "tokens"),
        ({"prompt": "a", "prompt_embeds_2": torch.zeros(1, 7, 12)}, "second_text_dim"),
        ({"prompt": ["a", "b"], "image": ["x"] * 3}, "3"),
        ({"prompt": ["a", "b"], "negative_prompt": ["a"] * 3}, "2 entries in a batch of 3"),
        ({"prompt": "a", "image": []}, "0 entries"),
        ({"image": "dog.png"}, "PIL image"),
        ({"image": np.zeros((8, 8, 2))}, "channels"),
        ({"image": np.full((8, 8, 3), 255.0)}, r"\[0, 1\]"),
        ({"image": np.full((8, 8, 3), np.nan)}, r"\[0, 1\]"),
        ({"image": np.zeros((8, 8, 3)), "image_index": 8}, "between 0 and 7"),
        ({"image": np.zeros((8, 8, 3)), "image_index": -1}, "between 0 and 7"),
        ({"image": np.zeros((8, 8, 3)), "frames": [None] * 8}, "not both"),
        ({"prompt": "a", "frames": [None] * 7, "num_frames": 8}, "8 frames"),
        ({"prompt": "a", "frames": [[None] * 8, [None] * 7]}, "8 frames"),
        ({"prompt": "a", "frames": np.zeros((8, 8, 8, 3))}, "list"),
        ({"prompt": "a", "num_frames": 0}, "from 1 to 128"),
        ({"prompt": "a", "num_frames": 129}, "from 1 to 128"),
        ({"prompt": "a", "height": 9}, "multiple of 2"),
        ({"prompt": "a", "width": 0}, "multiple of 2"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "num_videos_per_prompt": 0}, "num_videos_per_prompt"),
        ({"prompt": "a", "eta": 1.5}, "eta"),
        ({"prompt": "a", "guidance_stop": -0.1}, "guidance_stop"),
        ({"prompt": "a", "output_type": "gif"}, "output_type"),
        ({"prompt": "a", "clip_skip": 7}, "clip_skip"),
        ({"prompt": "a", "latents": torch.zeros(1, 4, 7, 4, 4)}, r"\(1, 4, 8, 4, 4\)"),
        ({"prompt": "a", "generator": [torch.Generator()] * 2}, "2 entries"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["noise"]}, "noise"),
        ({"prompt": "a", "ip_adapter_image": np.zeros((8, 8, 3))}, "load_ip_adapter"),
    ],
)
def test_bad_input(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"num_inference_steps": 1} | call)


def test_components_that_do_not_fit():
    pipe = make_pipeline(vae=make_vae(latent_channels=6))
    with pytest.raises(ValueError, match="6 channels"):
        pipe("a dog")
