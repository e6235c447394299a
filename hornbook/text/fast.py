"""The compiled path from Python: texts in, ids out; documents in, merges out.

Each use compiles what it needs, the first time on a machine: small inputs never come here, see `tokenizer`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook.text.bpe import BYTE_ORDER, Pair, utf8
from hornbook.text.compiled import PAD, part
from hornbook.text.scan import Rules, classes, machine

BATCH = 1 << 20  # bytes of text per call
KNOWN, KNOWN_LONG = 1 << 18, 1 << 13  # pieces that an encoder remembers
Ids = npt.NDArray[np.uint32]


class Encoder:
    """Merges as tables, and for each thread a cache of pieces that it has met.

    `exact`: false where long pieces are not what their merges make, which `whole` allows and the tables have no room for.
    """

    def __init__(self, pieces: Sequence[bytes], merges: Sequence[Pair], rules: Rules, whole: bool = False):
        cut, merge, encode = part("cut"), part("merge"), part("encode")
        id_of = {piece: i for i, piece in enumerate(pieces) if piece}
        pairs = np.array(merges, np.int32).reshape(-1, 2)
        made = np.array([id_of[pieces[a] + pieces[b]] for a, b in merges], np.int32)
        byte_ids = np.array([id_of[bytes([byte])] for byte in range(256)], np.int32)
        table = merge.pair_table(
            np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), np.arange(len(pairs), dtype=np.int32)
        )
        byte_pairs = np.full(1 << 16, merge.NONE, np.int32)
        byte_of = {i: byte for byte, i in enumerate(byte_ids.tolist())}
        for rank in range(len(merges) - 1, -1, -1):
            a, b = merges[rank]
            if a in byte_of and b in byte_of:
                byte_pairs[byte_of[a] << 8 | byte_of[b]] = rank
        self._reading = _reading(rules, cut.joints_of(pieces))
        self._vocabulary = merge.Vocabulary(byte_ids, byte_pairs, table, made, np.zeros(0, np.uint64))
        buf, ends = _joined(pieces)
        self._first = np.zeros(4 * KNOWN, np.uint64)
        counts = encode.fill(buf, ends, self._vocabulary, whole, self._first)
        exceptions = [(piece, i) for i, piece in enumerate(pieces) if whole and piece and counts[i] != 1]
        self.exact = all(len(piece) <= merge.SHORT for piece, _ in exceptions)
        if self.exact and exceptions:
            self._vocabulary = self._vocabulary._replace(fixed=_unmerged(exceptions))
        self._encode, self._spare, self._long = encode.encode, encode.INLINE, merge.LONG * KNOWN_LONG
        self._rooms = [self._room()]

    def _room(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """What one thread remembers: the vocabulary at first, and nothing long."""
        return self._first.copy(), np.zeros(self._long, np.uint64)

    def __call__(self, texts: Sequence[str], threads: int = 1) -> tuple[Ids, npt.NDArray[np.int64]]:
        """(ids, offsets): text n is ids[offsets[n]:offsets[n + 1]]."""
        batches = _batches(map(utf8, texts), BATCH if threads == 1 else BATCH // 8)
        if threads > 1 and len(texts) > 1:
            with ThreadPoolExecutor(threads) as pool:
                done = list(pool.map(self._batch, batches))
        else:
            done = [self._batch(batch) for batch in batches]
        offsets = np.zeros(1 + sum(len(ends) for _, ends in done), np.int64)
        start, text = 0, 1
        for ids, ends in done:
            offsets[text : text + len(ends)] = ends + start
            start, text = start + len(ids), text + len(ends)
        return np.concatenate([ids for ids, _ in done]) if len(done) != 1 else done[0][0], offsets

    def _batch(self, parts: Sequence[bytes]) -> tuple[Ids, npt.NDArray[np.int64]]:
        buf, offsets = _joined(parts)
        ends = offsets[1:].copy()
        out = np.empty(offsets[-1] + self._spare, np.uint32)
        try:
            room = self._rooms.pop()
        except IndexError:
            room = self._room()
        count = self._encode(buf, ends, self._reading, self._vocabulary, *room, out)
        self._rooms.append(room)
        return out[:count].copy(), ends


def _reading(rules: Rules, joints: npt.NDArray[np.uint64]) -> Any:
    return part("cut").Reading(classes(), machine(rules), rules.contractions > 1, joints)


def _unmerged(exceptions: Sequence[tuple[bytes, int]]) -> npt.NDArray[np.uint64]:
    """A table of pieces that their merges do not make."""
    cut, merge = part("cut"), part("merge")
    table = np.zeros(merge.LONG * (1 << (4 * len(exceptions)).bit_length()), np.uint64)
    for piece, i in exceptions:
        buf, ids = np.frombuffer(piece + bytes(PAD), np.uint8), np.array([i], np.uint32)
        hashed = cut.key(buf, 0, len(piece))
        slot = -1 - merge.find_long(table, buf, 0, len(piece), hashed)
        merge.keep_long(table, slot, buf, 0, len(piece), hashed, ids, 0, 1)
    return table


@dataclass(frozen=True)
class Counted:
    """Distinct pieces one behind the other in `text`, the bytes of each, and how often it stands in the documents.

    A piece may stand there several times, once for each thread that met it: counts of pairs are sums.
    """

    text: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]


def count(documents: Iterable[str], rules: Rules, threads: int = 1) -> Counted:
    """Count the pieces of documents; memory grows with the distinct pieces, not with the text."""
    batches, lock = _batches(map(utf8, documents)), threading.Lock()
    counting, reading = part("count"), _reading(rules, np.zeros(0, np.uint64))  # what is learned from is cut by the pattern alone

    def counter() -> Counted:
        found = counting.Distinct(np.zeros(1 << 16, np.uint64), np.empty(1 << 16, np.uint8), np.zeros(1 << 12, np.int64), 0, 0)
        while True:
            with lock:
                batch = next(batches, None)
            if batch is None:
                break
            buf, offsets = _joined(batch)
            found = counting.count(buf, offsets[1:].copy(), reading, found)
        weights, of_slot = np.zeros(found.known, np.int64), found.slots.reshape(-1, 4)
        of_slot = of_slot[of_slot[:, 2] > 0]
        weights[of_slot[:, 2].astype(np.int64) - 1] = of_slot[:, 3]
        return Counted(found.pool[: found.used], np.diff(found.ends[: found.known + 1]), weights)

    with ThreadPoolExecutor(threads) as pool:
        found = [task.result() for task in [pool.submit(counter) for _ in range(threads)]]
    return Counted(*(np.concatenate([getattr(one, name) for one in found]) for name in ("text", "sizes", "weights")))


def weighed(words: Mapping[str, int]) -> Counted:
    """Pieces that were counted elsewhere."""
    parts = [utf8(word) for word in words]
    sizes = np.array([len(part) for part in parts], np.int64)
    return Counted(np.frombuffer(b"".join(parts), np.uint8), sizes, np.array(list(words.values()), np.int64))


def train(
    counted: Counted, rows: int, forbidden: Collection[bytes] = (), progress: Callable[[int, int], None] | None = None
) -> tuple[list[bytes], list[Pair]]:
    """`bpe.train` in compiled code: the same merges. `progress` is called some times a second."""
    tail = np.frombuffer(BYTE_ORDER + b"".join(forbidden), np.uint8)
    tails = np.array([1] * 256 + [len(piece) for piece in forbidden], np.int64)
    state, learned = np.zeros(2, np.int64), np.zeros(3 * 2 * rows, np.int32)  # two merges may make one token
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(part("learn").merges, counted.text, counted.sizes, counted.weights, tail, tails, rows, state, learned)
        try:
            while not task.done():
                wait([task], timeout=0.1)
                if progress and state[0]:
                    progress(int(state[0]), rows)
        except BaseException:
            state[1] = 1  # Ctrl-C ends the learning, too
            raise
        merges = learned[: 3 * task.result()].reshape(-1, 3).tolist()
    pieces = [bytes([byte]) for byte in BYTE_ORDER]
    for a, b, new in merges:
        if new == len(pieces):
            pieces.append(pieces[a] + pieces[b])
    return pieces, [(a, b) for a, b, _ in merges]


def _batches(texts: Iterable[bytes], most: int = BATCH) -> Iterator[list[bytes]]:
    """Lists of texts of about so many bytes."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(parts: Iterable[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Texts one after the other, with room to read on, and where each starts and the last ends."""
    parts = list(parts)
    ends = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=ends[1:])
    return np.frombuffer(b"".join([*parts, bytes(PAD)]), np.uint8), ends
