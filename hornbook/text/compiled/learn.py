"""Distinct pieces with their counts -> merges: `bpe.train` in machine code.

The pieces stand in one row of symbols, a token's id at its first and at its last byte. A pair's places are written once, when the
merge that makes its newer half happens; later merges only make them fewer, so a place is checked when it is read. What a merge does
to its neighbours is summed for each neighbour first, and then told to the pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types

from hornbook.text.compiled.count import more
from hornbook.text.compiled.cut import COMPILED, I32, I64, INNER, MIX, U8, U64, boolean, int64, key, uint64
from hornbook.text.compiled.merge import sort

EDGE, INSIDE = np.int32(-2), np.int32(-1)  # between pieces; a byte that is neither first nor last of its token


class Row(NamedTuple):
    """Pieces in one row of bytes, one byte before, between and after them, then the alphabet and the forbidden tokens.

    symbols    the token of each byte of the pieces, EDGE between them;  weights: how often its piece stands in the text
    at, sizes  where each token is spelled in `row`: the 256 bytes, then room for `rows`, then the forbidden ones
    names      the open table of what they spell, ids + 1
    """

    row: Any
    symbols: Any
    weights: Any
    at: Any
    sizes: Any
    names: Any


class Pairs(NamedTuple):
    """Pairs by number: the pair, left << 32 | right; its count; its places from `first` on, `length` of them; an older entry of the
    same pair, or -1. `table`: two words each, a pair and its number + 1, the newest."""

    pairs: Any
    counts: Any
    first: Any
    length: Any
    older: Any
    table: Any


class Neighbours(NamedTuple):
    """What stands beside the places of one merge.

    sums       three words for each neighbour, those on the left in the first half: its weight, how often it stands there, and where
               the next place of its new pair is written
    touched    the neighbours: reach[0] on the left, and in the second half reach[1] on the right
    events     a neighbour's words in `sums`, and `event_at` the place of its new pair: reach[2] of them
    """

    sums: Any
    touched: Any
    reach: Any
    events: Any
    event_at: Any


ROW = types.NamedTuple((U8, I32, I64, I64, I64, I64), Row)
PAIRS = types.NamedTuple((U64, I64, I64, I64, I64, U64), Pairs)
NEIGHBOURS = types.NamedTuple((I64, I32, I64, I32, I32), Neighbours)


@njit(int64(U64, uint64), **INNER)
def found_pair(table, wanted):
    """Where a pair stands in the open table, or the empty place for it: two words each, the pair, its number + 1."""
    last = (len(table) >> 1) - 1
    p = np.int64(wanted * MIX >> np.uint64(24)) & last
    while table[2 * p + 1] and table[2 * p] != wanted:
        p = (p + 1) & last
    return 2 * p


@njit(boolean(I64, I64, U64, int64, int64), **INNER)
def above(heap, promised, pairs, p, q):
    """Whether the entry at p is merged before that at q: more often promised, or as often and the smaller pair."""
    if promised[p] != promised[q]:
        return promised[p] > promised[q]
    return pairs[heap[p]] < pairs[heap[q]]


@njit(types.void(I64, I64, U64, int64), **INNER)
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


@njit(types.void(I64, I64, U64, int64, int64, int64), **INNER)
def rise(heap, promised, pairs, p, entry, value):
    """Put an entry at p, behind the last one, and let it rise."""
    heap[p], promised[p] = entry, value
    while p > 0 and above(heap, promised, pairs, p, (p - 1) >> 1):
        q = (p - 1) >> 1
        heap[p], heap[q], promised[p], promised[q] = heap[q], heap[p], promised[q], promised[p]
        p = q


@njit(int64(types.uint8[::1], I64, I64, I64, int64, int64), **INNER)
def spelled(row, at, sizes, table, start, size):
    """Where the token spelled row[start : start + size] stands in the open table of ids + 1, or the empty place for it."""
    p = np.int64(key(row, start, size) >> np.uint64(24)) & (len(table) - 1)
    while table[p]:
        token = table[p] - 1
        if sizes[token] == size:
            k = 0
            while k < size and row[at[token] + k] == row[start + k]:
                k += 1
            if k == size:
                return p
        p = (p + 1) & (len(table) - 1)
    return p


@njit(I32(I32, PAIRS, int64), **INNER)
def gathered(places, all_pairs, entry):
    """The places of a pair that was made by several merges, in the order of the row."""
    first, length, older = all_pairs.first, all_pairs.length, all_pairs.older
    many, k = 0, entry
    while k >= 0:
        many, k = many + length[k], older[k]
    batch, many, k = np.empty(many, np.int32), 0, entry
    while k >= 0:
        for n in range(length[k]):
            batch[many + n] = places[first[k] + n]
        many, k = many + length[k], older[k]
    sort(batch, many)
    return batch


@njit(U64(U64, int64, int64), **INNER)
def indexed(pairs, known, size):
    """The open table of pairs; a later entry of the same pair takes the place of an earlier one."""
    table = np.zeros(size, np.uint64)
    for k in range(known):
        p = found_pair(table, pairs[k])
        table[p], table[p + 1] = pairs[k], np.uint64(k + 1)
    return table


@njit(PAIRS(PAIRS, int64, int64), **INNER)
def roomier(all_pairs, known, fresh):
    """The same with room for so many fresh pairs behind those that are known."""
    pairs, counts, first, length, older, table = all_pairs
    room = known + fresh
    if room > len(pairs):
        pairs, counts, first = more(pairs, 2 * room), more(counts, 2 * room), more(first, 2 * room)
        length, older = more(length, 2 * room), more(older, 2 * room)
    if 4 * room > len(table):
        table = indexed(pairs, known, 4 * len(table))
    return Pairs(pairs, counts, first, length, older, table)


@njit(types.Tuple((PAIRS, I32, int64, int64))(I32, I64), **INNER)
def first_pairs(symbols, weights):
    """The pairs of bytes, and the places of all pairs; how many of both."""
    sums, many, number = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    for i in range(len(symbols) - 1):
        if symbols[i] >= 0 and symbols[i + 1] >= 0:
            pair = np.int64(symbols[i]) << 8 | symbols[i + 1]
            sums[pair] += weights[i]
            many[pair] += 1
    pairs = np.zeros(1 << 17, np.uint64)
    counts, first, length = np.zeros(1 << 17, np.int64), np.zeros(1 << 17, np.int64), np.zeros(1 << 17, np.int64)
    known, used = 0, 0
    for pair in range(1 << 16):
        if many[pair]:
            pairs[known] = np.uint64(pair >> 8) << np.uint64(32) | np.uint64(pair & 255)
            counts[known], first[known], number[pair] = sums[pair], used, known
            used, known = used + many[pair], known + 1
    places = np.empty(2 * used + 1024, np.int32)
    for i in range(len(symbols) - 1):
        if symbols[i] >= 0 and symbols[i + 1] >= 0:
            entry = number[np.int64(symbols[i]) << 8 | symbols[i + 1]]
            places[first[entry] + length[entry]] = i
            length[entry] += 1
    older = np.full(len(pairs), -1, np.int64)
    return Pairs(pairs, counts, first, length, older, indexed(pairs, known, 1 << 19)), places, known, used


@njit(int64(ROW, int64, int64, int64, int64, I32, NEIGHBOURS), **INNER)
def replace(text, rows, tokens, a, b, batch, beside):
    """Join a and b at the places of `batch`: the token made, -1 where no place is left, `rows` or more where it is forbidden."""
    row, symbols, weights, at, sizes, names = text
    sums, touched, reach, events, event_at = beside
    new, many = -1, 0
    for i in batch:
        j, after = i + sizes[a], i + sizes[a] + sizes[b]
        if symbols[i] != a or symbols[j] != b:
            continue
        if new < 0:  # the first real place: what the pair spells may be a token by now, or forbidden
            p = spelled(row, at, sizes, names, i, after - i)
            new = names[p] - 1
            if new >= rows:
                return new
            if new < 0:
                new = tokens
                at[new], sizes[new], names[p] = i, after - i, new + 1
        for side in range(2):
            x = np.int64(symbols[after if side else i - 1])
            if x >= 0:
                slot = 3 * (side * rows + x)
                if not sums[slot + 1]:
                    touched[side * rows + reach[side]] = x
                    reach[side] += 1
                sums[slot] += weights[i]
                sums[slot + 1] += 1
                events[many], event_at[many] = slot, i if side else i - sizes[x]
                many += 1
        if sizes[a] > 1:
            symbols[j - 1] = INSIDE
        if sizes[b] > 1:
            symbols[j] = INSIDE
        symbols[i], symbols[after - 1] = new, new
    reach[2] = many
    return new


@njit(int64(int64, int64, int64, int64, NEIGHBOURS, PAIRS, int64, int64), **INNER)
def told(a, b, new, rows, beside, all_pairs, known, used):
    """Add the pairs that a merge made and take off those that it broke; returns how many pairs there are."""
    sums, touched, reach = beside.sums, beside.touched, beside.reach
    pairs, counts, first, length, older, table = all_pairs
    for side in range(2):
        for k in range(reach[side]):
            x = np.int64(touched[side * rows + k])
            slot = 3 * (side * rows + x)
            pair = np.uint64(new if side else x) << np.uint64(32) | np.uint64(x if side else new)
            p = found_pair(table, pair)
            before = np.int64(table[p + 1]) - 1  # where two merges make one token, its pairs may be there: the newer takes over
            pairs[known], counts[known], older[known] = pair, sums[slot], before
            if before >= 0:
                counts[known] += counts[before]
                counts[before] = 0
            first[known], length[known], sums[slot + 2] = used, sums[slot + 1], used
            used += sums[slot + 1]
            table[p], table[p + 1] = pair, np.uint64(known + 1)
            known += 1
    for side in range(2):
        for k in range(reach[side]):
            x = np.int64(touched[side * rows + k])
            slot = 3 * (side * rows + x)
            pair = np.uint64(b if side else x) << np.uint64(32) | np.uint64(x if side else a)
            counts[np.int64(table[found_pair(table, pair) + 1]) - 1] -= sums[slot]
            sums[slot], sums[slot + 1] = 0, 0
    return known


@njit(I64(U8, I64, I64, int64), **INNER)
def known_names(row, at, sizes, rows):
    """The table of `spelled` with the bytes and the forbidden tokens."""
    slots = 1 << 10
    while slots < 4 * len(at):
        slots *= 2
    names = np.zeros(slots, np.int64)
    for token in range(len(at)):
        if token < 256 or token >= rows:
            names[spelled(row, at, sizes, names, at[token], sizes[token])] = token + 1
    return names


@njit(types.Tuple((I64, I64, int64))(I64, I64, U64, I64, int64, int64, int64, int64), **INNER)
def joined(heap, promised, pairs, counts, size, begun, known, floor):
    """Let the pairs from `begun` on that stand at least `floor` times into the heap."""
    if size + known - begun > len(heap):
        heap, promised = more(heap, 2 * (size + known - begun)), more(promised, 2 * (size + known - begun))
    for k in range(begun, known):
        if counts[k] >= floor:
            rise(heap, promised, pairs, size, k, counts[k])
            size += 1
    return heap, promised, size


@njit(types.void(I32, NEIGHBOURS), **INNER)
def note(places, beside):
    """Write the places of new pairs, each into the room that `told` has set apart for its neighbour."""
    sums, _, reach, events, event_at = beside
    for k in range(reach[2]):
        room = events[k] + 2
        places[sums[room]] = event_at[k]
        sums[room] += 1


@njit(int64(U8, I32, I64, I64, I64, int64, I64, I32), **COMPILED)
def merges(row, symbols, weights, at, sizes, rows, progress, learned):
    """Learn merges until there are `rows` tokens or no pair is left: how many. See `Row` for the first five.

    progress   [0] is set to the tokens so far; learning stops when [1] is not zero
    learned    left, right and the id made of each merge, one behind the other

    Only pairs with a count of at least `floor` wait in the heap, which stays small; when it is empty, the floor is lowered.
    """
    text = Row(row, symbols, weights, at, sizes, known_names(row, at, sizes, rows))
    all_pairs, places, known, used = first_pairs(symbols, weights)
    heap, promised, size = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64), 0
    sums, touched, reach = np.zeros(6 * rows, np.int64), np.empty(2 * rows, np.int32), np.zeros(3, np.int64)
    beside = Neighbours(sums, touched, reach, np.empty(1 << 12, np.int32), np.empty(1 << 12, np.int32))
    ranks, tokens, begun, floor = 0, 256, 0, all_pairs.counts.max() + 1
    while 3 * ranks + 3 <= len(learned) and tokens < rows and not progress[1]:
        pairs, counts = all_pairs.pairs, all_pairs.counts
        if size == 0:
            floor, begun = max(floor // 8, 1), 0
        heap, promised, size = joined(heap, promised, pairs, counts, size, begun, known, floor)
        begun = known
        if size == 0:
            if floor == 1:
                break
            continue
        entry, value, size = heap[0], promised[0], size - 1
        sink(heap, promised, pairs, size)
        if counts[entry] != value:  # it has become rarer since it was promised
            if counts[entry] >= floor:
                rise(heap, promised, pairs, size, entry, counts[entry])
                size += 1
            continue
        a, b = np.int64(pairs[entry] >> np.uint64(32)), np.int64(pairs[entry] & np.uint64(0xFFFFFFFF))
        batch = places[all_pairs.first[entry] : all_pairs.first[entry] + all_pairs.length[entry]]
        if all_pairs.older[entry] >= 0:
            batch = gathered(places, all_pairs, entry)
        if len(beside.events) < 2 * len(batch):
            beside = Neighbours(sums, touched, reach, np.empty(3 * len(batch), np.int32), np.empty(3 * len(batch), np.int32))
        reach[:] = 0
        new = replace(text, rows, tokens, a, b, batch, beside)
        counts[entry] = 0
        if new < 0 or new >= rows:
            continue
        learned[3 * ranks], learned[3 * ranks + 1], learned[3 * ranks + 2] = a, b, new
        ranks, tokens = ranks + 1, max(tokens, new + 1)
        progress[0] = tokens
        all_pairs = roomier(all_pairs, known, reach[0] + reach[1])
        if used + reach[2] > len(places):
            places = more(places, 2 * (used + reach[2]))
        known = told(a, b, new, rows, beside, all_pairs, known, used)
        all_pairs.counts[entry] = 0  # where a is b, its own places were taken off
        used += reach[2]
        note(places, beside)
    return ranks
