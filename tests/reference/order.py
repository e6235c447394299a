"""The order of samples and best fit, slow and obvious: one number at a time, every row looked at."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np

from hornbook.data.order import ROUNDS

WORD = 1 << 64


def hashed(number: int) -> int:
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % WORD
    number = (number ^ number >> 27) * 0x94D049BB133111EB % WORD
    return (number ^ number >> 31) >> 1


def permuted(place: int, size: int, seed: int, epoch: int) -> int:
    """Black and Rogaway's generalized Feistel cipher, halves swapped after each round, walked until it is in range."""
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64).tolist()
    a = next(a for a in range(max(1, isqrt(size) - 1), size + 1) if a * a >= size)
    b = next(b for b in range(max(1, a - 2), a + 1) if a * b >= size)
    while True:
        left, right = place % a, place // a
        for number, key in enumerate(keys):
            left, right = right, (left + hashed((right + key) % WORD)) % (b if number % 2 else a)
        place = left + a * right
        if place < size:
            return place


def sequence(size: int, seed: int, start: int, count: int) -> list[tuple[int, int]]:
    """(epoch, sample) of `count` places of the endless sequence."""
    places = (divmod(place, size) for place in range(start, start + count))
    return [(epoch, permuted(place, size, seed, epoch)) for epoch, place in places]


def rooms_of_best_fit(sizes: Sequence[int], context: int) -> list[int]:
    """What is left of each row when the longest pieces come first and each goes where it leaves the least room."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else context) - size)
    return sorted(rooms)
