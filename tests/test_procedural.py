import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_scripts import load_example
from PIL import Image

from rdtf_diffusers.data.layers import LAYERS
from rdtf_diffusers.data.procedural import (
    ALIASES,
    ENTRANCES,
    EXITS,
    MOTIONS,
    PARTNERS,
    SPEEDS,
    Place,
    Pose,
    animate,
    render,
)


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
    clip = render(picture, Pose(), num_frames=3, place=Place(64, 48, 5, 11))
    inside = clip[:, :, 11:59, 5:53]
    torch.testing.assert_close(inside, (picture * 2 - 1).expand(3, -1, -1, -1), atol=1e-4, rtol=0)
    assert (clip[:, 3, :11] == -1).all() and (clip[:, 3, :, 53:] == -1).all()


def test_poses_move_turn_and_scale_as_they_say():
    picture = ball(32)
    clip = render(picture, Pose(x=np.array([0.0, 0.25]), y=0.125), num_frames=2, place=Place(64, 32, 8, 16))
    x, y = centre_of_mass(clip)
    torch.testing.assert_close(x, torch.tensor([23.5, 39.5]), atol=1e-2, rtol=0)
    torch.testing.assert_close(y, torch.tensor([39.5, 39.5]), atol=1e-2, rtol=0)
    quarter = render(picture, Pose(angle=np.pi / 2), num_frames=1, place=Place(32, 32, 0, 0))[0]
    torch.testing.assert_close(quarter, picture.rot90(-1, dims=(1, 2)) * 2 - 1, atol=1e-4, rtol=0)  # clockwise
    mirrored = render(picture, Pose(scale_x=-1.0), num_frames=1, place=Place(32, 32, 0, 0))[0]
    torch.testing.assert_close(mirrored, picture.flip(2) * 2 - 1, atol=1e-4, rtol=0)
    half = render(picture, Pose(scale_x=0.5, scale_y=0.5).about(1), num_frames=1, place=Place(32, 32, 0, 0))
    x, y = centre_of_mass(half)  # shrinks towards the middle of the bottom edge
    torch.testing.assert_close(torch.stack([x[0], y[0]]), torch.tensor([15.5, 23.5]), atol=0.1, rtol=0)
    faded = render(picture, Pose(opacity=0.25), num_frames=1, place=Place(32, 32, 0, 0))[0]
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
        rest = -1 if motion in ENTRANCES else 0
        bounds = [(frames[rest, 3] > 0.5).any(dim=axis).sum() for axis in (0, 1)]
        assert abs(bounds[0] - bounds[1]) <= 1 and bounds[0] >= 0.85 * 0.6 * 64  # the whole disc


@pytest.mark.parametrize("motion", [name for name in MOTIONS if MOTIONS[name].cyclic])
def test_cyclic_motions_close_after_the_clip(motion):
    index = np.arange(9)
    for cycles in (1, 2):
        pose = MOTIONS[motion].pose(index / 8 * cycles, 0.7, 1)
        clip = render(ball(), pose, num_frames=9, place=Place(64, 48, 8, 8))
        torch.testing.assert_close(clip[8], clip[0], atol=2e-3, rtol=0)


def test_poses_are_those_of_affine_grid():
    """A slow reference: forward matrices, inverted one by one, through torch's own affine_grid."""
    picture, place = ball(40), Place(64, 40, 9, 17)
    swing = Pose(angle=np.linspace(-0.7, 0.9, 5), scale_y=0.8).about(-1)
    pose = swing.combine(Pose(x=np.linspace(0, 0.2, 5), y=-0.1, scale_x=np.linspace(1, -0.6, 5)))
    thetas = []
    for frame in range(5):
        angle, x = pose.angle[frame], pose.x[frame]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        pivot, swung = np.array([0, -1]), turn @ np.diag([1, 0.8])
        matrix = np.eye(3)
        matrix[:2, :2] = 40 / 64 * turn @ np.diag([pose.scale_x[frame], 0.8])
        rest = np.array([2 * 9 + 40, 2 * 17 + 40]) / 64 - 1
        matrix[:2, 2] = rest + 2 * np.array([x, -0.1]) + 40 / 64 * (pivot - swung @ pivot)
        thetas.append(np.linalg.inv(matrix)[:2])
    grid = F.affine_grid(torch.from_numpy(np.stack(thetas)).float(), (5, 4, 64, 64), align_corners=False)
    expected = F.grid_sample(picture.expand(5, -1, -1, -1), grid, align_corners=False) * 2 - 1
    torch.testing.assert_close(render(picture, pose, 5, place), expected, atol=1e-4, rtol=0)


