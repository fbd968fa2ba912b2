import numpy as np
import pytest
import torch

from rdtf_diffusers.data.procedural import MOTIONS, Pose, animate, render


GONE_AT_FIRST = {"slide in", "fade in", "drop"}


def ball(side=48):
    """A soft-edged half red, half blue disc, premultiplied; its two halves show turns and mirrors."""
    row, column = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    alpha = (side * 0.45 - ((row - side / 2) ** 2 + (column - side / 2) ** 2).sqrt()).clamp(0, 1)
    left = (column < side * 0.4).float()
    return torch.stack([alpha * left, torch.zeros_like(alpha), alpha * (1 - left), alpha])


def centre_of_mass(clip):
    alpha = (clip[:, 3] + 1) / 2
    total = alpha.sum(dim=(1, 2)).clamp(min=1e-6)
    positions = torch.arange(clip.shape[-1]).float()
    return (alpha.sum(dim=1) * positions).sum(dim=1) / total, (alpha.sum(dim=2) * positions).sum(dim=1) / total


def test_a_resting_picture_keeps_its_pixels():
    picture = ball()
    clip = render(picture, Pose(), num_frames=3, size=64, left=5, top=11)
    inside = clip[:, :, 11:59, 5:53]
    torch.testing.assert_close(inside, (picture * 2 - 1).expand(3, -1, -1, -1), atol=1e-4, rtol=0)
    assert (clip[:, 3, :11] == -1).all() and (clip[:, 3, :, 53:] == -1).all()


def test_poses_move_turn_and_scale_as_they_say():
    picture = ball(32)
    clip = render(picture, Pose(x=np.array([0.0, 0.25]), y=0.125), num_frames=2, size=64, left=8, top=16)
    x, y = centre_of_mass(clip)
    torch.testing.assert_close(x, torch.tensor([23.5, 39.5]), atol=1e-2, rtol=0)
    torch.testing.assert_close(y, torch.tensor([39.5, 39.5]), atol=1e-2, rtol=0)
    quarter = render(picture, Pose(angle=np.pi / 2), num_frames=1, size=32, left=0, top=0)[0]
    torch.testing.assert_close(quarter, picture.rot90(-1, dims=(1, 2)) * 2 - 1, atol=1e-4, rtol=0)  # clockwise
    mirrored = render(picture, Pose(scale_x=-1.0), num_frames=1, size=32, left=0, top=0)[0]
    torch.testing.assert_close(mirrored, picture.flip(2) * 2 - 1, atol=1e-4, rtol=0)
    half = render(picture, Pose(scale_x=0.5, scale_y=0.5, pivot=1.0), num_frames=1, size=32, left=0, top=0)
    x, y = centre_of_mass(half)  # shrinks towards the middle of the bottom edge
    torch.testing.assert_close(torch.stack([x[0], y[0]]), torch.tensor([15.5, 23.5]), atol=0.1, rtol=0)
    faded = render(picture, Pose(opacity=0.25), num_frames=1, size=32, left=0, top=0)[0]
    torch.testing.assert_close((faded + 1) / 2, picture * 0.25, atol=1e-4, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_plain_valid_and_at_rest_first(motion):
    picture = ball()
    for seed in range(6):
        clip = animate(picture, np.random.default_rng(seed), motion=motion)
        frames = (clip.frames + 1) / 2
        assert frames.shape == (8, 4, 64, 64) and clip.motions == (motion,)
        assert frames.min() >= -1e-5 and frames.max() <= 1 + 1e-5
        assert (frames[:, :3] <= frames[:, 3:] + 1e-5).all() and (frames[:, 1].abs() < 1e-5).all()  # no fringes
        biggest = (frames - frames[:1]).abs().amax(dim=(1, 2, 3)).max()
        assert biggest > 0.2, f"{clip.phrase} hardly moves"
        rest = -1 if motion in GONE_AT_FIRST else 0
        bounds = [(frames[rest, 3] > 0.5).any(dim=axis).sum() for axis in (0, 1)]
        assert abs(bounds[0] - bounds[1]) <= 1 and bounds[0] >= 0.85 * 0.6 * 64  # the whole disc


@pytest.mark.parametrize("motion", [name for name in MOTIONS if MOTIONS[name].cyclic])
def test_cyclic_motions_close_after_the_clip(motion):
    index = np.arange(9)
    for cycles in (1, 2):
        pose = MOTIONS[motion].pose(index / 8 * cycles, 0.7, 1)
        clip = render(ball(), pose, num_frames=9, size=64, left=8, top=8)
        torch.testing.assert_close(clip[8], clip[0], atol=2e-3, rtol=0)


def test_the_same_generator_gives_the_same_clip():
    first, again, other = (animate(ball(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.frames, again.frames) and first.phrase == again.phrase
    assert first.phrase != other.phrase


def test_captions_say_direction_speed_and_amount():
    spins = [animate(ball(), np.random.default_rng(seed), motion="spin") for seed in range(40)]
    for clip in spins:
        # The right, blue half leads downwards if the turn is clockwise.
        blue = clip.frames[:, 2] + 1
        rows = torch.arange(64.0)
        centre = (blue.sum(dim=2) * rows).sum(dim=1) / blue.sum(dim=(1, 2))
        down = centre[1] > centre[0]
        if "counterclockwise" in clip.phrase or "left" in clip.phrase:
            assert not down, clip.phrase
        elif "clockwise" in clip.phrase:
            assert down, clip.phrase
        half_turn = (clip.frames[4] - clip.frames[0]).abs().max() > 0.1
        if "quickly" in clip.phrase or "fast" in clip.phrase:
            assert not half_turn, clip.phrase  # two turns: back at rest in the middle of the clip
        elif "slow" in clip.phrase:
            assert half_turn, clip.phrase
    jumps = [animate(ball(), np.random.default_rng(seed), motion="jump") for seed in range(60)]
    height = {word: [] for word in ("high", "low")}
    for clip in jumps:
        _, y = centre_of_mass(clip.frames)
        for word in height:
            if word in clip.phrase.split():
                height[word].append((y[0] - y.min()).item())
    assert np.mean(height["high"]) > 1.4 * np.mean(height["low"])


def test_some_clips_have_two_motions_and_all_are_drawn():
    rng = np.random.default_rng(0)
    clips = [animate(ball(24), rng, size=32) for _ in range(400)]
    pairs = [clip for clip in clips if len(clip.motions) == 2]
    assert 0.12 < len(pairs) / len(clips) < 0.28
    assert all(" and " in clip.phrase or " while " in clip.phrase for clip in pairs)
    assert {name for clip in clips for name in clip.motions} == set(MOTIONS)
    assert len({clip.phrase for clip in clips}) > 200


@pytest.mark.parametrize(("num_frames", "size"), [(1, 32), (5, 48), (16, 40)])
def test_any_length_size_and_shape(num_frames, size):
    picture = ball(40)[:, 4:20]
    for motion in MOTIONS:
        clip = animate(picture, np.random.default_rng(0), num_frames, size, motion)
        assert clip.frames.shape == (num_frames, 4, size, size) and clip.frames.isfinite().all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"`picture` must be RGBA \(4, H, W\), got a tensor of shape \(3, 8, 8\)"):
        animate(torch.zeros(3, 8, 8), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"`motion` must be one of bounce, .*, got 'teleport'"):
        animate(torch.zeros(4, 8, 8), np.random.default_rng(0), motion="teleport")
