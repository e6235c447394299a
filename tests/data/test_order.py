"""The order of an epoch: a permutation, equal to its slow version, different for each seed and epoch, and uniform."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from hornbook.data.order import permuted, permuted_nearby
from tests.reference import order as slow

SIZES = [*range(1, 70), 100, 127, 128, 129, 1000, 1023, 1024, 1025, 9999]


def test_it_is_a_permutation_of_any_size() -> None:
    for size in SIZES:
        found = permuted(np.arange(size), size, seed=size, epoch=1)
        assert sorted(found.tolist()) == list(range(size)), size
        assert found.dtype == np.int64


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 12, 13, 97, 1000, 10**9 + 7, 2**40 + 1, 2**62])
def test_it_equals_the_slow_version_at_any_places(size: int) -> None:
    random = np.random.default_rng(size)
    places = random.integers(0, size, 60)
    for seed, epoch in ((0, 0), (3, 1), (2**40, 10**9)):
        assert permuted(places, size, seed, epoch).tolist() == [
            slow.permuted(place, size, seed, epoch) for place in places.tolist()
        ]


def test_places_given_one_by_one_are_those_given_together() -> None:
    whole = permuted(np.arange(77), 77, 5, 2)
    assert [int(permuted(np.array([place]), 77, 5, 2)[0]) for place in range(77)] == whole.tolist()


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5000])
def test_chunks_that_are_kept_give_the_same(size: int) -> None:
    draw = np.random.default_rng(size)
    for epoch in range(3):
        for count in (0, 1, 100):
            places = draw.integers(0, size, count)
            assert permuted_nearby(places, size, 2, epoch).tolist() == permuted(places, size, 2, epoch).tolist()


def test_seeds_and_epochs_differ() -> None:
    orders = [permuted(np.arange(40), 40, seed, epoch).tolist() for seed in range(10) for epoch in range(10)]
    assert all(one != other for one, other in itertools.combinations([*orders, list(range(40))], 2))


def too_far(counts: np.ndarray, expected: float, free: int) -> bool:
    """Whether chi-square is more than five deviations from its mean of `free`, whose variance is twice that."""
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return abs(chi_square - free) > 5 * np.sqrt(2 * free)


def drawn(size: int, count: int) -> np.ndarray:
    return np.stack([permuted(np.arange(size), size, 7, epoch) for epoch in range(count)])


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_of_few_is_equally_likely(size: int) -> None:
    orders = {order: number for number, order in enumerate(itertools.permutations(range(size)))}
    counts = np.bincount([orders[tuple(row)] for row in drawn(size, 2400).tolist()], minlength=len(orders))
    assert not too_far(counts, 2400 / len(orders), len(orders) - 1)


@pytest.mark.parametrize("size", [9, 10, 25, 50])
def test_samples_and_neighbours_are_spread_evenly(size: int) -> None:
    """Each sample at each place, and each pair of samples one after the other, as often as any other."""
    orders, places, pairs = drawn(size, 1000), np.zeros((size, size)), np.zeros((size, size))
    np.add.at(places, (np.broadcast_to(np.arange(size), orders.shape), orders), 1)
    np.add.at(pairs, (orders[:, :-1], orders[:, 1:]), 1)
    assert not too_far(places, 1000 / size, (size - 1) ** 2)
    assert not too_far(pairs[~np.eye(size, dtype=bool)], 1000 / size, size * (size - 1) - 1)


def test_a_large_epoch_is_spread_evenly() -> None:
    found = permuted(np.arange(200_000), 10**9, 1, 0)
    assert not too_far(np.bincount(found // 10**6, minlength=1000), 200.0, 999)


def test_what_is_not_uniform_is_found() -> None:
    assert too_far(np.array([1100, 900, 1000, 1000]), 1000.0, 3) and too_far(np.full(1000, 100), 100.0, 999)


def test_entering_an_epoch_costs_nothing() -> None:
    start = time.perf_counter()
    permuted(np.arange(10**12, 10**12 + 16), 10**13, 0, 3)
    assert time.perf_counter() - start < 0.1
