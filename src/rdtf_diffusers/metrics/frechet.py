"""Frechet distance between two sets of features, with an interval and the floor that real clips set.

distance = frechet_interval([features_of_seed_0, features_of_seed_1], references)
floor = real_floor(references)

Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions" (1982). FID
(arXiv 1706.08500) takes it between features of pictures, FVD (arXiv 1812.01717) between features of clips.
"""

from collections.abc import Sequence

import numpy as np

from .statistics import Estimate, central_interval


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


def _covariance_factor(features: np.ndarray) -> np.ndarray:
    """A of (min(N, D), D) with A^T A the covariance of the features (N, D)."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


def _distance(features: np.ndarray, references: np.ndarray) -> float:
    """`frechet_distance` of arrays that are known to be right.

    With covariances A^T A and B^T B, the eigenvalues of their product are the squared singular values of A B^T, so
    tr sqrt(A^T A B^T B) is the sum of these. Neither a product of covariances nor a matrix square root is formed:
    singular covariances need no care, no half of the digits is lost, and with few clips the matrices are small.
    """
    a, b = _covariance_factor(features), _covariance_factor(references)
    shift = features.mean(axis=0) - references.mean(axis=0)
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
    expected to come below what real clips reach among themselves; see `real_floor`.

    Args:
        features: (N, D), N of at least 2; N may be smaller than D.
        references: (M, D) of real clips, by the same network.

    Raises:
        ValueError: fewer than 2 rows, other shapes, different widths, values that are not finite.
    """
    features, references = _checked(features, "features"), _checked(references, "references")
    _check_widths(features, references)
    return _distance(features, references)


def _half(size: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(size)[: size // 2]


def frechet_interval(
    features: np.ndarray | Sequence[np.ndarray],
    references: np.ndarray,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Frechet distance with the interval in which other clips, generated and real, would put it.

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
    by_seed = [features] if isinstance(features, np.ndarray) else list(features)
    by_seed = [_checked(one, f"features[{index}]", least=4) for index, one in enumerate(by_seed)]
    shapes = [one.shape for one in by_seed]
    if len(set(shapes)) != 1:
        raise ValueError(f"`features` must be of the same clips for each seed, got the shapes {shapes}.")
    references = _checked(references, "references", least=4)
    _check_widths(by_seed[0], references)
    value = float(np.mean([_distance(one, references) for one in by_seed]))

    # Random halves without replacement, not draws with it: a clip that is drawn twice makes a set look less diverse
    # than any real one, and these distances spread more widely than those of other clips would. A mean varies as much
    # over halves as over other whole sets: half as many clips double its variance, and that they come from these N
    # only halves it again (delete-d jackknife: Shao and Wu, Annals of Statistics 17, 1989). Halves have more bias than
    # the whole, so only their deviations from their own mean count.
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        clips, real = _half(len(by_seed[0]), generator), _half(len(references), generator)
        draws.append(np.mean([_distance(one[clips], references[real]) for one in by_seed]))
    low, high = central_interval(np.array(draws), level)
    excess = float(np.mean(draws)) - value
    return Estimate(value, max(0.0, low - excess), high - excess, len(by_seed[0]))


def real_floor(references: np.ndarray, seed: int = 0, resamples: int = 20, level: float = 0.95) -> Estimate:
    """What real clips reach against real clips: the distance between two random halves of them.

    No method can be expected below it with as many clips. Halves are smaller sets, and the distance of small sets is
    larger (see `frechet_distance`): compare it with distances of N = M = n clips. Where other real clips are at hand,
    as many as are generated, `frechet_interval` of their features is the floor at that number.

    Args:
        references: (M, D) features of real clips.
        seed: of the splits.
        resamples: random splits into halves.
        level: share of the splits within the interval.

    Returns:
        Estimate: mean and interval of the distances over splits; n = M // 2, the clips in each half.

    Raises:
        ValueError: as in `frechet_distance`, or fewer than 4 references.
    """
    references = _checked(references, "references", least=4)
    half = len(references) // 2
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(len(references)) for _ in range(resamples))
    distances = [_distance(references[order[:half]], references[order[half : 2 * half]]) for order in orders]
    low, high = central_interval(np.array(distances), level)
    return Estimate(float(np.mean(distances)), low, high, half)
