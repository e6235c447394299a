"""Documents -> their distinct pieces, each with its count. Memory grows with the pieces, not with the text."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types

from hornbook.text.compiled.arrays import more
from hornbook.text.compiled.cut import (
    BLOCKS,
    BYTES,
    COMPILED,
    HIGH,
    I64,
    INNER,
    LENGTH_AT,
    LOW,
    READING,
    U8,
    U64,
    block,
    boolean,
    cut,
    int64,
    key,
    load64,
    place,
    prefetch,
)  # fmt: skip
from hornbook.text.scan import CLOSED

LONG_PIECE = np.uint64(255) << LENGTH_AT


class Distinct(NamedTuple):
    """Distinct pieces, one behind the other.

    slots   four words each: a piece of at most fifteen bytes itself (two words), or a longer one's hash; its number + 1; its count
    pool    the bytes of the pieces, `used` of them, each ending at ends[number + 1]; `known` pieces
    """

    slots: Any
    pool: Any
    ends: Any
    known: int
    used: int


DISTINCT = types.NamedTuple((U64, U8, I64, int64, int64), Distinct)


@njit(boolean(BYTES, int64, int64, U8, I64, int64), **INNER)
def same(buf, start, end, pool, ends, number):
    if ends[number + 1] - ends[number] != end - start:
        return False
    at = ends[number]
    for k in range(end - start):
        if pool[at + k] != buf[start + k]:
            return False
    return True


@njit(U64(U64), **INNER)
def rehashed(slots):
    """Four times as many slots."""
    larger = np.zeros(4 * len(slots), np.uint64)
    last = (len(larger) >> 2) - 1
    for s in range(0, len(slots), 4):
        if slots[s + 2]:
            p = place(slots[s], slots[s + 1], last + 1)
            while larger[4 * p + 2]:
                p = (p + 1) & last
            for k in range(4):
                larger[4 * p + k] = slots[s + k]
    return larger


@njit(DISTINCT(DISTINCT, int64, int64), **INNER)
def roomier(found, pieces, size):
    """The same with room for so many more pieces of so many bytes in all."""
    slots, pool, ends, known, used = found
    if 8 * (known + pieces) > len(slots):
        slots = rehashed(slots)
    if known + pieces >= len(ends):
        ends = more(ends, 2 * (known + pieces) + 2)
    if used + size > len(pool):
        pool = more(pool, 2 * (used + size))
    return Distinct(slots, pool, ends, known, used)


@njit(DISTINCT(BYTES, BLOCKS, int64, DISTINCT), **INNER)
def tally(buf, block, whole, found):
    """Count pieces, for which there is room; all are looked up first, so that memory answers while others are counted."""
    starts, firsts, seconds, places = block
    slots, pool, ends, known, used = found
    last = (len(slots) >> 2) - 1
    for z in range(whole):
        at = starts[z]
        size = starts[z + 1] - at
        if size <= 15:
            a, b = load64(buf, at) & LOW[size], load64(buf, at + 8) & HIGH[size] | np.uint64(size) << LENGTH_AT
        else:
            a, b = key(buf, at, size), LONG_PIECE
        p = place(a, b, last + 1)
        firsts[z], seconds[z], places[z] = a, b, np.uint64(p)
        prefetch(slots, 4 * p)
    for z in range(whole):
        a, b, p = firsts[z], seconds[z], np.int64(places[z])
        while True:
            s = 4 * p
            if slots[s + 2] == 0:
                slots[s], slots[s + 1], slots[s + 2], slots[s + 3] = a, b, np.uint64(known + 1), 1
                for k in range(starts[z], starts[z + 1]):
                    pool[used] = buf[k]
                    used += 1
                known += 1
                ends[known] = used
                break
            if slots[s] == a and slots[s + 1] == b:
                if b != LONG_PIECE or same(buf, starts[z], starts[z + 1], pool, ends, np.int64(slots[s + 2]) - 1):
                    slots[s + 3] += np.uint64(1)
                    break
            p = (p + 1) & last
    return Distinct(slots, pool, ends, known, used)


@njit(DISTINCT(BYTES, I64, READING, DISTINCT), **COMPILED)
def count(buf, ends, reading, found):
    """Count the pieces of documents, document d up to byte ends[d]."""
    some, i = block(), 0
    for d in range(len(ends)):
        n, state, m, last = ends[d], np.uint64(CLOSED), 0, i
        while i < n:
            i, state, last, m, pieces = cut(buf, i, n, state, last, m, reading, some.starts)
            found = roomier(found, pieces, some.starts[pieces] - some.starts[0])
            found = tally(buf, some, pieces, found)
    return found
