"""Ctrl-C and SIGTERM as a wish: the loop finishes its step, saves, and leaves. A second Ctrl-C leaves at once.

A wish that came too late for the loop, which has ended or was `Ended`, is a Ctrl-C behind it: what follows must not begin.

Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun: there, what follows within a second is the same wish.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Ended(Exception):
    """A run ended before its last step, which is a finding and no error. Whoever logs a row may raise it, and catch it."""


class Stop:
    """`with Stop() as stop:` ... `if stop.asked:`. Outside the main thread it never asks."""

    def __init__(self) -> None:
        self.asked, self._at = False, 0.0
        self._before: dict[signal.Signals, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        same = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() < self._at + 1
        if self.asked and not same:
            raise KeyboardInterrupt
        self.asked, self._at = True, time.monotonic()

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.asked and (kind is None or issubclass(kind, Ended)):
            raise KeyboardInterrupt
