"""SentencePiece's BPE, as Llama 2 and llama2.c have it: text in, ids out, by scores instead of a list of merges.

One idea: of all neighbours that together spell a piece, the pair with the highest score is joined first (Kudo & Richardson
2018), over the whole text and without cutting it into words. A character without a piece is written in byte tokens. A space is
put before the text, and decoding keeps it: ids alone do not say whether they begin a text.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hornbook.errors import UserError
from hornbook.text.bpe import utf8
from hornbook.text.tokenizer import Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ScoredTokenizer(Tokenizer):
    """A `Tokenizer` whose pieces have scores; a space in a piece is a space."""

    def __init__(
        self, pieces: Sequence[str], scores: Sequence[float], specials: Mapping[str, int], config: Mapping[str, Any], where: str,
        lead: str = " ",
    ):  # fmt: skip
        """`lead` is put before every text. Pieces spelled <0x00> to <0xFF> are the bytes."""
        if len(pieces) != len(scores):
            raise UserError(
                f"there are {len(pieces)} pieces and {len(scores)} scores", where=where, fix="use another tokenizer file"
            )
        self.specials, self.normalizer, self.patterns = dict(specials), None, ()
        self.document, self._config, self._lead, self._scores = {}, dict(config), lead, list(map(float, scores))
        bytes_of = {i: bytes([int(found[1], 16)]) for i, piece in enumerate(pieces) if (found := BYTE.fullmatch(piece))}
        kept_apart = {*bytes_of, *specials.values()}
        self._id_of = {piece: i for i, piece in enumerate(pieces) if piece and i not in kept_apart}
        self._byte_id = {raw[0]: i for i, raw in bytes_of.items()}
        self._pieces = [b"" if i in specials.values() else bytes_of.get(i) or utf8(p) for i, p in enumerate(pieces)]
        self._shown = list(self._pieces)
        for name, i in specials.items():
            self._shown[i] = utf8(name)

    def encode(self, text: str) -> list[int]:
        """Text to ids; special strings in it stay ordinary text. A character that no token can write is a `UserError`."""
        return [i for piece in self._joined(self._lead + text if text else "") for i in self._ids(piece)]

    def _ids(self, piece: str) -> list[int]:
        if piece in self._id_of:
            return [self._id_of[piece]]
        if not self._byte_id.keys() >= set(utf8(piece)):
            raise UserError(f"this vocabulary has no token for {piece!r}", fix="remove that character")
        return [self._byte_id[byte] for byte in utf8(piece)]

    def _joined(self, text: str) -> list[str]:
        """The characters of the text, joined pair by pair; a joined right half leaves an empty place."""
        parts, size = list(text), len(text)
        left, right = list(range(-1, size - 1)), list(range(1, size + 1))
        heap: list[tuple[float, int, str]] = []

        def offer(i: int) -> None:
            if i >= 0 and right[i] < size and (pair := parts[i] + parts[right[i]]) in self._id_of:
                heapq.heappush(heap, (-self._scores[self._id_of[pair]], i, pair))

        for i in range(size):
            offer(i)
        while heap:
            _, i, pair = heapq.heappop(heap)
            j = right[i]
            if not parts[i] or j >= size or parts[i] + parts[j] != pair:  # the place has changed since
                continue
            parts[i], parts[j], right[i] = pair, "", right[j]
            if right[i] < size:
                left[right[i]] = i
            offer(i)
            offer(left[i])
        return [part for part in parts if part]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids."""
        parts = [[piece.hex() for piece in self._pieces], self._scores, sorted(self.specials.items()), self._lead]
        return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Not possible yet: a published tokenizer.json has merges, and these are scores."""
        raise UserError("a SentencePiece vocabulary cannot be written yet", fix="keep the file that it was read from")
