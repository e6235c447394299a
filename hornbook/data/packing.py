"""Documents of ids, each with a mask -> rows that hold several of them (first fit, in the order given)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from hornbook.batch import IGNORE
from hornbook.data.batches import PackedRows

OPEN_ROWS = 64  # how many unfilled rows are looked at for each document


def pack(
    documents: Iterable[tuple[Sequence[int], Sequence[int]]], context: int, pad: int, lengths_v: NDArray[np.int64]
) -> tuple[PackedRows, int]:
    """Rows of `context` tokens, and the number of documents that are left out: too long for one row, or too short to learn from.

    A document is (ids, mask); the mask is 1 where the id itself is to be learned. The target at position t is the id at t + 1
    where its mask is 1, `IGNORE` elsewhere. What is left of a row is `pad`, a document of its own.
    """
    rows: list[list[tuple[Sequence[int], Sequence[int]]]] = []
    room: list[int] = []
    too_long = 0
    for ids, mask in documents:
        length = len(ids) - 1  # the last id is only ever a target
        if not 0 < length <= context:
            too_long += 1
            continue
        fitting = (row for row in range(max(0, len(rows) - OPEN_ROWS), len(rows)) if room[row] >= length)
        row = next(fitting, None)
        if row is None:
            rows.append([])
            room.append(context)
            row = len(rows) - 1
        rows[row].append((ids, mask))
        room[row] -= length
    shape = (len(rows), context)
    tokens, targets = np.full(shape, pad, np.int64), np.full(shape, IGNORE, np.int64)
    numbers, positions = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    for row, members in enumerate(rows):
        start = 0
        for number, (ids, mask) in enumerate(members):
            place = slice(start, start + len(ids) - 1)
            tokens[row, place] = ids[:-1]
            targets[row, place] = np.where(np.asarray(mask[1:]) == 1, ids[1:], IGNORE)
            numbers[row, place] = number
            positions[row, place] = np.arange(len(ids) - 1)
            start = place.stop
    return PackedRows(tokens, targets, numbers, positions, lengths_v), too_long
