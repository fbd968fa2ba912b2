# Copyright 2026 The rdtf_diffusers authors. Licensed under the Apache License, Version 2.0.
"""A network that puts what the known frames show back into the frames that the UNet drew between and after them.

    refiner = KnownFrameRefiner()
    frames = refiner(drawn, known, condition_mask)  # (B, C, F, H, W)

Not in the paper. A small UNet puts an outline where it belongs, but smears what is inside it, because a picture that
moves by a part of a latent is quite another latent. So every drawn frame is matched with the nearest known frames
before and after it, these are warped to it pixel by pixel and moved to it as wholes, and the network decides at every
pixel what to take. Where that leaves the drawn outline, the outline stays and the colours are taken. Several known
frames show by themselves how things move, so that there a frame that was interpolated from two of them is one more
choice.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .frame_interpolator import FrameInterpolator, pixel_grid


CELL = 8  # pixels of a side of a square that is matched as one
RIDGE = 1e-3  # added to the spread of the cells, so that a fit to few of them is steady
FADING = 8.0  # what an opacity's logit loses where nothing is shown
OUTLINE = 0.05  # how far an outline may be from the drawn one, see `outline_distance`
HAZE = 0.05  # alpha that decoding adds to what is clear and takes from what is opaque
CLEAR = 0.1  # alpha up to which a pixel has no colour to speak of
HITS = 0.3  # how far, see `distance_missed`, the interpolator may be from known frames to be trusted in a clip
AGREES = 0.5  # how far, see `distance_apart`, a frame that it made may be from the other choice to be taken
BESIDE = 0.5  # how far beside two known frames it may be, as a share of what lies between them
REACHES = 3, 5, 9, 17  # sides of the squares, one after the other, in which clear pixels look for a colour
MAX_SCORES = 2**24  # comparisons of cells that are in memory at a time, but for those of a single frame


def place_features(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (h*w, 2) of a grid's cells as (x, y) in [-1, 1], and waves of them (h*w, 12)."""
    centres = pixel_grid(height, width, device).flatten(0, 1)
    angles = (centres[:, :, None] * torch.pi * torch.tensor([0.5, 1.0, 2.0], device=device)).flatten(1)
    return centres, torch.cat([angles.sin(), angles.cos()], dim=1)


class CellEncoder(nn.Sequential):
    """Pixels (N, C, H, W) -> features of cells (N, D, H / 8, W / 8)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__(
            nn.PixelUnshuffle(CELL // 2),
            nn.Conv2d(in_channels * (CELL // 2) ** 2, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )


def choice_network(in_channels: int) -> nn.Sequential:
    """Pixels (N, C, H, W) -> logits of a choice (N, 1, H, W), at first 0 everywhere."""
    network = nn.Sequential(
        nn.Conv2d(in_channels, 32, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.SiLU(),
        nn.Conv2d(32, 1, 3, padding=1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )
    nn.init.zeros_(network[-2].weight)
    nn.init.zeros_(network[-2].bias)
    return network


def fit_affine(places: torch.Tensor, flow: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The affine motion nearest to that of a frame's cells, by weighted least squares.

    Args:
        places: of the cells, (M, 2).
        flow: from where they come, less where they are, (N, M, 2).
        weights: (N, M), which add up to 1.

    Returns:
        the mean place (N, 1, 2) and flow (N, 1, 2), and how the flow changes with the place (N, 2, 2): a place has
        the flow `mean_flow + (place - mean_place) @ change`.
    """
    weights = weights[:, :, None]
    mean_place, mean_flow = ((weights * x).sum(dim=1, keepdim=True) for x in (places, flow))
    offsets = places - mean_place  # (N, M, 2)
    spread = (weights * offsets).mT @ offsets + RIDGE * torch.eye(2, device=places.device)
    return mean_place, mean_flow, torch.linalg.solve(spread, (weights * offsets).mT @ (flow - mean_flow))


