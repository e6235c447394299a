"""Muon against the singular values that its polynomial moves, and against torch's own, which computes in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hornbook.optim.muon import COEFFICIENTS, STEPS, Muon, orthogonal

SHAPES = ((8, 8), (5, 12), (12, 5), (5, 12), (1, 7), (7, 1))


def by_singular_values(matrix: Tensor) -> Tensor:
    """The slow, obvious version: the quintic on each singular value, the singular vectors as they are."""
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = COEFFICIENTS
    values = values / values.norm()
    for _ in range(STEPS):
        values = a * values + b * values**3 + c * values**5
    return u @ values.diag() @ vt


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_moves_the_singular_values_alone(shape: tuple[int, int]) -> None:
    stack = drawn((3, *shape), 0)
    for matrix, turned in zip(stack, orthogonal(stack), strict=True):
        torch.testing.assert_close(turned, by_singular_values(matrix), rtol=0, atol=1e-12)


def test_singular_values_end_near_one() -> None:
    values = torch.linalg.svdvals(orthogonal(drawn((4, 24, 64), 1)))
    assert 0.4 < float(values.min()) and float(values.max()) < 1.3


def test_a_zero_matrix_stays_zero() -> None:
    assert not orthogonal(torch.zeros(2, 4, 6)).any()


def steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int = 4) -> None:
    for step in range(count):
        for number, parameter in enumerate(parameters):
            parameter.grad = drawn(tuple(parameter.shape), 100 * step + number).to(parameter)
        optimizer.step()


def test_steps_are_momentum_decay_and_one_orthogonal_matrix_each() -> None:
    """The stacked version against one matrix after the other, shapes mixed."""
    starts = [drawn(shape, 7 + number) for number, shape in enumerate(SHAPES)]
    ours, rate, decay, momentum = [nn.Parameter(start.clone()) for start in starts], 0.02, 0.1, 0.9
    steps(Muon(ours, rate, weight_decay=decay, momentum=momentum), ours)
    for number, (parameter, start) in enumerate(zip(ours, starts, strict=True)):
        buffer, expected = torch.zeros_like(start), start.clone()
        for step in range(4):
            gradient = drawn(tuple(start.shape), 100 * step + number)
            buffer = momentum * buffer + (1 - momentum) * gradient
            update = momentum * buffer + (1 - momentum) * gradient
            expected = expected * (1 - rate * decay) - rate * 0.2 * max(start.shape) ** 0.5 * by_singular_values(update)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-12)


def test_steps_are_torchs_within_bfloat16() -> None:
    ours, theirs = ([nn.Parameter(torch.zeros(shape)) for shape in SHAPES[:4]] for _ in range(2))
    steps(Muon(ours, 0.02), ours)
    steps(torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).detach().norm() / other.detach().norm()) < 0.02


def test_a_stack_moves_as_its_matrices_do() -> None:
    stack, apart = nn.Parameter(drawn((3, 4, 6), 1)), [nn.Parameter(matrix) for matrix in drawn((3, 4, 6), 1)]
    stack.grad = drawn((3, 4, 6), 2)
    for parameter, gradient in zip(apart, stack.grad, strict=True):
        parameter.grad = gradient
    Muon([stack], 0.1).step()
    Muon(apart, 0.1).step()
    assert torch.equal(stack.detach(), torch.stack([parameter.detach() for parameter in apart]))


def test_only_what_has_a_gradient_moves() -> None:
    moved, still = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2, 3))
    optimizer = Muon([moved, still], 0.1)
    optimizer.step()
    moved.grad = drawn((2, 3), 0).float()
    optimizer.step()
    assert bool((moved != 1).all()) and bool((still == 1).all())


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices and stacks.*\[3\]"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)
