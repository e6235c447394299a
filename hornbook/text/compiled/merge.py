"""One piece of bytes -> its ids: the pair of the lowest rank is joined first, the leftmost of equal ones.

A short piece takes the least of its ranks again and again; a long one has a queue of ranks, so that its time grows as it does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from hornbook.text.compiled.arrays import sort
from hornbook.text.compiled.cut import (
    BIT_AT,
    BYTES,
    COMPILED,
    FILTER,
    FILTER_AT,
    I32,
    INNER,
    LOW,
    MIX,
    U32,
    U64,
    int64,
    key,
    load64,
    uint64,
)  # fmt: skip

NONE = np.int64(1 << 30)  # the rank of a pair that is not merged
EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
RANK_BITS, ID_BITS = 20, 22
SHORT = 64  # bytes of a short piece
LEAST, AFTER, BEFORE_IT = SHORT, 2 * SHORT, 3 * SHORT  # where in `room` each place's rank, its next and its previous place stand
LONG, LONG_INLINE, PROBES = 16, 12, 8  # machine words of a remembered piece, the ids in it, places to look for it


class Vocabulary(NamedTuple):
    """The id of each byte; the rank of each pair of bytes; `pair_table`; the id that a rank makes; pieces that are not merged."""

    byte_ids: Any
    byte_pairs: Any
    pairs: Any
    made: Any
    fixed: Any


VOCABULARY = types.NamedTuple((I32, I32, U64, I32, U64), Vocabulary)


@njit(U64(I32, I32, I32), **COMPILED)
def pair_table(left, right, ranks):
    """Pairs and their ranks -> a table: FILTER words whose bits say which pairs may be there, and which surely are not, small
    enough to stay near; then an open table of (left, right, rank) in one machine word each. Of equal pairs the first counts."""
    size = 1024
    while size < 2 * len(left):
        size *= 2
    table = np.zeros(FILTER + size, np.uint64)
    for k in range(FILTER, FILTER + size):
        table[k] = EMPTY
    for n in range(len(left)):
        word = (np.uint64(left[n]) << np.uint64(ID_BITS)) | np.uint64(right[n])
        mixed = word * MIX
        table[mixed >> FILTER_AT] |= np.uint64(1) << (mixed >> BIT_AT & np.uint64(63))
        p = np.int64(mixed >> np.uint64(24)) & (size - 1)
        while table[FILTER + p] != EMPTY and table[FILTER + p] >> np.uint64(RANK_BITS) != word:
            p = (p + 1) & (size - 1)
        if table[FILTER + p] == EMPTY:
            table[FILTER + p] = word << np.uint64(RANK_BITS) | np.uint64(ranks[n])
    return table


@njit(int64(U64, int64, int64), **INNER)
def rank_of(table, left, right):
    word = (np.uint64(left) << np.uint64(ID_BITS)) | np.uint64(right)
    mixed = word * MIX
    if table[mixed >> FILTER_AT] >> (mixed >> BIT_AT & np.uint64(63)) & np.uint64(1) == 0:
        return NONE
    last = len(table) - FILTER - 1
    p = np.int64(mixed >> np.uint64(24)) & last
    while True:
        found = table[FILTER + p]
        if found >> np.uint64(RANK_BITS) == word:
            return np.int64(found & np.uint64((1 << RANK_BITS) - 1))
        if found == EMPTY:
            return NONE
        p = (p + 1) & last


@njit(int64(BYTES, int64, int64, VOCABULARY, U32, int64, I32), **INNER)
def merge_short(buf, i, size, vocabulary, out, o, room):
    """A piece of at most SHORT bytes -> its ids at out[o:]; the end. `room`: ids, LEAST, AFTER, BEFORE_IT, SHORT of each."""
    byte_ids, byte_pairs, pairs, made, _ = vocabulary
    for k in range(size):
        room[k], room[AFTER + k], room[BEFORE_IT + k] = byte_ids[buf[i + k]], k + 1, k - 1
        rank = byte_pairs[np.int64(buf[i + k]) << 8 | buf[i + k + 1]] if k + 1 < size else NONE
        room[LEAST + k] = rank << 6 | k if rank != NONE else NONE
    rounded = (size + 15) & ~15
    for k in range(LEAST + size, LEAST + rounded):
        room[k] = NONE
    while True:
        best = np.int32(NONE)
        for k in range(LEAST, LEAST + rounded):
            best = min(best, room[k])
        if best == NONE:
            break
        k, new = np.int64(best & 63), made[best >> 6]
        j = np.int64(room[AFTER + k])
        following, previous = np.int64(room[AFTER + j]), np.int64(room[BEFORE_IT + k])
        room[k], room[AFTER + k], room[LEAST + k], room[LEAST + j] = new, following, NONE, NONE
        if following < size:
            room[BEFORE_IT + following] = k
            rank = rank_of(pairs, new, room[following])
            room[LEAST + k] = rank << 6 | k if rank != NONE else NONE
        if previous >= 0:
            rank = rank_of(pairs, room[previous], new)
            room[LEAST + previous] = rank << 6 | previous if rank != NONE else NONE
    k = 0
    while k < size:
        out[o] = room[k]
        o += 1
        k = np.int64(room[AFTER + k])
    return o


@intrinsic
def lowest_bit(typing, word):
    """How many zeros are under the lowest one."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return uint64(uint64), generate


