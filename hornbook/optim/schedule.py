"""Schedules: a step -> a factor of the peak rate, or a step -> micro-batches. They count steps, so a resumed run is the same.

Linear and cosine fall over all of a run or over its last `decay_steps`. `wsd` (warm up, be stable, decay: Hu et al. 2024,
section 4) is the trapezoid: it falls at the end alone, so until then a run is the beginning of a longer one, too: `fit` goes on
from such a state with more steps (the commands do not, where a run's `steps` are part of what it is). Hägele et al. 2024 (section
3) take a fifth of the run for the fall and find 1 - sqrt a better shape than the line: `wsd_sqrt`. `inverse_sqrt` has no end
(Vaswani et al. 2017, equation 3, in units of its peak).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hornbook.errors import near

Schedule = Callable[[int], float]
COOLDOWN = 0.2  # of the steps, for wsd without decay_steps
# What is left of the rate after a share (0 to 1) of the fall.
FALLS: dict[str, Callable[[float], float]] = {
    "linear": lambda gone: 1 - gone,
    "cosine": lambda gone: 0.5 + 0.5 * math.cos(math.pi * gone),
    "wsd": lambda gone: 1 - gone,
    "wsd_sqrt": lambda gone: 1 - math.sqrt(gone),
}
DECAYS = (*FALLS, "constant", "inverse_sqrt")


def warmup_decay(steps: int, warmup: int, decay: str = "linear", decay_steps: int | None = None, floor: float = 0.0) -> Schedule:
    """Rise linearly over `warmup` steps to 1, hold, then fall over the last `decay_steps` to `floor`.

    `decay_steps` None is all steps after the warm-up, for wsd a fifth of the run.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay must be a known schedule: {decay!r} ({near(decay, DECAYS)})")
    if decay_steps is not None and (decay not in FALLS or decay_steps < 1):
        why = "must be at least 1" if decay in FALLS else f"is for {', '.join(FALLS)}, not for {decay!r}"
        raise ValueError(f"decay_steps {why}: {decay_steps}")
    usual = steps * COOLDOWN if decay.startswith("wsd") else steps - warmup
    fall = max(1, round(usual) if decay_steps is None else decay_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if decay == "inverse_sqrt":
            return max(floor, math.sqrt(max(1, warmup) / (step + 1)))
        gone = min(1.0, max(0.0, 1 - (steps - step) / fall))  # 0 before the fall begins, 1 at the end
        return 1.0 if decay == "constant" else floor + (1 - floor) * FALLS[decay](gone)

    return factor


def batch_ramp(first: int, full: int, over: int) -> Callable[[int], int]:
    """Micro-batches per step: `first` at the start, `full` once `over` micro-batches are used up, and linear in those between.

    A small batch is enough while gradients point clearly. Brown et al. 2020, appendix B, raise it from 32 thousand tokens to all
    over the first billions of tokens: data counts, not steps, so the ramp is slow at first when counted in steps.
    """
    if not 1 <= first <= full or over < 0:
        raise ValueError(f"batch_ramp must have 1 <= first <= full and over >= 0: first {first}, full {full}, over {over}")
    sizes, used = list[int](), 0
    while used < over:
        sizes.append(first + (full - first) * used // over)
        used += sizes[-1]
    return lambda step: sizes[step] if step < len(sizes) else full
