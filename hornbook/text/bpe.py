"""Byte-pair encoding at working speed: counted words in, merges out; a word in, its ids out.

One idea: the text is only its distinct words with their counts, and one merge touches only the places where its pair stands.
So every pair keeps a list of its places, a heap knows the most frequent pair, and both are corrected when they are read
instead of when they change. `plain.py` is the same algorithm without the bookkeeping, and the result is the same.
"""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from hornbook.errors import UserError

Pair = tuple[int, int]

# GPT-2 spells every byte as one visible character: itself where it has a shape, else the next letter from U+0100 on.
# Id = rank of that character. Hugging Face sorts its alphabet the same way, so equal counts break to the same pair.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_ORDER = bytes([*_VISIBLE, *(byte for byte in range(256) if byte not in set(_VISIBLE))])
_CHARACTERS = [chr(byte) for byte in _VISIBLE] + [chr(256 + n) for n in range(256 - len(_VISIBLE))]
_ID_OF_BYTE = bytes(BYTE_ORDER.index(byte) for byte in range(256))
_SPELL = {byte: character for byte, character in zip(BYTE_ORDER, _CHARACTERS, strict=True)}
_UNSPELL = {byte: "\uffff" for byte in range(256)} | {ord(c): chr(b) for b, c in _SPELL.items()}

EDGE = -1  # stands before and after every word; no pair contains it
CACHED_WORDS = 1 << 18
CACHED_LENGTH = 64


def spell(piece: bytes) -> str:
    """Write bytes as visible characters, as published vocabularies do: b" the" is "Ġthe"."""
    return piece.decode("latin-1").translate(_SPELL)


def unspell(text: str) -> bytes | None:
    """Undo `spell`; None when `text` has a character that spells no byte."""
    try:
        return text.translate(_UNSPELL).encode("latin-1")
    except UnicodeEncodeError:
        return None


def utf8(text: str) -> bytes:
    """Encode text; half a surrogate pair, which is no character, is the caller's error."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise UserError(
            f"the text holds a lone surrogate, U+{ord(text[problem.start]):04X}",
            where=f"{text[max(problem.start - 20, 0) : problem.start]!r} stands before it",
            why="half a UTF-16 pair is not a character and has no UTF-8 bytes",
            fix="repair the text where it was read, for example with text.encode('utf-16', 'surrogatepass').decode('utf-16')",
        ) from None


def count_words(documents: Iterable[str], split: Callable[[str], list[str]]) -> Counter[str]:
    """Count the pieces of every document; memory grows with the distinct pieces and the longest document, not with the text."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(split(document))
    return counts


def train(
    words: Mapping[str, int],
    rows: int,
    forbidden: Collection[bytes] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[bytes], list[Pair]]:
    """Learn merges until there are `rows` pieces or no pair is left, and return (pieces by id, merges by rank).

    The most frequent pair is merged first; equal counts go to the smaller (left id, right id). A merge that would spell a
    `forbidden` piece is never made. When two merges spell the same piece they share its id, so merges may outnumber the new
    pieces. `progress(pieces, rows)` is called after every merge.
    """
    line = _Line(words)
    heap = [(-count, pair) for pair, count in line.counts.items()]
    heapq.heapify(heap)
    pieces = [bytes([byte]) for byte in BYTE_ORDER]
    id_of = {piece: i for i, piece in enumerate(pieces)}
    merges: list[Pair] = []
    while heap and len(pieces) < rows:
        promised, pair = heapq.heappop(heap)
        count = line.counts.get(pair, 0)
        piece = pieces[pair[0]] + pieces[pair[1]]
        if piece in forbidden:
            continue
        if count != -promised:  # it has become rarer since it was pushed (what became more frequent was pushed again)
            if count:
                heapq.heappush(heap, (-count, pair))
            continue
        if piece not in id_of:
            id_of[piece] = len(pieces)
            pieces.append(piece)
        merges.append(pair)
        for grown in line.replace(pair, id_of[piece]):
            if line.counts[grown]:  # in a run, a pair can come and go within one merge
                heapq.heappush(heap, (-line.counts[grown], grown))
        if progress:
            progress(len(pieces), rows)
    return pieces, merges


