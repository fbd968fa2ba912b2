"""Muon against PyTorch's own where that one can work, and against AdamW elsewhere."""

import pytest
import torch
from torch import nn

from rdtf_diffusers.training import Muon
from rdtf_diffusers.training.muon import orthogonalize


SETTINGS = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}


def train(weights: list[torch.Tensor], optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.numel(), generator=generator).view_as(weight)
        optimizer.step()


def make_weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(99)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("shape", [(3, 8, 20), (1, 7, 7)])
def test_orthogonalize_keeps_singular_vectors_and_levels_their_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ orthogonalize(matrices).float() @ right.mT
    values = rotated.diagonal(dim1=1, dim2=2)
    assert 0.6 < values.min() and values.max() < 1.3
    assert (rotated - values.diag_embed()).abs().max() < 0.1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon to compare with")
def test_matrices_move_as_with_pytorch():
    ours, theirs = (make_weights((6, 10), (10, 6), (8, 8)) for _ in range(2))
    train(ours, Muon(ours, **SETTINGS), 5)
    train(theirs, torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), 5)
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)  # bfloat16 products in another order


def test_kernels_are_matrices_of_their_outputs():
    (kernel,), (matrix,) = make_weights((6, 4, 3, 3)), make_weights((6, 36))
    train([kernel], Muon([kernel], **SETTINGS), 5)
    train([matrix], Muon([matrix], **SETTINGS), 5)
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_all_else_moves_as_with_adamw():
    ours, theirs = make_weights((6,), ()), make_weights((6,), ())
    train(ours, Muon(ours, **SETTINGS), 5)
    train(theirs, torch.optim.AdamW(theirs, **SETTINGS), 5)
    torch.testing.assert_close(ours, theirs)


def test_a_resumed_run_goes_on_exactly():
    whole, parts = make_weights((6, 10), (6,)), make_weights((6, 10), (6,))
    train(whole, Muon(whole, **SETTINGS), 4)
    first = Muon(parts, **SETTINGS)
    train(parts, first, 2)
    second = Muon(parts, **SETTINGS)
    second.load_state_dict(first.state_dict())
    train(parts, second, 2, first=2)
    torch.testing.assert_close(parts, whole, atol=0, rtol=0)


def test_weights_without_gradient_stay():
    weights = make_weights((6, 10), (6,))
    before = [weight.clone() for weight in weights]
    Muon(weights, **SETTINGS).step()
    torch.testing.assert_close([*weights], before)
