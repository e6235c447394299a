"""Which rank is to blame when the others wait in vain: each one's heart beats in torchrun's store, and who waited in vain says so.

A dead rank's heart stands still. A hung one's beats on, but it alone has not said that it waited in vain.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistError, DistNetworkError

from hornbook.errors import UserError

BEAT, LISTEN = 1.0, 3.5  # seconds between two beats, and for which one listens
IN_VAIN = re.compile(r"gloo|NCCL|[Cc]onnection|[Tt]imed out|TCPStore")


@contextmanager
def watched(rank: int, world: int) -> Iterator[None]:
    """Run a block whose collectives need every rank; where one fails them, raise a `UserError` that names it."""
    store, over = _store(), threading.Event()
    store.set(f"host/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    threading.Thread(target=_beat, args=(rank, over), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if not IN_VAIN.search(str(error)):
            raise
        raise UserError(
            _guilty(store, rank, world), where=f"rank {rank} of {world}", why=str(error).splitlines()[0][:200],
            fix="start the same command again, it goes on from the last state; torchrun --max-restarts 3 does so by itself",
        ) from error  # fmt: skip
    finally:
        over.set()


def _store() -> Any:
    """A connection of its own to the place where the ranks met; each run of ranks, after a restart too, has its own keys there."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
    return PrefixStore(f"alive/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _beat(rank: int, over: threading.Event) -> None:
    store, beats = _store(), 0
    while not over.wait(BEAT):
        beats += 1
        try:
            store.set(f"beat/{rank}", str(beats))
        except DistNetworkError:  # the store has gone with its process: the main thread will meet that too
            return


def _guilty(store: Any, rank: int, world: int) -> str:
    try:
        store.set(f"waited/{rank}", "in vain")
        before = _beats(store, world)
        time.sleep(LISTEN)
        after = _beats(store, world)
        silent = [other for other in range(world) if not store.check([f"waited/{other}"])]
        dead = [other for other in silent if before[other] == after[other]]
        names = [f"rank {other} ({store.get(f'host/{other}').decode()})" for other in dead or silent]
    except DistError:
        return "rank 0, or what started the ranks, gives no sign of life: the place where they met has gone"
    if not names:
        return "the ranks lost each other, and all are alive"
    return f"{' and '.join(names)} {'gives no sign of life' if dead else 'hangs'}: the others waited in vain"


def _beats(store: Any, world: int) -> list[bytes]:
    return [store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b"" for rank in range(world)]
