"""What the training scripts take and refuse, presets, and the models and scheduler of a run."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from example_scripts import EXAMPLES, load_example
from tiny_models import (
    SECOND_TEXT_WIDTH,
    TEXT_WIDTH,
    TINY_UNET,
    make_clip_text_encoder,
    make_clip_tokenizer,
    make_t5_encoder,
    make_t5_tokenizer,
    make_unet,
    make_vae,
)

from rdtf_diffusers import UNetDiscreteFrameModel
from rdtf_diffusers.training import PRESETS, TASKS


# train_text_to_image.py of diffusers 0.42
UPSTREAM = """
    input_perturbation pretrained_model_name_or_path revision variant dataset_name dataset_config_name train_data_dir
    image_column caption_column max_train_samples validation_prompts output_dir cache_dir seed resolution center_crop
    random_flip train_batch_size num_train_epochs max_train_steps gradient_accumulation_steps gradient_checkpointing
    learning_rate scale_lr lr_scheduler lr_warmup_steps snr_gamma dream_training dream_detail_preservation
    use_8bit_adam allow_tf32 use_ema offload_ema foreach_ema non_ema_revision dataloader_num_workers adam_beta1
    adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token prediction_type hub_model_id
    logging_dir mixed_precision report_to local_rank checkpointing_steps checkpoints_total_limit
    resume_from_checkpoint enable_xformers_memory_efficient_attention noise_offset validation_epochs
    tracker_project_name image_interpolation_mode
