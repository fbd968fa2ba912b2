"""Feature networks with tiny weights: what they are shown, how short clips are padded, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from rdtf_diffusers.metrics import features as features_module
from rdtf_diffusers.metrics.features import extract_features, load_feature_network, pad_frames, square_over_white
from rdtf_diffusers.metrics.frechet import frechet_distance


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_VISION = {**TINY, "image_size": 16, "patch_size": 8}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def clips(count: int, frames: int = 8, channels: int = 4, height: int = 20, width: int = 20, seed: int = 0):
    """Clips (B, F, C, H, W) of noise in [-1, 1], premultiplied, transparent in places."""
    pixels = torch.rand(count, frames, channels, height, width, generator=torch.Generator().manual_seed(seed))
    if channels == 4:
        pixels[:, :, 3] = (1.5 * pixels[:, :, 3] - 0.25).clamp(0, 1)
        pixels[:, :, :3] *= pixels[:, :, 3:]
    return pixels * 2 - 1


class LikeI3D(torch.nn.Module):
    """What the public I3D file is called with; the features tell what came in."""

    def forward(
        self, videos: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        corner = videos[:, :, :, 0, 0].mean(2)  # (B, 3)
        frames = torch.full_like(corner[:, :1], videos.shape[2])
        return torch.cat([videos.mean((2, 3, 4)), corner, frames, frames * 0 + videos.shape[4]], dim=1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    file = tmp_path_factory.mktemp("i3d") / "tiny.pt"
    torch.jit.script(LikeI3D()).save(file)
    return file


def save_videomae(folder, model_class=VideoMAEForVideoClassification, **config):
    torch.manual_seed(0)
    sizes = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = model_class(VideoMAEConfig(**TINY_VISION, **sizes, decoder_intermediate_size=16, **config))
    for parameter in model.parameters():  # norms at their start could not be told from none
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size=size, **IMAGENET).save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    ViTModel(ViTConfig(**TINY_VISION)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}, **IMAGENET).save_pretrained(folder)
    return folder


def over_white_uint8(batch: torch.Tensor) -> np.ndarray:
    """Clips (B, F, 4, H, W) as pictures (B*F, H, W, 3) uint8."""
    pixels = (batch.flatten(0, 1) + 1) / 2
    rgb = pixels[:, :3] + 1 - pixels[:, 3:]
    return rgb.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def test_repeating_shows_each_frame_equally_often():
    batch = clips(2, frames=3)
    padded = pad_frames(batch, 8, "repeat")
    assert torch.equal(padded, batch[:, [0, 0, 0, 1, 1, 1, 2, 2, 2]])
    assert pad_frames(batch, 3, None) is batch
    with pytest.raises(ValueError, match='`clips` have 3 frames, the network needs 8; with `padding="repeat"`'):
        pad_frames(batch, 8, None)
    with pytest.raises(ValueError, match="`padding` must be one of repeat or None, got 'loop'"):
        pad_frames(batch, 2, "loop")


def test_networks_see_clips_over_white_and_whole():
    batch = torch.full((1, 2, 4, 4, 6), -1.0)  # transparent
    batch[:, :, 3, :, :3] = 1  # black on the left
    frames = square_over_white(batch)
    assert frames.shape == (2, 3, 6, 6)
    expected = torch.ones(2, 3, 6, 6)
    expected[:, :, 1:5, :3] = -1
    assert torch.equal(frames, expected)
    rgb = clips(1, channels=3)
    assert torch.equal(square_over_white(rgb), rgb[0])


def test_i3d_is_called_as_the_public_file_wants_it(i3d):
    network = load_feature_network(f"i3d:{i3d}", padding="repeat")
    assert network.name == "I3D (tiny; frames repeated to 9 or more)"
    assert network.padding == "repeat"
    batch = clips(2, height=10)
    features = network(batch)
    assert features.dtype == torch.float32 and features.shape == (2, 8)
    frames = torch.from_numpy(over_white_uint8(batch)).float().view(2, 8, 10, 20, 3)
    mean = (frames.mean((1, 2, 3)) + 255) / 2  # half of the square is white padding
    torch.testing.assert_close(features[:, :3], mean, atol=0.5, rtol=0)
    assert (features[:, 3:6] == 255).all()
    assert features[:, 6:].tolist() == [[16, 20]] * 2
    assert network(clips(1, frames=9))[0, 6] == 9


@pytest.mark.parametrize("frames", [1, 8])
def test_short_clips_are_refused_until_a_rule_is_named(i3d, tmp_path, frames):
    save_videomae(tmp_path)
    for spec in (f"i3d:{i3d}", f"videomae:{tmp_path}"):
        network = load_feature_network(spec)
        assert "repeat" not in network.name
        with pytest.raises(ValueError, match=f"`clips` have {frames} frames, the network needs"):
            network(clips(2, frames=frames))


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_videomae_gives_what_its_classifier_sees(tmp_path, use_mean_pooling):
    model = save_videomae(tmp_path, use_mean_pooling=use_mean_pooling)
    network = load_feature_network(f"videomae:{tmp_path}", padding="repeat")
    assert network.name == f"VideoMAE ({tmp_path.name}; frames repeated to 16)"
    batch = clips(3, height=16, width=16)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(list(over_white_uint8(batch)), return_tensors="pt")["pixel_values"].view(3, 8, 3, 16, 16)
    videos = pixels.repeat_interleave(2, dim=1)
    with torch.inference_mode():
        if use_mean_pooling:
            expected, given = model(videos).logits, model.classifier(network(batch))
        else:
            expected, given = model.videomae(videos).last_hidden_state.mean(1), network(batch)
    torch.testing.assert_close(given, expected, atol=0.05, rtol=0.01)  # the processor rounds to 8 bits
    assert not torch.allclose(network(batch.flip(1)), network(batch))  # time counts


def test_videomae_without_a_classifier(tmp_path):
    model = save_videomae(tmp_path, VideoMAEForPreTraining, use_mean_pooling=False)
    network = load_feature_network(f"videomae:{tmp_path}")
    batch = clips(2, frames=16)
    with torch.inference_mode():
        expected = model.videomae(network.prepare(batch).view(2, 16, 3, 16, 16)).last_hidden_state.mean(1)
    torch.testing.assert_close(network(batch), expected)


@pytest.mark.parametrize("frames", [5, 17])
def test_videomae_takes_exactly_as_many_frames_as_it_has_positions(tmp_path, frames):
    save_videomae(tmp_path)
    network = load_feature_network(f"videomae:{tmp_path}", padding="repeat")
    with pytest.raises(ValueError, match=f"`clips` have {frames} frames, VideoMAE .* takes 16 or a whole part"):
        network(clips(1, frames=frames))


def test_frame_features_are_the_mean_over_frames(vit):
    network = load_feature_network(f"frames:{vit}", padding="repeat")
    assert (network.name, network.padding) == (f"{vit.name}, mean over frames", None)
    batch = clips(2, frames=3, height=40, width=40)
    model, processor = ViTModel.from_pretrained(vit).eval(), AutoImageProcessor.from_pretrained(vit)
    with torch.inference_mode():
        output = model(**processor(list(over_white_uint8(batch)), return_tensors="pt"))
    torch.testing.assert_close(network(batch), output.pooler_output.view(2, 3, -1).mean(1), atol=0.02, rtol=0)
    torch.testing.assert_close(network(batch), network(batch[:, [2, 0, 1]]))  # motion is not seen
    torch.testing.assert_close(network(batch), network(pad_frames(batch, 6, "repeat")))


def test_a_pooler_without_weights_is_not_asked(vit, tmp_path):
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**TINY_VISION)).eval()
    model.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(vit).save_pretrained(tmp_path)
    network = load_feature_network(f"frames:{tmp_path}")
    batch = clips(2)
    with torch.inference_mode():
        expected = model.vit(network.prepare(batch)).last_hidden_state[:, 0].view(2, 8, -1).mean(1)
    torch.testing.assert_close(network(batch), expected)
    torch.testing.assert_close(load_feature_network(f"frames:{tmp_path}")(batch), network(batch))


def test_pooled_maps_and_image_embeddings(tmp_path):
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])).save_pretrained(tmp_path / "cnn")
    ViTImageProcessor(size={"height": 32, "width": 32}, **IMAGENET).save_pretrained(tmp_path / "cnn")
    assert load_feature_network(f"frames:{tmp_path / 'cnn'}")(clips(2)).shape == (2, 12)
    clip = CLIPModel(CLIPConfig(text_config={**TINY, "vocab_size": 50}, vision_config=TINY_VISION, projection_dim=6))
    clip.save_pretrained(tmp_path / "clip")
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(tmp_path / "clip")
    network = load_feature_network(f"frames:{tmp_path / 'clip'}")
    assert (network.prepare.size, network.prepare.filter) == ((16, 16), "bicubic")
    batch = clips(2, height=40, width=40)
    pictures = [Image.fromarray(frame) for frame in over_white_uint8(batch)]
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "clip")(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(network.prepare(batch), pixels, atol=0.1, rtol=0)  # rounded to 8 bits twice
    with torch.inference_mode():
        expected = clip.eval().get_image_features(pixels).pooler_output.view(2, 8, 6).mean(1)
    torch.testing.assert_close(network(batch), expected, atol=0.02, rtol=0)


def test_sticker_features_come_from_the_packages_own_encoder(monkeypatch):
    class Encoder:
        def to(self, device):
            self.device = device
            return self

        def clip_features(self, batch):
            return batch.mean((1, 3, 4))

    asked = []
    monkeypatch.setattr(features_module, "load_sticker_encoder", lambda folder: asked.append(folder) or Encoder())
    network, other = load_feature_network("sticker"), load_feature_network("sticker:runs/mine", device="meta")
    assert asked == [None, "runs/mine"]
    assert network.name == "sticker-FVD (bundled encoder; in-domain proxy)"
    assert other.name == "sticker-FVD (runs/mine; in-domain proxy)"
    assert (other.encoder.device, other.padding) == ("meta", None)
    assert network(clips(3)).shape == (3, 4)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_features_do_not_depend_on_the_batch_size(vit, i3d, tmp_path, batch_size):
    save_videomae(tmp_path)
    batch = clips(5)
    for spec in (f"frames:{vit}", f"i3d:{i3d}", f"videomae:{tmp_path}"):
        network = load_feature_network(spec, padding="repeat")
        found = extract_features(network, iter(batch), batch_size)
        assert found.dtype == np.float64 and found.shape[0] == 5
        np.testing.assert_allclose(found, network(batch).numpy(), rtol=1e-4, atol=1e-4)
        assert np.array_equal(extract_features(network, batch, batch_size), found)
        assert frechet_distance(found, found) == pytest.approx(0, abs=1e-6)


def test_refuses_clips_that_make_no_set(vit):
    network = load_feature_network(f"frames:{vit}")
    with pytest.raises(ValueError, match="`clips` must be at least 2 to have a covariance, got 0"):
        extract_features(network, [])
    with pytest.raises(ValueError, match="got 1"):
        extract_features(network, clips(1))
    for mixed in ([clips(2)[0], clips(1, frames=4)[0]], [clips(1)[0], clips(1)[0], clips(1, width=24)[0]]):
        with pytest.raises(ValueError, match=rf"of one shape, got \(8, 4, 20, 20\) and, for clip {len(mixed) - 1}, "):
            extract_features(network, mixed, batch_size=2)
    with pytest.raises(ValueError, match=r"must be in \[-1, 1\]"):
        extract_features(network, clips(3) * 200)
    with pytest.raises(ValueError, match="3 or 4 channels"):
        network(clips(2)[:, :, :2])
    network.model.layernorm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="gives features that are not finite for clip 0"):
        extract_features(network, clips(3))


@pytest.mark.parametrize("spec", ["fvd", "", "i3d:", "videomae:", "frames", "I3D:x", "clip:x"])
def test_refuses_unknown_networks(spec):
    with pytest.raises(ValueError, match=r'`spec` must be "i3d:FILE", .* got'):
        load_feature_network(spec)


def test_refuses_what_cannot_be_loaded(vit, tmp_path):
    with pytest.raises(ValueError, match=r"must be I3D as TorchScript, there is no .*none\.pt"):
        load_feature_network(f"i3d:{tmp_path / 'none.pt'}")
    (tmp_path / "none.pt").write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"must be I3D as TorchScript, .* is none"):
        load_feature_network(f"i3d:{tmp_path / 'none.pt'}")
    for kind in ("frames", "videomae"):
        with pytest.raises(ValueError, match=f"`spec` '{kind}:.*empty' cannot be loaded: [^\n]+$"):
            load_feature_network(f"{kind}:{tmp_path / 'empty'}")
    with pytest.raises(ValueError, match=r"`source` must be a VideoMAE, .* is a vit"):
        load_feature_network(f"videomae:{vit}")
    AutoImageProcessor.from_pretrained(vit).save_pretrained(tmp_path)
    ViTModel.from_pretrained(vit).save_pretrained(tmp_path)
    ViTConfig(**TINY_VISION | {"num_hidden_layers": 2}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights for .*layer.* are missing"):
        load_feature_network(f"frames:{tmp_path}")
    with pytest.raises(ValueError, match="`padding` must be one of repeat or None, got 'loop'"):
        load_feature_network(f"frames:{vit}", padding="loop")
