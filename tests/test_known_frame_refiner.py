"""The refiner: which known frames it takes, that it warps, and its place in the pipeline."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_pipeline

from rdtf_diffusers import KnownFrameRefiner, StickerGenerationPipeline
from rdtf_diffusers.models import known_frame_refiner as module
from rdtf_diffusers.models.known_frame_refiner import (
    colour_drawn,
    distance_apart,
    fit_affine,
    hidden_frames,
    nearest_ends,
    nearest_known,
    outline_distance,
    place_features,
    shown_share,
    without_haze,
)


def make_refiner(**config) -> KnownFrameRefiner:
    """A small one in which every branch speaks."""
    torch.manual_seed(0)
    small = {"channels": 16, "num_layers": 1, "attention_head_dim": 8, "interpolator_channels": 16}
    refiner = KnownFrameRefiner(**(small | config)).eval()
    choices = [refiner.moved_trust[-2], refiner.moved_opacity, refiner.cell_weight]
    flows = [refiner.interpolator.decoder[-1], refiner.interpolator.correction[-1]]
    for last in (refiner.decoder[-1], refiner.pixel_trust[-1], *choices, *flows):
        torch.nn.init.normal_(last.weight, std=0.1)
    return refiner


def make_clips(batch: int = 2, frames: int = 5, height: int = 24, width: int = 16) -> torch.Tensor:
    return torch.rand(batch, 4, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def make_mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def test_nearest_known_frames():
    mask = make_mask("01010", "00000", "10001", "11111")
    before, after = nearest_known(mask)
    for clip, row in enumerate(mask.tolist()):
        known = [number for number, is_known in enumerate(row) if is_known]
        for frame in range(5):
            left = [number for number in known if number <= frame] or known[:1] or [0]
            right = [number for number in known if number >= frame] or known[-1:] or [0]
            assert (before[clip, frame], after[clip, frame]) == (left[-1], right[0])


def test_ends_that_a_frame_is_interpolated_from():
    mask = make_mask("0101000", "1000001", "1111111")
    for loop in (False, True):
        first, second, time, gap = nearest_ends(mask, loop)
        for clip, row in enumerate(mask.tolist()):
            known = [number for number, is_known in enumerate(row) if is_known]
            known = [number + turn for turn in ((-7, 0, 7) if loop else (0,)) for number in known]
            for frame in range(7):
                before = [number for number in known if number <= frame]
                after = [number for number in known if number >= frame]
                if frame in known:
                    assert first[clip, frame] == frame and time[clip, frame] == 0
                    continue
                if before and after:
                    ends = before[-1], after[0]
                else:
                    ends = tuple(sorted(known, key=lambda number: abs(number - frame))[:2])
                assert (first[clip, frame], second[clip, frame]) == tuple(number % 7 for number in ends)
                assert gap[clip, frame] == abs(ends[1] - ends[0])
                assert time[clip, frame].item() == pytest.approx((frame - ends[0]) / (ends[1] - ends[0]))


def test_in_a_loop_the_first_frame_follows_the_last():
    mask = make_mask("01010", "00000", "00001")
    before, after = nearest_known(mask, loop=True)
    assert before.tolist() == [[3, 1, 1, 3, 3], [0] * 5, [4] * 5]
    assert after.tolist() == [[1, 1, 3, 3, 1], [0] * 5, [4] * 5]
    refiner, drawn, known = make_refiner(), make_clips(1), -make_clips(1)
    with torch.no_grad():
        open_end, closed = (refiner(drawn, known, mask[:1], loop=loop) for loop in (False, True))
    same = [torch.allclose(open_end[0, :, frame], closed[0, :, frame], atol=1e-5) for frame in range(5)]
    assert same == [False, True, True, True, False]  # outside of both known frames


@torch.no_grad()
def test_without_alpha_what_lies_outside_is_white():
    refiner = KnownFrameRefiner(3, 16, 1, 8, 16).eval()
    white, mask = torch.ones(1, 3, 2, 16, 16), make_mask("10")
    places = refiner.match
    refiner.match = lambda drawn, known: [x - 0.5 if x.shape[1] == 2 else x for x in places(drawn, known)]  # half away
    hidden = refiner.refine_hidden(white, white, mask)
    torch.testing.assert_close(hidden.warped, torch.ones_like(hidden.warped))
    torch.testing.assert_close(hidden.moved, torch.ones_like(hidden.moved))


def test_hidden_frames_are_those_of_clips_with_a_known_one():
    clip, frame = hidden_frames(make_mask("010", "000", "111"))
    assert (clip.tolist(), frame.tolist()) == ([0, 0], [0, 2])


@torch.no_grad()
def test_known_frames_and_clips_without_any_stay():
    refiner, drawn, known = make_refiner(), make_clips(), -make_clips()
    mask = make_mask("01001", "00000")
    refined = refiner(drawn, known, mask)
    assert torch.equal(refined[1], drawn[1])
    for frame in range(5):
        assert torch.equal(refined[0, :, frame], known[0, :, frame]) == (frame in (1, 4))
        assert (refined[0, :, frame] - drawn[0, :, frame]).abs().max() > 1e-3
    assert refined.min() >= -1 and refined.max() <= 1


@torch.no_grad()
def test_what_stands_in_hidden_frames_is_not_looked_at():
    refiner, drawn, known, mask = make_refiner(), make_clips(), make_clips().flip(2), make_mask("01001", "10000")
    hidden = ~mask[:, None, :, None, None]
    torch.testing.assert_close(refiner(drawn, known.masked_fill(hidden, 0.3), mask), refiner(drawn, known, mask))


@torch.no_grad()
def test_clips_do_not_know_their_batch():
    refiner, drawn, known, mask = make_refiner(), make_clips(), make_clips().flip(2), make_mask("01001", "10000")
    together = refiner(drawn, known, mask)
    for clip in range(2):
        one = slice(clip, clip + 1)
        torch.testing.assert_close(refiner(drawn[one], known[one], mask[one]), together[one], atol=1e-5, rtol=0)


@torch.no_grad()
def test_parts_that_fit_the_memory_give_the_same(monkeypatch):
    refiner, drawn, known, mask = make_refiner(), make_clips(), make_clips().flip(2), make_mask("01001", "10000")
    whole, parts, refine_hidden = refiner(drawn, known, mask), [], refiner.refine_hidden
    monkeypatch.setattr("rdtf_diffusers.models.known_frame_refiner.MAX_SCORES", 2 * 6**2)  # two frames of 3x2 cells
    monkeypatch.setattr(refiner, "refine_hidden", lambda *args: parts.append(args[-1]) or refine_hidden(*args))
    torch.testing.assert_close(refiner(drawn, known, mask), whole, atol=1e-5, rtol=0)
    assert len(parts) == 4  # of 3 + 4 hidden frames


@torch.no_grad()
def test_pixels_come_from_where_their_cells_match(monkeypatch):
    """With places that lie half a cell to the right, and full trust, a frame is the known one, moved to the left."""
    refiner = KnownFrameRefiner(channels=16, attention_head_dim=8)
    refiner.decoder[-1].bias[2:] = 30.0  # opaque, trusted

    def match(drawn, known):
        centres, _ = place_features(*drawn.shape[2:], drawn.device)
        places = centres.T.unflatten(1, drawn.shape[2:]) + torch.tensor([8 / 32, 0.0]).view(2, 1, 1)  # 4 of 32 pixels
        return places.expand(len(drawn), -1, -1, -1), torch.zeros(len(drawn), 32, *drawn.shape[2:])

    monkeypatch.setattr(refiner, "match", match)
    monkeypatch.setattr(module, "OUTLINE", torch.inf)
    known = make_clips(1, 2, 16, 32)
    refined = refiner(torch.zeros_like(known), known, make_mask("10"))
    torch.testing.assert_close(refined[..., 1, :, :-4], known[..., 0, :, 4:], atol=1e-4, rtol=0)
    torch.testing.assert_close(refined[..., 1, :, -4:], torch.full((1, 4, 16, 4), -1.0))  # beyond the edge: nothing


@torch.no_grad()
def test_cells_match_themselves_if_nothing_speaks_against_it():
    refiner = make_refiner()
    torch.nn.init.zeros_(refiner.to_q.weight)
    torch.nn.init.zeros_(refiner.to_q.bias)
    refiner.log_nearness.fill_(9.0)
    features = torch.randn(1, 16, 3, 5)
    places, _ = refiner.match(features, features)
    torch.testing.assert_close(places[0], place_features(3, 5, features.device)[0].T.unflatten(1, (3, 5)))


def test_the_affine_motion_that_fits_best():
    generator = torch.Generator().manual_seed(0)
    places, weights = torch.rand(30, 2, generator=generator) * 2 - 1, torch.rand(2, 30, generator=generator)
    weights /= weights.sum(dim=1, keepdim=True)
    change, shift = torch.randn(2, 2, 2, generator=generator), torch.randn(2, 1, 2, generator=generator)
    flow = places @ change + shift
    mean_place, mean_flow, found = fit_affine(places, flow, weights)
    torch.testing.assert_close(found, change, atol=0.02, rtol=0)
    torch.testing.assert_close(mean_flow + (places - mean_place) @ found, flow, atol=0.02, rtol=0)
    noisy = flow + 0.3 * torch.randn(2, 30, 2, generator=generator)
    ones, root = torch.ones(30, 1), weights.sqrt()[:, :, None]
    expected = torch.linalg.lstsq(root * torch.cat([places, ones], dim=1), root * noisy).solution
    mean_place, mean_flow, found = fit_affine(places, noisy, weights)
    torch.testing.assert_close(
        mean_flow + (places - mean_place) @ found, places @ expected[:, :2] + expected[:, 2:], atol=0.02, rtol=0
    )
    everywhere_the_same = fit_affine(places, flow, torch.eye(30)[:2])  # one cell says all
    torch.testing.assert_close(everywhere_the_same[2], torch.zeros(2, 2, 2))


@torch.no_grad()
def test_a_picture_is_moved_as_a_whole():
    refiner = make_refiner()
    angle = torch.tensor(0.5)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    centres, _ = place_features(8, 8, turn.device)
    found = torch.randn(1, 32, 8, 8)
    pixels, _ = place_features(64, 64, turn.device)
    grid, opaque = refiner.whole_motion((centres @ turn).T.view(1, 2, 8, 8), found, pixels)
    torch.testing.assert_close(grid[0], pixels @ turn, atol=0.02, rtol=0)
    assert opaque.shape == (1, 1) and 0.9 < opaque.sigmoid().item() < 1
    known, mask = make_clips(1, 2, 64, 64), make_mask("10")
    places = refiner.match
    refiner.match = lambda drawn, known: [x + 0.25 if x.shape[1] == 2 else x for x in places(drawn, known)]
    torch.nn.init.zeros_(refiner.to_q.weight)
    torch.nn.init.zeros_(refiner.to_q.bias)
    refiner.log_nearness.fill_(9.0)  # every cell matches itself, and all are moved by 8 pixels along both axes
    drawn = torch.nn.functional.pad(known[..., 8:, 8:], (0, 8, 0, 8), value=-1.0).flip(2)
    torch.nn.init.zeros_(refiner.moved_opacity.weight)
    moved = refiner.refine_hidden(drawn, known, mask).moved[0]
    expected = (known[0, :, 0, 8:, 8:] + 1) / 2
    torch.testing.assert_close(moved[:, :56, :56], expected * moved[0, 0, 0] / expected[0, 0, 0], atol=0.05, rtol=0)
    assert moved[0, 0, 0] / expected[0, 0, 0] > 0.95


def test_how_much_of_a_moved_picture_is_shown():
    moved = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([moved[0] * 0.3, torch.zeros(4, 8, 8)])
    drawn[0, :3] = 1.0  # wrong colours do not matter
    torch.testing.assert_close(shown_share(drawn, moved), torch.tensor([[0.3], [0.0]]))
    assert shown_share(moved * 2, moved).eq(1).all() and not shown_share(moved, moved * 0).any()
    torch.testing.assert_close(shown_share(-moved[:, :3] * 0.3, -moved[:, :3]), torch.full((2, 1), 0.3))


def test_how_far_outlines_are_from_the_drawn_ones():
    drawn = torch.zeros(3, 4, 16, 24)
    drawn[:, 3, :, :12] = 1.0
    frames = drawn.clone()
    frames[0, :3] = 0.7  # colours do not matter
    frames[1, 3] *= 0.75
    frames[2, 3] = 0.0
    torch.testing.assert_close(outline_distance(frames, drawn), torch.tensor([[0.0], [0.25], [1.0]]))
    frames[0, 3, 4, 11] = 0.0  # a small dent
    assert 0 < outline_distance(frames, drawn)[0] < 0.02
    assert outline_distance(frames, drawn * 0)[0] > 1  # something where nothing was drawn


def test_drawn_outlines_take_the_colours_around():
    """Held against pixel after pixel: the mean colour in the smallest square in which there is one."""
    generator = torch.Generator().manual_seed(0)
    alpha = torch.zeros(1, 24, 30)
    alpha[:, 3:9, 4:8] = torch.rand(1, 6, 4, generator=generator)
    alpha[0, 5, 6] = 0.8
    frame = torch.cat([torch.rand(3, 24, 30, generator=generator) * alpha, alpha])
    frame[0, 5, 6] = 1.0  # more than its alpha: as much as there can be
    drawn = torch.rand(4, 24, 30, generator=generator)
    places = (alpha[0] > module.CLEAR).nonzero().tolist()
    found = {(y, x): (frame[:3, y, x] / alpha[0, y, x]).clamp(max=1) for y, x in places}
    for size in module.REACHES:
        known, reach = dict(found), size // 2
        for y in range(24):
            for x in range(30):
                near = [colour for (v, u), colour in known.items() if max(abs(v - y), abs(u - x)) <= reach]
                if near:
                    found.setdefault((y, x), torch.stack(near).mean(dim=0))
    expected = drawn.clone()
    for (y, x), colour in found.items():
        expected[:3, y, x] = colour * drawn[3, y, x]
    assert 24 * 4 < len(found) < 24 * 30
    torch.testing.assert_close(colour_drawn(frame[None], drawn[None])[0], expected)


def test_half_transparent_parts_keep_their_colour():
    frame = torch.zeros(1, 4, 16, 16)
    frame[:, 0, 2:8, 4:12] = frame[:, 3, 2:8, 4:12] = 1.0  # red
    frame[:, :3, 8:12, 4:12], frame[:, 3, 8:12, 4:12] = 0.1, 0.4  # and a grey shadow
    torch.testing.assert_close(colour_drawn(frame, frame), frame)
    torch.testing.assert_close(colour_drawn(frame * 0.3, frame)[0, :, :8], frame[0, :, :8])  # faded


def test_haze_is_taken_off():
    levels = torch.tensor([0.0, 0.04, 0.05, 0.5, 0.95, 1.0])
    drawn = torch.stack([levels * 0.5, levels, levels * 0, levels])[None, :, None]
    clean = without_haze(drawn)[0, :, 0]
    torch.testing.assert_close(clean[3], torch.tensor([0, 0, 0, 0.5, 1, 1]))
    torch.testing.assert_close(clean[:3], torch.stack([clean[3] * 0.5, clean[3], clean[3] * 0]))


@torch.no_grad()
def test_frames_that_known_ones_cannot_follow_keep_their_outline():
    """The others are the sum of the shares."""
    torch.manual_seed(0)
    refiner, mask = KnownFrameRefiner(channels=16, attention_head_dim=8), make_mask("1000")
    known = torch.full((1, 4, 4, 24, 24), -1.0)
    known[..., 8:16, 4:20] = 1.0
    drawn = known * 0.97  # hazy
    drawn[:, :, 2] = drawn[:, :, 2].mT * 0.5 + 0.2

    def mix(hidden):
        candidates = torch.stack([hidden.warped, hidden.moved, hidden.drawn], dim=1)
        return (hidden.shares[:, :, None] * candidates).sum(dim=1)

    hidden = refiner.refine_hidden(drawn, known, mask)
    mixed, outlined = mix(hidden), without_haze(hidden.drawn)
    bent = outline_distance(mixed, outlined)[:, 0] > module.OUTLINE
    assert bent.tolist() == [False, True, False]
    expected = torch.where(bent[:, None, None, None], colour_drawn(mixed, outlined), mixed)
    torch.testing.assert_close(hidden.refined, expected)
    rgb = make_refiner(in_channels=3).refine_hidden(drawn[:, :3], known[:, :3], mask)
    torch.testing.assert_close(rgb.refined, mix(rgb))  # there is no outline


def test_weights_of_another_version_are_refused(tmp_path):
    refiner = make_refiner()
    refiner.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["cell_weight.bias"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"is of another version: it lacks cell_weight\."):
        KnownFrameRefiner.from_pretrained(tmp_path)


def test_gradients_reach_every_parameter(monkeypatch):
    monkeypatch.setattr(module, "OUTLINE", torch.inf)
    refiner, drawn, known = make_refiner(), make_clips(), make_clips().flip(2)
    hidden = refiner.refine_hidden(drawn, known, make_mask("01001", "10000"))
    assert hidden.refined.shape == hidden.warped.shape == hidden.drawn.shape == (3 + 4, 4, 24, 16)
    assert hidden.shares.shape == (3 + 4, 3, 24, 16) and hidden.trusted.shape == (3 + 4,)
    assert 0 < hidden.shares.min() and hidden.shares.max() < 1
    torch.testing.assert_close(hidden.shares.sum(dim=1), torch.ones(7, 24, 16))
    three = (hidden.warped, hidden.moved, hidden.drawn)
    mixed = sum(hidden.shares[:, number : number + 1] * x for number, x in enumerate(three))
    torch.testing.assert_close(hidden.mixed, mixed)
    interpolated = refiner.interpolate(
        (known.transpose(1, 2) + 1) / 2, torch.tensor([0, 0]), torch.tensor([0, 2]), make_mask("01001", "01001")
    )
    (hidden.mixed.square().mean() + interpolated.square().mean()).backward()
    assert [name for name, weight in refiner.named_parameters() if weight.grad is None] == []


def test_clips_with_three_known_frames_are_interpolated():
    refiner, drawn, known = make_refiner(), make_clips(3), make_clips(3).flip(2)
    mask = make_mask("01011", "10001", "10000")
    hidden = refiner.refine_hidden(drawn, known, mask)
    pixels = (known + 1) / 2
    ends = torch.stack([pixels[0, :, 1], pixels[0, :, 3]]).expand(2, -1, -1, -1, -1)  # of frames 0 and 2
    expected = refiner.interpolator(ends, torch.tensor([-1 / 2, 1 / 2]), torch.full((2,), 2))
    torch.testing.assert_close(hidden.interpolated[:2], expected)
    assert not hidden.interpolated[2:].any() and not hidden.trusted[2:].any()
    looped = refiner.refine_hidden(drawn[:1], known[:1], mask[:1], loop=True)  # frame 0 is between 4 and 1
    ends = torch.stack([pixels[0, :, 4], pixels[0, :, 1]])[None]
    expected = refiner.interpolator(ends, torch.tensor([0.5]), torch.tensor([2]))
    torch.testing.assert_close(looped.interpolated[:1], expected)


@torch.no_grad()
def test_how_far_the_interpolator_is_from_known_frames_between_others(monkeypatch):
    refiner, known = make_refiner(), (make_clips(4, 7) / 2 + 0.5).transpose(1, 2)
    mask, asked = make_mask("1001010", "1101001", "1000010", "0100000"), []

    def interpolate(known, clip, frame, masks, loop):
        asked.append((clip.tolist(), frame.tolist(), masks))
        return known[clip, frame] + 0.1 * frame[:, None, None, None]

    monkeypatch.setattr(refiner, "interpolate", interpolate)
    missed = refiner.distance_missed(known, mask)
    assert asked[0][:2] == ([0, 1, 1], [3, 1, 3])
    assert torch.equal(asked[0][2], make_mask("1000010", "1001001", "1100001"))
    shown = known[:, :, 3].mean(dim=(2, 3))
    expected = [0.3 / shown[0, 3], (0.1 / shown[1, 1] + 0.3 / shown[1, 3]) / 2]
    torch.testing.assert_close(missed[:2], torch.stack(expected))
    assert missed[2:].isnan().all()
    refiner.distance_missed(known, mask, loop=True)  # each lies between two others
    assert asked[1][:2] == ([0, 0, 0, 1, 1, 1, 1], [0, 3, 5, 0, 1, 3, 6])


@torch.no_grad()
def test_interpolated_frames_are_taken_where_they_can_be_trusted(monkeypatch):
    """Where the interpolator hits in that clip, agrees with the other choice, and is not far beside known frames."""
    refiner, drawn, known = make_refiner(), make_clips(4, 8), make_clips(4, 8).flip(2)
    mask = make_mask("10010100", "10010100", "10010100", "10000000")
    before = refiner.refine_hidden(drawn, known, mask)
    assert before.shares.isfinite().all() and torch.equal(
        before.refined[~before.trusted], before.mixed[~before.trusted]
    )
    clip, frame = hidden_frames(mask)
    agrees = frame != 2

    def interpolate(known, clip, frame, masks, loop):
        assert torch.equal(masks, mask[clip])
        return torch.where((frame != 2)[:, None, None, None], before.mixed[:10], 1 - before.mixed[:10])

    missed = torch.tensor([0.0, module.HITS + 0.01, torch.nan, torch.nan])
    monkeypatch.setattr(refiner, "interpolate", interpolate)
    hidden = refiner.refine_hidden(drawn, known, mask, missed=missed)
    beside = {6: True, 7: True}  # half of the two frames between the last known ones, and all of them
    beside = {number: (number - 5) / 2 < module.BESIDE for number in beside}
    expected = (clip == 0) & agrees & torch.tensor([beside.get(number, True) for number in frame.tolist()])
    assert torch.equal(hidden.trusted, expected) and 0 < expected.sum() < 5
    torch.testing.assert_close(hidden.refined[expected], hidden.interpolated[expected])
    assert torch.equal(hidden.refined[~expected], hidden.mixed[~expected])
    assert (hidden.interpolated[expected] - before.mixed[expected]).abs().max() == 0


def test_how_far_apart_frames_are():
    frames = torch.zeros(3, 4, 8, 8)
    frames[0, 3, :, :4] = frames[1, 3] = 1.0
    others = frames.clone()
    others[:, 0] += 0.2
    torch.testing.assert_close(distance_apart(frames, others), torch.tensor([0.05 / 0.5, 0.05, 0.05 / 0.02]))
    on_white = torch.ones(1, 3, 8, 8)
    on_white[..., :2] = 0.6  # a tenth is shown
    torch.testing.assert_close(distance_apart(on_white, on_white - 0.2), torch.tensor([2.0]))


@pytest.mark.parametrize("outline", [module.OUTLINE, torch.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype, outline, monkeypatch):
    monkeypatch.setattr(module, "OUTLINE", outline)
    refiner, drawn, known, mask = make_refiner(), make_clips(), make_clips().flip(2), make_mask("01001", "10000")
    expected = refiner(drawn, known, mask)
    halved = refiner.to(dtype)(drawn, known, mask)
    assert halved.dtype == torch.float32
    assert (halved - expected).abs().mean() < 0.05


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"multiples of 8.*\(12, 16\)"):
        make_refiner()(*[make_clips(height=12)] * 2, make_mask("10000", "10000"))
    with pytest.raises(ValueError, match="`channels` must be a multiple of 8, but is 20"):
        make_refiner(channels=20)


def test_in_a_pipeline_it_changes_hidden_frames_alone_and_is_saved_with_it(tmp_path):
    def run(pipe, **call):
        call = {"num_inference_steps": 1, "output_type": "pt", "generator": torch.Generator().manual_seed(0)} | call
        return pipe("a dog", height=16, width=16, **call).frames

    plain = make_pipeline()
    size = {"image": torch.rand(4, 16, 16), "image_index": 2}
    without, words = run(plain, **size), run(plain)
    plain.register_modules(refiner=make_refiner())
    refined = run(plain, **size)
    frames = range(without.shape[1])
    assert [frame for frame in frames if torch.equal(refined[:, frame], without[:, frame])] == [2]
    assert torch.equal(run(plain), words)  # nothing is known
    with pytest.raises(ValueError, match="`height` must be a positive multiple of 8, but is 12"):
        plain("a dog", height=12, width=16)
    plain("a dog", height=12, width=16, output_type="latent", num_inference_steps=1)  # which are not refined
    plain.register_modules(refiner=make_refiner(in_channels=3))
    with pytest.raises(ValueError, match="refiner takes pictures of 3 channels, the VAE of 4"):
        run(plain)
    plain.register_modules(refiner=make_refiner())
    plain.save_pretrained(tmp_path)
    loaded = StickerGenerationPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.refiner, KnownFrameRefiner)
    torch.testing.assert_close(run(loaded, **size), refined)
    assert StickerGenerationPipeline.from_pretrained(tmp_path, refiner=None).refiner is None
