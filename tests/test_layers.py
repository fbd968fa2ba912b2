import re

import numpy as np
import pytest
import torch

from rdtf_diffusers.data.layers import LAYERS, SPRITE_COLOURS, SPRITES, Particles, draw_layer, draw_sprite, stamp
from rdtf_diffusers.data.procedural import animate
from rdtf_diffusers.data.shapes import draw_shape


def particles(x, y, size, angle=0.0, opacity=1.0, sprite=("heart", "red")):
    """One particle in one frame."""
    values = (np.full((1, 1), float(value)) for value in (x, y, size, angle, opacity))
    return Particles(*values, (sprite,))


def empty(num_frames=1, size=32):
    return torch.full((num_frames, 4, size, size), -1.0)


def face(side=48):
    return draw_shape(np.random.default_rng(0), side, "smiling face", "yellow")[0]


@pytest.mark.parametrize("sprite", SPRITES)
def test_sprites_are_premultiplied_and_drawn_once(sprite):
    picture = draw_sprite(sprite, "red", 24)
    assert picture is draw_sprite(sprite, "red", 24)
    assert picture.shape == (4, 24, 24) and (picture[:3] <= picture[3:] + 1e-6).all()
    assert 0.03 < (picture[3] > 0.5).float().mean() < 0.9


def test_a_stamp_keeps_pixels_moves_by_parts_of_them_and_lies_over_the_clip():
    sprite = draw_sprite("heart", "red", 12)
    clip = empty()
    stamp(clip, particles(x=10, y=16, size=12))
    torch.testing.assert_close((clip[0, :, 10:22, 4:16] + 1) / 2, sprite, atol=1e-5, rtol=0)
    assert clip[0, 3].add(1).sum() / 2 == pytest.approx(sprite[3].sum().item(), rel=1e-4)  # nothing elsewhere
    shifted = empty()
    stamp(shifted, particles(x=10.25, y=16, size=12))
    positions = torch.arange(32.0)
    first, second = (((c[0, 3] + 1).sum(dim=0) @ positions / (c[0, 3] + 1).sum()).item() for c in (clip, shifted))
    assert second - first == pytest.approx(0.25, abs=1e-3)
    over = torch.zeros(1, 4, 32, 32)  # half transparent grey
    stamp(over, particles(x=10, y=16, size=12, opacity=0.5))
    expected = 0.5 * sprite + (1 - 0.5 * sprite[3]) * 0.5
    torch.testing.assert_close((over[0, :, 10:22, 4:16] + 1) / 2, expected, atol=1e-5, rtol=0)


def test_a_stamp_turns_clockwise_and_is_cut_at_the_edge():
    turned = empty()
    stamp(turned, particles(x=16, y=16, size=12, angle=np.pi / 2))
    expected = draw_sprite("heart", "red", 12).rot90(-1, dims=(1, 2))
    torch.testing.assert_close((turned[0, :, 10:22, 10:22] + 1) / 2, expected, atol=1e-4, rtol=0)
    whole, cut = empty(size=64), empty(size=32)
    for x, y in ((1, 30), (31, 2), (-3, -2), (33.5, 15)):
        stamp(whole, particles(x=x + 16, y=y + 16, size=12))
        stamp(cut, particles(x=x, y=y, size=12))
    torch.testing.assert_close(cut, whole[:, :, 16:48, 16:48], atol=1e-5, rtol=0)
    for x, y in ((-20, 5), (60, 5), (5, 1000)):
        far = empty()
        stamp(far, particles(x=x, y=y, size=12))
        assert (far == -1).all()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_moves_closes_its_cycle_and_is_named(name):
    layer = LAYERS[name]
    assert layer.sprite in SPRITES and set(layer.colours) <= set(SPRITE_COLOURS)
    assert all("{}" not in phrase or layer.nouns for phrase in layer.phrases)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        drawn, phrase = draw_layer(name, rng, 8)
        shape = drawn.x.shape
        assert shape == (len(drawn.sprites), 8) and "{}" not in phrase
        assert {field.shape for field in (drawn.y, drawn.size, drawn.angle, drawn.opacity)} == {shape}
        assert (drawn.opacity >= 0).all() and (drawn.opacity <= 1).all() and (drawn.size > 0).all()
        clip = animate(face(), np.random.default_rng(seed), layer=name)
        assert clip.layer == name and clip.motions == ()
        frames = (clip.frames + 1) / 2
        assert frames.min() >= -1e-5 and (frames[:, :3] <= frames[:, 3:] + 1e-5).all()
        assert (frames - frames[:1]).abs().amax() > 0.2
        # The same draw in a clip of twice the length passes the same places: the path is one of phase alone.
        longer, _ = draw_layer(name, np.random.default_rng(seed), 16)
        np.testing.assert_allclose(longer.x[:, ::2], drawn.x, atol=1e-9)
        np.testing.assert_allclose(longer.y[:, ::2], drawn.y, atol=1e-9)


