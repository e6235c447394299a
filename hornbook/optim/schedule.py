"""Learning-rate schedules: a step -> a factor of the peak rate. They count steps, not seconds, so a resumed run is the same."""

from __future__ import annotations

import math
from collections.abc import Callable

from hornbook.errors import near

Schedule = Callable[[int], float]
DECAYS = ("linear", "cosine", "constant")


def warmup_decay(steps: int, warmup: int, decay: str = "linear", decay_steps: int | None = None, floor: float = 0.0) -> Schedule:
    """Rise linearly over `warmup` steps to 1, hold, then fall over the last `decay_steps` (None: all the rest) to `floor`."""
    if decay not in DECAYS:
        raise ValueError(f"decay must be a known schedule: {decay!r} ({near(decay, DECAYS)})")
    fall = max(1, steps - warmup if decay_steps is None else decay_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        left = min(1.0, max(0.0, (steps - step) / fall))  # 1 before the fall begins, 0 at the end
        if decay == "constant":
            return 1.0
        shape = left if decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
        return floor + (1 - floor) * shape

    return factor
