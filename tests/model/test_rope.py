"""Rotary positions: the formula with complex numbers, and what it is for."""

from __future__ import annotations

import pytest
import torch

from hornbook.model import Rope
from hornbook.model.rope import halved, paired, rotate
from tests.reference.attention import turned


@pytest.mark.parametrize(("width", "theta"), [(2, 10.0), (8, 10_000.0), (64, 500_000.0)])
def test_it_is_multiplication_by_unit_complex_numbers(width: int, theta: float) -> None:
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 7], [3, 100, 5000, 90_000]])
    x = torch.randn(2, 4, 3, width, dtype=torch.float64)
    found = rotate(x, Rope(width, theta).angles(positions, torch.float64))
    assert (found - turned(x, positions.tolist(), theta)).abs().max() < 1e-9
    assert torch.equal(found[0, 0], x[0, 0])  # position 0 turns nothing


def test_float32_angles_are_float32_exact() -> None:
    """At large positions too: the error is that of rounding the angle to float32, not of a narrower type."""
    positions = torch.tensor([[0, 1, 1000, 100_000]])
    x = torch.randn(1, 4, 2, 16, generator=torch.Generator().manual_seed(0))
    found = rotate(x, Rope(16).angles(positions, torch.float32))
    error = (found - turned(x, positions.tolist(), 10_000.0)).abs().amax((0, 2, 3))
    assert (error <= 1e-6 + 4e-7 * positions[0]).all()


def test_bfloat16_models_get_angles_computed_in_float32() -> None:
    positions = torch.tensor([[1, 257, 4099]])
    narrow, wide = (Rope(16).angles(positions, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert all(a.dtype == torch.bfloat16 and torch.equal(a, b.bfloat16()) for a, b in zip(narrow, wide, strict=True))


def test_products_depend_on_distance_alone() -> None:
    torch.manual_seed(1)
    q, k = torch.randn(2, 1, 1, 1, 32, dtype=torch.float64)
    rope = Rope(32)

    def product(at: int, to: int) -> float:
        turned_q, turned_k = (rotate(x, rope.angles(torch.tensor([[p]]), torch.float64)) for x, p in ((q, at), (k, to)))
        return float((turned_q * turned_k).sum())

    for distance in (-5, 0, 1, 40):
        figures = [product(start + distance, start) for start in (5, 17, 400)]
        assert max(figures) - min(figures) < 1e-9
    assert abs(product(9, 3) - product(9, 4)) > 1e-3


def test_lengths_stay() -> None:
    x = torch.randn(1, 6, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rotate(x, Rope(8).angles(torch.arange(6)[None], torch.float64))
    assert (found.norm(dim=-1) - x.norm(dim=-1)).abs().max() < 1e-12


def test_an_odd_width_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="head_dim must be even .*: 5"):
        Rope(5)


def test_neighbouring_pairs_and_halves_are_one_rotation() -> None:
    """llama.cpp and llama2.c turn channels (0, 1), (2, 3), ...; with rows reordered, that is ours, and the scores are the same."""
    torch.manual_seed(0)
    heads, width, positions = 3, 8, torch.tensor([[0, 1, 5, 40]])
    q, k = (torch.randn(heads * width, 12, dtype=torch.float64) for _ in "qk")
    x = torch.randn(4, 12, dtype=torch.float64)
    cos, sin = (part[0, :, 0] for part in Rope(width).angles(positions, torch.float64))

    def neighbours(rows: torch.Tensor) -> torch.Tensor:
        y = (x @ rows.T).unflatten(-1, (heads, width // 2, 2))
        a, b = y.unbind(-1)
        return torch.stack((a * cos[:, None] - b * sin[:, None], a * sin[:, None] + b * cos[:, None]), -1).flatten(-2)

    def halves(rows: torch.Tensor) -> torch.Tensor:
        y = (x @ halved(rows, heads).T).unflatten(-1, (heads, width))
        return rotate(y[None], Rope(width).angles(positions, torch.float64))[0]

    scores = [torch.einsum("thk,shk->hts", turn(q), turn(k)) for turn in (neighbours, halves)]
    assert (scores[0] - scores[1]).abs().max() < 1e-12
    assert torch.equal(paired(halved(q, heads), heads), q) and not torch.equal(halved(q, heads), q)
