"""Several ranks on this machine, gloo between them, that stay up between tests: `ranks(2).run(function, *args)` -> a result each.

`function(rank, *args)` must be importable. A rank that fails or hangs ends the others, and its traceback is the test's.
"""

from __future__ import annotations

import atexit
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 120  # seconds


def server() -> Any:
    """What starts processes: by a fork of one that has imported all that ranks need."""
    context = mp.get_context("forkserver")
    late = [f"hornbook.parallel.{name}" for name in ("alive", "expert", "pipeline", "shard", "tensor")]
    context.set_forkserver_preload(["hornbook.stages.runs", *late, "torch._dynamo", "torch.distributed.checkpoint.staging"])
    return context


class Ranks:
    def __init__(self, world: int):
        self.world, self._lines, self._ranks = world, list[Connection](), list[Any]()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        if not self._ranks:
            self._start()
        for line in self._lines:
            line.send((function, args))
        results = []
        for rank, line in enumerate(self._lines):
            failed, result = _answer(line, PATIENCE)
            if failed:
                said = [f"rank {other}: {_answer(each, 0.5)[1]}" for other, each in enumerate(self._lines) if other > rank]
                self.end()
                raise AssertionError("\n".join([f"rank {rank} of {self.world}: {result}", *said]))
            results.append(result)
        return results

    def end(self) -> None:
        for rank in self._ranks:
            rank.kill()
            rank.join()
        self._ranks, self._lines = [], []

    def _start(self) -> None:
        context, place = server(), Path(tempfile.mkdtemp()) / "ranks"
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, str(place), theirs), daemon=True)
            process.start()
            self._lines.append(ours)
            self._ranks.append(process)


def _answer(line: Connection, patience: float) -> tuple[bool, Any]:
    try:
        return line.recv() if line.poll(patience) else (True, "no answer in time")
    except EOFError:
        return True, "the process died"


def _serve(rank: int, world: int, place: str, line: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{place}", rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE))
    while True:
        function, args = line.recv()
        try:
            line.send((False, function(rank, *args)))
        except BaseException:
            line.send((True, traceback.format_exc()))


@cache
def ranks(world: int) -> Ranks:
    made = Ranks(world)
    atexit.register(made.end)
    return made
