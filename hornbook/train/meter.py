"""A row of figures per step: loss in nats per token, bits per byte, rate, norm, speed, memory, and how well the machine is used.

    flops_per_second = FLOPs of the model's products, forward and backward (`hornbook/plan/flops.py`) / wall time
    mfu = flops_per_second / peak (Chowdhery et al. 2022, "PaLM", appendix B)

Wall time holds all that a run does: batches, steps, looks at held-out text, saves. What is not known is not in the row.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hornbook.batch import Batch
from hornbook.plan.flops import flops
from hornbook.train.incident import Step

LOG = Callable[[dict[str, Any]], None]
STATUS = Path("/proc/self/status")


class Source(Protocol):
    def __next__(self) -> Batch: ...


def peak_memory(device: str = "cpu") -> int:
    """The most bytes so far: a GPU's, of what torch holds there; else this process's largest resident size."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():  # what getrusage says on Linux begins with what the process that started this one held
        return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


class Meter:
    """Collects sums over the steps since the last row, so that a logged loss is the mean over them all, and so are the figures that
    the objective gives beside it.

    `steps` counts them, but for those that were left out. Its `state` is part of a run's, so that a run that stopped between two
    rows continues with the same rows. `whole`: steps of the whole run. `peak`: FLOP/s that the device is able to, 0 if unknown.
    """

    def __init__(self, model: nn.Module, whole: int, peak: float = 0.0) -> None:
        self._flops, self._device, self._whole, self._peak = flops(model), next(model.parameters()).device.type, whole, peak
        self._start = time.perf_counter()
        self.tokens, self.learned = 0, 0  # of the whole run
        self.steps, self._nats, self._targets, self._bytes = 0, 0.0, 0, 0
        self._metrics = dict[str, float]()
        self._begin()

    def _begin(self) -> None:
        """From here on the clock of the next row runs."""
        self._since, self._fresh, self._operations, self._waited = time.perf_counter(), 0, 0, 0.0

    def state(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens, "learned": self.learned, "steps": self.steps, "nats": self._nats, "targets": self._targets,
            "bytes": self._bytes, "metrics": self._metrics, "seconds": time.perf_counter() - self._start,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        self.tokens, self.learned, self.steps = state["tokens"], state["learned"], state["steps"]
        self._nats, self._targets, self._bytes, self._metrics = (state[name] for name in ("nats", "targets", "bytes", "metrics"))
        self._begin()
        self._start = self._since - state["seconds"]

    def taken(self, batches: Source, count: int) -> list[Batch]:
        """The next batches, and how long the loop waited for them."""
        asked = time.perf_counter()
        found = [next(batches) for _ in range(count)]
        self._waited += time.perf_counter() - asked
        return found

    def add(self, step: Step, learned: bool) -> None:
        """Count a step; the losses of one that was left out are not part of any row."""
        self._fresh += step.tokens
        self.tokens += step.tokens
        if self._flops:
            own = sum(batch.tokens_bt.numel() for batch in step.batches)
            rows = sum(self._flops.training(batch.tokens_bt.numel(), batch.tokens_bt.shape[-1], 0) for batch in step.batches)
            self._operations += rows * step.tokens // own + self._flops.training(0, 0, step.count)
        if learned:
            self._bytes += step.text_bytes
            self._nats += step.total
            self._targets += step.count
            self.steps, self.learned = self.steps + 1, self.learned + 1
            for name, value in step.metrics.items():
                self._metrics[name] = self._metrics.get(name, 0.0) + value

    def row(self, stage: str, step: int, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """The figures since the last row; `tokens_per_second` counts every token that went through the model.

        `memory` is in bytes, `data_wait` the share of the time that the loop waited for batches, `seconds_left` what is left at
        the pace of the run so far.
        """
        now, targets = time.perf_counter(), max(1, self._targets)
        passed, seconds = max(1e-9, now - self._since), now - self._start
        row: dict[str, Any] = {
            **{name: value / targets for name, value in self._metrics.items()},
            "stage": stage, "step": step, "steps": self._whole, "tokens": self.tokens, "loss": self._nats / targets,
            "bits_per_byte": self._nats / math.log(2) / max(1, self._bytes), "learning_rate": learning_rate,
            "grad_norm": grad_norm, "tokens_per_second": self._fresh / passed, "seconds": seconds,
            "seconds_left": seconds / step * (self._whole - step), "data_wait": self._waited / passed,
            "memory": peak_memory(self._device),
        }  # fmt: skip
        if self._flops:
            row["flops_per_second"] = self._operations / passed
            if self._peak:
                row["mfu"] = row["flops_per_second"] / self._peak
        self.steps, self._nats, self._targets, self._bytes = 0, 0.0, 0, 0
        self._metrics = {}
        self._begin()
        return row
