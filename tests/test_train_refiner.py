import pytest
import torch
from example_scripts import load_example
from tiny_models import make_pipeline

from rdtf_diffusers import KnownFrameRefiner
from rdtf_diffusers.training import DualMaskCollator


script = load_example("train_refiner.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline whose clips are 16 pixels wide."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


def arguments(model, stickers, output, steps=4, **options):
    settings = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": stickers,
        "output_dir": output,
        "train_batch_size": 2,
        "max_train_steps": steps,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 3,
        "updates_per_batch": 2,
    }
    if "refiner_model_name_or_path" not in options:
        settings |= {"channels": 32, "num_layers": 1}
    return [str(word) for name, value in (settings | options).items() for word in (f"--{name}", value)]


def make_trainer(model, stickers, output, **options):
    return script.Trainer(script.parse_args(arguments(model, stickers, output, **options)))


def test_a_run_ends_with_a_refiner_and_a_resumed_one_with_the_same(model, stickers, tmp_path):
    assert script.main(arguments(model, stickers, tmp_path / "whole")) == 0
    assert script.main(arguments(model, stickers, tmp_path / "parts", steps=3)) == 0
    assert script.main(arguments(model, stickers, tmp_path / "parts", resume_from_checkpoint="latest")) == 0
    whole, parts = (KnownFrameRefiner.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    assert whole.config.channels == 32
    fresh = make_trainer(model, stickers, tmp_path / "fresh").refiner.state_dict()
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, atol=0, rtol=0)
    assert not all(torch.equal(weight, fresh[name]) for name, weight in whole.state_dict().items())


def test_a_given_refiner_goes_on(model, stickers, tmp_path, capsys):
    given = KnownFrameRefiner(channels=16, num_layers=1, attention_head_dim=8)
    given.save_pretrained(tmp_path / "given")
    options = {"refiner_model_name_or_path": tmp_path / "given"}
    trainer = make_trainer(model, stickers, tmp_path, motion_weights="spin=2", **options)
    refiner = trainer.refiner
    assert trainer.clips.maker.motion_weights == {"spin": 2.0}
    for name, weight in given.state_dict().items():
        torch.testing.assert_close(refiner.state_dict()[name], weight, atol=0, rtol=0)
    KnownFrameRefiner(3, channels=16, num_layers=1, attention_head_dim=8).save_pretrained(tmp_path / "given")
    assert script.main(arguments(model, stickers, tmp_path, **options)) == 2
    assert "is for 3 channels, not 4." in capsys.readouterr().err


def test_what_is_lost_by_the_choice_of_still_places():
    truth = torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    half = torch.full((2, 1, 16, 16), 0.5)
    zeros = torch.zeros_like(half)
    far = 1 - truth

    def lost(drawn, still, still_share):
        rest = dict.fromkeys(("refined", "warped", "moved", "drawn", "shares"), far)
        hidden = script.RefinedFrames(**rest, mixed=drawn, still=still, still_share=still_share)
        return script.still_error(hidden, truth)

    assert lost(truth, far, zeros) == lost(far, truth, zeros + 1) == 0
    torch.testing.assert_close(lost(far, far, zeros + 1), lost(far, far, zeros))
    torch.testing.assert_close(lost(far, truth, half), 0.5 * lost(far, far, zeros))
    share = half.clone().requires_grad_()
    lost(far, truth, share).backward()
    assert (share.grad < 0).all()  # more of it


def test_batches_follow_from_seed_and_number(model, stickers, tmp_path):
    trainer, again = (make_trainer(model, stickers, tmp_path / name) for name in "ab")
    clips, captions, masks, generator = trainer.batch(1)
    same = again.batch(1)
    assert torch.equal(clips, same[0]) and captions == same[1] and torch.equal(masks, same[2])
    frames = trainer.pipeline.unet.config.num_frames
    assert clips.shape[:3] == (2, 4, frames) and masks.shape == (2, frames) and masks.any(dim=1).all()
    assert not torch.equal(trainer.batch(2)[0], clips)
    drawn = trainer.draw(clips, captions, masks, generator)
    assert drawn.shape == clips.shape and torch.equal(again.draw(*same), drawn)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("steps", [1, 3])
