"""Distinct pieces with their counts -> merges: `bpe.train` in machine code.

The pieces stand in one row of symbols, a token's id at its first and at its last byte. A pair's places are written once, when the
merge that makes its newer half happens; later merges only make them fewer, so a place is checked when it is read. What a merge does
to its neighbours is summed for each neighbour first, and then told to the pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types

from hornbook.text.compiled import PAD
from hornbook.text.compiled.arrays import more, sort
from hornbook.text.compiled.cut import BYTES, COMPILED, I32, I64, INNER, MIX, U8, U16, U64, int64, key, uint64
from hornbook.text.compiled.heap import joined, rise, sink

HEAVY = (1 << 16) - 1
EDGE, INSIDE = np.int32(-2), np.int32(-1)  # between pieces; a byte that is neither first nor last of its token


class Row(NamedTuple):
    """Pieces in one row of bytes, one byte before, between and after them, then the alphabet and the forbidden tokens.

    symbols    the token of each byte of the pieces, EDGE between them
    light      for each byte, how often its piece stands in the text, or HEAVY: see `weight`
    ends       where each piece of many ends, and `heavy`, how often it stands there
    at, sizes  where each token is spelled in `row`: the 256 bytes, then room for `rows`, then the forbidden ones
    names      the open table of what they spell, ids + 1
    """

    row: Any
    symbols: Any
    light: Any
    ends: Any
    heavy: Any
    at: Any
    sizes: Any
    names: Any


class Pairs(NamedTuple):
    """Pairs by number: the pair, left << 32 | right; its count; its places from `first` on, `length` of them; an older entry of the
    same pair, or -1. `table`: an open table of numbers + 1, of equal pairs the newest."""

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


ROW = types.NamedTuple((U8, I32, U16, I64, I64, I64, I64, I64), Row)
PAIRS = types.NamedTuple((U64, I64, I64, I32, I32, I32), Pairs)
NEIGHBOURS = types.NamedTuple((I64, I32, I64, I32, I32), Neighbours)


@njit(int64(ROW, int64), **INNER)
def weight(text, i):
    """How often the piece of byte i stands in the text: two bytes say it for nearly all, the few of more are searched."""
    if text.light[i] != HEAVY:
        return np.int64(text.light[i])
    low, high = 0, len(text.ends)
    while low < high:
        middle = (low + high) >> 1
        if text.ends[middle] > i:
            high = middle
        else:
            low = middle + 1
    return text.heavy[low]


@njit(int64(I32, U64, uint64), **INNER)
def found_pair(table, pairs, wanted):
    """Where the number + 1 of a pair stands in the open table, or the empty place for it."""
    p = np.int64(wanted * MIX >> np.uint64(24)) & (len(table) - 1)
    while table[p] and pairs[table[p] - 1] != wanted:
        p = (p + 1) & (len(table) - 1)
    return p


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
    _, _, first, length, older, _ = all_pairs
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


@njit(I32(U64, int64, int64), **INNER)
def indexed(pairs, known, size):
    """The open table of pairs; a later entry of the same pair takes the place of an earlier one."""
    table = np.zeros(size, np.int32)
    for k in range(known):
        table[found_pair(table, pairs, pairs[k])] = k + 1
    return table


@njit(PAIRS(PAIRS, int64, int64), **INNER)
def roomier(all_pairs, known, fresh):
    """The same with room for so many fresh pairs behind those that are known."""
    pairs, counts, first, length, older, table = all_pairs
    room = known + fresh
    if room > len(pairs):
        pairs, counts, first = more(pairs, 2 * room), more(counts, 2 * room), more(first, 2 * room)
        length, older = more(length, 2 * room), more(older, 2 * room)
    if 2 * room > len(table):
        table = indexed(pairs, known, 2 * len(table))
    return Pairs(pairs, counts, first, length, older, table)


@njit(types.Tuple((PAIRS, I32, int64, int64))(ROW), **INNER)
def first_pairs(text):
    """The pairs of bytes, and the places of all pairs; how many of both."""
    symbols = text.symbols
    sums, many, number = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    for i in range(len(symbols) - 1):
        if symbols[i] >= 0 and symbols[i + 1] >= 0:
            pair = np.int64(symbols[i]) << 8 | symbols[i + 1]
            sums[pair] += weight(text, i)
            many[pair] += 1
    pairs = np.zeros(1 << 17, np.uint64)
    counts, first = np.zeros(1 << 17, np.int64), np.zeros(1 << 17, np.int64)
    length, older = np.zeros(1 << 17, np.int32), np.full(1 << 17, np.int32(-1), np.int32)
    known, used = 0, 0
    for pair in range(1 << 16):
        if many[pair]:
            pairs[known] = np.uint64(pair >> 8) << np.uint64(32) | np.uint64(pair & 255)
            counts[known], first[known], number[pair] = sums[pair], used, known
            used, known = used + many[pair], known + 1
    places = np.empty(3 * used + 1024, np.int32)  # room that is not written to is no memory
    for i in range(len(symbols) - 1):
        if symbols[i] >= 0 and symbols[i + 1] >= 0:
            entry = number[np.int64(symbols[i]) << 8 | symbols[i + 1]]
            places[first[entry] + length[entry]] = i
            length[entry] += 1
    return Pairs(pairs, counts, first, length, older, indexed(pairs, known, 1 << 18)), places, known, used


@njit(int64(ROW, int64, int64, int64, int64, I32, NEIGHBOURS), **INNER)
def replace(text, rows, tokens, a, b, batch, beside):
    """Join a and b at the places of `batch`: the token made, -1 where no place is left, `rows` or more where it is forbidden."""
    row, symbols, _, _, _, at, sizes, names = text
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
        heavier = weight(text, i)
        for side in range(2):
            x = np.int64(symbols[after if side else i - 1])
            if x >= 0:
                slot = 3 * (side * rows + x)
                if not sums[slot + 1]:
                    touched[side * rows + reach[side]] = x
                    reach[side] += 1
                sums[slot] += heavier
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
    sums, touched, reach, _, _ = beside
    pairs, counts, first, length, older, table = all_pairs
    for side in range(2):
        for k in range(reach[side]):
            x = np.int64(touched[side * rows + k])
            slot = 3 * (side * rows + x)
            pair = np.uint64(new if side else x) << np.uint64(32) | np.uint64(x if side else new)
            p = found_pair(table, pairs, pair)
            before = np.int64(table[p]) - 1  # where two merges make one token, its pairs may be there: the newer takes over
            pairs[known], counts[known], older[known] = pair, sums[slot], before
            if before >= 0:
                counts[known] += counts[before]
                counts[before] = 0
            first[known], length[known], sums[slot + 2] = used, sums[slot + 1], used
            used += sums[slot + 1]
            table[p] = known + 1
            known += 1
    for side in range(2):
        for k in range(reach[side]):
            x = np.int64(touched[side * rows + k])
            slot = 3 * (side * rows + x)
            pair = np.uint64(b if side else x) << np.uint64(32) | np.uint64(x if side else a)
            counts[table[found_pair(table, pairs, pair)] - 1] -= sums[slot]
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


@njit(types.void(I32, NEIGHBOURS), **INNER)
def note(places, beside):
    """Write the places of new pairs, each into the room that `told` has set apart for its neighbour."""
    sums, _, reach, events, event_at = beside
    for k in range(reach[2]):
        room = events[k] + 2
        places[sums[room]] = event_at[k]
        sums[room] += 1


@njit(ROW(BYTES, I64, I64, BYTES, I64, int64), **INNER)
def row_of(text, lengths, weights, tail, tails, rows):
    """Lay out the pieces, the alphabet and the forbidden tokens; see `merges`."""
    end = len(text) + len(lengths) + 1
    row, symbols, light = np.zeros(end + len(tail) + PAD, np.uint8), np.full(end, EDGE, np.int32), np.zeros(end, np.uint16)
    ids = np.zeros(256, np.int64)
    for k in range(256):
        ids[tail[k]] = k
    most = 0
    for piece in range(len(lengths)):
        most += weights[piece] >= HEAVY
    ends, heavy, many, i, k = np.zeros(most, np.int64), np.zeros(most, np.int64), 0, 1, 0
    for piece in range(len(lengths)):
        for _ in range(lengths[piece]):
            row[i], symbols[i], light[i] = text[k], ids[text[k]], min(weights[piece], HEAVY)
            i, k = i + 1, k + 1
        if weights[piece] >= HEAVY:
            ends[many], heavy[many] = i, weights[piece]
            many += 1
        i += 1
    at, sizes = np.zeros(rows + len(tails) - 256, np.int64), np.zeros(rows + len(tails) - 256, np.int64)
    for n in range(len(tails)):
        token = n if n < 256 else rows + n - 256
        at[token], sizes[token] = i, tails[n]
        for _ in range(tails[n]):
            row[i] = tail[i - end]
            i += 1
    return Row(row, symbols, light, ends, heavy, at, sizes, known_names(row, at, sizes, rows))


@njit(int64(BYTES, I64, I64, BYTES, I64, int64, I64, I32), **COMPILED)
def merges(text, lengths, weights, tail, tails, rows, progress, learned):
    """Learn merges until there are `rows` tokens or no pair is left: how many.

    text       distinct pieces one behind the other, their lengths and how often each stands in the documents
    tail       the 256 bytes in their order and the forbidden tokens, one behind the other, and the length of each
    progress   [0] is set to the tokens so far; learning stops when [1] is not zero
    learned    left, right and the id made of each merge, one behind the other

    Only pairs with a count of at least `floor` wait in the heap, which stays small; when it is empty, the floor is lowered.
    """
    text = row_of(text, lengths, weights, tail, tails, rows)
    all_pairs, places, known, used = first_pairs(text)
    heap, promised, size = np.zeros(1 << 16, np.int32), np.zeros(1 << 16, np.int64), 0
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
