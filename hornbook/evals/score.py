"""Intervals for figures: a share of right answers, and a ratio of two sums over documents."""

from __future__ import annotations

import math
from collections.abc import Sequence

NORMAL_95 = 1.959963984540054  # the normal distribution's quantile at 0.975


def wilson(correct: int, total: int, z: float = NORMAL_95) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927): sound near 0 and 1, where the usual one is not."""
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return 0.0 if correct == 0 else middle - half, 1.0 if correct == total else middle + half  # exact at the ends


def ratio(numerators: Sequence[float], denominators: Sequence[float], z: float = NORMAL_95) -> tuple[float, float, float]:
    """sum / sum over documents, and its 95 % interval with documents as the unit (Cochran 1977, equation 2.39)."""
    total = sum(denominators)
    if total <= 0:
        return math.nan, math.nan, math.nan
    value, n = sum(numerators) / total, len(numerators)
    if n < 2:
        return value, math.nan, math.nan
    spread = sum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True)) / (n - 1)
    half = z * math.sqrt(n * spread) / total
    return value, value - half, value + half
