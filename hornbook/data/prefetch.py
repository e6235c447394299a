"""A function of a place -> its results, made by threads before they are asked for.

The one idea: what is ahead is only a guess at what comes next. A result is handed out for the place that is asked for, so a jump
elsewhere, a failure or a fork throws the guesses away and loses nothing.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")

DEPTH = 2  # results in flight per worker


class Ahead(Generic[Result]):
    """`make(place)`, then `make(place + step)` and so on. `make` must not hold what owns this object, or its threads live on."""

    def __init__(self, make: Callable[[int], Result], step: int, workers: int):
        self.make, self.step, self.workers = make, step, workers
        self._flight = deque[tuple[int, "Future[Result]"]]()
        self._executor: ThreadPoolExecutor | None = None
        self._end: weakref.finalize[..., Ahead[Result]] | None = None
        self._process = os.getpid()

    def take(self, place: int) -> Result:
        """The result at `place`; what its worker raised is raised here, and a further call tries again."""
        if self._process != os.getpid():  # a fork has its parent's memory, but none of its threads
            self._forget()
            self._process = os.getpid()
        if self._flight and self._flight[0][0] != place:
            self._drop()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="hornbook-batches")
            self._end = weakref.finalize(self, self._executor.shutdown, wait=False, cancel_futures=True)
        ahead = self._flight[-1][0] + self.step if self._flight else place
        for coming in range(ahead, place + DEPTH * self.workers * self.step, self.step):
            self._flight.append((coming, self._executor.submit(self.make, coming)))
        try:
            return self._flight.popleft()[1].result()
        except BaseException:
            self._drop()
            raise

    def close(self) -> None:
        """End the threads, after what they are at; a further `take` begins new ones."""
        if self._executor and self._process == os.getpid():
            self._executor.shutdown(cancel_futures=True)
            self._forget()

    def _forget(self) -> None:
        if self._end:
            self._end.detach()
        self._executor = self._end = None
        self._flight.clear()

    def _drop(self) -> None:
        for _, future in self._flight:
            future.cancel()
        self._flight.clear()
