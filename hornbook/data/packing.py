"""Documents of ids -> rows that hold several of them, each as good as alone.

The one idea: a document is cut only where it is longer than a row, and its pieces go where they leave the least room: best fit, the
longest first (Ding et al. 2024, Fewer Truncations Improve Language Modeling). What is kept is where each piece begins and how long
it is; a row is made when it is taken.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.batch import IGNORE, Batch

WINDOW = 1 << 16  # pieces that are sorted and placed together
SCANNED = 1 << 24  # ids that are searched for beginnings in one go


@dataclass(frozen=True)
class PackedRows:
    """Rows of `context` tokens with numbers and positions as in `Batch`; what is left of a row is `pad`, in document -1.

    ids         all documents' ids, one after the other
    starts_p    where piece p begins in `ids`; its last target is the id behind its last token
    sizes_p     tokens of piece p
    firsts_r    the first piece of row r, and one more: pieces stand in the order of their rows
    learned     whether an id is to be learned; None: all are
    """

    ids: NDArray[np.generic]
    starts_p: NDArray[np.int64]
    sizes_p: NDArray[np.int64]
    firsts_r: NDArray[np.int64]
    context: int
    pad: int
    lengths_v: NDArray[np.int64]
    learned: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.firsts_r) - 1

    @property
    def padding(self) -> float:
        """The share of all places that holds no token."""
        return 1 - int(self.sizes_p.sum()) / max(1, len(self) * self.context)

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        firsts = self.firsts_r[samples]
        counts = self.firsts_r[samples + 1] - firsts
        numbers = _counted(counts)
        pieces = np.repeat(firsts, counts) + numbers
        sizes = self.sizes_p[pieces]
        positions = _counted(sizes)
        before = np.cumsum(sizes) - sizes  # tokens of all pieces ahead of this one, from which those of other rows are taken
        before -= np.repeat(before[np.cumsum(counts) - counts], counts)
        places = np.repeat(np.repeat(np.arange(len(samples)) * self.context, counts) + before, sizes) + positions
        sources = np.repeat(self.starts_p[pieces], sizes) + positions
        targets = self.ids[sources + 1].astype(np.int64)
        text_bytes = self.lengths_v[targets]
        if self.learned is not None:
            learned = self.learned[sources + 1]
            targets, text_bytes = np.where(learned, targets, IGNORE), text_bytes[learned]

        def laid(values: NDArray[np.generic], empty: int) -> torch.Tensor:
            grid = np.full(len(samples) * self.context, empty, np.int64)
            grid[places] = values
            return torch.from_numpy(grid.reshape(len(samples), self.context))

        return Batch(
            laid(self.ids[sources], self.pad), laid(targets, IGNORE), laid(np.repeat(numbers, sizes), -1), laid(positions, 0),
            int(text_bytes.sum()),
        )  # fmt: skip


def _counted(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... up to each count: [2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def pack(
    documents: Iterable[tuple[Sequence[int], Sequence[int]]], context: int, pad: int, lengths_v: NDArray[np.int64]
) -> tuple[PackedRows, int]:
    """Rows of `context` tokens, and the number of documents that are left out: too long for one row, or too short to learn from.

    A document is (ids, mask); the mask is 1 where the id itself is to be learned. The target at position t is the id at t + 1
    where its mask is 1, `IGNORE` elsewhere.
    """
    ids, learned, ends, left_out = array("q"), bytearray(), array("q"), 0
    for document, mask in documents:
        if 1 < len(document) <= context + 1:  # the last id is only ever a target
            ids.extend(document)
            learned.extend(mask)
            ends.append(len(ids))
        else:
            left_out += 1
    return _packed(np.array(ids), np.array(ends), context, pad, lengths_v, np.array(learned, np.bool_)), left_out


def pack_stream(ids: NDArray[np.generic], begin: int, context: int, pad: int, lengths_v: NDArray[np.int64]) -> PackedRows:
    """Rows over a stream of documents that each open with the id `begin`; one that is longer than a row is cut into several."""
    ids = np.asarray(ids)
    found = [np.flatnonzero(ids[start : start + SCANNED] == begin) + start for start in range(0, len(ids), SCANNED)]
    begins = np.concatenate([np.empty(0, np.int64), *found])
    return _packed(ids, np.append(begins[begins > 0], len(ids)), context, pad, lengths_v)


def _packed(
    ids: NDArray[np.generic], ends: NDArray[np.int64], context: int, pad: int, lengths_v: NDArray[np.int64],
    learned: NDArray[np.bool_] | None = None,
) -> PackedRows:  # fmt: skip
    begins = np.append(0, ends)[:-1]
    tokens = np.maximum(ends - begins - 1, 0)
    counts = -(-tokens // context)
    inside = _counted(counts) * context
    starts, sizes = np.repeat(begins, counts) + inside, np.minimum(np.repeat(tokens, counts) - inside, context)
    rows = best_fit(sizes, context)
    order = np.argsort(rows, kind="stable")
    firsts = np.append(0, np.cumsum(np.bincount(rows)))
    return PackedRows(ids, starts[order], sizes[order], firsts, context, pad, lengths_v, learned)


def best_fit(sizes_p: NDArray[np.int64], context: int, window: int = WINDOW) -> NDArray[np.int64]:
    """The row of each piece: `window` pieces at a time, the longest first, each where it leaves the least room."""
    rows_p, rows = np.empty(len(sizes_p), np.int64), 0
    for begin in range(0, len(sizes_p), window):
        sizes = sizes_p[begin : begin + window].tolist()
        by_room: list[list[int]] = [[] for _ in range(context + 1)]
        rooms = 0  # bit r: some row has room for just r tokens
        for piece in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
            size = sizes[piece]
            if fitting := rooms >> size:
                room = size + (fitting & -fitting).bit_length() - 1
                row = by_room[room].pop()
                if not by_room[room]:
                    rooms ^= 1 << room
            else:
                room, row, rows = context, rows, rows + 1
            rows_p[begin + piece] = row
            if room > size:
                by_room[room - size].append(row)
                rooms |= 1 << (room - size)
    return rows_p
