"""Measures without references on drawn and damaged stickers, and the DOVER adapter on a stand-in for a clone."""

import math
import shutil
import sys
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from rdtf_diffusers.metrics.video_quality import Blockiness, DoverQuality, Sharpness


FRAMES, SIDE = 4, 48


def drawn(batch: int = 4, channels: int = 4) -> torch.Tensor:
    """Rectangles with soft diagonal stripes that move by a pixel, on nothing; edges at places of no grid."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    clips = torch.zeros(batch, FRAMES, channels, SIDE, SIDE)
    for clip in range(batch):
        for frame in range(FRAMES):
            inside = (x >= 5 + clip + frame) & (x < 30 + 2 * clip + frame) & (y >= 7 + 2 * clip) & (y < 33 + 3 * clip)
            stripes = 0.75 + 0.25 * torch.sin((x + y + frame) / (2 + clip))
            clips[clip, frame] = torch.where(inside, stripes, 0)
            if channels == 4:
                clips[clip, frame, 3] = inside.float()
    return clips * 2 - 1


def blurred(clips: torch.Tensor, sigma: float) -> torch.Tensor:
    window = torch.exp(-((torch.arange(13) - 6) ** 2) / (2 * sigma**2))
    window = window / window.sum()
    planes = F.pad(clips.flatten(0, 2)[:, None], (6, 6, 6, 6), mode="replicate")
    return F.conv2d(F.conv2d(planes, window.view(1, 1, 1, 13)), window.view(1, 1, 13, 1)).view_as(clips).clamp(-1, 1)


def grainy(clips: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return (clips + amount * noise).clamp(-1, 1)


def blocky(clips: torch.Tensor, share: float, size: int) -> torch.Tensor:
    means = F.interpolate(F.avg_pool2d(clips.flatten(0, 1), size), scale_factor=size).view_as(clips)
    return clips.lerp(means, share)


def test_sharpness_of_real_clips_is_about_one():
    real = drawn()
    sharpness = Sharpness(real)
    slow = []
    for clip in real.double():
        half = F.avg_pool2d(clip, 2)
        fine, coarse = ((x.diff(dim=2) ** 2).sum() + (x.diff(dim=3) ** 2).sum() for x in (clip, half))
        slow.append(float(fine / coarse))
    median = (sorted(slow)[1] + sorted(slow)[2]) / 2
    assert sharpness.ratio(real).tolist() == pytest.approx([value / median for value in slow], rel=1e-4)
    assert sharpness(real).tolist() == pytest.approx([min(v / median, median / v) for v in slow], rel=1e-4)
    assert sharpness(real).max() <= 1


def test_sharpness_falls_with_blur_and_with_grain():
    real = drawn()
    sharpness = Sharpness(real)
    soft = [sharpness.ratio(blurred(real, sigma)) for sigma in (0.4, 0.7, 1.0, 1.5, 2.0)]
    grain = [sharpness.ratio(grainy(real, amount)) for amount in (0.1, 0.2, 0.4)]
    for steps, sign in ((soft, -1), (grain, 1)):
        for before, after in zip([sharpness.ratio(real), *steps], steps):
            assert (sign * (after - before) > 0).all()
    assert (sharpness(blurred(real, 2.0)) < sharpness(blurred(real, 1.0))).all()
    assert (sharpness(grainy(real, 0.8)) < sharpness(grainy(real, 0.4))).all()
    assert sharpness.higher_is_better


def test_sharpness_does_not_depend_on_contrast():
    real = drawn()
    torch.testing.assert_close(Sharpness(real).ratio(0.1 * real), Sharpness(real).ratio(real))


def test_sharpness_of_nothing_and_of_a_checkerboard_is_zero():
    sharpness = Sharpness(drawn())
    board = ((torch.arange(SIDE)[:, None] + torch.arange(SIDE)) % 2).float().expand(1, FRAMES, 4, SIDE, SIDE) * 2 - 1
    assert sharpness(torch.full((1, FRAMES, 4, SIDE, SIDE), -1.0)).item() == 0
    assert sharpness(board).item() < 1e-6


def test_sharpness_refuses_other_sizes_and_blank_references():
    with pytest.raises(ValueError, match="`real_clips` must show something"):
        Sharpness(torch.ones(2, FRAMES, 4, SIDE, SIDE))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        Sharpness(drawn()[..., :3])
    with pytest.raises(ValueError, match=r"shape \(4, 48, 48\), got \(4, 24, 24\)"):
        Sharpness(drawn())(drawn()[..., ::2, ::2])


def test_blockiness_is_the_contrast_of_steps():
    clips = grainy(drawn(2), 0.02)
    slow = []
    for clip in clips.double():
        sums = {True: 0.0, False: 0.0}
        for axis in (2, 3):
            steps = clip.diff(dim=axis).abs().clamp(max=20 / 255)
            means = {True: [], False: []}
            for number in range(SIDE - 1):
                means[(number + 1) % 8 == 0].append(float(steps.select(axis, number).mean()))
            for border, values in means.items():
                sums[border] += sum(values) / len(values)
        slow.append((sums[True] - sums[False]) / (sums[True] + sums[False] + 1e-4))
    assert Blockiness()(clips).tolist() == pytest.approx(slow, abs=1e-5)


@pytest.mark.parametrize("size", [4, 8])
def test_blockiness_grows_with_a_grid_of_its_size(size):
    clips = grainy(drawn(), 0.02)
    scores = [Blockiness(size)(blocky(clips, share, size)) for share in (0.0, 0.2, 0.5, 1.0)]
    assert scores[0].abs().max() < 0.25
    assert all((after > before).all() for before, after in pairwise(scores))
    assert scores[-1].min() > 0.99
    assert not Blockiness(size).higher_is_better


def test_blockiness_of_nothing_is_zero_and_of_one_block_refused():
    assert Blockiness()(torch.zeros(1, FRAMES, 3, SIDE, SIDE)).item() == 0
    with pytest.raises(ValueError, match="larger than one block of 48 pixels"):
        Blockiness(48)(drawn())
    with pytest.raises(ValueError, match="`block_size` must be at least 2 pixels, got 1"):
        Blockiness(1)


DOVER_MODELS = """
import torch

