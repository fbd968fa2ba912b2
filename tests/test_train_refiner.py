import shutil

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from example_scripts import load_example
from tiny_models import make_pipeline, make_unet

from rdtf_diffusers import KnownFrameRefiner
from rdtf_diffusers.training import DualMaskCollator


script = load_example("train_refiner.py")
SHARES = list(script.TASK_SHARES.values())


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
        "num_inference_steps": 2,
    }
    if "refiner_model_name_or_path" not in options:
        settings |= {"channels": 32, "num_layers": 1, "interpolator_channels": 16}
    return [str(word) for name, value in (settings | options).items() for word in (f"--{name}", value)]


def make_trainer(model, stickers, output, **options):
    return script.Trainer(script.parse_args(arguments(model, stickers, output, **options)))


def test_a_run_ends_with_a_refiner_and_a_resumed_one_with_the_same(model, stickers, tmp_path):
    assert script.main(arguments(model, stickers, tmp_path / "whole")) == 0
    assert script.main(arguments(model, stickers, tmp_path / "parts", steps=3)) == 0
    shutil.rmtree(tmp_path / "parts" / "drawings")
    assert script.main(arguments(model, stickers, tmp_path / "parts", resume_from_checkpoint="latest")) == 0
    whole, parts = (KnownFrameRefiner.from_pretrained(tmp_path / name) for name in ("whole", "parts"))
    assert whole.config.channels == 32 and whole.config.interpolator_channels == 16
    fresh = make_trainer(model, stickers, tmp_path / "fresh").refiner.state_dict()
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], weight, atol=0, rtol=0)
    assert not all(torch.equal(weight, fresh[name]) for name, weight in whole.state_dict().items())


def test_a_given_refiner_goes_on(model, stickers, tmp_path, capsys):
    given = KnownFrameRefiner(4, 16, 1, 8, 16)
    given.save_pretrained(tmp_path / "given")
    options = {"refiner_model_name_or_path": tmp_path / "given"}
    trainer = make_trainer(model, stickers, tmp_path, motion_weights="spin=2", **options)
    refiner = trainer.refiner
    assert trainer.clips.maker.motion_weights == {"spin": 2.0}
    for name, weight in given.state_dict().items():
        torch.testing.assert_close(refiner.state_dict()[name], weight, atol=0, rtol=0)
    KnownFrameRefiner(3, 16, 1, 8, 16).save_pretrained(tmp_path / "given")
    assert script.main(arguments(model, stickers, tmp_path, **options)) == 2
    assert "is for 3 channels, not 4." in capsys.readouterr().err


def test_modules_that_are_not_named_stay_as_they_are(model, stickers, tmp_path, capsys):
    given = KnownFrameRefiner(4, 16, 1, 8, 16)
    given.save_pretrained(tmp_path / "given")
    options = {"refiner_model_name_or_path": tmp_path / "given", "task_weights": "it2v=0"}
    named = options | {"trainable_modules": "moved_trust"}
    assert script.main(arguments(model, stickers, tmp_path, **named)) == 0
    trained = KnownFrameRefiner.from_pretrained(tmp_path).state_dict()
    changed = {name.split(".")[0] for name, weight in given.state_dict().items() if not weight.equal(trained[name])}
    assert changed == {"moved_trust"}
    assert script.main(arguments(model, stickers, tmp_path, trainable_modules="other", **options)) == 2
    assert "`trainable_modules` ['other']: a refiner has drawn_encoder," in capsys.readouterr().err


def test_tasks_that_are_left_out(model, stickers, tmp_path):
    trainer = make_trainer(model, stickers, tmp_path, task_weights="interpolation=0")
    shares = script.task_shares(trainer.args.task_weights)
    masks = torch.cat([trainer.batch(number, shares)[2] for number in range(12)])
    assert masks.any(dim=1).all() and not (masks[:, 0] & masks[:, -1]).any()


def test_frames_of_animations_are_evenly_spaced(model, stickers, tmp_path):
    maker = make_trainer(model, stickers, tmp_path).clips.maker
    assert maker.keyframes == "uniform" and maker.min_keyframes == maker.num_frames