""".split()
REFUSED = {"dream_training", "dream_detail_preservation", "enable_xformers_memory_efficient_attention"}


@pytest.fixture(scope="module")
def script():
    return load_example("train_rdtf.py")


@pytest.fixture(scope="module")
def parts():
    return load_example("model_parts.py")


def test_arguments_are_spelled_as_in_diffusers(script):
    assert len(UPSTREAM) == 57
    assert set(UPSTREAM) - REFUSED <= set(vars(script.parse_args(["--train_data_dir", "stickers"])))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train_data_dir s --dream_training", "--dream_training: DREAM"),
        ("--train_data_dir s --dream_detail_preservation 1.0", "--dream_detail_preservation: DREAM"),
        ("--train_data_dir s --enable_xformers_memory_efficient_attention", "scaled_dot_product_attention"),
        ("--preset tiny", "--train_data_dir or --dataset_name"),
        ("--train_data_dir s --latent_cache c", "or else --latent_cache"),
        ("--latent_cache c --streaming", "leave --streaming out"),
        ("--latent_cache c --random_flip", "encoded already"),
        ("--latent_cache c --motion_weights spin=2", "give them to prepare_dataset.py"),
        ("--train_data_dir s --motion_weights spin=2 spin=3", "--motion_weights: a name comes twice"),
        ("--train_data_dir s --motion_weights spin=2 --procedural_fraction 0", "no picture is set in motion"),
        ("--train_data_dir s --motion_weights spin", "argument --motion_weights: 'spin' is not NAME=NUMBER"),
        ("--dataset_name d --streaming --num_train_epochs 2", "give steps, not epochs"),
        ("--train_data_dir s --max_train_steps 2 --num_train_epochs 2", "give one of them"),
        ("--train_data_dir s --train_batch_size 0", "--train_batch_size must be at least 1, got 0"),
        ("--train_data_dir s --learning_rate -1", "--learning_rate must not be negative, got -1.0"),
        ("--train_data_dir s --max_grad_norm 0", "--max_grad_norm must be finite and above 0, got 0.0"),
        ("--train_data_dir s --lr_scheduler piecewise_constant", "invalid choice: 'piecewise_constant'"),
        ("--train_data_dir s --task_weights it2v=1=2", "--task_weights: 'it2v=1=2' is not"),
        ("--train_data_dir s --unet_model_name_or_path m --temporal_layer conv3d", "a given UNet has its own"),
        ("--train_data_dir s --unet_model_name_or_path m --block_out_channels 16 16", "a given UNet has its own"),
        ("--train_data_dir s --joint_drop_prob 1.5", "--joint_drop_prob must be between 0 and 1, got 1.5"),
        (
            "--train_data_dir s --interpolation_ends_prob 0.6 --interpolation_gap_prob 0.5",
            "--interpolation_ends_prob and --interpolation_gap_prob must not exceed 1 together",
        ),
        ("--train_data_dir s --timestep_bias_multiplier 0", "--timestep_bias_multiplier must be finite and above 0"),
        ("--train_data_dir s --timestep_bias_multiplier inf", "must be finite and above 0, got inf"),
        ("--train_data_dir s --timestep_bias_begin 650", "need a --timestep_bias_multiplier"),
        ("--train_data_dir s --validation_eta 2", "--validation_eta must be between 0 and 1, got 2.0"),
        ("--train_data_dir s --validation_guidance_scale nan", "must not be negative, got nan"),
        ("--train_data_dir s --offload_ema", "--use_ema"),
        ("--train_data_dir s --use_8bit_adam --optimizer muon", "no --optimizer muon in 8 bits"),
        ("--train_data_dir s --task_weights it2v", "--task_weights: 'it2v' is not NAME=NUMBER"),
        ("--train_data_dir s --validation_prompts a b --validation_images x.png", "as many as --validation_prompts"),
        ("--train_data_dir s --validation_prompts a --validation_images x.png", "--validation_images: x.png"),
        ("--train_data_dir s --validation_prompts ''", "needs a picture"),
        ("--train_data_dir s --preset huge", "invalid choice: 'huge'"),
        ("--train_data_dir s --caption_colum text", "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(script, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        script.parse_args([word.strip("'") for word in words.split()])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_8bit_adam_asks_for_its_package(script, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        script.parse_args(["--train_data_dir", "s", "--use_8bit_adam"])
    assert "pip install bitsandbytes" in capsys.readouterr().err


def test_presets_bring_defaults_that_arguments_override(script):
    tiny = script.parse_args(["--train_data_dir", "s"])
    paper = script.parse_args(["--train_data_dir", "s", "--preset", "paper"])
    assert (tiny.resolution, paper.resolution) == (64, 256)
    assert (paper.learning_rate, script.DEFAULT_STEPS, paper.train_batch_size) == (1e-5, 50_000, 1)
    assert (paper.validation_inference_steps, paper.validation_guidance_scale, paper.validation_eta) == (50, 7.5, 1.0)
    assert script.parse_args(["--train_data_dir", "s", "--preset", "paper", "--resolution", "128"]).resolution == 128


def test_preset_sizes():
    widths = {"tiny": (384, 16, None), "small": (768, 4, None), "paper": (1024, 4, 768)}
    sizes = {}
    for name, (text, channels, second) in widths.items():
        with torch.device("meta"):
            unet = UNetDiscreteFrameModel(
                **PRESETS[name].unet,
                in_channels=2 * channels,
                out_channels=channels,
                cross_attention_dim=text,
                second_text_dim=second,
            )
        sizes[name] = unet.num_parameters() / 1e6
    assert sizes == pytest.approx({"tiny": 4.66, "small": 274.06, "paper": 960.12}, abs=0.005)


def test_tiny_takes_its_frozen_parts_from_the_bundled_model(script, parts):
    args = script.parse_args(["--train_data_dir", "s"])
    pipeline = parts.load_frozen_parts(args)
    assert pipeline.unet is None and pipeline.vae.dtype == torch.float32
    assert not any(weight.requires_grad for weight in pipeline.text_encoder.parameters())
    unet = parts.make_unet(args, pipeline)
    assert (unet.config.in_channels, unet.config.sample_size, unet.num_parameters()) == (32, 8, 4_661_408)
    narrow = script.parse_args(["--train_data_dir", "s", "--block_out_channels", "16", "32"])
    assert parts.make_unet(narrow, pipeline).config.block_out_channels == (16, 32)


@pytest.fixture
def small_paper(tmp_path, monkeypatch):
    """The preset "paper" with folders in place of its public ids, and a UNet of some thousand parameters."""
    saved = {
        "vae": [make_vae(channels=3)],
        "text_encoder": [make_clip_text_encoder(), make_clip_tokenizer()],
        "text_encoder_2": [make_t5_encoder(), make_t5_tokenizer()],
    }
    for name, things in saved.items():
        for thing in things:
            thing.save_pretrained(tmp_path / name)
    assert set(saved) == set(PRESETS["paper"].parts)
    places = {name: str(tmp_path / name) for name in saved}
    monkeypatch.setitem(PRESETS, "paper", dataclasses.replace(PRESETS["paper"], parts=places, unet=TINY_UNET))


def test_paper_is_built_from_its_public_parts(script, parts, small_paper):
    args = script.parse_args(["--train_data_dir", "s", "--preset", "paper", "--resolution", "16"])
    pipeline = parts.load_frozen_parts(args)
    scheduler = parts.make_scheduler(args, pipeline)
    assert scheduler.config.prediction_type == "epsilon" and scheduler.config.steps_offset == 1
    assert not scheduler.config.clip_sample and not scheduler.config.set_alpha_to_one
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.betas, betas)
    unet = parts.make_unet(args, pipeline)
    assert unet.config.cross_attention_dim == TEXT_WIDTH and unet.config.second_text_dim == SECOND_TEXT_WIDTH
    pipeline.register_modules(unet=unet, scheduler=scheduler)
    assert pipeline("a dog", num_inference_steps=1).frames[0][0].mode == "RGB"


def test_training_starts_from_a_given_unet_that_fits(script, parts, base, tmp_path):
    args = ["--train_data_dir", "s", "--pretrained_model_name_or_path", str(base), "--resolution", "16"]
    args = [*args, "--unet_model_name_or_path", str(tmp_path)]
    unet = make_unet(cross_attention_dim=16)
    unet.half().save_pretrained(tmp_path / "unet")
    parsed = script.parse_args(args)
    pipeline = parts.load_frozen_parts(parsed)
    loaded = parts.make_unet(parsed, pipeline)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, unet.state_dict()[name].float(), rtol=0, atol=0)
    assert (loaded.config.sample_size, pipeline.vae_scale_factor) == (8, 2) != unet.config.sample_size
    for other, message in (
        ({"in_channels": 10, "out_channels": 5}, "in_channels 10, not 8"),
        ({"num_frames": 6}, "num_frames 6, not 8"),
    ):
        make_unet(cross_attention_dim=16, **other).save_pretrained(tmp_path / "unet")
        with pytest.raises(ValueError, match=message):
            parts.make_unet(parsed, pipeline)


def test_layers_are_added_to_a_given_unet_and_never_taken_away(script, parts, base, tmp_path):
    args = ["--train_data_dir", "s", "--pretrained_model_name_or_path", str(base), "--resolution", "16"]
    args = [*args, "--unet_model_name_or_path", str(tmp_path)]
    unet = make_unet(cross_attention_dim=16)
    unet.save_pretrained(tmp_path / "unet")
    pipeline = parts.load_frozen_parts(script.parse_args(args))
    more = ["--copy_num_heads", "1", "--frame_text_layers", "1", "--clip_attention_num_heads", "1"]
    larger = parts.make_unet(script.parse_args([*args, *more]), pipeline)
    assert larger.known_frame_copy.to_q.bias.eq(4).all() and not larger.known_frame_copy.to_gate.weight.any()
    assert larger.config.copy_num_heads == larger.config.frame_text_layers == 1
    old = {name: weight for name, weight in larger.state_dict().items() if name in unet.state_dict()}
    assert old.keys() == unet.state_dict().keys()
    for name, weight in old.items():
        torch.testing.assert_close(weight, unet.state_dict()[name], rtol=0, atol=0)
    larger.save_pretrained(tmp_path / "unet")
    assert parts.make_unet(script.parse_args(args), pipeline).config.copy_num_heads == 1  # as it was given
    for changed in ("0", "2"):
        with pytest.raises(ValueError, match=f"not changed or taken away: `copy_num_heads` 1 to {changed}"):
            parts.make_unet(script.parse_args([*args, "--copy_num_heads", changed]), pipeline)
    with pytest.raises(ValueError, match="`frame_text_layers` 1 to 0"):
        parts.make_unet(script.parse_args([*args, "--frame_text_layers", "0"]), pipeline)


@torch.no_grad()
def test_more_layers_for_the_text_of_frames_change_nothing_at_first(script, parts, base, tmp_path):
    args = ["--train_data_dir", "s", "--pretrained_model_name_or_path", str(base), "--resolution", "16"]
    args = [*args, "--unet_model_name_or_path", str(tmp_path), "--frame_text_layers", "3"]
    unet = make_unet(cross_attention_dim=16, frame_text_layers=1)
    for weight in unet.motion_modules_text.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    unet.save_pretrained(tmp_path / "unet")
    larger = parts.make_unet(script.parse_args(args), parts.load_frozen_parts(script.parse_args(args)))
    assert len(larger.motion_modules_text.transformer_blocks) == larger.config.frame_text_layers == 3
    time, text = torch.randn(2, larger.motion_modules_text.proj_out.out_features), torch.randn(2, 5, 16)
    embeddings = [x.motion_modules_text.eval()(time, text, 8) for x in (unet, larger)]
    torch.testing.assert_close(*embeddings, rtol=0, atol=0)


def test_motions_are_weighed_in_the_training_data(script):
    parsed = script.parse_args(["--train_data_dir", "s", "--motion_weights", "spin=2", "zoom in=0.5"])
    maker = load_example("training_data.py").make_maker(parsed, channels=4)
    assert maker.motion_weights == {"spin": 2.0, "zoom in": 0.5}


def test_the_scheduler_of_a_run(script, parts, base):
    args = ["--train_data_dir", "s", "--pretrained_model_name_or_path", str(base), "--resolution", "16"]
    pipeline = parts.load_frozen_parts(script.parse_args(args))
    pipeline.scheduler.register_to_config(rescale_betas_zero_snr=True)
    for prediction_type, zero_snr in (("v_prediction", True), ("epsilon", False)):
        config = parts.make_scheduler(
            script.parse_args([*args, "--prediction_type", prediction_type]), pipeline
        ).config
        assert (config.prediction_type, config.rescale_betas_zero_snr) == (prediction_type, zero_snr)
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="'sample'"):
        parts.make_scheduler(script.parse_args(args), pipeline)
    with pytest.raises(ValueError, match="multiple of 2, got 15"):
        parts.load_frozen_parts(script.parse_args([*args, "--resolution", "15"]))


def test_half_precision_weights_are_not_trained(script):
    args = script.parse_args(["--train_data_dir", "s"])
    with pytest.raises(ValueError, match=r"must be torch.float32, got torch.float16"):
        script.make_optimizer(torch.nn.Linear(2, 2).half(), args)
    frozen = torch.nn.Linear(2, 2)
    frozen.weight.requires_grad_(False)
    (group,) = script.make_optimizer(frozen, args).param_groups
    assert [weight.shape for weight in group["params"]] == [(2,)] and group["lr"] == 1e-3


def test_8bit_adam_gets_the_same_settings(script, monkeypatch):
    class AdamW8bit(torch.optim.AdamW):
        pass

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", SimpleNamespace(AdamW8bit=AdamW8bit))
    args = script.parse_args(["--train_data_dir", "s", "--use_8bit_adam", "--adam_beta2", "0.99"])
    optimizer = script.make_optimizer(torch.nn.Linear(2, 2), args)
    assert isinstance(optimizer, AdamW8bit) and optimizer.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize("file", sorted((EXAMPLES / "accelerate_configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_understands_its_configurations(file):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert not config.use_cpu and config.num_processes >= config.num_machines
    kinds = {"one_gpu": "NO", "fsdp": "FSDP", "deepspeed_zero2": "DEEPSPEED"}
    assert config.distributed_type.value == kinds.get(file.stem, "MULTI_GPU")
    wrapped = config.fsdp_config.get("fsdp_transformer_layer_cls_to_wrap", "")
    assert set(filter(None, wrapped.split(","))) <= set(UNetDiscreteFrameModel._no_split_modules)


def test_task_names_of_the_help_are_those_of_the_paper(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ", ".join(TASKS) in text and "DREAM" not in text
    assert "After the warm-up. Default: 0.001." in text and "Default: None" not in text
    with pytest.raises(SystemExit, match="0"):
        script.parse_args(["--preset", "paper", "--help"])
    assert "After the warm-up. Default: 1e-05." in " ".join(capsys.readouterr().out.split())
