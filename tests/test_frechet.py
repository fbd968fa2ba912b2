"""The Frechet distance against closed forms and SciPy's matrix square root; its interval against simulation."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from rdtf_diffusers.metrics.frechet import (
    frechet_distance,
    frechet_interval,
    split_difference,
    split_distances,
    split_estimate,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def features_with(mean: np.ndarray, covariance_root: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Features whose mean and covariance (the square of a symmetric root) are exactly these."""
    white = normal(count, len(mean), seed=seed)
    white -= white.mean(axis=0)
    white = np.linalg.qr(white)[0] * np.sqrt(count - 1)
    return white @ covariance_root + mean


def by_scipy(features: np.ndarray, references: np.ndarray) -> float:
    first, second = np.cov(features.T), np.cov(references.T)
    shift = features.mean(axis=0) - references.mean(axis=0)
    return shift @ shift + np.trace(first + second - 2 * sqrtm(first @ second).real)


@pytest.mark.parametrize(("n", "m", "width"), [(200, 200, 8), (60, 300, 24), (300, 30, 24)])
def test_agrees_with_the_matrix_square_root(n, m, width):
    mixing = np.eye(width) + 0.2 * normal(width, width, seed=2)
    features, references = normal(n, width) @ mixing + 0.5, normal(m, width, seed=1)
    assert frechet_distance(features, references) == pytest.approx(by_scipy(features, references), rel=1e-9)


def test_diagonal_gaussians():
    means, deviations = normal(2, 6), np.abs(normal(2, 6, seed=1)) + 0.1
    one, other = (features_with(means[i], np.diag(deviations[i]), count=20 + i, seed=i) for i in range(2))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("count", "width"), [(50, 6), (6, 50)])
def test_a_shift_counts_squared_and_a_scale_by_its_difference(count, width):
    features, shift = normal(count, width), normal(width, seed=1)
    assert frechet_distance(features + shift, features) == pytest.approx(shift @ shift, rel=1e-9)
    spread = np.trace(np.cov(features.T))
    centred = features - features.mean(axis=0)
    assert frechet_distance(3 * centred, centred) == pytest.approx((3 - 1) ** 2 * spread, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (5, 100), (100, 5), (20, 20)])
def test_fewer_clips_than_dimensions(n, m):
    """Features in a subspace: the same distance there, where SciPy is at home, as in the whole space."""
    basis = np.linalg.qr(normal(40, 3))[0]  # (40, 3)
    features, references = normal(n, 3, seed=1) * 2, normal(m, 3, seed=2) + 1
    inside = by_scipy(features, references)
    assert frechet_distance(features @ basis.T, references @ basis.T) == pytest.approx(inside, rel=1e-9)


def test_sets_without_a_common_direction():
    one, other = np.zeros((10, 8)), np.zeros((6, 8))
    one[:, :4], other[:, 4:] = normal(10, 4), normal(6, 4, seed=1)
    spreads = np.trace(np.cov(one.T)) + np.trace(np.cov(other.T))
    shift = one.mean(axis=0) - other.mean(axis=0)
    assert frechet_distance(one, other) == pytest.approx(spreads + shift @ shift, rel=1e-12)