@njit(inline="always")  # a call would hand over five arrays
def offer(where, link, heads, bits, summary, node, at, rank):
    """Put a place into the list of its pair's rank."""
    where[node], link[node], heads[rank] = at, heads[rank], node
    bits[rank >> 6] |= np.uint64(1) << np.uint64(rank & 63)
    summary[rank >> 12] |= np.uint64(1) << np.uint64(rank >> 6 & 63)


@njit(int64(I32, I32, int64, I32), **INNER)
def taken(where, link, node, batch):
    """Put the places of a list into `batch`, from left to right; how many."""
    count, rising, falling = 0, True, True
    while node >= 0:
        batch[count] = where[node]
        if count:
            rising &= batch[count - 1] <= batch[count]
            falling &= batch[count - 1] >= batch[count]
        count += 1
        node = np.int64(link[node])
    if falling:
        for k in range(count // 2):
            batch[k], batch[count - 1 - k] = batch[count - 1 - k], batch[k]
    elif not rising:
        sort(batch, count)
    return count


@njit(int64(I32, I32, int64, U32, int64), **INNER)
def put(ids, after, size, out, o):
    """The ids that are left, in their order."""
    k = 0
    while k < size:
        out[o] = ids[k]
        o += 1
        k = np.int64(after[k])
    return o


@njit(int64(BYTES, int64, int64, VOCABULARY, U32, int64), **INNER)
def merge_long(buf, i, size, vocabulary, out, o):
    """The same for a piece of any length, in about linear time: places wait in one list per rank, a bitmap knows the lists."""
    byte_ids, _, pairs, made, _ = vocabulary
    ids, after, before = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.int32)
    heads, words = np.full(len(made), -1, np.int32), (len(made) >> 6) + 1
    bits, summary = np.zeros(words, np.uint64), np.zeros((words >> 6) + 1, np.uint64)
    where, link, nodes = np.empty(3 * size, np.int32), np.empty(3 * size, np.int32), 0  # a merge makes two pairs at most
    batch, low = np.empty(3 * size, np.int32), 0
    for k in range(size):
        ids[k], after[k], before[k] = byte_ids[buf[i + k]], k + 1, k - 1
    for k in range(size - 2, -1, -1):  # from the right, so that every list begins with its leftmost place
        rank = rank_of(pairs, ids[k], ids[k + 1])
        if rank != NONE:
            offer(where, link, heads, bits, summary, nodes, k, rank)
            nodes += 1
    while low < len(summary):
        if summary[low] == 0:
            low += 1
            continue
        word = low << 6 | np.int64(lowest_bit(summary[low]))
        rank = word << 6 | np.int64(lowest_bit(bits[word]))
        bits[word] &= bits[word] - np.uint64(1)
        if bits[word] == 0:
            summary[low] &= summary[low] - np.uint64(1)
        count = taken(where, link, heads[rank], batch)
        heads[rank], new = -1, made[rank]
        for b in range(count):
            k = np.int64(batch[b])
            if ids[k] < 0 or after[k] >= size or rank_of(pairs, ids[k], ids[after[k]]) != rank:
                continue  # one of the two is part of something longer by now
            j = np.int64(after[k])
            following = np.int64(after[j])
            ids[k], ids[j], after[k] = new, -1, following
            if following < size:
                before[following] = k
            for at in (np.int64(before[k]), k):
                if at >= 0 and after[at] < size:
                    fresh = rank_of(pairs, ids[at], ids[after[at]])
                    if fresh != NONE:
                        offer(where, link, heads, bits, summary, nodes, at, fresh)
                        nodes, low = nodes + 1, min(low, fresh >> 12)
    return put(ids, after, size, out, o)


