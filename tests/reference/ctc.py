"""CTC the slow way: every path of ids, one after the other, is turned into the letters that it spells."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import product
from typing import Any

Letters = tuple[int, ...]


def spelled(path: tuple[int, ...], blank: int = 0) -> Letters:
    """Repeats merged, then blanks dropped."""
    kept = [i for n, i in enumerate(path) if n == 0 or i != path[n - 1]]
    return tuple(i for i in kept if i != blank)


def spellings(log_p_tv: Any, blank: int = 0) -> dict[Letters, float]:
    """p of every text that so many frames can spell, from log p of each id at each frame."""
    rows = log_p_tv.tolist()
    found: dict[Letters, float] = defaultdict(float)
    for path in product(range(len(rows[0]) if rows else 0), repeat=len(rows)):
        found[spelled(path, blank)] += math.exp(sum(row[i] for row, i in zip(rows, path, strict=True)))
    return dict(found)
