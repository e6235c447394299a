"""Mixtures: exact shares of every block, every sample of a source once in each of its epochs, one order for all."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from hornbook.batch import IGNORE, Batch
from hornbook.data.batches import Batches, Rows, StreamRows
from hornbook.data.mixture import BLOCK, Mixture, quotas
from hornbook.data.packing import pack


class Source:
    """Rows that say whose they are, which sample and of which of their epochs."""

    def __init__(self, name: int, count: int):
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def take(self, samples: np.ndarray, epoch: int) -> Batch:
        rows = torch.from_numpy(np.stack([np.full_like(samples, self.name), np.full_like(samples, epoch), samples], axis=1))
        return Batch(rows, rows, text_bytes=1000**self.name * len(samples))


SIZES, WEIGHTS = (300, 7, 5000), (0.5, 0.2, 0.3)


def mixture(seed: int = 0) -> Mixture:
    return Mixture([Source(name, size) for name, size in enumerate(SIZES)], WEIGHTS, seed)


def rows_of(batches: Batches, count: int) -> list[tuple[int, int, int]]:
    return [tuple(row) for batch in islice(batches, count) for row in batch.tokens_bt.tolist()]


def test_every_block_holds_each_source_in_its_quota_and_in_no_order_of_sources() -> None:
    found = rows_of(Batches(mixture(), 48, seed=1), 3 * BLOCK // 16)
    blocks = [found[start : start + BLOCK] for start in range(0, len(found), BLOCK)]
    assert len(blocks) == 9
    names = [[name for name, _, _ in block] for block in blocks]
    assert all(Counter(block) == {0: 512, 1: 205, 2: 307} for block in names)
    assert all(one != other for number, one in enumerate(names) for other in names[:number])
    for block in names:  # where 0 has half of the places, sixteen in a row without it are one in 65,536
        assert all(1 <= block[start : start + 32].count(0) <= 31 for start in range(0, BLOCK, 32))


def test_a_source_gives_every_sample_once_before_it_begins_anew() -> None:
    found = rows_of(Batches(mixture(), 64, seed=1), 6 * BLOCK // 64)
    for name, (size, quota) in enumerate(zip(SIZES, (512, 205, 307), strict=True)):
        counts = Counter((epoch, sample) for source, epoch, sample in found if source == name)
        whole, rest = divmod(6 * quota, size)
        assert set(counts.values()) == {1}
        by_epoch = Counter(epoch for epoch, _ in counts)
        assert by_epoch == {epoch: size for epoch in range(whole)} | ({whole: rest} if rest else {})


def test_a_small_source_comes_in_another_order_each_time() -> None:
    found = [(epoch, sample) for name, epoch, sample in rows_of(Batches(mixture(), 64, seed=1), 32) if name == 1]
    orders = [[sample for one, sample in found if one == epoch] for epoch in range(20)]
    assert len({tuple(order) for order in orders}) > 15


def test_its_order_is_the_same_for_any_batches_ranks_and_workers_and_from_any_sample() -> None:
    whole = rows_of(Batches(mixture(3), 2048, seed=1), 3)
    assert whole != rows_of(Batches(mixture(4), 2048, seed=1), 3)
    for start, world, workers in ((0, 2, 1), (1000, 4, 0), (1024, 1, 2), (3333, 8, 0)):
        found = list[tuple[int, int, int]]()
        ranks = [Batches(mixture(3), 24, 1, "cpu", rank, world, workers) for rank in range(world)]
        for rank in ranks:
            rank.load_state({"sample": start})
        for _ in range(60):
            found += [row for rank in ranks for row in rows_of(rank, 1)]
        for rank in ranks:
            rank.close()
        assert found == whole[start : start + len(found)]


def test_bytes_are_those_of_all_sources() -> None:
    for batch in islice(Batches(mixture(), 40, seed=0), 60):
        assert batch.text_bytes == sum(1000**name for name in batch.tokens_bt[:, 0].tolist())


def test_packed_rows_and_a_stream_go_together() -> None:
    """A row of the stream is one document; packed rows are as they are alone."""
    lengths = np.arange(50)
    packed, _ = pack([([40, 41, 42], [1, 1, 1]), ([43, 44], [1, 1]), ([45] * 6, [1] * 6)], 6, 0, lengths)
    sources: list[Rows] = [packed, StreamRows(np.arange(40, dtype="<u2"), 6, lengths)]
    batch = next(Batches(Mixture(sources, (1, 1)), 64, seed=0))
    assert batch.documents_bt is not None and batch.positions_bt is not None
    alone = packed.take(np.arange(len(packed)), 0)
    assert alone.documents_bt is not None and alone.positions_bt is not None
    known = {tuple(tokens.tolist()): number for number, tokens in enumerate(alone.tokens_bt)}
    found = Counter[bool]()
    for row, tokens in enumerate(batch.tokens_bt.tolist()):
        number = known.get(tuple(tokens))
        found[number is None] += 1
        if number is None:
            assert batch.documents_bt[row].tolist() == [0] * 6 and batch.positions_bt[row].tolist() == list(range(6))
            assert batch.targets_bt[row].tolist() == [token + 1 for token in tokens]
        else:
            for whole, part in ((batch.targets_bt, alone.targets_bt), (batch.documents_bt, alone.documents_bt)):
                assert torch.equal(whole[row], part[number])
            assert torch.equal(batch.positions_bt[row], alone.positions_bt[number])
    assert min(found.values()) > 16 and len(found) == 2
    targets = batch.targets_bt[batch.targets_bt != IGNORE]
    assert batch.text_bytes == int(targets.sum()), "an id stands for as many bytes as its number says"


def test_quotas_are_whole_and_as_near_as_can_be() -> None:
    """Largest remainder by its definition: no quota is a whole one off, and no smaller remainder was preferred."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        weights = draw.uniform(0.05, 1, draw.integers(1, 9)).tolist()
        found, exact = quotas(weights, BLOCK), np.array(weights) / sum(weights) * BLOCK
        up = found > exact
        assert found.sum() == BLOCK and (np.abs(found - exact) < 1).all()
        remainders = exact - np.floor(exact)
        assert not up.any() or up.all() or remainders[up].min() >= remainders[~up].max()


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ((1, 0), r"weights\[1\].*above 0"), ((-1, 1), r"weights\[0\]"), ((1, float("nan")), r"weights\[1\]"),
        ((float("inf"), 1), r"weights\[0\]"), ((1e6, 1), r"weights\[1\] must be at least 1/1024 of all: 1e-06"),
        ((1, 1, 1), "2 sources, 3 weights"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_are_refused(weights: tuple[float, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Mixture([Source(0, 4), Source(1, 4)], weights)


def test_sources_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows\[1\] has no rows"):
        Mixture([Source(0, 4), Source(1, 0)], (1, 1))
    streams: list[Rows] = [StreamRows(np.arange(90, dtype="<u2"), context, np.arange(90)) for context in (4, 8)]
    with pytest.raises(ValueError, match=r"equally long: \[4, 8\]"):
        next(Batches(Mixture(streams, (1, 1)), 32, seed=0))
