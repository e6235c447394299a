"""States are written while training goes on: copied at once, put on disk by a thread, one after the other."""

from __future__ import annotations

import math
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

from hornbook.checkpoint.state import Keep, Snapshot, state_bytes, write_snapshot
from hornbook.errors import UserError
from hornbook.model import TransformerModel
from hornbook.ranks import all_of_us, patient_group, several

ASK = 0.02  # seconds between two looks at a write that another rank has not ended


class Saver:
    """`with Saver(folder) as saver: saver.save(snapshot, keep)`. What a write met is raised by the next call, or at the end.

    An error leaves when the write has ended; a KeyboardInterrupt at once, for a state that is half written is none.
    """

    def __init__(self, folder: Path | None):
        self._folder, self._writing = folder, Future[None]()
        self._writing.set_result(None)
        self._thread: threading.Thread | None = None
        patient_group("saving")  # of several ranks: made here, where all of them are

    def save(self, found: Snapshot, keep: Keep) -> None:
        """Begin to write, when the write before has ended."""
        self.finish()
        self._writing = Future()
        self._thread = threading.Thread(target=self._write, args=(found, keep, self._writing), daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for what is being written. Several ranks, which all must call this, ask each other meanwhile: so one that hangs in
        its part is found as in a step, and yet the writing has all the time that it needs.
        """
        while several() and not all_of_us(self._writing.done()):
            time.sleep(ASK)
        self._writing.result()
        if self._thread:  # it still frees the snapshot, and a process that ends meanwhile is aborted
            self._thread.join()

    def _write(self, found: Snapshot, keep: Keep, future: Future[None]) -> None:
        assert self._folder is not None
        try:
            write_snapshot(self._folder, found, keep)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that trains
            future.set_exception(error)
        else:
            future.set_result(None)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, Exception) and not several():  # a rank may wait in vain for the others
            self._writing.exception()  # the first error is the one to speak of


class Best:
    """The step whose figure was lowest, and whether a new one is lower."""

    def __init__(self) -> None:
        self.step: int | None = None
        self._value = math.inf

    def beaten_by(self, step: int, value: float | None) -> bool:
        if value is None or not value < self._value:
            return False
        self.step, self._value = step, value
        return True

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "value": self._value if self.step is not None else None}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self._value = state["step"], math.inf if state["value"] is None else state["value"]


def most_states(steps: int, save_every: int, keep_every: int, keep_best: bool) -> int:
    """How many a run has on disk at once, at most: the newest two, one that is being written, and those that are kept."""
    return min(3 + bool(save_every) + keep_best + (steps // keep_every if keep_every else 0), steps)


def check_room(folder: Path, model: TransformerModel, states: int = 3) -> None:
    """Refuse, before the first step, a disk on which so many states do not fit, those that are there among them, and the model."""
    missing = max(1, states - len(list(folder.glob("step-*"))))
    needed = missing * state_bytes(model) + sum(p.nbytes for p in model.parameters())
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            "the disk is too full for the states of this run", where=str(folder),
            why=f"{needed:,} bytes are needed, {free:,} are free", fix="free some space, or choose another --out",
        )  # fmt: skip