def shown_share(drawn: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
    """How much of a moved picture a drawn one shows, (N, 1): the factor on it that comes nearest, by alpha alone.

    Both (N, C, H, W), 0 where there is nothing: premultiplied RGBA, or RGB less its background.
    """
    if drawn.shape[1] == 4:
        drawn, moved = drawn[:, 3:], moved[:, 3:]
    shown, whole = (x.flatten(1).sum(dim=1, keepdim=True) for x in (drawn * moved, moved.square()))
    return (shown / whole.clamp(min=1e-3)).clamp(0, 1)


def without_haze(drawn: torch.Tensor) -> torch.Tensor:
    """Premultiplied RGBA (N, 4, H, W) with clear pixels that are clear and opaque ones that are opaque."""
    alpha = drawn[:, 3:]
    clean = ((alpha - HAZE) / (1 - 2 * HAZE)).clamp(0, 1)
    return torch.cat([drawn[:, :3] * (clean / alpha.clamp(min=HAZE)), clean], dim=1)


def outline_distance(frames: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """How far outlines are from the drawn ones, (N, 1), both premultiplied RGBA (N, 4, H, W).

    The mean absolute difference of alpha, as a share of the drawn mean. Alpha is averaged over squares of 8x8 pixels,
    so that a dent of a pixel or two hardly counts.
    """
    ours, theirs = (F.avg_pool2d(x[:, 3:], CELL, stride=CELL // 2).flatten(1) for x in (frames, drawn))
    return (ours - theirs).abs().mean(dim=1, keepdim=True) / theirs.mean(dim=1, keepdim=True).clamp(min=1e-3)


def distance_apart(frames: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """How far frames are from others, (N,), both (N, C, H, W) in [0, 1]: the mean absolute difference, as a share of
    what the first show, their mean alpha or the mean difference from white."""
    shown = frames[:, 3:] if frames.shape[1] == 4 else 1 - frames
    return (frames - others).abs().mean(dim=(1, 2, 3)) / shown.mean(dim=(1, 2, 3)).clamp(min=0.02)


def square_mean(x: torch.Tensor, size: int) -> torch.Tensor:
    """Means over squares around every pixel, (N, C, H, W); outside there are zeros."""
    across = F.avg_pool2d(x, (1, size), stride=1, padding=(0, size // 2))
    return F.avg_pool2d(across, (size, 1), stride=1, padding=(size // 2, 0))


def colour_drawn(frames: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Drawn outlines with the colours of other frames, all premultiplied RGBA (N, 4, H, W).

    Clear pixels of `frames` take the mean colour of others around; where there is none near, the drawn colour stays.
    """
    shown = frames[:, 3:] > CLEAR
    colours = torch.where(shown, (frames[:, :3] / frames[:, 3:].clamp(min=CLEAR)).clamp(max=1.0), 0.0)
    found = shown.to(frames.dtype)
    for size in REACHES:
        near, share = (square_mean(x, size) for x in (colours, found))
        new = (found == 0) & (share > 0.5 / size**2)  # at least one
        colours = torch.where(new, near / share.clamp(min=1e-6), colours)
        found = torch.where(new, 1.0, found)
    alpha = drawn[:, 3:]
    return torch.cat([torch.where(found > 0, colours * alpha, drawn[:, :3]), alpha], dim=1)


class RefinedFrames(NamedTuple):
    """N hidden frames.

    Attributes:
        refined: (N, C, H, W) in [0, 1]: `interpolated` where that is `trusted`, else `mixed`.
        warped: the same, known frames warped to what was drawn, each pixel by itself.
        moved: the same, known frames moved to it as wholes.
        drawn: the same, as they were drawn.
        interpolated: the same, made of two known frames alone; 0 where the clip has less than three.
        shares: (N, 3, H, W), how much of each pixel is `warped`, `moved` and `drawn`; they add up to 1.
        mixed: the sum of the shares or, if there is alpha and their outline is far from the drawn one, that one with
            their colours, without haze.
        trusted: (N,) bool, whether the interpolator comes near those known frames of the clip that lie between two
            others, see `KnownFrameRefiner.distance_missed`, agrees with `mixed`, and does not reach far beside the
            known frames. False where the clip has less than three of these.
    """

    refined: torch.Tensor
    warped: torch.Tensor
    moved: torch.Tensor
    drawn: torch.Tensor
    interpolated: torch.Tensor
    shares: torch.Tensor
    mixed: torch.Tensor
    trusted: torch.Tensor


def join_ends(candidates: torch.Tensor, logits: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What two known frames offer for N hidden ones, as one.

    Args:
        candidates: of `KnownFrameRefiner.warp`, (N + T, 2, C, H, W): made of the known frame before each hidden one,
            then of the one after each of those whose numbers are `two`, (T,).
        logits: likewise, (N + T, 2, H, W).

    Returns:
        (N, 2, C, H, W), either way of moving as the blend of both ends, and its logits (N, 2, H, W).
    """
    count = len(candidates) - len(two)
    ends = torch.stack([candidates[:count], torch.zeros_like(candidates[:count])], dim=2)  # (N, 2, 2, C, H, W)
    chances = torch.stack([logits[:count], torch.full_like(logits[:count], -torch.inf)], dim=2)  # (N, 2, 2, H, W)
    ends[two, :, 1], chances[two, :, 1] = candidates[count:], logits[count:]
    return (chances.softmax(dim=2)[:, :, :, None] * ends).sum(dim=2), chances.logsumexp(dim=2)


class KnownFrameRefiner(ModelMixin, ConfigMixin):
    """Moves known frames to where drawn ones show them, and blends both.

    Each drawn frame and a known one are cut into cells of 8x8 pixels. A transformer compares them; the mean place in
    the known frame that a cell matches, and a correction at twice that resolution, say from where every pixel comes,
    as in GMFlow (arXiv 2111.13680). Also predicted: how opaque it is there, and how far to trust it against what was
    drawn. Most stickers move as a whole, and the outline of what was drawn is dented, so that the affine motion that
    fits all cells best is tried as well. Where neither has the outline of what was drawn, as in a flag that waves, the
    known frames give the colours alone. Where three frames or more are known, `FrameInterpolator` makes each hidden
    one of those around it, or beside it, without a look at the drawing, and that is taken where it can be trusted.

    Args:
        in_channels: channels of the frames, 4 for premultiplied RGBA, 3 for RGB.
        channels: width D of the features.
        num_layers: layers of the transformer.
        attention_head_dim: channels of each of its heads.
        interpolator_channels: width of the interpolator.

    Raises:
        ValueError: `channels` is no multiple of `attention_head_dim`, or `interpolator_channels` of 16.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        channels: int = 64,
        num_layers: int = 2,
        attention_head_dim: int = 32,
        interpolator_channels: int = 80,
    ):
        super().__init__()
        if channels % attention_head_dim:
            raise ValueError(f"`channels` must be a multiple of {attention_head_dim}, but is {channels}.")
        self.drawn_encoder = CellEncoder(in_channels, channels)
        self.known_encoder = CellEncoder(in_channels, channels)
        self.drawn_places, self.known_places = nn.Linear(12, channels), nn.Linear(12, channels)
        self.layers = nn.ModuleList(
            BasicTransformerBlock(
                channels, channels // attention_head_dim, attention_head_dim, cross_attention_dim=channels
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.to_q, self.to_k = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.log_nearness = nn.Parameter(torch.tensor(2.0))  # log of what a squared unit costs a match
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * channels + 2, channels, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, 4, 3, padding=1),  # correction of the place (2), opacity, trust
        )
        self.pixel_trust = nn.Sequential(
            nn.Conv2d(2 * in_channels + 1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
        )
        self.cell_weight = nn.Linear(2 * channels, 1)  # how much a cell says about the motion of the whole
        self.moved_opacity = nn.Linear(2 * channels, 1)
        self.moved_trust = choice_network(3 * in_channels)
        self.interpolator = FrameInterpolator(in_channels, interpolator_channels)
        for last in (self.decoder[-1], self.pixel_trust[-1], self.cell_weight, self.moved_opacity):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.decoder[-1].bias.data[2] = self.moved_opacity.bias.data[0] = 4.0  # opaque

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, but weights that lack something are refused: the rest would be random.

        Raises:
            ValueError: the weights are of another version.
        """
        refiner, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if missing := info["missing_keys"]:
            lacks = ", ".join(sorted({name.partition(".")[0] for name in missing}))
            raise ValueError(f"The refiner of {args[0]} is of another version: it lacks {lacks}.")
        return (refiner, info) if output_loading_info else refiner

    def match(self, drawn: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, D, h, w) of both -> from where each cell comes (N, 2, h, w), what was found (N, 2 D, h, w)."""
        height, width = drawn.shape[2:]
        centres, waves = place_features(height, width, drawn.device)
        waves = waves.to(drawn.dtype)
        tokens = drawn.flatten(2).transpose(1, 2) + self.drawn_places(waves)  # (N, h*w, D)
        source = known.flatten(2).transpose(1, 2) + self.known_places(waves)
        for layer in self.layers:
            tokens = layer(tokens, encoder_hidden_states=source)
        tokens = self.norm(tokens)
        query, key = self.to_q(tokens), self.to_k(source)
        scores = (query @ key.mT).float() * key.shape[2] ** -0.5
        distance = (centres[:, None] - centres).square().sum(dim=2)  # (h*w, h*w)
        weights = (scores - self.log_nearness.float().exp() * distance).softmax(dim=2)
        with torch.autocast(drawn.device.type, enabled=False):  # in bfloat16 places would be a fifth of a pixel off
            places = weights @ centres  # (N, h*w, 2)
        found = torch.cat([tokens, weights.to(source.dtype) @ source], dim=2)
        return (x.transpose(1, 2).unflatten(2, (height, width)) for x in (places, found))

    def warp(
        self, drawn: torch.Tensor, known: torch.Tensor, drawn_cells: torch.Tensor, known_cells: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Moves known frames to drawn ones, both (N, C, H, W) in [0, 1], by their cells' features (N, D, h, w).

        Returns:
            the frames warped pixel by pixel and moved as wholes (N, 2, C, H, W), and the logits (N, 2, H, W) of taking
            them and not what was drawn.
        """
        size = drawn.shape[2:]
        places, found = self.match(drawn_cells, known_cells)
        centres, _ = place_features(*places.shape[2:], drawn.device)
        flow = places - centres.T.unflatten(1, places.shape[2:])  # (N, 2, h, w)
        details = self.decoder(torch.cat([found, flow.to(found.dtype)], dim=1)).float()
        correction, opacity, trust = details.split([2, 1, 1], dim=1)
        flow = F.interpolate(flow, scale_factor=2, mode="bilinear") + 0.5 * correction.tanh()
        flow, opacity, trust = (F.interpolate(x, size=size, mode="bilinear") for x in (flow, opacity.sigmoid(), trust))
        pixels, _ = place_features(*size, drawn.device)
        grid = pixels.unflatten(0, size) + flow.permute(0, 2, 3, 1)  # (N, H, W, 2)
        background = 0.0 if self.config.in_channels == 4 else 1.0  # premultiplied, or on white
        content = known.float() - background
        warped = F.grid_sample(content, grid, align_corners=False) * opacity + background
        grid, opaque = self.whole_motion(places, found, pixels)
        moved = F.grid_sample(content, grid.unflatten(1, size), align_corners=False)
        faded = 1 - shown_share(drawn.float() - background, moved).detach()
        moved = moved * (opaque - FADING * faded).sigmoid()[:, :, None, None] + background
        detail = torch.cat([warped, drawn.float(), trust], dim=1).to(found.dtype)
        trust = trust + self.pixel_trust(detail).float()
        detail = torch.cat([moved, warped, drawn.float()], dim=1).to(found.dtype)
        logits = torch.cat([trust, self.moved_trust(detail).float()], dim=1)
        return torch.stack([warped, moved], dim=1), logits

    def whole_motion(
        self, places: torch.Tensor, found: torch.Tensor, pixels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The motion of whole frames.

        Args:
            places, found: as `match` returns them.
            pixels: their places, (P, 2).

        Returns:
            from where the pixels come, (N, P, 2), and how opaque the frame is there, (N, 1), a logit.
        """
        centres, _ = place_features(*places.shape[2:], places.device)
        found = found.flatten(2).transpose(1, 2)  # (N, h*w, 2 D)
        weights = self.cell_weight(found).float().softmax(dim=1)  # (N, h*w, 1)
        opaque = (weights * self.moved_opacity(found).float()).sum(dim=1)
        flow = places.float().flatten(2).transpose(1, 2) - centres
        with torch.autocast(places.device.type, enabled=False):
            mean_place, mean_flow, change = fit_affine(centres, flow, weights[:, :, 0])
            grid = pixels + mean_flow + (pixels - mean_place) @ change
        return grid, opaque

    def refine_hidden(
        self,
        drawn: torch.Tensor,
        known: torch.Tensor,
        condition_mask: torch.Tensor,
        part: slice = slice(None),
        loop: bool = False,
        missed: torch.Tensor | None = None,
    ) -> RefinedFrames:
        """A part of the hidden frames of clips, in the order of `hidden_frames`.

        Args:
            drawn, known, condition_mask, loop: as of `forward`.
            part: which of the hidden frames.
            missed: what `distance_missed` returns, if it is known already.
        """
        clip, frame = (numbers[part] for numbers in hidden_frames(condition_mask))
        pixels, given = ((x.transpose(1, 2).to(self.dtype) + 1) / 2 for x in (drawn, known))  # (B, F, C, H, W)
        pixels = pixels[clip, frame].clamp(0, 1)
        before, after = (number[clip, frame] for number in nearest_known(condition_mask, loop))
        two = (before != after).nonzero()[:, 0]  # which lie between two known frames
        number = torch.cat([torch.arange(len(clip), device=clip.device), two])
        source = given[clip[number], torch.cat([before, after[two]])]
        candidates, logits = self.warp(
            pixels[number], source, self.drawn_encoder(pixels)[number], self.known_encoder(source)
        )
        candidates, logits = join_ends(candidates, logits, two)
        pixels = pixels.float()
        shares = torch.cat([logits, torch.zeros_like(logits[:, :1])], dim=1).softmax(dim=1)  # what was drawn has 0
        mixed = (shares[:, :, None] * torch.cat([candidates, pixels[:, None]], dim=1)).sum(dim=1)
        if self.config.in_channels == 4:
            outlined = without_haze(pixels)
            bent = (outline_distance(mixed, outlined) > OUTLINE)[:, 0].nonzero()[:, 0]
            mixed = mixed.index_copy(0, bent, colour_drawn(mixed[bent], outlined[bent]))
        interpolated, trusted = torch.zeros_like(pixels), torch.zeros_like(clip, dtype=torch.bool)
        if missed is None:
            missed = self.distance_missed(given, condition_mask, loop)
        several = (~missed.isnan())[clip].nonzero()[:, 0]
        with torch.no_grad():
            numbers = clip[several], frame[several]
            interpolated[several] = self.interpolate(given, *numbers, condition_mask[numbers[0]], loop)
            agrees = distance_apart(interpolated[several], mixed[several]) < AGREES
            near = nearest_ends(condition_mask, loop)[2][numbers] > -BESIDE
            trusted[several] = (missed[numbers[0]] < HITS) & agrees & near
        return RefinedFrames(
            refined=torch.where(trusted[:, None, None, None], interpolated, mixed),
            warped=candidates[:, 0],
            moved=candidates[:, 1],
            drawn=pixels,
            interpolated=interpolated,
            shares=shares,
            mixed=mixed,
            trusted=trusted,
        )

    def interpolate(
        self,
        known: torch.Tensor,
        clip: torch.Tensor,
        frame: torch.Tensor,
        masks: torch.Tensor,
        loop: bool = False,
        soft: bool = False,
    ) -> torch.Tensor:
        """Frames (N, C, H, W) of clips of which several are known, each from the two of `nearest_ends`.

        Args:
            known: clips (B, F, C, H, W) in [0, 1], of which the known frames are looked at.
            clip, frame: numbers of the frames, both (N,).
            masks: (N, F) bool, which frames are known of each one's clip.
            loop: as of `forward`.
            soft: see `FrameInterpolator`.
        """
        row = torch.arange(len(frame), device=frame.device)
        first, second, time, gap = (x[row, frame] for x in nearest_ends(masks, loop))
        return self.interpolator(torch.stack([known[clip, first], known[clip, second]], dim=1), time, gap, soft)

    @torch.no_grad()
    def distance_missed(self, known: torch.Tensor, condition_mask: torch.Tensor, loop: bool = False) -> torch.Tensor:
        """How far the interpolator is from the known frames that lie between two others, if it is asked for them.

        Arguments as of `interpolate` and `forward`. Returns means of `distance_apart` over clips, (B,), NaN where
        there is no such frame.
        """
        order = condition_mask.cumsum(dim=1)  # of the known frames, from 1 on
        asked = order[:, -1:] > 2 if loop else (order > 1) & (order < order[:, -1:])
        clip, frame = (condition_mask & asked).nonzero(as_tuple=True)
        masks = condition_mask[clip].scatter(1, frame[:, None], False)
        apart = distance_apart(known[clip, frame].float(), self.interpolate(known, clip, frame, masks, loop))
        total, count = (torch.zeros(len(known), device=clip.device) for _ in range(2))
        return total.index_add(0, clip, apart) / count.index_add(0, clip, torch.ones_like(apart))

    def forward(
        self, drawn: torch.Tensor, known: torch.Tensor, condition_mask: torch.Tensor, loop: bool = False
    ) -> torch.Tensor:
        """Refines clips.

        Args:
            drawn: decoded frames (B, C, F, H, W) in [-1, 1], premultiplied if there is alpha.
            known: the known frames in the same form; what stands elsewhere is not looked at.
            condition_mask: (B, F) bool, which frames are known.
            loop: whether the first frame comes after the last one again.

        Returns:
            (B, C, F, H, W) in [-1, 1]: the known frames as they are, the others refined. Clips without a known frame
            come back as they were drawn.

        Raises:
            ValueError: height or width is no multiple of 8.
        """
        if drawn.shape[3] % CELL or drawn.shape[4] % CELL:
            raise ValueError(f"Height and width must be multiples of {CELL}, got {tuple(drawn.shape[3:])}.")
        result = torch.where(condition_mask[:, None, :, None, None], known, drawn)
        clip, frame = hidden_frames(condition_mask)
        cells = (drawn.shape[3] // CELL) * (drawn.shape[4] // CELL)
        frames_at_once = max(1, MAX_SCORES // cells**2)  # each cell is compared with each
        result = result.transpose(1, 2).clone()
        missed = self.distance_missed((known.transpose(1, 2).to(self.dtype) + 1) / 2, condition_mask, loop)
        for first in range(0, len(clip), frames_at_once):
            part = slice(first, first + frames_at_once)
            hidden = self.refine_hidden(drawn, known, condition_mask, part, loop, missed)
            result[clip[part], frame[part]] = (hidden.refined * 2 - 1).to(result.dtype)
        return result.transpose(1, 2)


def hidden_frames(condition_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of clip and frame, both (N,), of all hidden frames of clips that have a known one; mask (B, F)."""
    return (~condition_mask & condition_mask.any(dim=1, keepdim=True)).nonzero(as_tuple=True)


def nearest_known(condition_mask: torch.Tensor, loop: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """For every frame (B, F) the number of the nearest known frame before it, and after it.

    Where there is none on a side, it is that of the other side; 0 in clips without a known frame. In a `loop` the clip
    goes on with its first frame, so that there is one on both sides.
    """
    length = condition_mask.shape[1]
    if loop:
        middle = slice(length, 2 * length)
        return tuple(x[:, middle] % length for x in nearest_known(condition_mask.repeat(1, 3)))
    number = torch.arange(length, device=condition_mask.device).expand_as(condition_mask)
    before = number.masked_fill(~condition_mask, -1).cummax(dim=1).values
    after = number.masked_fill(~condition_mask, length).flip(1).cummin(dim=1).values.flip(1)
    first, last = torch.where(before < 0, after, before), torch.where(after == length, before, after)
    return tuple(torch.where(x.clamp(0, length - 1) == x, x, 0) for x in (first, last))


def nearest_ends(condition_mask: torch.Tensor, loop: bool = False) -> tuple[torch.Tensor, ...]:
    """For every frame of clips with several known ones the two that it can be interpolated from, all (B, F).

    Those before and after it; where one is missing, the nearest and the next one on the other side.

    Returns:
        the numbers of both; where the frame is, 0 at the first and 1 at the second, below 0 beside the first; how many
        frames they are apart.
    """
    length = condition_mask.shape[1]
    number = torch.arange(length, device=condition_mask.device)
    first, second = nearest_known(condition_mask, loop)
    distance = (number[:, None] - number).abs().masked_fill(~condition_mask[:, None], length)  # (B, F, F)
    nearest = distance.argsort(dim=2, stable=True)[:, :, : min(2, length)]
    second = torch.where(first == second, nearest[:, :, -1], second)
    past, gap = number - first, second - first
    if loop:  # around the end
        past, gap = past % length, gap % length
    return first, second, past / torch.where(gap == 0, 1, gap), gap.abs()
