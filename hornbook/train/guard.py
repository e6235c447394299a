"""Watches each step's loss and gradient norm: a step that is not finite, or far from those before it, is not learned from.

Far is more than `sigmas` above the median of the last steps. Their spread is the larger of two that a few wild steps leave alone,
each the sigma of a normal: the quartiles' distance over 1.349, and the 95th percentile's from the median over 1.645. So one spike
stands out, while a corpus whose every tenth batch is of another kind does not. Norms are compared as logarithms.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

WINDOW, LEAST = 128, 20  # steps that are remembered, and before which only the absurd stands out
ABSURD = 1e8  # no mean loss in nats, no gradient norm is as large
FLOORS = {"loss": 0.05, "gradient norm": 0.25}  # the least spread: nats, where a model knows its batches by heart; a logarithm
PATIENCE, ROLLBACKS = 3, 2  # steps in a row that are left out before a rollback, and rollbacks in a row before the run ends


class Guard:
    """Judges steps in their order. `sigmas` 0: only what is not finite or absurd is left out."""

    def __init__(self, sigmas: float = 6.0):
        self.sigmas = sigmas
        self.skipped, self.in_a_row, self.rollbacks, self._left = 0, 0, 0, 0
        self.point: int | None = None  # the step whose state a rollback goes back to
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in FLOORS}

    def judge(self, loss: float, norm: float) -> str | None:
        """Why the step must be left out, or None: it may be learned from. `loss` is a mean in nats."""
        why = [found for name, value in (("loss", loss), ("gradient norm", norm)) if (found := self._odd(name, value))]
        if why:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            return why[0]
        self.in_a_row = 0
        return None

    def went_back(self, step: int) -> None:
        """Steps up to `step` could not be learned from and the run goes back."""
        self.in_a_row, self.rollbacks, self._left = 0, self.rollbacks + 1, max(step, self._left)

    def passed(self, step: int, learned: bool, point: bool) -> None:
        """A step is over. A `point` is one to go back to; one that is learned from behind all that was left ends the rollbacks."""
        if learned and step > self._left:
            self.rollbacks = 0
        if point:
            self.point = step

    def _odd(self, name: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"the {name} is {value}"
        if value > ABSURD:
            return f"the {name} is {value:.3g}"
        seen, given = self._seen[name], value
        if name != "loss":
            value = math.log(max(value, 1e-12))
        past = sorted(seen)
        seen.append(value)  # also where it stands out: a level that stays is no outlier for long
        if not self.sigmas or len(past) < LEAST:
            return None
        low, median, upper, high = (past[int(share * (len(past) - 1))] for share in (0.25, 0.5, 0.75, 0.95))
        spread = max((upper - low) / 1.349, (high - median) / 1.645, FLOORS[name])
        if value <= median + self.sigmas * spread:
            return None
        usual = median if name == "loss" else math.exp(median)
        return f"the {name} is {given:.4g}, {(value - median) / spread:.1f} sigma above the usual {usual:.4g}"

    def state(self) -> dict[str, Any]:
        counts = {"skipped": self.skipped, "in_a_row": self.in_a_row, "rollbacks": self.rollbacks, "left": self._left}
        return {**counts, "point": self.point, "seen": {name: list(values) for name, values in self._seen.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row, self.rollbacks, self._left = (state[n] for n in ("skipped", "in_a_row", "rollbacks", "left"))
        self.point = state["point"]
        self._seen = {name: deque(values, maxlen=WINDOW) for name, values in state["seen"].items()}
