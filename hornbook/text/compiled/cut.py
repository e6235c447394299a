"""Bytes of UTF-8 -> where its pieces start: the tables of `scan`, run at the speed of reading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from hornbook.text.scan import BEFORE, BEFORE_LAST, CLOSED, CONTRACTION, JOINED, LETTER, OTHER, RETRACT, STATES

COMPILED = {"cache": True, "nogil": True, "error_model": "numpy"}
INNER = {**COMPILED, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # called by the others alone: compiles faster
BYTES = types.Array(types.uint8, 1, "C", readonly=True)
U8, U16, U32, U64 = types.uint8[::1], types.uint16[::1], types.uint32[::1], types.uint64[::1]
I32, I64 = types.int32[::1], types.int64[::1]
int64, uint64, boolean = types.int64, types.uint64, types.boolean

BLOCK = 256  # starts of pieces in one go
LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(16)], np.uint64)
HIGH = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], np.uint64)
LENGTH_AT = np.uint64(56)  # of a piece of at most fifteen bytes, which is two machine words, the length its last byte
MIX, MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
FILTER, FILTER_AT, BIT_AT = 1 << 15, np.uint64(64 - 15), np.uint64(64 - 15 - 6)  # words of bits, addressed by a hash's upper bits
STATE_BITS, CONTRACTION_BIT, JOINED_BIT = np.uint64(STATES), np.uint64(CONTRACTION), np.uint64(JOINED)
RETRACT_AT, BEFORE_LAST_AT, BEFORE_AT = (np.uint64(bit.bit_length() - 1) for bit in (RETRACT, BEFORE_LAST, BEFORE))
JOINTS_AT = 32  # what `joints_of` says before its bits


class Reading(NamedTuple):
    """How texts are cut: a class for each code point, a machine's table (`scan`), contractions of any case; joints or none."""

    classes: Any
    table: Any
    any_case: bool
    joints: Any


class Block(NamedTuple):
    """Some pieces: where each starts, with room for the end; its two machine words, and the slot of a table to look at first."""

    starts: Any
    firsts: Any
    seconds: Any
    slots: Any


READING = types.NamedTuple((U8, U16, boolean, U64), Reading)
BLOCKS = types.NamedTuple((I64, U64, U64, U64), Block)


@njit(BLOCKS(), **INNER)
def block():
    return Block(
        np.empty(BLOCK + 3, np.int64),
        np.empty(BLOCK + 2, np.uint64),
        np.empty(BLOCK + 2, np.uint64),
        np.empty(BLOCK + 2, np.uint64),
    )


