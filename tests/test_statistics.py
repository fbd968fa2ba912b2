"""Intervals and paired tests against closed forms, and how often they are right."""

from itertools import product

import numpy as np
import pytest
import torch

from rdtf_diffusers.metrics.statistics import Estimate, bootstrap_mean, paired_difference


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.96), (0.8, 1.28)])
def test_the_interval_is_that_of_the_central_limit(level, deviations):
    values = normal(400)
    estimate = bootstrap_mean(values, resamples=20_000, level=level)
    error = deviations * values.std(ddof=1) / np.sqrt(400)
    assert (estimate.value, estimate.n) == (pytest.approx(values.mean()), 400)
    assert estimate.low == pytest.approx(values.mean() - error, abs=0.04 * error)
    assert estimate.high == pytest.approx(values.mean() + error, abs=0.04 * error)


def test_seeds_are_no_further_clips():
    values = normal(30)
    assert bootstrap_mean(np.tile(values[:, None], 5)) == bootstrap_mean(values)
    by_seed = normal(30, 3)
    assert bootstrap_mean(by_seed) == bootstrap_mean(by_seed.mean(axis=1))


def test_the_same_seed_gives_the_same_figures():
    values = torch.from_numpy(normal(30)).float()
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    assert bootstrap_mean([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0, 2)


@pytest.mark.parametrize("n", [2, 3, 5, 40])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(n):
    estimates = [bootstrap_mean(normal(n, seed=seed), resamples=200, level=0.9) for seed in range(400)]
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]) == pytest.approx(0.9, abs=0.05)


def test_pairs_cancel_what_is_hard_about_a_clip():
    hard = 10 * normal(50)
    better, worse = hard + 0.3 + 0.1 * normal(50, seed=1), hard + 0.1 * normal(50, seed=2)
    compared = paired_difference(better, worse)
    assert compared.difference == pytest.approx(0.3, abs=0.05)
    assert 0.2 < compared.low < compared.difference < compared.high < 0.4
    assert (compared.p_value, compared.n) == (pytest.approx(1 / 2001), 50)
    other_way = paired_difference(worse, better)
    assert (other_way.difference, other_way.p_value) == (pytest.approx(-compared.difference), compared.p_value)


def test_numbers_of_seeds_may_differ():
    three, one = normal(20, 3), normal(20, seed=1)
    assert paired_difference(three, one) == paired_difference(three.mean(axis=1), one[:, None])


def test_equal_values_do_not_differ():
    values = normal(20)
    compared = paired_difference(values, values)
    assert (compared.difference, compared.low, compared.high, compared.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize("n", [7, 50])
def test_small_p_values_are_as_rare_as_they_say(n):
    p_values = [paired_difference(normal(n, seed=s), np.zeros(n), resamples=200).p_value for s in range(400)]
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_few_clips_do_not_prove_much(n):
    """However large the difference is: all clips may have it by chance, in one of two directions."""
    compared = paired_difference(normal(n) ** 2 + 100, np.zeros(n))
    assert compared.p_value == 2 ** (1 - n)


def test_p_values_of_few_clips_by_counting():
    differences = normal(6) + 0.5
    sums = [sum(sign * value for sign, value in zip(signs, differences)) for signs in product((1, -1), repeat=6)]
    expected = np.mean([abs(one) >= abs(sum(differences)) - 1e-9 for one in sums])
    assert paired_difference(differences, np.zeros(6)).p_value == expected
    assert paired_difference([0.1, 0.2, 0.3], np.zeros(3)).p_value == 0.25
    assert paired_difference([0.1, 0.2, -0.3], np.zeros(3)).p_value == 1, "a sum of 0 but for rounding"


def test_random_signs_agree_with_all_signs():
    differences = normal(12) + 0.4
    exact = paired_difference(differences, np.zeros(12)).p_value
    padded = paired_difference([*differences, 0.0], np.zeros(13), resamples=20_000).p_value  # 13: no longer all
    assert 0.01 < exact < 0.5 and padded == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("values", [[], [1.0], np.zeros((3, 0)), np.zeros((3, 2, 2))])
def test_refuses_too_few_clips(values):
    with pytest.raises(ValueError, match=r"`values` must be .* at least 2 clips"):
        bootstrap_mean(values)


def test_refuses_what_is_no_number_or_no_pair():
    with pytest.raises(ValueError, match="`values` must be finite, got nan for clip 1"):
        bootstrap_mean([0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match="`others` must be finite"):
        paired_difference([0.0, 1.0], [[0.0, np.inf], [1.0, 1.0]])
    with pytest.raises(ValueError, match="of the same clips, got 2 and 3"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="`level` must be between 0 and 1"):
        bootstrap_mean([0.0, 1.0], level=95)
    with pytest.raises(ValueError, match="`resamples` must be at least 1"):
        bootstrap_mean([0.0, 1.0], resamples=0)
