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
        similarities: (N, N), query i against item j; item i is the right one for query i.
        k: how many items a query may look at.
        same: (N, N) bool, whether item j is right for query i too, as where two captions are equal. Right items never
            stand in each other's way. By default only item i is right.

    Returns:
        (N,) bool. Wrong items as similar as the best right one stand before it: an encoder that cannot tell anything
        apart finds nothing.

    Raises:
        ValueError: the similarities are not square, not numbers, or `k` is not in 1..N; `same` has another shape, or
            is not bool.
    """
    if similarities.ndim != 2 or similarities.shape[0] != similarities.shape[1] or not len(similarities):
        raise ValueError(f"`similarities` must be (N, N) with N above 0, got {tuple(similarities.shape)}.")
    if similarities.isnan().any():
        raise ValueError("`similarities` must be numbers, got NaN.")
    if not 1 <= k <= len(similarities):
        raise ValueError(f"`k` must be in 1..{len(similarities)}, got {k}.")
    own = torch.eye(len(similarities), dtype=torch.bool, device=similarities.device)
    if same is None:
        same = own
    if same.shape != similarities.shape or same.dtype != torch.bool:
        raise ValueError(
            f"`same` must be bool of the shape {tuple(similarities.shape)}, got {same.dtype} {tuple(same.shape)}."
        )
    right = own | same.to(own.device)
    best = similarities.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarities >= best) & ~right).sum(dim=1) < k