class _Line:
    """All distinct words in one row with an edge between them, as a linked list in flat arrays.

    `counts` is exact. `places` (where the left half of a pair stands) only grows, so a place is checked before use.
    """

    def __init__(self, words: Mapping[str, int]):
        self.ids, self.weight = array("q", [EDGE]), array("q", [0])
        for word, count in words.items():
            symbols = utf8(word).translate(_ID_OF_BYTE)
            self.ids.extend((*symbols, EDGE))
            self.weight.extend([count] * len(symbols))
            self.weight.append(0)
        size = len(self.ids)
        self.left, self.right = array("q", range(-1, size - 1)), array("q", range(1, size + 1))
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, array[int]] = defaultdict(lambda: array("q"))
        for i in range(size - 1):
            if self.ids[i] != EDGE and self.ids[i + 1] != EDGE:
                self._add((self.ids[i], self.ids[i + 1]), i, self.weight[i])

    def _add(self, pair: Pair, place: int, count: int) -> None:
        self.counts[pair] += count
        self.places[pair].append(place)

    def replace(self, pair: Pair, new: int) -> set[Pair]:
        """Merge `pair` everywhere, from left to right, and return the pairs that this made."""
        ids, left, right = self.ids, self.left, self.right
        grown: set[Pair] = set()
        for i in sorted(self.places.pop(pair)):
            j = right[i]
            if ids[i] != pair[0] or ids[j] != pair[1]:  # one of the two is already part of something longer
                continue
            before, after, count = left[i], right[j], self.weight[i]
            if ids[before] != EDGE:
                self.counts[ids[before], pair[0]] -= count
                self._add((ids[before], new), before, count)
                grown.add((ids[before], new))
            if ids[after] != EDGE:
                self.counts[pair[1], ids[after]] -= count
                self._add((new, ids[after]), i, count)
                grown.add((new, ids[after]))
            ids[i], ids[j] = new, EDGE
            right[i], left[after] = after, i
        del self.counts[pair]
        return grown


class Words(dict[str, tuple[int, ...]]):
    """Word -> ids: a dictionary that computes what it lacks, lowest rank first, and keeps it while there is room.

    `whole` takes a word that is itself a piece without asking the merges (`ignore_merges` in published files).
    """

    def __init__(self, id_of: Mapping[bytes, int], merges: Sequence[Pair], pieces: Sequence[bytes], whole: bool = False):
        self._id_of, self._whole = id_of, whole
        self._byte_ids = [id_of.get(bytes([byte]), EDGE) for byte in range(256)]
        self._merges = {pair: (rank, id_of[pieces[pair[0]] + pieces[pair[1]]]) for rank, pair in enumerate(merges)}

    def __missing__(self, word: str) -> tuple[int, ...]:
        piece = utf8(word)
        if self._whole and piece in self._id_of:
            ids: tuple[int, ...] = (self._id_of[piece],)
        else:
            ids = self._merged(self._bytes(piece))
        if len(word) <= CACHED_LENGTH:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def _bytes(self, piece: bytes) -> list[int]:
        ids = [self._byte_ids[byte] for byte in piece]
        if EDGE in ids:  # small published vocabularies leave out bytes that they never saw
            raise UserError(
                f"this vocabulary has no token for the byte {piece[ids.index(EDGE)]:#04x}", where=repr(piece.decode("utf-8")),
                why="the text holds a character that the tokenizer's makers left out", fix="remove that character",
            )  # fmt: skip
        return ids

    def _merged(self, ids: list[int]) -> tuple[int, ...]:
        size = len(ids)
        ids.append(EDGE)
        left, right = list(range(-1, size)), list(range(1, size + 2))
        heap: list[tuple[int, int, int]] = []

        def offer(i: int) -> None:
            found = self._merges.get((ids[i], ids[right[i]]))
            if found:
                heapq.heappush(heap, (found[0], i, found[1]))

        for i in range(size):
            offer(i)
        while heap:
            rank, i, new = heapq.heappop(heap)
            j = right[i]
            if ids[i] == EDGE or self._merges.get((ids[i], ids[j])) != (rank, new):  # the place has changed since
                continue
            after = right[j]
            ids[i], ids[j] = new, EDGE
            right[i], left[after] = after, i
            offer(i)
            if left[i] >= 0:
                offer(left[i])
        return tuple(symbol for symbol in ids if symbol != EDGE)
