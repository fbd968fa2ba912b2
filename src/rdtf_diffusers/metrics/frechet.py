"""Frechet distance between features of generated and of real clips, with intervals, tests and the floor of real clips.

```python
floor = split_distances(references, references)    # references: features of the real clips
draws = split_distances([features_of_seed_0, features_of_seed_1], references)
print(split_estimate(draws, len(references)), split_estimate(floor, len(references)))
compared = split_difference(draws, split_distances(of_another, references), len(references))
```

Generated clips mostly have conditions that were taken from real clips, so each of them has a real clip that it
resembles by way of its conditions alone. Distances between two such sets are flattered: `split_distances` never lets
a clip meet its own original. `frechet_interval` is for real clips that have nothing to do with the generated ones.

Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions" (1982). FID
(arXiv 1706.08500) takes it between features of pictures, FVD (arXiv 1812.01717) between features of clips.
"""

from collections.abc import Sequence

import numpy as np

from .statistics import Estimate, PairedDifference, central_interval


def _checked(features: np.ndarray, name: str, least: int = 2) -> np.ndarray:
    """(N, D) as float64, with at least `least` rows, all finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < least or features.shape[1] == 0:
        raise ValueError(f"`{name}` must be (N, D) with N of at least {least}, got {features.shape}.")
    if not np.isfinite(features).all():
        first = int(np.argwhere(~np.isfinite(features))[0, 0])
        raise ValueError(f"`{name}` must be finite, row {first} is not.")
    return features


def _check_widths(features: np.ndarray, references: np.ndarray) -> None:
    if features.shape[1] != references.shape[1]:
        raise ValueError(
            f"`features` and `references` must be of one network, got widths {features.shape[1]} and "
            f"{references.shape[1]}."
        )


def _check_seeds(features: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """The features of each seed, enough of them for halves."""
    by_seed = [features] if isinstance(features, np.ndarray) else list(features)
    by_seed = [_checked(one, f"features[{index}]", least=4) for index, one in enumerate(by_seed)]
    shapes = [one.shape for one in by_seed]
    if len(set(shapes)) != 1:
        raise ValueError(f"`features` must be of the same clips for each seed, got the shapes {shapes}.")
    return by_seed


def _fit(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) of features (N, D), and A of (min(N, D), D) with A^T A their covariance."""
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def _distance(fit: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Frechet distance of two Gaussians as `_fit` describes them.

    With covariances A^T A and B^T B, the eigenvalues of their product are the squared singular values of A B^T, so
    tr sqrt(A^T A B^T B) is the sum of these. Neither a product of covariances nor a matrix square root is formed:
    singular covariances need no care, no half of the digits is lost, and with few clips the matrices are small.
    """
    (mean, a), (other_mean, b) = fit, other
    shift = mean - other_mean
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * cross
    return max(0.0, float(distance))  # of equal sets it is 0 up to rounding, on either side


def frechet_distance(features: np.ndarray, references: np.ndarray) -> float:
    """Frechet distance between Gaussians with the means and covariances of two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)), covariances over N - 1, all in float64. It is the squared 2-Wasserstein
    distance, as FID and FVD report it. Unit: that of the features, squared; figures of different networks cannot be
    compared. Lower is better, 0 at best.

    What it hides: everything but mean and covariance; single bad clips; whether a clip fits its text or given frames;
    and what the network does not look at (I3D and most picture networks see little of motion: arXiv 2404.12391).
    It is the plain plug-in estimate. That is biased: even two sets drawn from the same clips are apart, the further
    the fewer they are, falling about as 1 / N. So only figures with the same N can be compared, and none can be
    expected to come below what real clips reach among themselves; see `split_distances`.

    Args:
        features: (N, D), N of at least 2; N may be smaller than D.
        references: (M, D) of real clips, by the same network.

    Raises:
        ValueError: fewer than 2 rows, other shapes, different widths, values that are not finite.
    """
    features, references = _checked(features, "features"), _checked(references, "references")
    _check_widths(features, references)
    return _distance(_fit(features), _fit(references))


def _mean_distance(by_seed: Sequence[np.ndarray], references: np.ndarray) -> float:
    real = _fit(references)
    return float(np.mean([_distance(_fit(one), real) for one in by_seed]))


def _half(size: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(size)[: size // 2]


def frechet_interval(
    features: np.ndarray | Sequence[np.ndarray],
    references: np.ndarray,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Frechet distance from independent real clips, with the interval in which other clips would put it.

    Not for clips whose conditions (given frames, texts) are those of the references: the figure is then too low, and
    the interval is that of other sets than these. Take `split_distances` there.

    The value is `frechet_distance` of all clips, with several seeds its mean over seeds: thrown together they would be
    a larger set, with less bias than those of a method that has no seeds. The interval is for this number of clips,
    bias included; it says nothing of infinitely many. For distances hardly above the floor it is up to twice too wide;
    where features have heavy tails it is a little too narrow (holding about 90 % where it says 95 %).

    Args:
        features: (N, D), or one such array per seed, row i of each being the same clip. A clip that is drawn takes all
            its seeds along.
        references: (M, D) of real clips, drawn independently of the features.
        resamples: draws that the interval is made of.
        seed: of the draws.
        level: share of the draws within the interval.

    Returns:
        Estimate with n = N.

    Raises:
        ValueError: as in `frechet_distance`; fewer than 4 clips or references; seeds with different shapes.
    """
    by_seed, references = _check_seeds(features), _checked(references, "references", least=4)
    _check_widths(by_seed[0], references)
    value = _mean_distance(by_seed, references)

    # Random halves without replacement, not draws with it: a clip that is drawn twice makes a set look less diverse
    # than any real one, and these distances spread more widely than those of other clips would. A mean varies as much
    # over halves as over other whole sets: half as many clips double its variance, and that they come from these N
    # only halves it again (delete-d jackknife: Shao and Wu, Annals of Statistics 17, 1989). Halves have more bias than
    # the whole, so only their deviations from their own mean count.
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        clips, real = _half(len(by_seed[0]), generator), _half(len(references), generator)
        draws.append(_mean_distance([one[clips] for one in by_seed], references[real]))
    low, high = central_interval(np.array(draws), level)
    excess = float(np.mean(draws)) - value
    return Estimate(value, max(0.0, low - excess), high - excess, len(by_seed[0]))


