"""Checks in, proofs out, one at a time: a figure that must not be above its bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Finding:
    """What was measured, in `unit`; it holds where it is at most `bound`. A figure that is not a number never holds."""

    figure: float
    bound: float
    unit: str

    @property
    def holds(self) -> bool:
        return self.figure <= self.bound


@dataclass(frozen=True)
class Check:
    """An invariant: its name, what is measured, and the function that measures it on a device."""

    name: str
    measures: str
    measure: Callable[[torch.device], Finding]


@dataclass(frozen=True)
class Proof:
    """What came of a check: a finding, or the error that kept it from having one."""

    check: Check
    finding: Finding | None
    error: str
    seconds: float

    @property
    def holds(self) -> bool:
        return self.finding is not None and self.finding.holds

    def record(self) -> dict[str, Any]:
        """The proof as JSON can hold it: a figure that is not a number is null."""
        found = self.finding
        return {
            "name": self.check.name, "measures": self.check.measures, "holds": self.holds, "seconds": self.seconds,
            "figure": found.figure if found and math.isfinite(found.figure) else None, "bound": found.bound if found else None,
            "unit": found.unit if found else None, "error": self.error,
        }  # fmt: skip


def proofs(checks: Iterable[Check], device: torch.device) -> Iterator[Proof]:
    """Prove one check after the other; one that breaks off has failed, and the next has its turn."""
    for check in checks:
        start, finding, error = time.perf_counter(), None, ""
        try:
            finding = check.measure(device)
        except (RuntimeError, ValueError, OSError, AssertionError) as problem:
            error = (str(problem) or type(problem).__name__).strip().splitlines()[0]
        yield Proof(check, finding, error, time.perf_counter() - start)