def test_clips_are_varied():
    """Mirrored or not, backwards or not, in other colours or not; the alpha goes with the rest."""
    clip = torch.rand(4, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        varied = script.vary(clip, generator)
        backwards = not torch.allclose(varied[0, 3].sum(), clip[0, 3].sum())
        expected = clip.flip(0) if backwards else clip
        mirrored = not torch.equal(varied[:, 3], expected[:, 3])
        expected = expected.flip(3) if mirrored else expected
        order = [next(n for n in range(3) if torch.equal(varied[0, c], expected[0, n])) for c in range(3)]
        assert torch.equal(varied, expected[:, [*order, 3]])
        seen.add((backwards, mirrored, tuple(order)))
    assert len(seen) == 2 * 2 * 6


def test_only_clips_for_the_interpolator_are_varied(model, stickers, tmp_path, monkeypatch):
    trainer = make_trainer(model, stickers, tmp_path)
    monkeypatch.setattr(script, "vary", lambda clip, generator: -clip)
    torch.testing.assert_close(trainer.clips_to_interpolate(1)[0], -trainer.batch(1, SHARES)[0])


def test_clips_of_two_frames_have_nothing_to_interpolate(model, stickers, tmp_path, capsys):
    pipe = make_pipeline(unet=make_unet(num_frames=2))
    pipe.save_pretrained(tmp_path / "two")
    KnownFrameRefiner(4, 16, 1, 8, 16).save_pretrained(tmp_path / "given")
    trainer = make_trainer(tmp_path / "two", stickers, tmp_path)
    assert not trainer.interpolates and not any(x.requires_grad for x in trainer.refiner.interpolator.parameters())
    trainer.step(1)
    options = {"refiner_model_name_or_path": tmp_path / "given", "trainable_modules": "interpolator"}
    assert script.main(arguments(tmp_path / "two", stickers, tmp_path, **options)) == 2
    assert "Clips of 2 frames have nothing to interpolate." in capsys.readouterr().err


def test_the_interpolator_needs_no_drawing(model, stickers, tmp_path, monkeypatch):
    given = KnownFrameRefiner(4, 16, 1, 8, 16)
    given.save_pretrained(tmp_path / "given")
    monkeypatch.setattr(script.Trainer, "drawings", lambda self, number: pytest.fail("drawn"))
    options = {"refiner_model_name_or_path": tmp_path / "given", "trainable_modules": "interpolator"}
    assert script.main(arguments(model, stickers, tmp_path, **options)) == 0
    trained = KnownFrameRefiner.from_pretrained(tmp_path).state_dict()
    changed = {name.split(".")[0] for name, weight in given.state_dict().items() if not weight.equal(trained[name])}
    assert changed == {"interpolator"}


def test_of_clips_to_interpolate_several_frames_are_known(model, stickers, tmp_path):
    trainer = make_trainer(model, stickers, tmp_path, task_weights="interpolation=0")
    masks = torch.cat([trainer.clips_to_interpolate(step)[1] for step in range(12)])
    assert (masks.sum(dim=1) > 1).all() and not masks.all(dim=1).any()
    assert (masks[:, 0] & masks[:, -1] & ~masks.all(dim=1)).any()  # the given weights are for drawings


def test_batches_follow_from_seed_and_number(model, stickers, tmp_path):
    trainer, again = (make_trainer(model, stickers, tmp_path / name) for name in "ab")
    clips, captions, masks, generator = trainer.batch(1, SHARES)
    same = again.batch(1, SHARES)
    assert torch.equal(clips, same[0]) and captions == same[1] and torch.equal(masks, same[2])
    frames = trainer.pipeline.unet.config.num_frames
    assert clips.shape[:3] == (2, 4, frames) and masks.shape == (2, frames) and masks.any(dim=1).all()
    assert not torch.equal(trainer.batch(2, SHARES)[0], clips)
    known = torch.stack([trainer.batch(number, SHARES)[2].sum(dim=1) for number in range(12)])
    assert ((known == 1).all(dim=1) | (known > 1).any(dim=1)).all() and (known == 1).all(dim=1).any()
    drawn = trainer.draw(clips, captions, masks, generator)
    assert drawn.shape == clips.shape and torch.equal(again.draw(*same), drawn)


def test_a_step_has_a_new_batch_in_turn_or_one_of_the_latest(model, stickers, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "KEPT", 3)
    trainer = make_trainer(model, stickers, tmp_path, updates_per_batch=4)
    numbers = [trainer.drawing_of_step(step) for step in range(1, 401)]
    assert numbers[::4] == list(range(100))
    for place, number in enumerate(numbers):
        assert max(0, place // 4 - 2) <= number <= place // 4
    assert {place // 4 - number for place, number in enumerate(numbers)} == {0, 1, 2}
    assert numbers == [trainer.drawing_of_step(step) for step in range(1, 401)]


def test_drawings_are_kept_in_files(model, stickers, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "KEPT", 2)
    drawn_numbers = []

    def make(**options):
        trainer = make_trainer(model, stickers, tmp_path, **options)
        draw, batch = trainer.draw, trainer.batch
        monkeypatch.setattr(
            trainer, "batch", lambda *args, **more: drawn_numbers.append(args[0]) or batch(*args, **more)
        )
        return trainer, draw, batch

    trainer, draw, batch = make()
    drawn, clips, masks = trainer.drawings(1)
    expected = batch(1, SHARES)
    torch.testing.assert_close(clips, expected[0], atol=1 / 255, rtol=0)
    torch.testing.assert_close(drawn, draw(*expected).clamp(-1, 1), atol=1 / 255 + 1e-5, rtol=0)
    assert torch.equal(masks, expected[2])
    again = make()[0].drawings(1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, (drawn, clips, masks)))
    assert drawn_numbers == [1]
    file = tmp_path / "drawings" / "1-0.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    trainer.drawings(1)
    assert drawn_numbers == [1, 1]  # what is damaged is drawn again
    make(num_inference_steps=3)[0].drawings(1)
    assert drawn_numbers == [1, 1, 1]  # not as it is to be drawn now
    (tmp_path / "drawings" / "0-0.safetensors").touch()
    (tmp_path / "drawings" / "1-1.safetensors").touch()  # of another process
    trainer.step(7)  # has number 3
    assert sorted(file.name for file in (tmp_path / "drawings").iterdir()) == ["1-1.safetensors", "3-0.safetensors"]


def test_another_schedule_or_other_clips_are_other_drawings(model, stickers, tmp_path):
    trainer = make_trainer(model, stickers, tmp_path)
    facts = trainer.drawing_facts()
    assert make_trainer(model, stickers, tmp_path).drawing_facts() == facts
    assert make_trainer(model, stickers, tmp_path, max_strength=0.8).drawing_facts() != facts
    trainer.pipeline.scheduler = DDIMScheduler.from_config(trainer.pipeline.scheduler.config, beta_end=0.02)
    assert trainer.drawing_facts() != facts


@torch.no_grad()
def test_clips_with_several_known_frames_are_drawn_as_the_pipeline_draws_them(model, stickers, tmp_path, monkeypatch):
    trainer = make_trainer(model, stickers, tmp_path, num_inference_steps=3)
    pipe = trainer.pipeline
    clips, captions, masks, _ = trainer.batch(0, SHARES)
    masks[:, 0], masks[:, -1] = True, True
    monkeypatch.setattr(pipe, "decode_latents", lambda latents: latents)
    drawn = trainer.draw(clips, captions, masks, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    torch.empty(()).uniform_(generator=generator)  # the strength
    frames = pipe.postprocess(clips, "pt")
    known = [[f if k else None for f, k in zip(clip, mask)] for clip, mask in zip(frames, masks.tolist())]
    noise = torch.randn(drawn.shape, generator=generator)
    size = {"height": clips.shape[3], "width": clips.shape[4]}
    call = size | {"latents": noise, "generator": generator, "output_type": "latent"}
    expected = pipe(captions, frames=known, **call, **trainer.settings).frames
    torch.testing.assert_close(drawn, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("several", [False, True])
@torch.no_grad()
def test_a_perfect_network_draws_the_clip_itself(model, stickers, tmp_path, monkeypatch, several, scheduler):
    """It is asked as the pipeline asks: from noise between several known frames, else from a noisy truth."""
    trainer = make_trainer(model, stickers, tmp_path, num_inference_steps=10, min_strength=0.5, max_strength=0.5)
    pipe, seen = trainer.pipeline, []
    clips, captions, masks, generator = trainer.batch(0, SHARES)
    masks = torch.zeros_like(masks)
    masks[:, [0, -1] if several else [0]] = True
    latents = pipe.encode_known_frames(clips, torch.ones_like(masks))

    def forward(noisy, timestep, condition_latents, **conditions):
        passes = len(noisy) // len(clips)
        clean = torch.cat([latents] * passes)
        signal = alphas[timestep.long()]  # Euler and Heun scale what they show to the same
        seen.append((noisy - signal.sqrt() * clean) / (1 - signal).sqrt())
        known = torch.cat([masks] * passes)[:, None, :, None, None]
        last = condition_latents[-len(clips) :]  # the pass with frames and text
        torch.testing.assert_close(last, torch.where(known, clean, 0.0)[-len(clips) :])
        return (seen[-1],)

    alphas = pipe.scheduler.alphas_cumprod
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, set_alpha_to_one=True)
    monkeypatch.setattr(pipe.unet, "forward", forward)
    drawn = trainer.draw(clips, captions, masks, generator)
    torch.testing.assert_close(drawn, pipe.decode_latents(latents), atol=1e-3, rtol=0)
    passes = 10 if several else 5
    assert len(seen) == (2 * passes - 1 if scheduler is HeunDiscreteScheduler else passes)
    if not several:
        assert 0.8 < seen[0].std() < 1.2  # what was added is standard noise


def test_known_frames_that_are_drawn():
    generator = torch.Generator().manual_seed(0)
    collator = DualMaskCollator(joint_drop_prob=0.0, **script.MASKS)
    masks = torch.cat([script.draw_masks(collator, script.task_shares({}), 2, generator) for _ in range(2000)])
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
        ({"min_strength": 0.5, "max_strength": 0.4}, "at most 1, and in this order, got 0.5 and 0.4"),
        ({"min_strength": 0}, "must be above 0"),
        ({"task_weights": "t2v=1"}, "--task_weights: factors from 0 on, not all 0, on it2v, interpolation,"),
        ({"task_weights": "it2v=-1"}, "--task_weights: factors from 0 on"),
        ({"trainable_modules": "interpolator"}, "give the refiner whose other modules stay"),
        ({"max_strength": 1.5}, "at most 1"),
    ],
)
def test_wrong_arguments(capsys, options, message):
    with pytest.raises(SystemExit):
        script.parse_args(arguments("m", "s", "o", **options))
    assert message in capsys.readouterr().err


def test_an_empty_caption_is_no_text(model, stickers, tmp_path, monkeypatch):
    trainer, gates = make_trainer(model, stickers, tmp_path), []
    clips, _, masks, generator = trainer.batch(0, SHARES)

    def forward(noisy, timestep, text_mask, **conditions):
        gates.append(text_mask.tolist())
        return (torch.zeros_like(noisy),)

    monkeypatch.setattr(trainer.pipeline.unet, "forward", forward)
    trainer.draw(clips, ["a dog", " "], masks, generator)
    assert gates and all(gate[-2:] == [1.0, 0.0] for gate in gates)


def test_the_settings_that_a_pipeline_comes_with(model, tmp_path):
    def settings(folder, *more):
        words = ["--pretrained_model_name_or_path", str(folder), "--train_data_dir", "s", *more]
        return script.call_settings(script.parse_args(words))

    assert settings(model)["num_inference_steps"] == 50 and settings(model)["continuation_guidance_scale"] is None
    (tmp_path / "generation.json").write_text('{"num_inference_steps": 12, "guidance_scale": 4.0, "eta": 0.5}')
    assert settings(tmp_path, "--num_inference_steps", "6") == settings(model) | {
        "num_inference_steps": 6,
        "guidance_scale": 4.0,
        "eta": 0.5,
    }


def test_full_memory_is_said_in_one_line(model, stickers, tmp_path, monkeypatch, capsys):
    def fail(self, step):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr(script.Trainer, "step", fail)
    assert script.main(arguments(model, stickers, tmp_path)) == 2
    assert "error: the memory is full; give a smaller --train_batch_size" in capsys.readouterr().err


def test_what_is_not_there_is_said_in_one_line(model, tmp_path, capsys):
    assert script.main(arguments(model, tmp_path / "nothing", tmp_path / "out")) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("train_refiner.py: error: ")