@torch.no_grad()
def test_a_perfect_network_draws_the_clip_itself(model, stickers, tmp_path, monkeypatch, kind, steps):
    trainer = make_trainer(model, stickers, tmp_path, drawing_steps=steps)
    trainer.pipeline.scheduler.register_to_config(prediction_type=kind)
    clips, captions, masks, generator = trainer.batch(0)
    latents = trainer.pipeline.encode_known_frames(clips, torch.ones_like(masks))

    def forward(noisy, timesteps, condition_latents, **conditions):
        signal, level = trainer.levels(timesteps)
        noise = (noisy - signal * latents) / level
        known = masks[:, None, :, None, None]
        torch.testing.assert_close(condition_latents, torch.where(known, latents, 0.0))
        sample = signal * noise - level * latents if kind == "v_prediction" else noise
        return type("Output", (), {"sample": sample})

    monkeypatch.setattr(trainer.pipeline.unet, "forward", forward)
    drawn = trainer.draw(clips, captions, masks, generator)
    torch.testing.assert_close(drawn, trainer.pipeline.decode_latents(latents), atol=1e-3, rtol=0)


def test_known_frames_that_are_drawn():
    generator = torch.Generator().manual_seed(0)
    collator = DualMaskCollator(joint_drop_prob=0.0, **script.MASKS)
    masks = torch.stack([script.draw_mask(collator, generator) for _ in range(2000)])
    assert masks.any(dim=1).all() and not masks.all(dim=1).any()
    alone = masks.sum(dim=1) == 1
    assert masks[alone, 0].float().mean() > 0.75
    alone = alone.float().mean().item()
    ends = (masks == torch.tensor([True, *[False] * 6, True])).all(dim=1).float().mean().item()
    assert 0.4 < alone < 0.5 and 0.1 < ends < 0.16


def test_a_picture_a_little_beside_the_truth_is_better_than_a_smear():
    truth = torch.zeros(1, 4, 32, 32)
    truth[..., 8:24, 8:24:4] = truth[..., 8:24, 9:24:4] = 1.0  # stripes
    smear = torch.nn.functional.avg_pool2d(truth, 5, stride=1, padding=2)
    beside = truth.roll(2, dims=3)
    assert (beside - truth).abs().mean() > (smear - truth).abs().mean()
    assert script.tolerant_error(truth, truth).max() == script.tolerant_error(beside, truth).max() == 0
    assert script.tolerant_error(smear, truth)[0, 0, 8, 8] > 0.3
    far = script.tolerant_error(truth.roll(16, dims=2), truth)
    assert far.shape == (1, 1, 16, 16) and far[0, 0, 8, 8] > 0.3 > far[0, 0, 14, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"procedural_fraction": 2}, "--procedural_fraction must be between 0 and 1, got 2.0"),
        ({"refiner_model_name_or_path": "r", "channels": 32}, "--channels: a given refiner has its own"),
        ({"motion_weights": "spin=2", "procedural_fraction": 0}, "no picture is set in motion"),
        ({"min_timestep": 500, "max_timestep": 400}, "--min_timestep 500 exceeds --max_timestep 400"),
    ],
)
def test_wrong_arguments(capsys, options, message):
    with pytest.raises(SystemExit):
        script.parse_args(arguments("m", "s", "o", **options))
    assert message in capsys.readouterr().err


def test_noise_levels_that_the_pipeline_does_not_have(model, stickers, tmp_path, capsys):
    assert script.main(arguments(model, stickers, tmp_path, max_timestep=1000)) == 2
    assert "`max_timestep` 1000: the last noise level of the pipeline is 999." in capsys.readouterr().err
    pipe = make_pipeline()
    pipe.scheduler.register_to_config(prediction_type="sample")
    pipe.save_pretrained(tmp_path / "model")
    assert script.main(arguments(tmp_path / "model", stickers, tmp_path)) == 2
    assert "'sample'" in capsys.readouterr().err


def test_an_empty_caption_is_no_text(model, stickers, tmp_path, monkeypatch):
    trainer, gates = make_trainer(model, stickers, tmp_path), []
    clips, _, masks, generator = trainer.batch(0)

    def forward(noisy, timesteps, text_mask, **conditions):
        gates.append(text_mask.tolist())
        return type("Output", (), {"sample": torch.zeros_like(noisy)})

    monkeypatch.setattr(trainer.pipeline.unet, "forward", forward)
    trainer.draw(clips, ["a dog", " "], masks, generator)
    assert gates == [[1.0, 0.0]] * 3


def test_full_memory_is_said_in_one_line(model, stickers, tmp_path, monkeypatch, capsys):
    def fail(self, step):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(script.Trainer, "step", fail)
    assert script.main(arguments(model, stickers, tmp_path)) == 2
    assert "error: the memory is full; give a smaller --train_batch_size" in capsys.readouterr().err


def test_what_is_not_there_is_said_in_one_line(model, tmp_path, capsys):
    assert script.main(arguments(model, tmp_path / "nothing", tmp_path / "out")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("train_refiner.py: error: ")
