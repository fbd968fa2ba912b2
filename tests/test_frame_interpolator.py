"""The interpolator: what it starts from, how it warps, what it learns."""

import pytest
import torch

from rdtf_diffusers.models.frame_interpolator import DECIDED, LEAST, FrameInterpolator, decide, pixel_grid


def make_interpolator(in_channels: int = 4) -> FrameInterpolator:
    torch.manual_seed(0)
    return FrameInterpolator(in_channels, 16)


def make_ends(count: int = 3, channels: int = 4, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, 2, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_a_grid_of_pixels():
    grid = pixel_grid(2, 4, torch.device("cpu"))
    assert grid[:, :, 0].tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2
    assert grid[:, :, 1].tolist() == [[-0.5] * 4, [0.5] * 4]


def test_shares_are_mostly_0_or_1():
    shares = torch.tensor([0.0, DECIDED - 0.1, DECIDED, 0.5, 1 - DECIDED, 1.0])
    torch.testing.assert_close(decide(shares), torch.tensor([0, 0, 0, 0.5, 1, 1]))


@torch.no_grad()
def test_at_first_the_ends_are_blended_by_time():
    interpolator, ends = make_interpolator(), make_ends()
    for last in (interpolator.decoder[-1], interpolator.correction[-1]):
        torch.nn.init.zeros_(last.weight)
    time = torch.tensor([0.25, 0.5, -0.5])
    for soft in (True, False):
        frames = interpolator(ends, time, torch.tensor([4, 2, 2]), soft)
        for frame, share, (first, second) in zip(frames, (0.25, 0.5, LEAST), ends, strict=True):
            if not soft:
                share = decide(torch.tensor(share)).item()
            torch.testing.assert_close(frame, first * (1 - share) + second * share)


@pytest.mark.parametrize(("channels", "outside"), [(4, 0.0), (3, 1.0)])
def test_pixels_come_from_where_the_flow_says(channels, outside):
    """One end from 2 pixels to the right, the other from 3 below; beyond the edge there is nothing, or white."""
    ends = make_ends(1, channels)
    flow = torch.zeros(1, 4, 16, 24)
    flow[:, 0], flow[:, 3] = 2 * 2 / 24, 3 * 2 / 16
    warped = make_interpolator(channels).warp(ends, flow)[0]
    torch.testing.assert_close(warped[0, :, :, :-2], ends[0, 0, :, :, 2:])
    torch.testing.assert_close(warped[1, :, :-3], ends[0, 1, :, 3:])
    torch.testing.assert_close(warped[0, :, :, -2:], torch.full((channels, 16, 2), outside))
    torch.testing.assert_close(warped[1, :, -3:], torch.full((channels, 3, 24), outside))


def test_it_learns_to_move():
    """A square goes from left to right: in the middle there is one, half of which no end shows there."""
    interpolator = make_interpolator()
    optimizer = torch.optim.Adam(interpolator.parameters(), lr=3e-3)
    ends, truth = torch.zeros(1, 2, 4, 16, 24), torch.zeros(1, 4, 16, 24)
    ends[:, 0, :, 4:12, 4:8] = ends[:, 1, :, 4:12, 10:14] = truth[:, :, 4:12, 7:11] = 1.0
    time, gap = torch.tensor([0.5]), torch.tensor([2])
    errors = []
    for _ in range(150):
        error = (interpolator(ends, time, gap, soft=True) - truth).abs().mean()
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0] and errors[-1] < 0.3 * truth.mean()


def test_nothing_to_interpolate():
    frames = make_interpolator()(make_ends(0), torch.empty(0), torch.empty(0, dtype=torch.long))
    assert frames.shape == (0, 4, 16, 24)


def test_bad_width():
    with pytest.raises(ValueError, match="must be a multiple of 16, but are 20"):
        FrameInterpolator(channels=20)