@njit(int64(U64, BYTES, int64, int64, uint64), **COMPILED)
def find_long(table, buf, i, size, hashed):
    """Where a piece of at most SHORT bytes stands in a table of long pieces, or -1 - where it might.

    A slot is LONG words: the hash; the size and the count of ids; the bytes; up to LONG_INLINE ids, two to a word.
    """
    slot = LONG * (np.int64(hashed >> np.uint64(20)) & (len(table) // LONG - 1))
    for probe in range(PROBES):
        s = (slot + LONG * probe) & (len(table) - 1)
        if table[s + 1] == 0:
            return -1 - s
        if table[s] == hashed and np.int64(table[s + 1] & np.uint64(255)) == size:
            k = 0
            while k < size and table[s + 2 + k // 8] == load64(buf, i + k) & LOW[min(size - k, 8)]:
                k += 8
            if k >= size:
                return s
    return -1 - slot


@njit(types.void(U64, int64, BYTES, int64, int64, uint64, U32, int64, int64), **COMPILED)
def keep_long(table, s, buf, i, size, hashed, ids, start, end):
    """Put a piece and its ids into slot s."""
    table[s], table[s + 1] = hashed, np.uint64(size | (end - start) << 8)
    for k in range(0, size, 8):
        table[s + 2 + k // 8] = load64(buf, i + k) & LOW[min(size - k, 8)]
    for k in range(start, end, 2):
        table[s + 10 + (k - start) // 2] = np.uint64(ids[k]) | np.uint64(ids[k + 1] if k + 1 < end else 0) << np.uint64(32)


@njit(int64(U64, int64, U32, int64), **INNER)
def recalled(table, s, out, o):
    """The ids of slot s at out[o:]; the end."""
    count = np.int64(table[s + 1] >> np.uint64(8))
    for k in range(count):
        out[o + k] = table[s + 10 + k // 2] >> np.uint64(32 * (k & 1))
    return o + count


@njit(int64(BYTES, int64, int64, VOCABULARY, U64, U32, int64, I32), **INNER)
def merge(buf, i, size, vocabulary, known, out, o, room):
    """One piece -> its ids at out[o:]; the end. `known` remembers long pieces."""
    if size > SHORT:
        return merge_long(buf, i, size, vocabulary, out, o)
    hashed, s = np.uint64(0), -1
    if size > 15 or len(vocabulary.fixed):
        hashed = key(buf, i, size)
    if len(vocabulary.fixed):
        s = find_long(vocabulary.fixed, buf, i, size, hashed)
        if s >= 0:
            return recalled(vocabulary.fixed, s, out, o)
    if size > 15:
        s = find_long(known, buf, i, size, hashed)
        if s >= 0:
            return recalled(known, s, out, o)
    end = merge_short(buf, i, size, vocabulary, out, o, room)
    if size > 15 and end - o <= LONG_INLINE:
        keep_long(known, -1 - s, buf, i, size, hashed, out, o, end)
    return end
