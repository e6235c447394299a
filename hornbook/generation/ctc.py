"""Log probabilities of ids per frame (T, V) -> the letters that were said: greedily, or by a search over prefixes.

Many paths spell the same letters. Greedy decoding takes the one best path; the search sums the paths of each prefix, kept apart by
whether they end in a blank, for a letter that follows itself is a new one only behind a blank (Hannun et al. 2014, "First-pass
large vocabulary continuous speech recognition using bi-directional recurrent DNNs", algorithm 1, without a language model).
"""

from __future__ import annotations

import math
from collections import defaultdict

from torch import Tensor

Letters = tuple[int, ...]
NEVER = -math.inf


def greedy(log_p_tv: Tensor, blank: int = 0) -> Letters:
    """The best id of each frame, repeats merged and blanks dropped."""
    best = log_p_tv.argmax(-1).unique_consecutive().tolist() if len(log_p_tv) else []
    return tuple(i for i in best if i != blank)


def prefix_beam(log_p_tv: Tensor, width: int = 16, blank: int = 0) -> list[tuple[Letters, float]]:
    """The `width` likeliest texts found, best first, each with its log p: a little low where a prefix had to be dropped."""
    if width < 1:
        raise ValueError(f"width must be at least 1: {width}")
    # prefix -> log p of its paths that end in a blank, and of those that end in its last letter
    beam: dict[Letters, tuple[float, float]] = {(): (0.0, NEVER)}
    for row in log_p_tv.tolist():
        following: dict[Letters, tuple[float, float]] = defaultdict(lambda: (NEVER, NEVER))
        for prefix, (p_blank, p_letter) in beam.items():
            both = _add(p_blank, p_letter)
            for i, log_p in enumerate(row):
                repeats = bool(prefix) and i == prefix[-1]
                if i == blank:
                    _gain(following, prefix, blank=both + log_p)
                    continue
                if repeats:
                    _gain(following, prefix, letter=p_letter + log_p)
                _gain(following, (*prefix, i), letter=(p_blank if repeats else both) + log_p)
        likeliest = sorted(following.items(), key=lambda entry: (-_add(*entry[1]), entry[0]))
        beam = {prefix: ends for prefix, ends in likeliest[:width] if _add(*ends) > NEVER}
    return [(prefix, _add(*ends)) for prefix, ends in beam.items()]


def _gain(beam: dict[Letters, tuple[float, float]], prefix: Letters, blank: float = NEVER, letter: float = NEVER) -> None:
    ends = beam[prefix]
    beam[prefix] = _add(ends[0], blank), _add(ends[1], letter)


def _add(a: float, b: float) -> float:
    """log(exp a + exp b)"""
    low, high = (a, b) if a < b else (b, a)
    return high if low == NEVER else high + math.log1p(math.exp(low - high))