@intrinsic
def load64(typing, array, at):
    """Eight bytes at once, the first the lowest."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(64).as_pointer())
        loaded = builder.load(place)
        loaded.align = 1
        return loaded

    return uint64(array, int64), generate


@intrinsic
def prefetch(typing, array, at):
    """Ask for a place of an array before it is needed."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word]))
        builder.call(call, [builder.bitcast(builder.gep(data, [arguments[1]]), byte), *(ir.Constant(word, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, int64), generate


@njit(uint64(BYTES, int64, int64), **COMPILED)
def key(buf, i, size):
    """The hash of a piece."""
    found, end = MIX * np.uint64(size), i + size
    while i < end:
        found = (found ^ (load64(buf, i) & LOW[min(end - i, 8)])) * MIX2
        found ^= found >> np.uint64(29)
        i += 8
    return found


@njit(int64(uint64, uint64, int64), **INNER)
def place(a, b, slots):
    """Where to look first for a key, of a power of two of slots."""
    return np.int64((a ^ b * MIX2) * MIX >> np.uint64(24)) & (slots - 1)


@njit(int64(BYTES, int64, int64, boolean), **INNER)
def contraction(buf, i, n, any_case):
    """Bytes of 's 't 'd 'm 're 've 'll at i, where there is one."""
    if i + 1 >= n:
        return 0
    case = 32 if any_case else 0
    a = np.int64(buf[i + 1]) | (case if 65 <= buf[i + 1] <= 90 else 0)
    if a == 115 or a == 116 or a == 100 or a == 109:
        return 2
    if i + 2 >= n:
        return 0
    if any_case and a == 0xC5 and buf[i + 2] == 0xBF:  # the long s is an s of another case
        return 3
    b = np.int64(buf[i + 2]) | (case if 65 <= buf[i + 2] <= 90 else 0)
    return 3 if (a == 108 and b == 108) or (b == 101 and (a == 114 or a == 118)) else 0


@njit(boolean(BYTES, int64, U64), **INNER)
def may_join(buf, i, joints):
    """Whether a piece of the vocabulary may stand across byte i, between two characters of three bytes; see `joints_of`."""
    around = load64(buf, i - 3)
    for n in range(np.int64(joints[0])):
        part = around >> joints[1 + 2 * n] & joints[2 + 2 * n]
        mixed = (part | np.uint64(n + 1) << np.uint64(48)) * MIX
        if joints[JOINTS_AT + (mixed >> FILTER_AT)] >> (mixed >> BIT_AT & np.uint64(63)) & np.uint64(1):
            return True
    return False


@njit(types.Tuple((int64, uint64, int64, int64, int64))(BYTES, int64, int64, uint64, int64, int64, READING, I64), **INNER)
def cut(buf, i, n, state, last, m, reading, starts):
    """Read characters from byte i up to n, or until there is no room: (i, state, last, m) for the next call, and how many pieces.

    Piece z is bytes starts[z] to starts[z + 1]. The last two of m starts stay for the next call, for the last may be taken back.
    Where there are joints, texts are cut between characters of scripts without capitals, too, where no token could join them.
    """
    classes, table, any_case, joints = reading
    if m > 2:
        starts[0], starts[1], m = starts[m - 2], starts[m - 1], 2
    before, one = OTHER, np.uint64(1)
    at = np.uint64(m)  # without a sign, an index is not looked at for being negative
    while i < n and at < np.uint64(BLOCK):
        b = np.int64(buf[np.uint64(i)])
        size = 1
        if b < 0x80:
            kind = classes[np.uint64(b)]
        elif b < 0xE0:
            kind, size = classes[(b & 31) << 6 | (np.int64(buf[i + 1]) & 63)], 2
        elif b < 0xF0:
            kind, size = classes[(b & 15) << 12 | (np.int64(buf[i + 1]) & 63) << 6 | (np.int64(buf[i + 2]) & 63)], 3
        else:
            code = (b & 7) << 18 | (np.int64(buf[i + 1]) & 63) << 12 | (np.int64(buf[i + 2]) & 63) << 6
            kind, size = classes[code | (np.int64(buf[i + 3]) & 63)], 4
        said = np.uint64(table[state | np.uint64(kind)])
        state = said & STATE_BITS
        if said & CONTRACTION_BIT:
            found = contraction(buf, i, n, any_case)
            if found:
                size, state = found, np.uint64(CLOSED)
                if said & JOINED_BIT:
                    said &= ~(one << BEFORE_AT)
        at -= said >> RETRACT_AT & one
        starts[at] = last
        at += said >> BEFORE_LAST_AT & one
        starts[at] = i
        at += said >> BEFORE_AT & one
        if size == 3 and kind == LETTER and before == LETTER and i - last == 3 and len(joints) and not said >> BEFORE_AT & one:
            at += np.uint64(not may_join(buf, i, joints))
        before, last = kind, i
        i += size
    m = np.int64(at)
    if i < n:
        return i, state, last, m, m - 2
    starts[m] = n
    return i, state, last, m, m


def joints_of(pieces: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """The filter of `may_join`: what stands on both sides, three bytes or fewer, where a piece has a character of three bytes."""
    kinds: dict[tuple[int, int], set[int]] = {}
    for piece in pieces:
        for found in re.finditer(rb"(?<=[\x80-\xbf])[\xe0-\xef]", piece):
            i = found.start()
            left, right = min(i, 3), min(len(piece) - i, 3)
            kinds.setdefault((left, right), set()).add(int.from_bytes(piece[i - left : i + right], "little"))
    joints = np.zeros(JOINTS_AT + FILTER, np.uint64)
    joints[0] = len(kinds)
    for n, ((left, right), parts) in enumerate(kinds.items()):
        joints[1 + 2 * n], joints[2 + 2 * n] = 8 * (3 - left), (1 << 8 * (left + right)) - 1
        mixed = (np.array(list(parts), np.uint64) | np.uint64(n + 1) << np.uint64(48)) * MIX
        bits = np.uint64(1) << (mixed >> BIT_AT & np.uint64(63))
        np.bitwise_or.at(joints, JOINTS_AT + (mixed >> FILTER_AT).astype(np.int64), bits)
    return joints
