"""Retrieval accuracy: does a clip find its own caption among all of them?"""

from collections.abc import Sequence

import torch


def equal_texts(texts: Sequence[str]) -> torch.Tensor:
    """Which of N texts are equal: (N, N) bool, true on the diagonal."""
    numbers = {text: number for number, text in enumerate(texts)}
    places = torch.tensor([numbers[text] for text in texts])
    return places[:, None] == places


def retrieval_accuracy(similarities: torch.Tensor, k: int = 1, same: torch.Tensor | None = None) -> torch.Tensor:
    """Which queries have a right item among the `k` most similar ones; the mean of it is "top-k accuracy".

    A share in [0, 1], higher is better, chance is k / N. It says whether things can be told apart, not whether each is
    good; it falls with N, so only figures with equal N compare, and items that are alike cost each other points.

    Args:
        similarities: (Q, N), query i against item j.
        k: how many items a query may look at.
        same: (Q, N) bool, whether item j is right for query i; several are where captions are equal, and they never
            stand in each other's way. By default Q = N, and item i is the right one for query i.

    Returns:
        (Q,) bool. Wrong items as similar as the best right one stand before it: an encoder that cannot tell anything
        apart finds nothing.

    Raises:
        ValueError: the similarities are not numbers, or not square and without `same`; `k` is not in 1..N; `same` has
            another shape, is not bool, or knows no right item for a query.
    """
    square = similarities.ndim == 2 and similarities.shape[0] == similarities.shape[1]
    if similarities.ndim != 2 or not similarities.numel() or not (square or same is not None):
        shape = "(N, N)" if same is None else "(Q, N)"
        raise ValueError(f"`similarities` must be {shape} with N above 0, got {tuple(similarities.shape)}.")
    if similarities.isnan().any():
        raise ValueError("`similarities` must be numbers, got NaN.")
    if not 1 <= k <= similarities.shape[1]:
        raise ValueError(f"`k` must be in 1..{similarities.shape[1]}, got {k}.")
    if same is None:
        same = torch.eye(len(similarities), dtype=torch.bool)
    if same.shape != similarities.shape or same.dtype != torch.bool:
        raise ValueError(
            f"`same` must be bool of the shape {tuple(similarities.shape)}, got {same.dtype} {tuple(same.shape)}."
        )
    right = same.to(similarities.device)
    if not right.any(dim=1).all():
        raise ValueError("`same` must know a right item for every query.")
    best = similarities.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarities >= best) & ~right).sum(dim=1) < k