def test_the_same_generator_gives_the_same_clip_and_no_other_generator_is_touched():
    np.random.seed(0)
    torch.manual_seed(0)
    numbers, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    phrases = set()
    for seed in range(30):
        clip, again = (animate(ball(), np.random.default_rng(seed)) for _ in range(2))
        assert torch.equal(clip.frames, again.frames)
        assert (clip.phrase, clip.motions, clip.layer) == (again.phrase, again.motions, again.layer)
        phrases.add(clip.phrase)
    assert len(phrases) > 25
    assert (np.random.get_state()[1] == numbers).all() and torch.equal(torch.get_rng_state(), torch_state)


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


def test_what_a_caption_does_not_say_is_as_usual():
    """Slow, clockwise, to the right first, and of medium amount."""
    spins = [animate(ball(), np.random.default_rng(seed), motion="spin") for seed in range(60)]
    no_side = [clip for clip in spins if not any(word in clip.phrase for word in ("clockwise", "left", "right"))]
    no_speed = [clip for clip in spins if not any(word in clip.phrase for word in ("slow", "quick", "fast"))]
    assert len(no_side) > 5 and len(no_speed) > 3
    for clip in no_side:
        blue = (clip.frames[:, 2] + 1).sum(dim=2)  # the right half, which leads downwards
        centre = (blue * torch.arange(64.0)).sum(dim=1) / blue.sum(dim=1)
        assert centre[1] > centre[0], clip.phrase
    for clip in no_speed:
        assert (clip.frames[4] - clip.frames[0]).abs().max() > 0.1, clip.phrase
    for seed in range(30):
        clip = animate(ball(), np.random.default_rng(seed), motion="shake")
        x, _ = centre_of_mass(clip.frames)
        assert x[1] > x[0], clip.phrase
    heights = {"low": [], "high": [], "": []}
    for seed in range(80):
        clip = animate(ball(24), np.random.default_rng(seed), motion="jump")
        said = next((word for word in heights if word in clip.phrase.replace("a little", "low").split()), "")
        _, y = centre_of_mass(clip.frames)
        heights[said].append((y[0] - y.min()).item())
    assert len(heights[""]) > 8
    low, medium, high = (np.mean(heights[word]) for word in ("low", "", "high"))
    assert low + 2 < medium < high - 2


def test_shares_of_pairs_and_layers_and_all_are_drawn():
    rng = np.random.default_rng(0)
    clips = [animate(ball(24), rng, size=32) for _ in range(600)]
    pairs = [clip for clip in clips if len(clip.motions) == 2]
    layered = [clip for clip in clips if clip.layer]
    still = [clip for clip in layered if not clip.motions]
    assert 0.11 < len(pairs) / len(clips) < 0.21
    assert 0.15 < len(layered) / len(clips) < 0.25 and 0.3 < len(still) / len(layered) < 0.5
    assert all(clip.motions or clip.layer for clip in clips)
    assert {name for clip in clips for name in clip.motions} == set(MOTIONS)
    assert {clip.layer for clip in layered} == set(LAYERS)
    assert len({clip.phrase for clip in clips}) > 400


def test_weights_of_motions_are_multiplied():
    rng = np.random.default_rng(0)
    clips = [animate(ball(8), rng, size=8, motion_weights={"jump": 4.0, "spin": 1e-6}) for _ in range(600)]
    drawn = Counter(clip.motions[0] for clip in clips if clip.motions)
    weights = {name: motion.weight for name, motion in MOTIONS.items()} | {"spin": 0.0}
    weights["jump"] *= 4.0  # of twice the usual weight
    expected = weights["jump"] / sum(weights.values())
    assert abs(drawn["jump"] / drawn.total() - expected) < 0.05 and not drawn["spin"]
    picture, same = ball(8), [np.random.default_rng(1) for _ in range(2)]
    assert animate(picture, same[0]).phrase == animate(picture, same[1], motion_weights={}).phrase