class DOVER(torch.nn.Module):
    def __init__(self, divide_head, backbone):
        super().__init__()
        assert divide_head and set(backbone) == {"technical", "aesthetic"}
        self.technical_head = torch.nn.Linear(3, 1)
        self.aesthetic_head = torch.nn.Linear(3, 1)
        self.seen = []

    def forward(self, vclips):
        self.seen.append(vclips)
        with torch.no_grad():
            return [getattr(self, name + "_head")(view.mean((3, 4)).mT)[..., None] for name, view in vclips.items()]
"""
DOVER_DATASETS = """
import torch

def get_single_view(video, sample_type, size_h=8, size_w=8, **options):
    assert video.shape[0] == 3 and options["clip_len"] == video.shape[1]
    corner = torch.randint(4, ()) if sample_type == "technical" else 0
    return video[..., corner : corner + size_h, :size_w]
"""
DOVER_OPTIONS = """
data:
  val-l1080p:
    args:
      sample_types:
        technical: {fragments_h: 7, fragments_w: 7, fsize_h: 32, fsize_w: 32, aligned: 32, clip_len: 32, num_clips: 3}
        aesthetic: {size_h: 10, size_w: 10, clip_len: 32, frame_interval: 2, t_frag: 32, num_clips: 1}
model:
  args: {divide_head: true, backbone: {technical: {}, aesthetic: {}}}
