"""Retrieval accuracy: does a clip find its own caption among all of them?"""

import torch


def retrieval_accuracy(similarities: torch.Tensor, k: int = 1) -> torch.Tensor:
    """Which queries have their own item among the `k` most similar ones; the mean of it is "top-k accuracy".

    A share in [0, 1], higher is better, chance is k / N. It says whether things can be told apart, not whether each is
    good; it falls with N, so only figures with equal N compare, and items that are alike cost each other points.

    Args:
        similarities: (N, N), query i against item j; item i is the right one for query i.
        k: how many items a query may look at.

    Returns:
        (N,) bool. Items as similar as the right one stand behind it.

    Raises:
        ValueError: the similarities are not square, not numbers, or `k` is not in 1..N.
    """
    if similarities.ndim != 2 or similarities.shape[0] != similarities.shape[1] or not len(similarities):
        raise ValueError(f"`similarities` must be (N, N) with N above 0, got {tuple(similarities.shape)}.")
    if similarities.isnan().any():
        raise ValueError("`similarities` must be numbers, got NaN.")
    if not 1 <= k <= len(similarities):
        raise ValueError(f"`k` must be in 1..{len(similarities)}, got {k}.")
    return (similarities > similarities.diagonal()[:, None]).sum(dim=1) < k