@pytest.mark.parametrize(("count", "width"), [(100, 10), (10, 100), (2, 5)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equal_sets_are_at_zero_and_never_below(count, width, offset):
    features = normal(count, width) + offset
    spread = np.trace(np.cov(features.T))
    for other in (features, features[::-1], np.concatenate([features, features])[:count]):
        assert 0 <= frechet_distance(features, other) <= 1e-12 * spread
    assert frechet_distance(np.ones((3, 4)), np.ones((5, 4))) == 0


def test_small_distances_keep_their_digits():
    """Covariances with eigenvalues from 1 to 1e-12: the square root of a product would lose the small ones."""
    deviations = 10.0 ** -np.arange(7)
    one, other = (
        features_with(np.zeros(7), np.diag(deviations), 30),
        features_with(np.zeros(7), np.eye(7) * 1e-6, 30, 1),
    )
    assert frechet_distance(one, other) == pytest.approx(np.square(deviations - 1e-6).sum(), rel=1e-12)
    nearly = features_with(np.zeros(7), np.diag(deviations * 1.001), 30, seed=2)
    assert frechet_distance(one, nearly) == pytest.approx(1e-6 * np.square(deviations).sum(), rel=1e-8)


@pytest.mark.parametrize(("n", "m", "width"), [(50, 40, 12), (10, 14, 30)])
def test_symmetry_and_invariance(n, m, width):
    features, references = normal(n, width) * 2, normal(m, width, seed=1)
    distance = frechet_distance(features, references)
    rotation = np.linalg.qr(normal(width, width, seed=2))[0]
    shift = normal(width, seed=3)
    assert frechet_distance(references, features) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(features @ rotation + shift, references @ rotation + shift) == pytest.approx(distance)
    assert frechet_distance(features[::-1], references) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(features * 10, references * 10) == pytest.approx(100 * distance)


def test_float32_features_are_summed_in_float64():
    features, references = (normal(40, 6, seed=seed).astype(np.float32) + np.float32(1000) for seed in range(2))
    expected = frechet_distance(features.astype(np.float64), references.astype(np.float64))
    assert frechet_distance(features, references) == expected


def test_it_falls_with_the_number_of_clips():
    distances = [frechet_distance(normal(n, 10), normal(n, 10, seed=1)) for n in (20, 80, 320)]
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


@pytest.mark.parametrize(("n", "m", "width"), [(40, 40, 6), (40, 24, 12), (20, 20, 40)])
def test_the_interval_holds_the_expected_distance_as_often_as_it_says(n, m, width):
    spectrum = np.arange(1, width + 1) ** -0.5
    estimates = [
        frechet_interval(
            (1.3 * normal(n, width, seed=i) + 0.4) * spectrum,
            normal(m, width, seed=i + 1000) * spectrum,
            resamples=40,
            level=0.9,
        )
        for i in range(80)
    ]
    values = [estimate.value for estimate in estimates]
    held = np.mean([estimate.low <= np.mean(values) <= estimate.high for estimate in estimates])
    width_of_interval = np.mean([estimate.high - estimate.low for estimate in estimates])
    assert held >= 0.8  # 90 % but for chance
    assert width_of_interval < 1.7 * np.ptp(np.quantile(values, [0.05, 0.95]))


def test_the_interval_is_around_the_value():
    features, references = normal(60, 100) + 0.2, normal(50, 100, seed=1)
    estimate = frechet_interval(features, references, resamples=50)
    assert (estimate.value, estimate.n) == (frechet_distance(features, references), 60)
    assert estimate.low < estimate.value < estimate.high < 1.5 * estimate.value
    assert frechet_interval(features, references, resamples=50) == estimate
    assert frechet_interval(features, references, resamples=50, seed=1) != estimate
    wider = frechet_interval(features, references, resamples=50, level=0.99)
    assert wider.low <= estimate.low and wider.high >= estimate.high


def test_several_seeds_are_averaged_and_drawn_together():
    features, references = [normal(40, 6, seed=seed) + 1 for seed in range(3)], normal(40, 6, seed=9)
    estimate = frechet_interval(features, references, resamples=50)
    assert estimate.value == pytest.approx(np.mean([frechet_distance(one, references) for one in features]))
    assert estimate.n == 40
    # Seeds that are all the same tell nothing new.
    again = frechet_interval([features[0]] * 3, references, resamples=50)
    once = frechet_interval(features[0], references, resamples=50)
    assert (again.value, again.low, again.high) == pytest.approx((once.value, once.low, once.high))


def test_splits_against_a_loop():
    features, references = normal(2, 11, 6), normal(11, 6, seed=1)
    order = np.random.default_rng(3).permutation(11)
    clips, real = order[:5], order[5:10]
    expected = np.mean([frechet_distance(one[clips], references[real]) for one in features])
    draws = split_distances(list(features), references, resamples=7, seed=3)
    assert draws.shape == (7,) and len(set(draws)) == 7
    assert draws[0] == pytest.approx(expected)
    alone = [split_distances(one, references, resamples=7, seed=3) for one in features]
    assert np.mean(alone, axis=0) == pytest.approx(draws), "the same splits whatever the number of seeds"


def test_clips_that_only_copy_their_conditions_do_not_beat_real_ones():
    references = normal(80, 10)
    copies = 0.9 * references  # next to its original each of them looks good
    floor, draws = (split_distances(features, references) for features in (references, copies))
    assert frechet_distance(copies, references) < 0.1 * floor.mean()
    assert floor.mean() == pytest.approx(frechet_distance(normal(40, 10), normal(40, 10, seed=1)), rel=0.5)
    worse = split_distances(0.5 * references, references)
    assert split_difference(worse, floor, 80).p_value == pytest.approx(2 / 101)
    assert draws.mean() > 0.8 * floor.mean()


def test_the_interval_of_splits_is_of_their_draws():
    draws = np.arange(101.0)
    estimate = split_estimate(draws, n=40, level=0.9)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == pytest.approx((50, 5, 95, 40))
    compared = split_difference(draws, np.full(101, 9.5), n=40)
    assert (compared.difference, compared.low, compared.high, compared.n) == pytest.approx((40.5, -7, 88, 40))
    assert compared.p_value == pytest.approx(2 * 11 / 102)  # 10 of 101 are below
    assert split_difference(draws, draws, n=40).p_value == 1


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_equally_good_methods_seldom_differ(kept):
    """Both take a part of every clip from its original."""
    tests = []
    for trial in range(40):
        noise = normal(3, 16, 4, seed=trial)
        methods = [1.3 * (kept * noise[0] + (1 - kept**2) ** 0.5 * one) + 0.4 for one in noise[1:]]
        tests.append(split_difference(*(split_distances(one, noise[0], 20) for one in methods), n=16))
    assert np.mean([test.low <= 0 <= test.high for test in tests]) > 0.8


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((0, 4)), r"`features` must be \(N, D\) with N of at least 2, got \(0, 4\)"),
        (np.zeros((1, 4)), "at least 2"),
        (np.zeros((5, 0)), r"\(5, 0\)"),
        (np.zeros(4), r"\(4,\)"),
        (np.array([[0.0], [np.nan], [1.0]]), "`features` must be finite, row 1 is not"),
        (np.array([[0.0], [np.inf], [1.0]]), "must be finite"),
        (np.zeros((5, 3)), "widths 3 and 4"),
    ],
)
def test_refuses_what_has_no_distance(features, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(features, normal(6, 4))


def test_refuses_too_few_clips_for_halves():
    with pytest.raises(ValueError, match=r"`references` must be .* at least 4"):
        frechet_interval(normal(6, 4), normal(3, 4))
    with pytest.raises(ValueError, match=r"`features\[1\]` must be .* at least 4"):
        frechet_interval([normal(6, 4), normal(3, 4)], normal(6, 4))
    with pytest.raises(ValueError, match="the same clips for each seed"):
        frechet_interval([normal(6, 4), normal(5, 4)], normal(6, 4))
    with pytest.raises(ValueError, match="the same clips for each seed"):
        frechet_interval([], normal(6, 4))
    with pytest.raises(ValueError, match="widths 3 and 4"):
        frechet_interval(normal(6, 3), normal(6, 4))
    with pytest.raises(ValueError, match="`resamples` must be at least 1"):
        frechet_interval(normal(6, 4), normal(6, 4), resamples=0)


def test_refuses_what_is_not_of_the_same_splits():
    with pytest.raises(ValueError, match=r"`references` must be .* at least 4"):
        split_distances(normal(4, 4), normal(3, 4))
    with pytest.raises(ValueError, match="`references` must be the real clips of the same conditions, got 7 of them"):
        split_distances(normal(6, 4), normal(7, 4))
    with pytest.raises(ValueError, match="widths 3 and 4"):
        split_distances(normal(6, 3), normal(6, 4))
    with pytest.raises(ValueError, match="`resamples` must be at least 1"):
        split_estimate(split_distances(normal(6, 4), normal(6, 4), resamples=0), n=6)
    with pytest.raises(ValueError, match="of the same splits, got 3 and 1"):
        split_difference(np.zeros(3), np.zeros(1), n=6)