test_load_path: ./pretrained_weights/DOVER.pth
"""


@pytest.fixture
def dover(tmp_path, monkeypatch):
    """A folder laid out like a clone of DOVER; its heads are means of red (technical) and of green (aesthetic)."""
    for name in ("dover", "dover.models", "dover.datasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, source in (("", ""), ("models", DOVER_MODELS), ("datasets", DOVER_DATASETS)):
        (tmp_path / "dover" / name).mkdir()
        (tmp_path / "dover" / name / "__init__.py").write_text(source)
    (tmp_path / "dover.yml").write_text(DOVER_OPTIONS)
    (tmp_path / "pretrained_weights").mkdir()
    heads = {"technical_head": (0.1, 0, 0), "aesthetic_head": (0, 0.1, 0)}
    weights = {f"{name}.weight": torch.tensor([row]) for name, row in heads.items()}
    weights |= {f"{name}.bias": torch.zeros(1) for name in heads}
    torch.save(weights, tmp_path / "pretrained_weights" / "DOVER.pth")
    return tmp_path


def flat(red: float, green: float, alpha: float = 1.0, frames: int = 8) -> torch.Tensor:
    colour = torch.tensor([red, green, 0.0, 1.0]) * alpha
    return colour.view(1, 1, 4, 1, 1).expand(1, frames, 4, 240, 240) * 2 - 1


@pytest.mark.parametrize(("red", "green", "alpha"), [(0.2, 0.6, 1.0), (0.9, 0.1, 1.0), (0.9, 0.1, 0.25)])
def test_dover_scores_are_fused_as_published(dover, red, green, alpha):
    clip = flat(red, green, alpha)
    technical = 0.1 * (255 * (red * alpha + 1 - alpha) - 123.675) / 58.395
    aesthetic = 0.1 * (255 * (green * alpha + 1 - alpha) - 116.28) / 57.12
    fused = (technical - 0.1107) / 0.07355 * 0.6104 + (aesthetic + 0.08285) / 0.03774 * 0.3896
    quality = DoverQuality(dover)
    assert quality(clip).tolist() == pytest.approx([1 / (1 + math.exp(-fused))], rel=1e-4)
    rgb = clip[:, :, :3] + 1 - clip[:, :, 3:]
    torch.testing.assert_close(quality(rgb), quality(clip))


@pytest.mark.parametrize(("frames", "held"), [(8, [4] * 8), (32, [1] * 32), (5, [7, 6, 7, 6, 6])])
def test_dover_sees_32_frames_in_order(dover, frames, held):
    quality = DoverQuality(dover)
    clip = torch.cat([flat(frame / frames, 0, frames=1) for frame in range(frames)], dim=1)
    quality(clip)
    for view in quality.model.seen[0].values():
        reds = view[0, 0, :, 0, 0] * 58.395 + 123.675
        expected = torch.arange(frames).repeat_interleave(torch.tensor(held)) * 255 / frames
        torch.testing.assert_close(reds, expected, rtol=1e-4, atol=1e-2)


def test_dover_is_repeatable_and_leaves_the_generator_alone(dover):
    quality = DoverQuality(dover)
    clips = torch.rand(2, 8, 4, 240, 240, generator=torch.Generator().manual_seed(0)) * 2 - 1
    state = torch.random.get_rng_state()
    scores = quality(clips)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(quality(clips[1:]), scores[1:])


def test_small_clips_are_enlarged_before_dover_cuts_them(dover):
    quality = DoverQuality(dover)
    received = []
    view = quality.single_view
    quality.single_view = lambda video, *args, **options: received.append(video.shape) or view(video, *args, **options)
    quality(flat(0.5, 0.5)[..., :96, :120])
    assert received == [(3, 32, 224, 280)] * 2


@pytest.mark.parametrize("missing", ["dover.yml", "pretrained_weights/DOVER.pth", "everything"])
def test_dover_refuses_another_folder(dover, missing):
    path = dover / "elsewhere" if missing == "everything" else dover
    (path / missing).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"`path` must be a clone of DOVER with its weights, got .* without"):
        DoverQuality(path)


def test_dover_refuses_a_second_copy(dover, tmp_path_factory):
    DoverQuality(dover)
    other = shutil.copytree(dover, tmp_path_factory.mktemp("other") / "clone")
    with pytest.raises(ValueError, match=r"`path` must hold the `dover` that is imported, got .*clone and .*models"):
        DoverQuality(other)
