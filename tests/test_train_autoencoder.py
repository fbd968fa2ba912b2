import json
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from example_scripts import load_example
from PIL import Image


script = load_example("train_autoencoder.py")


def tiny_vae(**options):
    torch.manual_seed(0)
    settings = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 2, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(4, 4, mid_block_add_attention=False, **blocks, **(settings | options)).eval()


@pytest.fixture
def folder(tmp_path):
    """Two stills and an animation of three frames."""
    folder = tmp_path / "data"
    folder.mkdir()
    frames = np.zeros((5, 16, 16, 4), dtype=np.uint8)
    for index, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]):
        frames[index, 3:12, index : index + 9] = (*colour, 255)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(folder / "a.png")
    pictures[1].save(folder / "b.webp", lossless=True)
    pictures[2].save(folder / "c.gif", save_all=True, append_images=pictures[3:], duration=100, disposal=2)
    rows = [{"file_name": name, "text": "a square"} for name in ("a.png", "b.webp", "c.gif")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(folder, output, steps=4, **options):
    settings = {
        "train_data_dir": folder,
        "validation_data_dir": folder,
        "output_dir": output,
        "resolution": 16,
        "block_out_channels": "8 16",
        "latent_channels": 4,
        "train_batch_size": 4,
        "max_train_steps": steps,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 2,
    }
    return [word for name, value in (settings | options).items() for word in (f"--{name}", *str(value).split())]


def test_pictures_and_frames_are_loaded_premultiplied(folder):
    pictures = script.load_pictures([str(folder)], 16, frames_per_animation=2)
    assert pictures.shape == (4, 4, 16, 16) and pictures.dtype == torch.uint8
    assert pictures[0, :, 5, 5].tolist() == [255, 0, 0, 255] and pictures[0, :, 0, 0].tolist() == [0, 0, 0, 0]
    (folder / "a.png").write_bytes(b"broken")
    assert len(script.load_pictures([str(folder)], 16, frames_per_animation=8)) == 4


def test_batches_are_valid_and_follow_from_the_generator():
    pictures = torch.randint(256, (6, 4, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures[:, :3] = torch.minimum(pictures[:, :3], pictures[:, 3:])
    first, again = (script.draw_batch(pictures, 9, 16, np.random.default_rng(1)) for _ in range(2))
    assert first.shape == (9, 4, 16, 16) and torch.equal(first, again)
    assert first.min() >= -1 and first.max() <= 1 + 1e-6
    assert (first[:, :3] <= first[:, 3:] + 1e-6).all()


def test_hue_rotations_keep_grey_and_turn_colours_around():
    turns = script.hue_rotations(torch.tensor([0.0, 2 * math.pi / 3, 1.0]))
    torch.testing.assert_close(turns[0], torch.eye(3))
    torch.testing.assert_close(turns[1], torch.eye(3).roll(1, dims=0), atol=1e-6, rtol=0)  # red -> green -> blue
    torch.testing.assert_close(turns[2] @ torch.ones(3), torch.ones(3))
    torch.testing.assert_close(turns[2] @ turns[2].T, torch.eye(3), atol=1e-6, rtol=0)


def test_loss_against_hand_computation():
    args = script.parse_args(["--train_data_dir", "x", "--mse_weight", "3", "--edge_weight", "0.5"])
    pixels = torch.zeros(1, 1, 2, 2)
    output = torch.tensor([[[[0.0, 0.0], [0.0, 0.4]]]])
    expected = 0.1 + 3 * 0.04 + 0.5 * (0.2 + 0.2)
    assert script.reconstruction_loss(output, pixels, args).item() == pytest.approx(expected)


def test_quality_against_hand_computation():
    class Fixed:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, pixels):
            output = pixels.clone()
            output[0] += 0.2  # 0.1 in [0, 1]: 20 dB
            output[1, 3, :, :2] = -1  # half of the alpha is lost
            return type("Output", (), {"sample": output})

    pixels = torch.zeros(2, 4, 4, 4)
    pixels[1] = 1
    psnr, iou = script.reconstruction_quality(Fixed(), pixels)
    second = -10 * math.log10(1 / 8)  # a quarter of the numbers, half of each, is wrong by 1
    assert psnr == pytest.approx((20 + second) / 2, abs=1e-3)
    # The first picture has alpha 0.5, which is not above the threshold, and its output has alpha 0.6.
    assert iou == pytest.approx((0 + 0.5) / 2)


def test_normalised_latents_have_unit_deviation_and_decode_to_the_same_picture():
    vae = tiny_vae()
    pixels = torch.rand(8, 4, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pixels).latent_dist
        decoded = vae.decode(before.mean).sample
        script.normalise_latents(vae, pixels)
        after = vae.encode(pixels).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, decoded, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    latents = torch.cat([after.sample(generator=torch.Generator().manual_seed(seed)) for seed in range(20)])
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=0.03, rtol=0)
    # the noise is scaled by the same factor as the latents
    factor = after.std / before.std
    torch.testing.assert_close(factor, factor[:1, :, :1, :1].expand_as(factor), atol=1e-4, rtol=1e-3)
    assert vae.config.scaling_factor == 1


def test_the_start_carries_averages_through_every_level():
    vae = tiny_vae()
    script.start_as_blur(vae)
    # Without the two last norms the start is linear: constant colours come back exactly.
    vae.encoder.conv_norm_out = vae.decoder.conv_norm_out = torch.nn.Identity()
    colours = torch.rand(5, 4, 1, 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(colours.expand(5, 4, 16, 16)).latent_dist
        output = vae.decode(posterior.mean).sample
    inside = (slice(None), slice(None), slice(4, 12), slice(4, 12))
    torch.testing.assert_close(output[inside], colours.expand(5, 4, 8, 8), atol=1e-4, rtol=0)


def test_trains_saves_and_resumes(folder, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert script.main(arguments(folder, whole, steps=4)) == 0
    assert script.main(arguments(folder, halves, steps=2)) == 0
    assert script.main(arguments(folder, halves, steps=4, resume_from_checkpoint="latest")) == 0
    models = [AutoencoderKL.from_pretrained(output) for output in (whole, halves)]
    assert models[0].config.in_channels == models[0].config.out_channels == 4
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert sorted(path.name for path in whole.glob("*checkpoint*")) == ["checkpoint-2", "checkpoint-4"]
    assert not list(whole.glob("unfinished*"))


def test_learns_a_handful_of_pictures(folder, tmp_path, caplog):
    with caplog.at_level("INFO"):
        options = {"checkpointing_steps": 40, "learning_rate": 5e-3, "ema_decay": 0.9}
        assert script.main(arguments(folder, tmp_path / "out", steps=40, **options)) == 0
    line = next(record.getMessage() for record in caplog.records if "validation/psnr" in record.getMessage())
    assert float(line.split("validation/psnr ")[1].split(",")[0]) > 12
    assert float(line.split("validation/alpha_iou ")[1]) > 0.7


def test_an_autoencoder_without_noise(folder, tmp_path, caplog):
    options = {"autoencoder": "AutoencoderTiny", "block_out_channels": "8 8", "checkpointing_steps": 40}
    options |= {"learning_rate": 5e-3, "ema_decay": 0.9}
    with caplog.at_level("INFO"):
        assert script.main(arguments(folder, tmp_path / "out", steps=40, **options)) == 0
    line = next(record.getMessage() for record in caplog.records if "validation/psnr" in record.getMessage())
    vae = AutoencoderTiny.from_pretrained(tmp_path / "out")
    pixels = script.load_pictures([str(folder)], 16, frames_per_animation=2).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latents
        output = vae.decode(latents).sample.clamp(-1, 1)
    psnr = (-10 * ((output - pixels) / 2).square().mean(dim=(1, 2, 3)).log10()).mean().item()
    assert float(line.split("validation/psnr ")[1].split(",")[0]) == pytest.approx(psnr, abs=0.1)
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    benchmark, base = load_example("benchmarks/autoencoder.py"), load_example("prepare_base.py")
    vae.save_pretrained(tmp_path / "model" / "vae")
    assert isinstance(benchmark.load_autoencoder(str(tmp_path / "model")), AutoencoderTiny)
    assert isinstance(base.DiffusersAutoModel.from_pretrained(str(tmp_path / "out")), AutoencoderTiny)
    assert scaled.mean().abs() < 0.5 and 0.5 < scaled.std() < 2  # over these pictures, and not over moved ones


def test_widths_follow_from_the_class():
    for name, widths in script.WIDTHS.items():
        assert script.parse_args(["--train_data_dir", "x", "--autoencoder", name]).block_out_channels == widths


def test_old_checkpoints_go_after_the_new_one_is_whole(folder, tmp_path):
    assert script.main(arguments(folder, tmp_path / "out", steps=6, checkpoints_total_limit=1)) == 0
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-6"]


def test_user_errors_are_one_line_and_code_2(folder, tmp_path, capsys):
    def error_of(*words, **options):
        assert script.main([*arguments(folder, tmp_path / "out", **options), *words]) == 2
        return capsys.readouterr().err

    assert "nowhere: neither a folder" in error_of(train_data_dir=tmp_path / "nowhere")
    assert "got 'checkpoint-7'" in error_of(resume_from_checkpoint="checkpoint-7")
    for name in ("a.png", "b.webp", "c.gif"):
        (folder / name).unlink()
    assert error_of().endswith(f"No readable picture in {folder}.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 15}, "--resolution must be a multiple of 2 for these blocks, got 15"),
        ({"block_out_channels": "8 15"}, "multiples of --norm_num_groups and at least 8, got 15"),
        ({"autoencoder": "AutoencoderTiny", "kl_weight": 1}, "--kl_weight: an AutoencoderTiny has neither norms nor"),
        ({"autoencoder": "AutoencoderTiny"}, "of an AutoencoderTiny must be alike, got [8, 16]"),
        ({"latent_channels": 3}, "--latent_channels must be at least 4, got 3"),
        ({"train_batch_size": 0}, "must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        script.main(arguments("x", "y", **options))
    assert caught.value.code == 2 and message in capsys.readouterr().err
