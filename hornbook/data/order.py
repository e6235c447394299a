"""Places of an epoch -> samples, as a permutation that can be entered anywhere at no cost.

The one idea: a Feistel network is a bijection whatever its round function is, so a hash of a few keys permutes any number of
samples without a list of them (Luby and Rackoff 1988). To permute exactly `size` numbers, they are written as low + a * high with
a * b barely above `size`, the halves are added to modulo a and b, and a number that leaves the range goes through again until it is
back (Black and Rogaway 2002, the generalized Feistel cipher and cycle walking).
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

ROUNDS = 12  # four are enough for large sizes; with eight, permutations of five or six samples are not equally likely yet
CHUNK = 512  # places that cost about as much together as the few of one batch


def permuted(places: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The sample at each place of [0, size): a permutation that (size, seed, epoch) decide; both at least 0."""
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    a = isqrt(size - 1) + 1
    b = -(-size // a)
    found = _walked(places.astype(np.uint64), a, b, keys)
    while len(outside := np.flatnonzero(found >= size)):
        found[outside] = _walked(found[outside], a, b, keys)
    return found.astype(np.int64)


def permuted_nearby(places: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """`permuted` for places that mostly follow each other, call after call: whole chunks are computed and kept for a while."""
    chunks, inside = np.divmod(places, CHUNK)
    found = np.empty_like(places)
    for chunk in np.unique(chunks).tolist():
        here = chunks == chunk
        found[here] = _chunk(chunk, size, seed, epoch)[inside[here]]
    return found


@lru_cache(maxsize=64)
def _chunk(number: int, size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return permuted(np.arange(number * CHUNK, min((number + 1) * CHUNK, size)), size, seed, epoch)


def _walked(numbers: NDArray[np.uint64], a: int, b: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """All rounds once: a permutation of [0, a * b)."""
    high, low = np.divmod(numbers, np.uint64(a))
    for one, other in keys.reshape(-1, 2):
        low = (low + _hashed(high + one)) % np.uint64(a)
        high = (high + _hashed(low + other)) % np.uint64(b)
    return low + high * np.uint64(a)


def _hashed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014), without the lowest bit: room for the sum that follows."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (numbers ^ (numbers >> np.uint64(31))) >> np.uint64(1)