def split_distances(
    features: np.ndarray | Sequence[np.ndarray], references: np.ndarray, resamples: int = 100, seed: int = 0
) -> np.ndarray:
    """Frechet distances of clips from the real clips of other conditions, over random splits into two halves.

    Each draw splits the N conditions into halves A and B, and is the distance of the clips of A from the real clips of
    B. So no clip meets the real clip that its given frames or its text were taken from, and every row of a table has
    the same N // 2 clips on both sides: `split_distances(references, references)` is what real clips reach, which no
    method can be expected to get below. The splits follow from N, `seed` and `resamples` alone, so draw i of two rows
    is of the same split.

    Args:
        features: (N, D), or one such array per seed; the distances of a draw are averaged over seeds.
        references: (N, D), row i of the real clip that row i of the features has its conditions from.
        resamples: splits.
        seed: of the splits.

    Returns:
        (resamples,) float64, for `split_estimate` and `split_difference`.

    Raises:
        ValueError: as in `frechet_interval`, or the numbers of clips differ.
    """
    by_seed, references = _check_seeds(features), _checked(references, "references", least=4)
    _check_widths(by_seed[0], references)
    if len(by_seed[0]) != len(references):
        raise ValueError(
            f"`references` must be the real clips of the same conditions, got {len(references)} of them for "
            f"{len(by_seed[0])} clips."
        )
    generator, half = np.random.default_rng(seed), len(references) // 2
    orders = (generator.permutation(len(references)) for _ in range(resamples))
    splits = ((order[:half], order[half : 2 * half]) for order in orders)
    return np.array([_mean_distance([one[clips] for one in by_seed], references[real]) for clips, real in splits])


def split_estimate(draws: np.ndarray, n: int, level: float = 0.95) -> Estimate:
    """The mean of the draws of `split_distances`, with the interval in which other conditions would put it.

    Args:
        draws: (resamples,).
        n: clips that were split.
        level: share of the draws within the interval: halves deviate from their mean about as far as the mean of other
            n clips would (see `frechet_interval`), further near the floor.

    Raises:
        ValueError: there are no draws, or `level` is not between 0 and 1.
    """
    low, high = central_interval(draws, level)
    return Estimate(float(np.mean(draws)), low, high, n)


def split_difference(draws: np.ndarray, others: np.ndarray, n: int, level: float = 0.95) -> PairedDifference:
    """How much further one method is from real clips than another, over the same splits.

    Of two equally good methods, the interval leaves out 0 in about 5 % of the cases from 10 clips on (often in fewer:
    it is too wide near the floor), in 6 % with 6 clips and in 16 % with 4, which can be split in few ways.

    Args:
        draws, others: (resamples,), of `split_distances` with the same references, `resamples` and `seed`.
        n: clips that were split.
        level: share of the differences within the interval.

    Returns:
        PairedDifference; its p-value is from the share of differences on either side of 0, at least
        2 / (resamples + 1).

    Raises:
        ValueError: as in `split_estimate`, or the numbers of draws differ.
    """
    if len(draws) != len(others):
        raise ValueError(f"`draws` and `others` must be of the same splits, got {len(draws)} and {len(others)}.")
    differences = np.asarray(draws) - np.asarray(others)
    low, high = central_interval(differences, level)
    rarer = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(rarer)) / (1 + len(differences)))
    return PairedDifference(float(differences.mean()), low, high, p_value, n)
