"""Batches: one order for any number of ranks and workers, which can be taken up anywhere; rows cut from a stream."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice, pairwise, product, repeat
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.batch import Batch
from hornbook.data.batches import Batches, Rows, StreamRows
from hornbook.errors import UserError
from tests.reference import order as slow


class Numbers:
    """Rows that are their own numbers, so that a batch shows which samples it holds and of which epoch."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, samples: np.ndarray, epoch: int) -> Batch:
        tokens = torch.from_numpy(samples[:, None])
        return Batch(tokens, torch.full_like(tokens, epoch), text_bytes=len(samples))


def members(batch: Batch) -> list[tuple[int, int]]:
    """(epoch, sample) of each row."""
    assert batch.text_bytes == len(batch.tokens_bt)
    return list(zip(batch.targets_bt[:, 0].tolist(), batch.tokens_bt[:, 0].tolist(), strict=True))


def taken(batches: Batches, count: int) -> list[tuple[int, int]]:
    """The next `count` batches, which are all as large as the first, one after the other."""
    found = [members(batch) for batch in islice(batches, count)]
    assert len({len(batch) for batch in found}) <= 1
    return [member for batch in found for member in batch]


SIZES = [(1, 1), (1, 4), (5, 1), (7, 3), (8, 4), (9, 4), (10, 64), (64, 7)]


@pytest.mark.parametrize(("count", "rows"), SIZES)
def test_epochs_follow_each_other_within_equally_large_batches(count: int, rows: int) -> None:
    found = taken(Batches(Numbers(count), rows, seed=0), 3 * count)
    assert len(found) == 3 * count * rows
    for epoch, start in enumerate(range(0, len(found), count)):
        assert sorted(found[start : start + count]) == [(epoch, sample) for sample in range(count)]


@pytest.mark.parametrize(("count", "rows"), SIZES)
def test_the_order_is_that_of_the_slow_version(count: int, rows: int) -> None:
    assert taken(Batches(Numbers(count), rows, seed=9), 5) == slow.sequence(count, 9, 0, 5 * rows)


def test_the_order_depends_on_the_seed_alone() -> None:
    def order(seed: int, rows: int) -> list[tuple[int, int]]:
        return taken(Batches(Numbers(40), rows, seed), 120 // rows)

    np.random.seed(1)
    torch.manual_seed(1)
    first = order(5, 8)
    np.random.rand(100)
    torch.rand(100)
    assert first == order(5, 8) == order(5, 6), "neither other draws nor the batch size matter"
    assert first != order(6, 8) != order(0, 8)


def test_a_state_continues_with_the_samples_not_yet_seen() -> None:
    for count, rows in ((7, 3), (8, 4), (10, 64)):
        whole = taken(Batches(Numbers(count), rows, seed=3), 12)
        for stop in range(12):
            first = Batches(Numbers(count), rows, seed=3)
            before, state = taken(first, stop), first.state()
            next(first)  # what is consumed after the state was taken is not part of it
            second = Batches(Numbers(count), rows, seed=3)
            taken(second, 5)
            second.load_state(state)
            assert before + taken(second, 12 - stop) == whole


def elastic(rows: Rows, batch_rows: int, count: int, seed: int, plan: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """`count` global batches by ever other numbers of (ranks, workers), each of which takes up the state of the one before."""
    found, done, state, draw = list[tuple[int, int]](), 0, {"sample": 0}, random.Random(seed)
    while done < count:
        world, workers = next(plan)
        steps = min(draw.randint(1, max(1, count // 10)), count - done)
        with ExitStack() as stack:
            ranks = [stack.enter_context(Batches(rows, batch_rows, 7, "cpu", rank, world, workers)) for rank in range(world)]
            for rank in ranks:
                rank.load_state(state)
            for _ in range(steps):
                found += [member for rank in ranks for member in members(next(rank))]
            (state,) = {rank.sample: rank.state() for rank in ranks}.values()
        done += steps
    return found


WORLDS, WORKERS = (1, 2, 4, 8), (0, 1, 4)


def same_for_all(samples: int, batch_rows: int) -> None:
    """One sequence for every number of ranks and workers, each stopped and taken up at random places, and for all in turn."""
    rows, count = Numbers(samples * 2 // 7 + 1), samples // batch_rows
    whole = taken(Batches(rows, batch_rows, seed=7), count)
    assert len(whole) == samples
    random_places = random.Random(0).sample(range(samples), 200)
    assert [slow.sequence(len(rows), 7, place, 1)[0] for place in random_places] == [whole[place] for place in random_places]
    plans = [repeat(pair) for pair in product(WORLDS, WORKERS)]
    for number, plan in enumerate([*plans, cycle(product(WORLDS, WORKERS))]):
        assert sum(a != b for a, b in zip(elastic(rows, batch_rows, count, number, plan), whole, strict=True)) == 0


def test_ranks_and_workers_change_nothing() -> None:
    same_for_all(4_096, 32)


@pytest.mark.slow
def test_ranks_and_workers_change_nothing_in_a_million_samples() -> None:
    same_for_all(1 << 20, 512)


@pytest.mark.parametrize("workers", [0, 2])
def test_taking_up_at_a_late_sample_costs_nothing(workers: int) -> None:
    start = time.perf_counter()
    with Batches(Numbers(3 * 10**9), 16, seed=1, workers=workers) as batches:
        batches.load_state({"sample": 10**9})
        assert members(next(batches)) == slow.sequence(3 * 10**9, 1, 10**9, 16)
    assert time.perf_counter() - start < 1.0


def test_there_must_be_something_to_take_and_a_part_for_each_rank() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Batches(Numbers(0), 4, seed=0)
    with pytest.raises(UserError, match="batch_rows must be a multiple of world: 10 rows, 4 ranks(?s:.*)Fix: .* 8 or 12"):
        Batches(Numbers(5), 10, seed=0, rank=1, world=4)
    with pytest.raises(UserError, match="multiple of world: 2 rows, 4 ranks(?s:.*)Fix: .* set it to 4$"):
        Batches(Numbers(5), 2, seed=0, world=4)
    with pytest.raises(ValueError, match="rank 4, world 4"):
        Batches(Numbers(5), 8, seed=0, rank=4, world=4)


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
    draw = np.random.default_rng(0)
    ids, lengths = draw.integers(0, 50, 300).astype("<u2"), draw.integers(0, 9, 50)
    rows = StreamRows(ids, 7, lengths, seed=1)
    for batch in islice(Batches(rows, 4, seed=0), 30):
        assert batch.text_bytes == sum(int(lengths[target]) for target in batch.targets_bt.flatten().tolist())


def test_the_cut_depends_on_seed_and_epoch_alone() -> None:
    def cuts(seed: int) -> list[Any]:
        return [epoch_targets(stream(200, 16, seed), epoch)[0] for epoch in range(20)]

    assert cuts(1) == cuts(1) != cuts(2)
    assert len(set(cuts(1))) > 5