def test_hearts_rise_tears_run_down_and_sparkles_stay():
    def steps(name):
        drawn, _ = draw_layer(name, np.random.default_rng(0), 64)
        return np.median(np.diff(drawn.y, axis=1))

    assert steps("hearts") < 0 and steps("notes") < 0 and steps("zzz") < 0
    assert steps("tears") > 0 and steps("sweat") > 0 and steps("rain") > 0 and steps("confetti") > 0
    assert steps("sparkles") == 0


def test_captions_say_number_size_colour_and_side():
    for seed in range(150):
        drawn, phrase = draw_layer("hearts", np.random.default_rng(seed), 8)
        count = len(drawn.sprites)
        words = phrase.replace(",", "").split()
        assert ("hearts" in words) == (count > 1)
        assert not {"lots", "many"} & set(words) or count >= 5
        assert not {"few", "some"} & set(words) or count in (3, 4)
        assert not {"two", "couple"} & set(words) or count == 2
        assert {"red", "pink", "purple"} & set(words) <= {drawn.sprites[0][1]}
        if {"tiny", "small"} & set(words):
            assert drawn.size.max() < 0.22
        if {"big", "large"} & set(words):
            assert drawn.size.max() > 0.24
    for seed in range(100):
        drawn, phrase = draw_layer("tears", np.random.default_rng(seed), 8)
        sides = {int(side) for side in np.sign(drawn.x).ravel()}
        if said := re.search("on the (left|right)", phrase):
            assert sides == {-1 if said[1] == "left" else 1}
        if re.search(r"\ba (\w+ )?tear\b", phrase):
            assert len(drawn.sprites) == 1
    phrases = {draw_layer(name, np.random.default_rng(seed), 2)[1] for seed in range(60) for name in LAYERS}
    assert len(phrases) > 200


def test_painted_layers_move_with_the_picture_and_fade_with_it_and_others_do_not():
    picture = face()

    def added(layer, motion, seed):
        """What the layer adds to a clip of the same motion without it, per frame."""
        both = animate(picture, np.random.default_rng(seed), motion=motion, layer=layer)
        alone = animate(picture, np.random.default_rng(seed), motion=motion)
        assert both.motions == (motion,) and both.layer == layer and both.phrase.startswith(alone.phrase)
        return (both.frames - alone.frames).abs().amax(dim=(1, 2, 3))

    for seed in range(3):
        assert added("anger", "slide out", seed)[-1] < 1e-3  # gone with the picture
        assert added("anger", "fade out", seed)[-1] < 0.15
        assert added("rain", "slide out", seed)[-1] > 0.3


def test_an_empty_picture_still_has_a_layer():
    clip = animate(torch.zeros(4, 16, 16), np.random.default_rng(0), layer="hearts")
    assert clip.frames.isfinite().all() and (clip.frames[:, 3] > 0).any()
