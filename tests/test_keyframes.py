import json
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from example_scripts import load_example
from PIL import Image
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from rdtf_diffusers.data.animation import Animation, evenly_timed, frames_to_clip
from rdtf_diffusers.data.keyframes import (
    KEYFRAME_METHODS,
    TimmFeatures,
    VisionFeatures,
    extract_keyframes,
    keyframe_table,
    load_features,
    ping_pong,
    pixel_features,
)


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_VISION = {**TINY, "image_size": 16, "patch_size": 8}


def noise(num_frames, height=32, width=48, seed=0):
    """Frames (N, H, W, 4) of noise, alpha included."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 4), dtype=np.uint8)


def walk(num_frames, seed=0):
    """Features (N, 40) of frames that change all the time."""
    return np.random.default_rng(seed).normal(size=(num_frames, 40)).cumsum(axis=0).astype(np.float32)


def test_pixel_features_are_averages_of_premultiplied_blocks():
    frames = noise(3)
    premultiplied = frames / 255
    premultiplied[..., :3] *= premultiplied[..., 3:]
    blocks = premultiplied.reshape(3, 16, 2, 16, 3, 4).mean(axis=(2, 4)).reshape(3, -1)
    features = pixel_features(frames)
    assert features.shape == (3, 1024) and features.dtype == np.float32
    np.testing.assert_allclose(features, blocks, atol=1.5 / 255)  # two roundings to 8 bits
    assert pixel_features(noise(2, 5, 7)).shape == (2, 1024)
    frames[..., 3] = 0
    assert (pixel_features(frames) == 0).all()  # colours nobody sees


def test_clusters_give_their_first_frames_in_time_order():
    centres = 10 * np.eye(4)
    scenes = [2, 2, 0, 0, 0, 2, 3, 0, 1, 3, 2]
    features = centres[scenes] + 0.1 * np.random.default_rng(0).normal(size=(11, 4))
    for seed in range(5):
        assert extract_keyframes(features, np.ones(11), 4, seed=seed).tolist() == [0, 2, 6, 8]


def test_clustering_finds_the_short_event_that_even_spacing_misses():
    features = np.full((24, 8), 0.5, dtype=np.float32)
    features[9:11] = 1
    assert extract_keyframes(features, np.ones(24), 3, "cluster").tolist() == [0, 9]
    assert extract_keyframes(features, np.ones(24), 3, "difference").tolist() == [0, 9, 11]
    assert extract_keyframes(features, np.ones(24), 3, "uniform").tolist() == [0, 8, 16]


def test_difference_takes_the_largest_steps():
    features = np.array([0, 1, 1, 5, 3, 3, 10])[:, None]  # changes 1 0 4 2 0 7
    for k, expected in enumerate(([0], [0, 6], [0, 3, 6], [0, 3, 4, 6], [0, 1, 3, 4, 6], [0, 1, 3, 4, 6]), start=1):
        assert extract_keyframes(features, np.ones(7), k, "difference").tolist() == expected


def test_uniform_follows_time_and_not_frame_numbers():
    durations = np.array([50, 50, 300, 50, 150])
    assert extract_keyframes(walk(5), durations, 4, "uniform").tolist() == [0, 2, 4]
    assert evenly_timed(durations, 4).tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize("method", KEYFRAME_METHODS)
def test_indices_are_ordered_distinct_and_the_same_every_time(method):
    features, durations = walk(30), np.random.default_rng(1).integers(20, 200, 30)
    for k in (1, 2, 8, 29, 30, 31):
        indices = extract_keyframes(features, durations, k, method)
        assert indices[0] == 0 and (np.diff(indices) > 0).all() and indices[-1] < 30
        assert len(indices) == min(k, 30) or (method == "uniform" and len(indices) < k)
        assert indices.dtype.kind == "i"
        np.testing.assert_array_equal(indices, extract_keyframes(features, durations, k, method))


@pytest.mark.parametrize("k", range(3, 9))
def test_merged_equal_frames_give_the_same_keyframes(k):
    features, repeats = walk(20), np.random.default_rng(2).integers(1, 6, 20)
    merged = extract_keyframes(features, repeats * 40.0, k)
    whole = extract_keyframes(features.repeat(repeats, axis=0), np.full(repeats.sum(), 40.0), k)
    np.testing.assert_array_equal(np.repeat(np.arange(20), repeats)[whole], merged)


@pytest.mark.parametrize("method", KEYFRAME_METHODS)
def test_few_distinct_frames_give_fewer_keyframes_without_a_warning(method):
    still, pair = np.ones((6, 4), dtype=np.float32), np.tile(np.eye(2, dtype=np.float32), (3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract_keyframes(still[:1], np.array([100.0]), 8, method).tolist() == [0]
        if method != "uniform":  # which looks at time only
            assert extract_keyframes(still, np.ones(6), 3, method).tolist() == [0]
    if method == "cluster":
        assert extract_keyframes(pair, np.ones(6), 3).tolist() == [0, 1]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`method` must be one of cluster, uniform, difference, got 'middle'"):
        extract_keyframes(walk(4), np.ones(4), 3, "middle")
    with pytest.raises(ValueError, match="`k` must be at least 1, got 0"):
        extract_keyframes(walk(4), np.ones(4), 0)
    with pytest.raises(ValueError, match="got 3 for 4 frames"):
        extract_keyframes(walk(4), np.ones(3), 2)
    with pytest.raises(ValueError, match="`max_k` must be at least `min_k`, got 2 and 3"):
        keyframe_table(Animation(noise(4), np.ones(4), "noise"), max_k=2)


@pytest.mark.parametrize("method", KEYFRAME_METHODS)
def test_the_table_computes_features_once(method):
    calls = []

    def features(frames):
        calls.append(len(frames))
        return pixel_features(frames)

    animation = Animation(noise(12), np.arange(1.0, 13.0), "noise")
    table = keyframe_table(animation, features, method)
    assert list(table) == [3, 4, 5, 6, 7, 8] and calls == ([] if method == "uniform" else [12])
    for k, indices in table.items():
        expected = extract_keyframes(pixel_features(animation.frames), animation.durations, k, method)
        np.testing.assert_array_equal(indices, expected)
    assert list(keyframe_table(animation, features, method, 2, 2)) == [2]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 8, 13])
def test_ping_pong_turns_without_repeating_the_turning_frame(length, count):
    indices = np.arange(length) * 10
    expected, step = indices.tolist(), -1
    while 1 < length and len(expected) < count:
        expected += (indices[::step][1:])[: count - len(expected)].tolist()
        step = -step
    assert ping_pong(indices, count).tolist() == expected


def test_load_features_by_name(tmp_path, monkeypatch):
    assert load_features("pixels") is pixel_features
    with pytest.raises(OSError, match="nothing_here"):
        load_features(str(tmp_path / "nothing_here"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"rdtf_diffusers\[vision\]"):
        load_features("timm:vgg16")


@pytest.fixture(scope="module")
def vision_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    ViTModel(ViTConfig(**TINY_VISION)).save_pretrained(folder / "pooled")
    ViTForImageClassification(ViTConfig(**TINY_VISION)).save_pretrained(folder / "classifier")
    text = {**TINY, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig(vision_config=TINY_VISION, text_config=text, projection_dim=12)).save_pretrained(
        folder / "clip"
    )
    size = {"height": 16, "width": 16}
    for name in ("pooled", "classifier"):
        ViTImageProcessor(size=size).save_pretrained(folder / name)
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder / "clip")
    return folder


def reference_embedding(folder, name, pixels):
    """What the model alone says about normalised pixels (N, 3, 16, 16)."""
    if name == "clip":
        return CLIPModel.from_pretrained(folder / name).get_image_features(pixel_values=pixels).pooler_output
    if name == "pooled":
        return ViTModel.from_pretrained(folder / name)(pixel_values=pixels).pooler_output
    return ViTForImageClassification.from_pretrained(folder / name).vit(pixel_values=pixels).last_hidden_state[:, 0]


@pytest.mark.parametrize("name, width", [("pooled", 16), ("classifier", 16), ("clip", 12)])
def test_vision_features_are_the_models(vision_models, name, width):
    features = VisionFeatures(str(vision_models / name), batch_size=2)
    frames = noise(5, 16, 16)
    frames[3] = frames[1]
    values = features(frames)
    assert values.shape == (5, width) and values.dtype == np.float32
    np.testing.assert_array_equal(values[3], values[1])
    assert not np.allclose(values[0], values[1])

    white = frames_to_clip(frames, 16, channels=3)  # (5, 3, 16, 16) in [-1, 1]
    mean, std = (torch.tensor(getattr(features.processor, key)).view(3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        expected = reference_embedding(vision_models, name, (white.add(1).div(2) - mean) / std)
    np.testing.assert_allclose(values, expected, atol=0.02)  # the processor sees 8 bits


def test_vision_features_drive_the_table(vision_models):
    frames = np.repeat(noise(3, 20, 10), 4, axis=0)
    table = keyframe_table(Animation(frames, np.full(12, 50.0), "noise"), load_features(str(vision_models / "pooled")))
    assert all(indices.tolist() == [0, 4, 8] for indices in table.values())


def test_timm_features_are_the_first_fully_connected_layer(monkeypatch):
    torch.manual_seed(0)
    convolutions, first_layer = nn.Conv2d(3, 2, 32, stride=32), nn.Conv2d(2, 6, 7)
    vgg = nn.Module()
    vgg.features, vgg.pre_logits = convolutions, nn.Module()
    vgg.pre_logits.fc1 = first_layer
    vgg.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    made = []
    create_model = lambda name, **options: made.append((name, options)) or vgg  # noqa: E731
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))

    features = load_features("timm:vgg16")
    assert isinstance(features, TimmFeatures) and made == [("vgg16", {"pretrained": True, "num_classes": 0})]
    frames = noise(3, 40, 64)
    values = features(frames)
    assert values.shape == (3, 6)
    pixels = (frames_to_clip(frames, 256, channels=3) + 1) / 2
    pixels = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        pooled = nn.functional.adaptive_avg_pool2d(convolutions(pixels), 7).flatten(1)
        expected = nn.functional.linear(pooled, first_layer.weight.flatten(1), first_layer.bias)  # as in VGG's code
    np.testing.assert_allclose(values, expected, atol=1e-4)


@pytest.fixture(scope="module")
def benchmark():
    return load_example("benchmarks/keyframes.py")


def test_the_benchmark_counts_what_is_missed_and_repeated(benchmark):
    frames = np.zeros((4, 8, 8, 4), dtype=np.uint8)
    frames[1:3] = 255  # the others are nothing: a root mean square of 1 apart
    animation = Animation(frames, np.array([10.0, 10.0, 20.0, 10.0]), "flash")
    assert benchmark.quality(animation, {2: np.array([0, 1])}) == pytest.approx([0, 0, 0])
    assert benchmark.quality(animation, {2: np.array([0, 3])}) == pytest.approx([0.6, 1, 0.5])


def test_the_benchmark_runs_and_draws(benchmark, tmp_path, capsys):
    table, picture = tmp_path / "table.json", tmp_path / "sheet.png"
    benchmark.main(["--count", "6", "--json", str(table), "--picture", str(picture)])
    assert len(capsys.readouterr().out.splitlines()) == 7
    figures = json.loads(table.read_text())
    assert figures["count"] == 6 and set(figures["methods"]) == set(KEYFRAME_METHODS)
    low, high = figures["cluster_to_uniform"]["worst"]["interval"]
    assert low <= figures["cluster_to_uniform"]["worst"]["value"] <= high < 1
    assert Image.open(picture).width > 800

    row = benchmark.draw_stickers(1, seed=0)[0].frames
    Image.fromarray(row[0]).save(
        tmp_path / "real.gif",
        save_all=True,
        append_images=[Image.new("RGB", (96, 96), (20 * n, 0, 0)) for n in range(9)],
    )
    benchmark.main(["--data", str(tmp_path), "--json", str(table)])
    assert json.loads(table.read_text())["source"] == str(tmp_path)
    assert "1 animations" in capsys.readouterr().out
    (tmp_path / "real.gif").unlink()
    with pytest.raises(ValueError, match="no animation of more than 8 frames"):
        benchmark.main(["--data", str(tmp_path)])
