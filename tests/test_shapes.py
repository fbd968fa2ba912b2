import numpy as np
import pytest
import torch

from rdtf_diffusers.data.shapes import COLOURS, SHAPES, Brush, draw_shape, with_article


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_premultiplied_sticker_with_a_margin(shape):
    picture, caption = draw_shape(np.random.default_rng(0), 48, shape, "orange")
    assert picture.shape == (4, 48, 48) and picture.min() >= 0 and picture.max() <= 1
    assert caption == f"an orange {shape}"
    assert (picture[:3] <= picture[3:] + 1e-6).all()
    assert 0.2 < (picture[3] > 0.5).float().mean() < 0.8
    assert ((picture[3] > 0.01) & (picture[3] < 0.99)).any()  # soft edges
    for edge in (picture[3, 0], picture[3, -1], picture[3, :, 0], picture[3, :, -1]):
        assert (edge < 0.2).all()  # nothing is cut off
    orange = torch.tensor(COLOURS["orange"]).view(3, 1, 1) / 255
    assert ((picture[:3] - orange).abs().amax(dim=0) < 0.01).float().mean() > 0.1


def test_what_is_not_given_is_drawn_from_the_generator():
    first, again = (draw_shape(np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and first[1] == again[1] and first[0].shape == (4, 96, 96)
    rng = np.random.default_rng(0)
    captions = {draw_shape(rng, 8)[1] for _ in range(300)}
    assert len(captions) > 80
    assert {caption.split()[1] for caption in captions} == set(COLOURS)


def test_a_disc_covers_its_area():
    brush = Brush(40)
    brush.disc(0.2, -0.1, 0.5, (255, 0, 0))
    red, _, _, alpha = brush.picture()
    assert torch.equal(red, alpha)
    assert alpha.sum().item() == pytest.approx(np.pi * 10**2, rel=0.03)
    positions = torch.arange(40) + 0.5
    assert (alpha.sum(dim=0) @ positions / alpha.sum()).item() == pytest.approx(24, abs=0.2)
    assert (alpha.sum(dim=1) @ positions / alpha.sum()).item() == pytest.approx(18, abs=0.2)


def test_articles():
    assert with_article("orange star") == "an orange star" and with_article("red star") == "a red star"


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"`shape` must be one of ball, .*, got 'house'"):
        draw_shape(np.random.default_rng(0), shape="house")
    with pytest.raises(ValueError, match=r"`colour` must be one of red, .*, got 'mauve'"):
        draw_shape(np.random.default_rng(0), colour="mauve")
    with pytest.raises(ValueError, match="`size` must be at least 1 pixel, got 0"):
        draw_shape(np.random.default_rng(0), size=0)
