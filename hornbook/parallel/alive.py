"""Which rank is to blame when the others wait in vain: each one's heart beats in torchrun's store, and who waited in vain says so.

A dead rank's heart stands still. A hung one's beats on, but it alone has not said that it waited in vain. Who finds that first says
so in the store, and every heart listens for it: the first to leave takes its connections along, rank 0 perhaps the store, and the
others, who lose them, still know who was to blame.
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
from torch.distributed import DistError

from hornbook.errors import Lost

BEAT, LISTEN = 1.0, 3.5  # seconds between two beats, and for which one listens
IN_VAIN = re.compile(r"gloo|NCCL|[Cc]onnection|[Tt]imed out|TCPStore")


@contextmanager
def watched(rank: int, world: int) -> Iterator[None]:
    """Run a block whose collectives need every rank; where one fails them, raise `Lost`, which names it."""
    store, over, heard = _store(), threading.Event(), list[str]()
    store.set(f"host/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    threading.Thread(target=_beat, args=(rank, over, heard), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if not IN_VAIN.search(str(error)):
            raise
        raise Lost(
            _guilty(store, rank, world, heard), where=f"rank {rank} of {world}", why=str(error).splitlines()[0][:200],
            fix="start the same command again, it goes on from the last state; torchrun --max-restarts 3 does so by itself",
        ) from error  # fmt: skip
    finally:
        over.set()


def _store() -> Any:
    """A connection of its own to the place where the ranks met; each run of ranks, after a restart too, has its own keys there."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
    return PrefixStore(f"alive/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _beat(rank: int, over: threading.Event, heard: list[str]) -> None:
    store, beats = _store(), 0
    while not over.wait(BEAT):
        beats += 1
        try:
            store.set(f"beat/{rank}", str(beats))
            if not heard and store.check(["verdict"]):
                heard.append(store.get("verdict").decode())
                store.set(f"heard/{rank}", "yes")
        except DistError:  # the store has gone with its process: the main thread will meet that too
            return


def _guilty(store: Any, rank: int, world: int, heard: list[str]) -> str:
    try:
        store.set(f"waited/{rank}", "in vain")
        if not store.check(["verdict"]):
            store.compare_set("verdict", "", _verdict(store, world))  # unless another was faster
        heard.append(store.get("verdict").decode())
        store.set(f"heard/{rank}", "yes")
        if rank == 0:
            _see_off(store, world)
    except DistError:
        heard.append("the place where the ranks met has gone, and with it rank 0 or what started the ranks")
    return heard[0]


def _verdict(store: Any, world: int) -> str:
    before = _beats(store, world)
    time.sleep(LISTEN)
    after = _beats(store, world)
    silent = [other for other in range(world) if not store.check([f"waited/{other}"])]
    dead = [other for other in silent if before[other] == after[other]]
    names = [f"rank {other} ({store.get(f'host/{other}').decode()})" for other in dead or silent]
    for other in dead:
        store.set(f"heard/{other}", "never")
    if not names:
        return "the ranks lost each other, and all are alive"
    return f"{' and '.join(names)} {'gives no sign of life' if dead else 'hangs'}: the others waited in vain"


def _see_off(store: Any, world: int) -> None:
    """Without torchrun the store ends with rank 0: it stays until every living heart has heard the verdict."""
    late = time.monotonic() + LISTEN
    while not store.check([f"heard/{rank}" for rank in range(world)]) and time.monotonic() < late:
        time.sleep(BEAT / 10)


def _beats(store: Any, world: int) -> list[bytes]:
    return [store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b"" for rank in range(world)]
