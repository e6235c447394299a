"""Batches: every sample once per epoch, in an order that can be taken up anywhere; rows cut from a stream."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.batch import Batch
from hornbook.data.batches import Batches, StreamRows


class Numbers:
    """Rows that are their own numbers, so that a batch shows which samples it holds and of which epoch."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, samples: np.ndarray, epoch: int) -> Batch:
        return Batch(torch.from_numpy(samples.copy()), torch.tensor(epoch), text_bytes=len(samples))


def taken(batches: Batches, count: int) -> list[tuple[list[int], int]]:
    return [(batch.tokens_bt.tolist(), int(batch.targets_bt)) for batch in islice(batches, count)]


SIZES = [(1, 1), (1, 4), (5, 1), (7, 3), (8, 4), (9, 4), (10, 64), (64, 7)]


@pytest.mark.parametrize(("count", "rows"), SIZES)
def test_each_epoch_holds_each_sample_once(count: int, rows: int) -> None:
    per_epoch = -(-count // rows)
    found = taken(Batches(Numbers(count), rows, seed=0), 3 * per_epoch)
    for epoch in range(3):
        members = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert {number for _, number in members} == {epoch}
        assert sorted(sample for samples, _ in members for sample in samples) == list(range(count))
        assert [len(samples) for samples, _ in members[:-1]] == [rows] * (per_epoch - 1)
        assert len(members[-1][0]) == (count % rows or rows), "the last batch is smaller, and no sample is left out"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, rows: int, epochs: int = 3) -> list[list[int]]:
        batches = Batches(Numbers(40), rows, seed)
        flat = [sample for samples, _ in taken(batches, epochs * -(-40 // rows)) for sample in samples]
        return [flat[epoch * 40 : (epoch + 1) * 40] for epoch in range(epochs)]

    np.random.seed(1)
    torch.manual_seed(1)
    first = order(5, 8)
    np.random.rand(100)
    torch.rand(100)
    assert first == order(5, 8) == order(5, 7), "neither other draws nor the batch size matter"
    different = [*first, *order(6, 8), *order(0, 8), list(range(40))]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize(("count", "rows"), [(7, 3), (8, 4), (10, 64)])
def test_a_state_continues_with_the_samples_not_yet_seen(count: int, rows: int) -> None:
    whole = taken(Batches(Numbers(count), rows, seed=3), 12)
    for stop in range(12):
        first = Batches(Numbers(count), rows, seed=3)
        before, state = taken(first, stop), first.state()
        next(first)  # what is consumed after the state was taken is not part of it
        second = Batches(Numbers(count), rows, seed=3)
        taken(second, 5)
        second.load_state(state)
        assert before + taken(second, 12 - stop) == whole


def test_there_must_be_something_to_take() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Batches(Numbers(0), 4, seed=0)


def stream(size: int, context: int, seed: int = 0) -> StreamRows:
    """The ids are their own places in the stream."""
    return StreamRows(np.arange(size, dtype="<u2"), context, np.arange(size, dtype=np.int64), seed)


def epoch_targets(rows: StreamRows, epoch: int) -> list[int]:
    return rows.take(np.arange(len(rows)), epoch).targets_bt.flatten().tolist()


@pytest.mark.parametrize("context", [1, 3, 8])
@pytest.mark.parametrize("size", [17, 24, 25, 26, 100, 101])
def test_an_epoch_uses_each_target_at_most_once_and_leaves_only_ends(size: int, context: int) -> None:
    for epoch in range(8):
        targets = epoch_targets(stream(size, context), epoch)
        assert max(Counter(targets).values()) == 1
        assert targets == list(range(targets[0], targets[-1] + 1)), "nothing is left out between the ends"
        assert len(targets) > (size - 1) - 2 * context
        assert 1 <= targets[0] <= context and targets[-1] <= size - 1


def test_targets_are_used_at_changing_places() -> None:
    """Over many epochs each target stands at each place of a row; only less than a window at the very end is never used."""
    rows = stream(101, 8)
    batches = [rows.take(np.arange(len(rows)), epoch) for epoch in range(200)]
    used = {int(target) for batch in batches for target in batch.targets_bt.flatten()}
    assert used == set(range(1, max(used) + 1)) and max(used) > 100 - 8
    places = {place for batch in batches for place in (batch.targets_bt == 50).nonzero()[:, 1].tolist()}
    assert places == set(range(8))


def test_a_target_is_what_follows() -> None:
    rows = stream(60, 5)
    batch = rows.take(np.array([4, 0, 2]), epoch=1)
    assert batch.tokens_bt.shape == batch.targets_bt.shape == (3, 5)
    assert torch.equal(batch.targets_bt, batch.tokens_bt + 1)
    assert all(later - earlier == 1 for row in batch.tokens_bt.tolist() for earlier, later in pairwise(row))
    assert batch.tokens_bt.dtype == batch.targets_bt.dtype == torch.int64
    assert batch.documents_bt is None and batch.positions_bt is None, "the fastest attention path"


@pytest.mark.parametrize("size", [0, 1, 5, 8, 9, 15, 16])
def test_too_little_text_gives_no_row_and_never_reads_past_the_end(size: int) -> None:
    rows = stream(size, 8)
    assert len(rows) == max(0, (size - 1) // 8 - 1)
    assert not len(rows) or max(epoch_targets(rows, 0)) < size


def test_bytes_are_those_of_the_targets() -> None:
    random = np.random.default_rng(0)
    ids, lengths = random.integers(0, 50, 300).astype("<u2"), random.integers(0, 9, 50)
    rows = StreamRows(ids, 7, lengths, seed=1)
    for batch in islice(Batches(rows, 4, seed=0), 30):
        assert batch.text_bytes == sum(int(lengths[target]) for target in batch.targets_bt.flatten().tolist())


def test_the_cut_depends_on_seed_and_epoch_alone() -> None:
    def cuts(seed: int) -> list[Any]:
        return [epoch_targets(stream(200, 16, seed), epoch)[0] for epoch in range(20)]

    assert cuts(1) == cuts(1) != cuts(2)
    assert len(set(cuts(1))) > 5
