"""A row of figures per step: loss in nats per token, bits per byte, rate, norm, speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from hornbook.train.incident import Step

LOG = Callable[[dict[str, Any]], None]


class Meter:
    """Collects sums over the steps since the last row, so that a logged loss is the mean over them all.

    `steps` counts them, but for those that were left out. Its `state` is part of a run's, so that a run that stopped between two
    rows continues with the same rows.
    """

    def __init__(self) -> None:
        self._since = self._start = time.perf_counter()
        self.tokens, self.steps, self._nats, self._targets, self._bytes, self._fresh = 0, 0, 0.0, 0, 0, 0

    def state(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens, "steps": self.steps, "nats": self._nats, "targets": self._targets, "bytes": self._bytes,
            "seconds": time.perf_counter() - self._start,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.tokens, self.steps = state["tokens"], state["steps"]
        self._nats, self._targets, self._bytes = state["nats"], state["targets"], state["bytes"]
        self._since, self._fresh = time.perf_counter(), 0
        self._start = self._since - state["seconds"]

    def add(self, step: Step, learned: bool) -> None:
        """Count a step; the losses of one that was left out are not part of any row."""
        self._fresh += step.tokens
        self.tokens += step.tokens
        if learned:
            self._bytes += step.text_bytes
            self._nats += step.total
            self._targets += step.count
            self.steps += 1

    def row(self, stage: str, step: int, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """The figures since the last row; `tokens_per_second` counts every token that went through the model."""
        now = time.perf_counter()
        row = {
            "stage": stage, "step": step, "tokens": self.tokens, "loss": self._nats / max(1, self._targets),
            "bits_per_byte": self._nats / math.log(2) / max(1, self._bytes), "learning_rate": learning_rate,
            "grad_norm": grad_norm, "tokens_per_second": self._fresh / max(1e-9, now - self._since), "seconds": now - self._start,
        }  # fmt: skip
        self._since, self.steps, self._nats, self._targets, self._bytes, self._fresh = now, 0, 0.0, 0, 0, 0
        return row
