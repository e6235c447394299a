"""Workers: what they prepare is not consumed, what they raise is heard, and they end with what they work for."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch

from hornbook.batch import Batch
from hornbook.data.batches import Batches
from hornbook.data.prefetch import Ahead


class Watched:
    """Rows that remember who took them, and fail while `broken`."""

    def __init__(self, broken: bool = False, seconds: float = 0.0):
        self.broken, self.seconds = broken, seconds
        self.takers = list[threading.Thread]()

    def __len__(self) -> int:
        return 50

    def take(self, samples: np.ndarray, epoch: int) -> Batch:
        self.takers.append(threading.current_thread())
        time.sleep(self.seconds)
        if self.broken:
            raise OSError("the disk is gone")
        tokens = torch.from_numpy(samples[:, None])
        return Batch(tokens, tokens)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_without_workers_nothing_is_threaded() -> None:
    rows, count = Watched(), threading.active_count()
    batches = Batches(rows, 5, seed=0)
    next(batches)
    assert rows.takers == [threading.current_thread()] and threading.active_count() == count


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_prepare_what_is_not_consumed_yet(workers: int) -> None:
    rows = Watched()
    with Batches(rows, 5, seed=0, workers=workers) as batches:
        assert batches.state() == {"sample": 0} and not rows.takers
        next(batches)
        for _ in range(500):
            if len(rows.takers) >= 2 * workers:
                break
            time.sleep(0.01)
        assert batches.state() == {"sample": 5}
        assert len(rows.takers) == 2 * workers and threading.current_thread() not in rows.takers


def test_several_workers_work_at_once() -> None:
    start = time.perf_counter()
    with Batches(Watched(seconds=0.05), 5, seed=0, workers=4) as batches:
        for _ in range(16):
            next(batches)
    assert time.perf_counter() - start < 0.7 * 16 * 0.05


def test_what_a_worker_raises_is_heard_and_can_be_tried_again() -> None:
    rows, alone = Watched(broken=True), Batches(Watched(), 5, seed=0)
    with Batches(rows, 5, seed=0, workers=2) as batches:
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(batches)
            assert batches.state() == {"sample": 0}, "what failed is not consumed"
        rows.broken = False
        assert all(torch.equal(next(batches).tokens_bt, next(alone).tokens_bt) for _ in range(20))


def test_a_jump_throws_away_what_was_prepared() -> None:
    alone = Batches(Watched(), 5, seed=0)
    with Batches(Watched(), 5, seed=0, workers=3) as batches:
        for place in (0, 35, 35, 5, 10**6):
            for each in (alone, batches):
                each.load_state({"sample": place})
            assert all(torch.equal(next(batches).tokens_bt, next(alone).tokens_bt) for _ in range(3))


@pytest.mark.parametrize("consumed", [0, 1, 3])
def test_threads_end_with_their_batches(consumed: int) -> None:
    """Not closed, only forgotten: the fixture looks for what is left."""
    batches = Batches(Watched(), 5, seed=0, workers=2)
    for _ in range(consumed):
        next(batches)
    assert any(thread.name.startswith("hornbook-batches") for thread in threading.enumerate()) == (consumed > 0)
    del batches


def test_closed_batches_have_no_threads_and_can_go_on() -> None:
    count, alone = threading.active_count(), Batches(Watched(), 5, seed=0)
    batches = Batches(Watched(), 5, seed=0, workers=2)
    for _ in range(3):
        assert torch.equal(next(batches).tokens_bt, next(alone).tokens_bt)
        batches.close()
        batches.close()
        assert threading.active_count() == count


def test_a_fork_has_workers_of_its_own() -> None:
    """The child inherits what was in flight, but not the threads that would have finished it."""
    with closing(Ahead(lambda place: place, 1, 2)) as ahead:
        assert [ahead.take(place) for place in range(3)] == [0, 1, 2]
        if not (child := os.fork()):
            os._exit(0 if [ahead.take(place) for place in range(3, 9)] == list(range(3, 9)) else 1)
        end = time.perf_counter() + 20
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.perf_counter() < end:
            time.sleep(0.01)
        if not ended[0]:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert ended == (child, 0)
        assert [ahead.take(place) for place in range(3, 9)] == list(range(3, 9))
