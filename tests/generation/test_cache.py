"""The cache gives back what it was given, in order; that a cached text equals a whole one is in tests/model/test_context.py."""

from __future__ import annotations

import pytest
import torch

from hornbook.generation.cache import DenseCache


def call(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, 3, length, 2, 4, generator=generator)
    return k, v, torch.randint(50, (3, length), generator=generator)


def test_layers_grow_apart_and_give_everything_back() -> None:
    cache = DenseCache(6)
    for layer in (0, 1):
        calls = [call(length, 10 * layer + length) for length in (3, 1, 2)]
        for n, (k, v, positions) in enumerate(calls, 1):
            found = cache.update(layer, k, v, positions)
            assert all(torch.equal(part, torch.cat([c[i] for c in calls[:n]], 1)) for i, part in enumerate(found))


def test_keeping_rows() -> None:
    cache, (k, v, positions) = DenseCache(4), call(2, 0)
    cache.update(0, k, v, positions)
    rows = torch.tensor([2, 0])
    cache.keep(rows)
    fresh = [part[rows] for part in call(1, 1)]
    found = cache.update(0, *fresh)
    for whole, old, new in zip(found, (k, v, positions), fresh, strict=True):
        assert torch.equal(whole, torch.cat((old[rows], new), 1))


def test_one_set_of_positions_serves_every_row() -> None:
    k, v, _ = call(2, 0)
    assert torch.equal(DenseCache(2).update(0, k, v, torch.tensor([[4, 5]]))[2], torch.tensor([[4, 5]] * 3))


def test_too_much_is_refused() -> None:
    cache = DenseCache(3)
    cache.update(0, *call(2, 0))
    with pytest.raises(ValueError, match="holds 3 positions: 4"):
        cache.update(0, *call(2, 1))
