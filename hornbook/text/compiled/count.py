"""Documents -> their distinct pieces, each with its count. Memory grows with the pieces, not with the text."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from hornbook.text.compiled.cut import (
    BLOCK,
    BYTES,
    COMPILED,
    HIGH,
    I64,
    INNER,
    LENGTH_AT,
    LOW,
    U8,
    U16,
    U64,
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
COUNTED = types.Tuple((U64, U8, I64, int64, int64))


@njit(I64(I64, int64), **INNER)
def more64(array, size):
    found = np.zeros(size, np.int64)
    for k in range(len(array)):
        found[k] = array[k]
    return found


@njit(U8(U8, int64), **INNER)
def more8(array, size):
    found = np.zeros(size, np.uint8)
    for k in range(len(array)):
        found[k] = array[k]
    return found


@njit(boolean(BYTES, int64, int64, U8, I64, int64), **INNER)
def same(buf, start, end, pool, pieces, number):
    if pieces[number + 1] - pieces[number] != end - start:
        return False
    at = pieces[number]
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


@njit(types.UniTuple(int64, 2)(BYTES, I64, int64, U64, U8, I64, int64, int64, U64, U64, I64), **INNER)
def tally(buf, starts, whole, slots, pool, pieces, known, used, firsts, seconds, places):
    """Count pieces, for which there is room; all are looked up first, so that memory answers while others are counted."""
    last = (len(slots) >> 2) - 1
    for z in range(whole):
        at = starts[z]
        size = starts[z + 1] - at
        if size <= 15:
            a, b = load64(buf, at) & LOW[size], load64(buf, at + 8) & HIGH[size] | np.uint64(size) << LENGTH_AT
        else:
            a, b = key(buf, at, size), LONG_PIECE
        firsts[z], seconds[z], places[z] = a, b, place(a, b, last + 1)
        prefetch(slots, 4 * places[z])
    for z in range(whole):
        a, b, p = firsts[z], seconds[z], places[z]
        while True:
            s = 4 * p
            if slots[s + 2] == 0:
                slots[s], slots[s + 1], slots[s + 2], slots[s + 3] = a, b, np.uint64(known + 1), 1
                for k in range(starts[z], starts[z + 1]):
                    pool[used] = buf[k]
                    used += 1
                known += 1
                pieces[known] = used
                break
            if slots[s] == a and slots[s + 1] == b:
                if b != LONG_PIECE or same(buf, starts[z], starts[z + 1], pool, pieces, np.int64(slots[s + 2]) - 1):
                    slots[s + 3] += np.uint64(1)
                    break
            p = (p + 1) & last
    return known, used


@njit(COUNTED(BYTES, I64, U8, U16, boolean, U64, U8, I64, int64, int64), **COMPILED)
def count(buf, ends, classes, table, any_case, slots, pool, pieces, known, used):
    """Count the pieces of documents, document d up to byte ends[d]; all that grows comes back.

    slots   four words each: a piece of at most fifteen bytes itself (two words), or a longer one's hash; its number + 1; its count
    pool    the bytes of the distinct pieces, `used` of them, each ending at pieces[number + 1]; `known` pieces
    """
    starts, no_joints = np.empty(BLOCK + 3, np.int64), np.empty(0, np.uint64)
    firsts, seconds, places = np.empty(BLOCK + 2, np.uint64), np.empty(BLOCK + 2, np.uint64), np.empty(BLOCK + 2, np.int64)
    i = 0
    for d in range(len(ends)):
        n, state, m, last = ends[d], np.uint64(CLOSED), 0, i
        while i < n:
            i, state, last, m = cut(buf, i, n, state, last, classes, table, any_case, no_joints, starts, m)
            whole = m - 2  # the last start may still be taken back
            if i >= n:
                starts[m], whole = n, m
            if 8 * (known + whole) > len(slots):
                slots = rehashed(slots)
            if known + whole >= len(pieces):
                pieces = more64(pieces, 2 * (known + whole) + 2)
            if used + starts[whole] - starts[0] > len(pool):
                pool = more8(pool, 2 * (used + starts[whole] - starts[0]))
            known, used = tally(buf, starts, whole, slots, pool, pieces, known, used, firsts, seconds, places)
            starts[0], starts[1], m = starts[m - 2], starts[m - 1], 2
    return slots, pool, pieces, known, used