def test_two_motions_never_contradict_each_other():
    for first, second in (("fade in", "fade out"), ("zoom in", "zoom out"), ("rise", "fall"), ("slide in", "rise")):
        assert second not in PARTNERS[first] and first not in PARTNERS[second]
    assert all(PARTNERS[name] and name not in PARTNERS[name] for name in MOTIONS)
    assert not any(PARTNERS[name] & EXITS for name in ENTRANCES)
    assert {"spin", "fade out", "slide out"} <= PARTNERS["jump"] | PARTNERS["bounce"]


def test_two_speeds_are_both_said():
    slow, fast = (re.compile("|".join(words)) for words in SPEEDS)
    rng = np.random.default_rng(1)
    clips = [animate(ball(24), rng, size=16) for _ in range(600)]
    said = [
        (len(slow.findall(clip.phrase)), len(fast.findall(clip.phrase))) for clip in clips if len(clip.motions) == 2
    ]
    assert set(said) <= {(0, 0), (0, 1), (1, 0), (0, 2), (2, 0), (1, 1)}
    # Speeds differ in half of the pairs; were words left out then, too, they would differ in a third of the captions.
    assert 0.4 < said.count((1, 1)) / len(said) < 0.6


def test_a_turn_is_about_the_own_centre_also_of_a_picture_that_jumps():
    time = np.arange(8) / 8
    pose = MOTIONS["jump"].pose(time, 0.5, 1).combine(MOTIONS["spin"].pose(time, 0.5, 1))
    x, y = centre_of_mass(render(ball(32), pose, 8, Place(96, 32, 32, 56)))
    height = -pose.y * 96
    torch.testing.assert_close(x, torch.full((8,), 47.5), atol=0.2, rtol=0)
    assert (y - (71.5 - torch.from_numpy(height).float())).abs().max() < 5  # but for squashing in the crouch


def test_the_motions_people_ask_for_are_there():
    asked = (
        "bounce, spin, coin flip, shake, swing, pulse, slide in, slide out, fade in, fade out, blink, squash, float"
    )
    for name in f"{asked}, zoom in, zoom out, drop, circle, roll, wave".split(", "):
        assert ALIASES.get(name, name) in MOTIONS
    coin = animate(ball(), np.random.default_rng(0), motion="coin flip")
    assert coin.motions == ("flip",) and "coin" in coin.phrase


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
    with pytest.raises(ValueError, match=r"`motion_weights` names must be among bounce, .*, got \['teleport'\]"):
        animate(torch.zeros(4, 8, 8), np.random.default_rng(0), motion_weights={"teleport": 1.0})
    with pytest.raises(ValueError, match="`motion_weights` must be finite and above 0"):
        animate(torch.zeros(4, 8, 8), np.random.default_rng(0), motion_weights={"spin": 0.0})
    with pytest.raises(ValueError, match=r"`layer` must be one of hearts, .*, got 'bees'"):
        animate(torch.zeros(4, 8, 8), np.random.default_rng(0), layer="bees")


def test_the_benchmark_measures_and_its_peer_draws_the_same(tmp_path, capsys):
    benchmark = load_example("benchmarks/procedural.py")
    picture, place = ball(32), Place(48, 32, 6, 11)
    image = Image.frombytes("RGBa", (32, 32), (picture * 255).round().byte().permute(1, 2, 0).numpy().tobytes())
    for name in ("swing", "jump", "fade out", "roll"):
        pose = MOTIONS[name].pose(np.arange(8) / 8, 0.5, 1)
        ours, peers = render(picture, pose, 8, place), benchmark.pillow_render(image, pose, 8, place)
        assert (ours - peers).abs().mean() < 0.01
    files = {"--json": tmp_path / "figures.json", "--picture": tmp_path / "sheet.png"}
    options = [word for option, file in files.items() for word in (option, str(file))]
    benchmark.main(["--clips", "1", "--repeats", "1", "--size", "16", "--picture_size", "16", *options])
    rows = json.loads(files["--json"].read_text())["rows"]
    assert len(rows) == 1 + len(MOTIONS) + len(LAYERS) and all(row["ours"] > 0 for row in rows)
    assert "everything" in capsys.readouterr().out
    assert Image.open(files["--picture"]).width == 2 * 8 * 18 + 10
