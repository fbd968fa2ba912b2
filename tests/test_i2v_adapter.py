"""I2V-Adapter: how many weights, what the attention to the first frame computes, how a clip starts and is trained."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from tiny_models import make_pipeline, make_unet

from rdtf_diffusers import UNetDiscreteFrameModel
from rdtf_diffusers.baselines import (
    I2VAdapterConfig,
    I2VAdapterModel,
    clean_first_frame,
    frame_similarity_prior,
    keep_first_frame,
)
from rdtf_diffusers.baselines.adapters import ClipShape
from rdtf_diffusers.baselines.i2v_adapter import FirstFrameAttention, blur


@pytest.mark.parametrize(("mid_block", "count"), [(True, 24_793_280), (False, 21_515_200)])
def test_parameters_on_the_widths_of_stable_diffusion(mid_block, count):
    with torch.device("meta"):
        unet = UNetDiscreteFrameModel(block_out_channels=(320, 640, 1280, 1280))
    model = I2VAdapterModel(unet, I2VAdapterConfig(mid_block=mid_block))
    assert sum(parameter.numel() for parameter in model.trainable_parameters()) == count


def test_starts_as_a_copy_of_the_query():
    attn = make_unet().mid_block.attentions[0].transformer_blocks[0].attn1
    adapter = FirstFrameAttention(attn)
    assert torch.equal(adapter.query.weight, attn.to_q.weight)
    assert not adapter.out.weight.any() and not adapter.out.bias.any()


def test_attends_to_the_first_frame():
    attn = make_unet().mid_block.attentions[0].transformer_blocks[0].attn1
    adapter = FirstFrameAttention(attn)
    torch.manual_seed(0)
    torch.nn.init.normal_(adapter.query.weight)
    torch.nn.init.normal_(adapter.out.weight)
    clips = torch.randn(2, 3, 4, 16)  # (B, F, N, C)
    outputs = torch.empty(6, 4, 16)
    actual = adapter(attn, clips.flatten(0, 1), outputs, ClipShape(num_frames=3, height=2, width=2)).view(clips.shape)
    size = 16 // attn.heads
    for clip, result in zip(clips, actual):
        key, value = clip[0] @ attn.to_k.weight.T, clip[0] @ attn.to_v.weight.T
        for frame, corrected in zip(clip, result):
            query = frame @ adapter.query.weight.T
            heads = [slice(start, start + size) for start in range(0, 16, size)]
            attended = [(query[:, h] @ key[:, h].T / size**0.5).softmax(-1) @ value[:, h] for h in heads]
            torch.testing.assert_close(corrected, torch.cat(attended, dim=-1) @ adapter.out.weight.T)


def test_clean_first_frame():
    noisy, latents = torch.zeros(2, 4, 3, 2, 2), torch.ones(2, 4, 3, 2, 2)
    condition_mask = torch.tensor([[True, False, True], [False, True, False]])
    frame_mask = torch.tensor([[True, True, True], [True, True, False]])
    cleaned, loss_mask = clean_first_frame(noisy, latents, condition_mask, frame_mask)
    assert cleaned[:, 0, :, 0, 0].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert loss_mask.tolist() == [[False, True, True], [True, True, False]]


def test_blur():
    latents = torch.zeros(1, 2, 15, 15)
    latents[0, 0, 7, 7] = 1.0
    blurred = blur(latents)
    line = torch.tensor([2.718281828 ** (-0.5 * (i / 18) ** 2) for i in range(-4, 5)])
    torch.testing.assert_close(blurred[0, 0, 3:12, 3:12], line.outer(line) / line.sum() ** 2)
    assert not blurred[0, 1].any()
    torch.testing.assert_close(blur(torch.full((1, 1, 2, 2), 3.0)), torch.full((1, 1, 2, 2), 3.0))  # up to the border


def test_frame_similarity_prior():
    first_frame = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)
    scheduler.alphas_cumprod = torch.ones_like(scheduler.alphas_cumprod)  # no noise: the prior itself
    prior = frame_similarity_prior(first_frame, 8, scheduler, generator=torch.Generator().manual_seed(0))
    assert prior.shape == (2, 4, 8, 16, 16)
    assert torch.equal(prior[:, :, 0], first_frame)
    others, sharp = prior[:, :, 1:], first_frame[:, :, None]
    is_sharp, is_blurred = others == sharp, others == blur(first_frame)[:, :, None]
    assert (is_sharp ^ is_blurred).all()
    assert abs(is_sharp.float().mean() - 0.5) < 0.01
    assert not torch.equal(is_sharp[:, :, 0], is_sharp[:, :, 1])


def test_frame_similarity_prior_has_the_noise_of_the_first_step():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    latents = frame_similarity_prior(torch.zeros(2, 4, 32, 32), 8, scheduler, 50, generators)
    expected = (1 - scheduler.alphas_cumprod[981]).sqrt()
    assert latents[:, :, 1:].std() == pytest.approx(expected.item(), rel=0.01)
    alone = frame_similarity_prior(torch.zeros(1, 4, 32, 32), 8, scheduler, 50, torch.Generator().manual_seed(1))
    assert torch.equal(alone[0], latents[1])  # a clip comes out the same in any batch
    with pytest.raises(ValueError, match="EulerDiscreteScheduler"):
        frame_similarity_prior(torch.zeros(1, 4, 8, 8), 8, EulerDiscreteScheduler())


def test_in_the_pipeline():
    pipe = make_pipeline()
    I2VAdapterModel(pipe.unet, I2VAdapterConfig())
    first_frame = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = []
    pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0][:, :, 0]))
    generator = torch.Generator().manual_seed(0)
    pipe(
        "a dog",
        num_inference_steps=3,
        latents=frame_similarity_prior(first_frame, 8, pipe.scheduler, 3, generator),
        callback_on_step_end=keep_first_frame(first_frame),
        generator=generator,
    )
    assert len(seen) == 3
    assert all(torch.equal(frame, first_frame.expand_as(frame)) for frame in seen)
