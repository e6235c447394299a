"""Pairs in the order in which they are merged: a heap of their numbers, each with the count that it had when it was put there."""

from __future__ import annotations

from numba import njit, types

from hornbook.text.compiled.arrays import more
from hornbook.text.compiled.cut import I32, I64, INNER, U64, boolean, int64


@njit(boolean(I32, I64, U64, int64, int64), **INNER)
def above(heap, promised, pairs, p, q):
    """Whether the entry at p is merged before that at q: more often promised, or as often and the smaller pair."""
    if promised[p] != promised[q]:
        return promised[p] > promised[q]
    return pairs[heap[p]] < pairs[heap[q]]


@njit(types.void(I32, I64, U64, int64), **INNER)
def sink(heap, promised, pairs, size):
    """Take the first entry out: the last takes its place and sinks."""
    heap[0], promised[0], p = heap[size], promised[size], 0
    while True:
        child = 2 * p + 1
        if child >= size:
            return
        if child + 1 < size and above(heap, promised, pairs, child + 1, child):
            child += 1
        if not above(heap, promised, pairs, child, p):
            return
        heap[p], heap[child], promised[p], promised[child] = heap[child], heap[p], promised[child], promised[p]
        p = child


@njit(types.void(I32, I64, U64, int64, int64, int64), **INNER)
def rise(heap, promised, pairs, p, entry, value):
    """Put an entry at p, behind the last one, and let it rise."""
    heap[p], promised[p] = entry, value
    while p > 0 and above(heap, promised, pairs, p, (p - 1) >> 1):
        q = (p - 1) >> 1
        heap[p], heap[q], promised[p], promised[q] = heap[q], heap[p], promised[q], promised[p]
        p = q


@njit(types.Tuple((I32, I64, int64))(I32, I64, U64, I64, int64, int64, int64, int64), **INNER)
def joined(heap, promised, pairs, counts, size, begun, known, floor):
    """Let the pairs from `begun` on that stand at least `floor` times into the heap."""
    for k in range(begun, known):
        if counts[k] >= floor:
            if size == len(heap):
                heap, promised = more(heap, 2 * size), more(promised, 2 * size)
            rise(heap, promised, pairs, size, k, counts[k])
            size += 1
    return heap, promised, size
