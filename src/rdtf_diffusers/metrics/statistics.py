"""How sure a mean over clips is, and whether two methods differ: resampling of clips.

```python
estimate = bootstrap_mean(similarities)                   # (clips,) or (clips, seeds)
compared = paired_difference(similarities, of_another)    # the same clips in the same order
print(f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}], n = {estimate.n}")
```

Clips are what is drawn from the world; seeds of one clip share its conditions and are no further clips. So values are
averaged over seeds first, and only clips are resampled (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t


ALL_SIGNS_UP_TO = 12  # clips, for which all 2^n ways to swap two methods are gone through


@dataclass(frozen=True)
class Estimate:
    """A figure with the interval it would move in with other clips of the same kind.

    Attributes:
        value: the figure itself, of all clips.
        low, high: ends of the interval.
        n: clips behind it, seeds not counted.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """How much one method's values are above another's on the same clips.

    Attributes:
        difference: mean of the values minus mean of the others.
        low, high: ends of its interval.
        p_value: two-sided. It is of one comparison: with many in a table, some are small by chance. It and the
            interval are made in different ways, so near the border one may say what the other does not.
        n: clips behind it, seeds not counted.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def _clip_means(values: npt.ArrayLike, name: str) -> np.ndarray:
    """(clips,) or (clips, seeds) -> means over seeds (clips,) float64."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or len(values) < 2 or values.size == 0:
        raise ValueError(f"`{name}` must be (clips,) or (clips, seeds) with at least 2 clips, got {values.shape}.")
    if not np.isfinite(values).all():
        first = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise ValueError(f"`{name}` must be finite, got {values[first]} for clip {first}.")
    return values.reshape(len(values), -1).mean(axis=1)


def central_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """The ends between which the share `level` of the values lies, as much being left out below as above.

    Raises:
        ValueError: there are no values, or `level` is not between 0 and 1.
    """
    if len(values) == 0:
        raise ValueError("`resamples` must be at least 1, got 0.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level}.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean_interval(values: np.ndarray, seed: int, resamples: int, level: float) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of the values (clips,), made as wide as few clips need."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    mean = values.mean()
    # Resamples vary by sqrt((n - 1) / n) too little: the mean of the values is nearer to them than the true mean. And
    # their spread is itself only estimated, which Student's t knows and the normal distribution does not.
    tail = (1 + level) / 2
    widening = np.sqrt(n / (n - 1)) * t.ppf(tail, n - 1) / norm.ppf(tail)
    return central_interval(mean + widening * (counts @ (values - mean) / n), level)


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Estimate:
    """Mean over clips with its percentile bootstrap interval, widened by Student's t over the normal quantile.

    Of normal values it holds the true mean in 93 to 95 % of the cases for any number of clips from 2 (where it is very
    wide); of values where few differ much from the rest (exponential) in 88 % with up to 5 clips, 90 % with 10, 92 %
    with 20 and 93 % with 50.

    Args:
        values: (clips,) or (clips, seeds), anything that NumPy takes for an array.
        seed: of the resampling; the same seed gives the same figures.
        resamples: how many means are drawn.
        level: share of the means within the interval, before it is widened.

    Raises:
        ValueError: another shape, fewer than 2 clips, values that are not finite, a `level` outside 0 to 1.
    """
    means = _clip_means(values, "values")
    low, high = _mean_interval(means, seed, resamples, level)
    return Estimate(float(means.mean()), low, high, len(means))


def _sign_flip_p_value(differences: np.ndarray, seed: int, resamples: int) -> float:
    """How often the mean difference (clips,) would be as far from 0 if the two methods were swapped at random."""
    n, is_exact = len(differences), len(differences) <= ALL_SIGNS_UP_TO
    if is_exact:
        swapped = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        swapped = np.random.default_rng(seed).integers(2, size=(resamples, n))
    sums = np.abs((1 - 2 * swapped) @ differences)
    count = int((sums >= abs(differences.sum()) * (1 - 1e-9)).sum())  # equal sums differ in their last digits
    return count / len(sums) if is_exact else (1 + count) / (1 + len(sums))


def paired_difference(
    values: npt.ArrayLike, others: npt.ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> PairedDifference:
    """Difference of two methods' means on the same clips, with its interval as in `bootstrap_mean` and a p-value.

    That some clips are harder than others for all methods cancels: pairs of values are resampled, not values. The
    p-value is of a sign-flip test (Fisher, "The Design of Experiments", 1935): if the methods were alike, any clip's
    difference might as well have the other sign. Up to 12 clips all signs are tried, so that the p-value is at least
    2^(1 - clips) and 5 clips cannot tell methods apart at 0.05; with more, random ones, and it is at least
    1 / (resamples + 1).

    Args:
        values: (clips,) or (clips, seeds).
        others: the same clips in the same order; the number of seeds may differ.
        seed, resamples, level: as in `bootstrap_mean`.

    Raises:
        ValueError: as in `bootstrap_mean`, or the numbers of clips differ.
    """
    values, others = _clip_means(values, "values"), _clip_means(others, "others")
    if len(values) != len(others):
        raise ValueError(f"`values` and `others` must be of the same clips, got {len(values)} and {len(others)}.")
    differences = values - others
    low, high = _mean_interval(differences, seed, resamples, level)
    p_value = _sign_flip_p_value(differences, seed, resamples)
    return PairedDifference(float(differences.mean()), low, high, p_value, len(differences))
