"""Muon, the optimiser of https://kellerjordan.github.io/posts/muon/, with AdamW for what is not a matrix.

PyTorch's own, `torch.optim.Muon`, takes two-dimensional weights only; here a kernel is a matrix of (out, in * height *
width), and one optimiser holds all weights.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch


ITERATION = (3.4445, -4.7750, 2.0315)  # of a polynomial that drives all singular values towards 1
ITERATIONS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values end between about 0.7 and 1.2.

    Args:
        matrices: (k, n, m) with n <= m.

    Returns:
        (k, n, m) bfloat16.
    """
    linear, cubic, quintic = ITERATION
    matrices = matrices.bfloat16()
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=linear)
    return matrices


class Muon(torch.optim.AdamW):
    """Muon on weights of two and more dimensions, AdamW on all others.

    A matrix moves along its orthogonalised momentum, by as much as AdamW usually would (as in Moonlight, arXiv
    2502.16982), so that both take the same rate. It keeps one number per weight where AdamW keeps two. Matrices of the
    same size are orthogonalised together.

    Args:
        params: tensors; not groups.
        momentum: decay of the matrices' momentum.
        settings: as for `torch.optim.AdamW`; of them matrices take the rate and the decoupled weight decay.
    """

    def __init__(self, params: Iterable[torch.Tensor], momentum: float = 0.95, **settings):
        params = list(params)
        self.momentum = momentum
        kinds = [p for p in params if p.ndim > 1], [p for p in params if p.ndim <= 1]
        super().__init__([{"params": kind} for kind in kinds], **settings)

    @torch.no_grad()
    def step(self, closure=None):
        """One step of all weights that have a gradient; returns what `closure` does."""
        matrices, others = self.param_groups
        self.param_groups = [others]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = [matrices, others]
        same_size = defaultdict(list)
        for weight in matrices["params"]:
            if weight.grad is not None:
                direction = self._direction(weight)
                same_size[direction.shape].append((weight, direction))
        for shape, group in same_size.items():
            rate = matrices["lr"] * 0.2 * math.sqrt(shape[1])  # an update by AdamW is about 0.2 per weight
            directions = orthogonalize(torch.stack([direction for _, direction in group]))
            for (weight, _), direction in zip(group, directions):
                weight.mul_(1 - matrices["lr"] * matrices["weight_decay"])
                flat = weight.flatten(1)
                weight.add_((direction if flat.shape == shape else direction.T).reshape(weight.shape), alpha=-rate)
        return loss

    def _direction(self, weight: torch.Tensor) -> torch.Tensor:
        """Where the momentum of a matrix leads, after Nesterov: (n, m) with n <= m."""
        state = self.state[weight]
        if not state:  # AdamW wants to find a number of steps in every state
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
        state["momentum"].lerp_(weight.grad, 1 - self.momentum)
        direction = weight.grad.lerp(state["momentum"], self.momentum).flatten(1)
        return direction if direction.shape[0] <= direction.shape[1] else direction.T
