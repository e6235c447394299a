"""Documents -> ids.

A piece of at most fifteen bytes is two machine words, which a table answers with its ids; what it lacks is merged and put there.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

from hornbook.text.compiled.cut import (
    BLOCKS,
    BYTES,
    COMPILED,
    HIGH,
    I32,
    I64,
    INNER,
    LENGTH_AT,
    LOW,
    READING,
    U32,
    U64,
    block,
    boolean,
    cut,
    int64,
    load64,
    place,
    prefetch,
    uint64,
)  # fmt: skip
from hornbook.text.compiled.merge import PROBES, SHORT, VOCABULARY, merge, merge_long, merge_short
from hornbook.text.scan import CLOSED

INLINE = 6  # ids of a piece in the table, in two words of three, the count above the first three


@njit(types.void(U64, int64, uint64, uint64, U32, int64, int64), **INNER)
def keep(known, slot, a, b, ids, start, end):
    """Put a piece of at most fifteen bytes into its slot of four words: itself; the count and three ids; three more ids."""
    if end - start > INLINE:
        return
    first, second = np.uint64(end - start) << np.uint64(60), np.uint64(0)
    for k in range(end - start):
        if k < 3:
            first |= np.uint64(ids[start + k]) << np.uint64(20 * k)
        else:
            second |= np.uint64(ids[start + k]) << np.uint64(20 * k - 60)
    known[slot], known[slot + 1], known[slot + 2], known[slot + 3] = a, b, first, second


@njit(int64(BYTES, BLOCKS, int64, VOCABULARY, U64, U64, U32, int64, I32), **INNER)
def answer(buf, block, pieces, vocabulary, known, long, out, o, room):
    """Pieces -> their ids at out[o:]; the end. All are looked up first, so that memory answers while others are put."""
    starts, firsts, seconds, slots = block
    last, id_bits, one, two, three = np.uint64(len(known) - 1), np.uint64(0xFFFFF), np.uint64(1), np.uint64(2), np.uint64(3)
    for z in range(pieces):
        at = starts[z]
        size = min(starts[z + 1] - at, 15)
        a, b = load64(buf, at) & LOW[size], load64(buf, at + 8) & HIGH[size] | np.uint64(size) << LENGTH_AT
        slot = 4 * place(a, b, len(known) >> 2)
        prefetch(known, slot)
        firsts[z], seconds[z], slots[z] = a, b, np.uint64(slot)
    for z in range(pieces):
        at = starts[z]
        size = starts[z + 1] - at
        if size > 15:
            o = merge(buf, at, size, vocabulary, long, out, o, room)
            continue
        a, b, s, probes = firsts[z], seconds[z], slots[z], 0
        while (known[s] != a or known[s + one] != b) and known[s + one] != 0 and probes < PROBES:
            s = (s + np.uint64(4)) & last
            probes += 1
        if known[s] == a and known[s + one] == b:
            first, second, put = known[s + two], known[s + three], np.uint64(o)
            out[put] = first & id_bits
            out[put + one] = first >> np.uint64(20) & id_bits
            out[put + two] = first >> np.uint64(40) & id_bits
            count = np.int64(first >> np.uint64(60))
            if count > 3:
                out[put + three] = second & id_bits
                out[put + np.uint64(4)] = second >> np.uint64(20) & id_bits
                out[put + np.uint64(5)] = second >> np.uint64(40) & id_bits
            o += count
        else:
            end = merge(buf, at, size, vocabulary, long, out, o, room)
            keep(known, np.int64(s if probes < PROBES else slots[z]), a, b, out, o, end)
            o = end
    return o


@njit(int64(BYTES, I64, READING, VOCABULARY, U64, U64, U32), **COMPILED)
def encode(buf, ends, reading, vocabulary, known, long, out):
    """Documents one after the other, document d up to byte ends[d] -> ids in `out`, how many; ends[d] becomes where its ids end."""
    some, room = block(), np.empty(4 * SHORT, np.int32)
    i, o = 0, 0
    for d in range(len(ends)):
        n, state, m, last = ends[d], np.uint64(CLOSED), 0, i
        while i < n:
            i, state, last, m, pieces = cut(buf, i, n, state, last, m, reading, some.starts)
            o = answer(buf, some, pieces, vocabulary, known, long, out, o, room)
        ends[d] = o
    return o


@njit(I64(BYTES, I64, VOCABULARY, boolean, U64), **COMPILED)
def fill(buf, ends, vocabulary, whole, known):
    """Put the vocabulary, piece n up to byte ends[n + 1], into an empty table; returns how many ids each piece is merged to.

    With `whole`, a piece is its own id, whatever its merges say.
    """
    room, counts = np.empty(4 * SHORT, np.int32), np.zeros(len(ends) - 1, np.int64)
    out = np.empty(ends[len(ends) - 1] + 1, np.uint32)
    for n in range(len(counts)):
        at, size = ends[n], ends[n + 1] - ends[n]
        if size > SHORT:
            counts[n] = merge_long(buf, at, size, vocabulary, out, 0)
        elif size > 0:
            counts[n] = merge_short(buf, at, size, vocabulary, out, 0, room)
        if not 0 < size <= 15:
            continue
        if whole:
            out[0] = n
        a, b = load64(buf, at) & LOW[size], load64(buf, at + 8) & HIGH[size] | np.uint64(size) << LENGTH_AT
        slot = 4 * place(a, b, len(known) >> 2)
        for probe in range(PROBES):
            s = (slot + 4 * probe) & (len(known) - 1)
            if known[s + 1] == 0:
                keep(known, s, a, b, out, 0, 1 if whole else counts[n])
                break
    return counts
