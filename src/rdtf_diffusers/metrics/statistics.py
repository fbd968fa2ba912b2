"""How sure a mean over clips is, and whether two methods differ: bootstrap over clips.

estimate = bootstrap_mean(similarities)                   # (clips,) or (clips, seeds)
compared = paired_difference(similarities, of_another)    # the same clips in the same order
print(f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}], n = {estimate.n}")

Clips are what is drawn from the world; seeds of one clip share its conditions and are no further clips. So values are
averaged over seeds first, and only clips are resampled (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


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
        p_value: two-sided; below 1 - level only if the interval leaves out 0, and never below 2 / (resamples + 1).
            It is of one comparison: with many in a table, some are small by chance.
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


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of `resamples` draws with replacement of the values (clips,): (resamples,)."""
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    mean = values.mean()
    # Resamples vary by sqrt((n - 1) / n) too little: the mean of the values is nearer to them than the true mean.
    return mean + counts @ (values - mean) / n * np.sqrt(n / (n - 1))


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


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Estimate:
    """Mean over clips with its percentile bootstrap interval.

    With fewer than about 20 clips the interval is too narrow (at 10 clips it holds the true mean in about 90 % of the
    cases instead of 95 %), more so where few clips differ much from the rest.

    Args:
        values: (clips,) or (clips, seeds), anything that NumPy takes for an array.
        seed: of the resampling; the same seed gives the same figures.
        resamples: how many means are drawn.
        level: share of the means within the interval.

    Raises:
        ValueError: another shape, fewer than 2 clips, values that are not finite, a `level` outside 0 to 1.
    """
    means = _clip_means(values, "values")
    low, high = central_interval(_resampled_means(means, seed, resamples), level)
    return Estimate(float(means.mean()), low, high, len(means))


def paired_difference(
    values: npt.ArrayLike, others: npt.ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> PairedDifference:
    """Difference of two methods' means on the same clips, with interval and p-value by bootstrap over clips.

    That some clips are harder than others for all methods cancels: pairs of values are resampled, not values.

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
    means = _resampled_means(differences, seed, resamples)
    low, high = central_interval(means, level)
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(rarer)) / (1 + resamples))
    return PairedDifference(float(differences.mean()), low, high, p_value, len(differences))
