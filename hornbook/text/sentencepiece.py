"""A SentencePiece `.model`, read: bytes of a stranger in, the tokenizer.json that stands for it out.

One idea: a SentencePiece vocabulary is a list of pieces with scores, and everything else about it can be said in the steps of a
tokenizer.json; so one document is read, run and saved, whatever file it came from. The fields are those of
sentencepiece_model.proto; a message is read as it lies (protobuf's wire format), each length checked against what is there.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hornbook.errors import DamagedError, UserError
from hornbook.text.chat import PUBLISHED_ENDS
from hornbook.text.published import added_token

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
SPACE = "▁"
TOKENS = {41: ("bos_token", 1), 42: ("eos_token", 2), 43: ("pad_token", -1)}  # fields of the trainer's settings, their defaults


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id with their scores and types, and how text is made ready for them."""

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    unigram: bool
    charsmap: bytes = b""
    tidy: bool = False  # spaces at the ends go, several become one
    prefix: bool = True  # a text begins with a space
    escape: bool = True  # a space is written as ▁

    def document(self, where: str) -> dict[str, Any]:
        """The tokenizer.json. What its format cannot say is a `UserError` that names `where`."""
        types = set(self.types)
        rows = {len(self.pieces), len(self.scores), len(self.types)}
        if len(rows) > 1 or len(set(self.pieces)) != len(self.pieces) or "" in self.pieces:
            raise _refused(where, f"its {len(self.pieces)} pieces are not each there once, with a score and a type")
        if not all(map(finite, self.scores)):
            raise _refused(where, "a score is not finite")
        if not types <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE} or list(self.types).count(UNKNOWN) > 1:
            raise _refused(where, "it has pieces of an unknown type, or several for what is unknown")
        added = [
            added_token(i, piece, kind != USER_DEFINED or piece in PUBLISHED_ENDS)
            for i, (piece, kind) in enumerate(zip(self.pieces, self.types, strict=True))
            if kind not in (NORMAL, BYTE)
        ]
        unknown = list(self.types).index(UNKNOWN) if UNKNOWN in types else None
        return {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": list(self._steps())}, "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": list(self._back())}, "model": self._model(unknown, BYTE in types),
        }  # fmt: skip

    def _steps(self) -> Iterator[dict[str, Any]]:
        if self.charsmap:
            yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.charsmap).decode("ascii")}
        if self.tidy:
            yield replace({"Regex": r"\A +"}, "")
            yield replace({"Regex": " {2,}"}, " ")
        if self.prefix:
            yield {"type": "Prepend", "prepend": SPACE if self.escape else " "}
        if self.escape:
            yield replace({"String": " "}, SPACE)
        if self.tidy:
            space = SPACE if self.escape else " "
            yield replace({"Regex": rf"(?<!{space}){space}+\z"}, "")  # asked once for a run, not once for each of its spaces

    def _back(self) -> Iterator[dict[str, Any]]:
        yield replace({"String": SPACE}, " ")
        yield from ({"type": "ByteFallback"}, {"type": "Fuse"})
        if self.prefix or self.tidy:
            yield {"type": "Strip", "content": " ", "start": 1, "stop": 0}

    def _model(self, unknown: int | None, fallback: bool) -> dict[str, Any]:
        if self.unigram:
            rows = [[piece, score] for piece, score in zip(self.pieces, self.scores, strict=True)]
            return {"type": "Unigram", "unk_id": unknown, "vocab": rows, "byte_fallback": fallback}
        return {
            "type": "BPE", "dropout": None, "unk_token": None if unknown is None else self.pieces[unknown],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": fallback,
            "ignore_merges": False, "vocab": {piece: i for i, piece in enumerate(self.pieces)}, "merges": self.merges(),
        }  # fmt: skip

    def merges(self) -> list[list[str]]:
        """All pairs of pieces that spell a piece, the best score first; pairs that spell the same piece stand together."""
        normal = {piece for piece, kind in zip(self.pieces, self.types, strict=True) if kind == NORMAL}
        order = sorted((i for i, kind in enumerate(self.types) if kind == NORMAL), key=lambda i: (-self.scores[i], i))
        return [
            [piece[:cut], piece[cut:]]
            for piece in (self.pieces[i] for i in order)
            for cut in range(1, len(piece))
            if piece[:cut] in normal and piece[cut:] in normal
        ]


def replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": dict(pattern), "content": content}


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tokenizer.json and tokenizer_config.json that a `.model` of the kinds BPE and unigram stands for."""
    where = str(path)
    rows: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(path.read_bytes(), where):
        if field == 1:
            piece = dict(_fields(_bytes(value, where), where))
            rows.append((_text(piece.get(1, b""), where), _float(piece.get(2, bytes(4)), where), piece.get(3, NORMAL)))
        elif field in (2, 3):
            (trainer if field == 2 else normalizer).update(_fields(_bytes(value, where), where))
    kind = trainer.get(3, UNIGRAM)
    if not rows or kind not in (UNIGRAM, BPE) or trainer.get(24) or (kind == BPE and any(row[2] == UNUSED for row in rows)):
        raise _refused(where, f"{len(rows)} pieces of kind {kind}; or it has unused merges, or puts the space after a word")
    pieces, scores, types = zip(*rows, strict=True)
    vocabulary = Vocabulary(
        pieces, scores, types, kind == UNIGRAM, _bytes(normalizer.get(2, b""), where), bool(normalizer.get(4, 1)),
        bool(normalizer.get(3, 1)), bool(normalizer.get(5, 1)),
    )  # fmt: skip
    numbers = {name: trainer.get(field, usual) for field, (name, usual) in TOKENS.items()}
    config: dict[str, Any] = {
        name: pieces[i] for name, i in numbers.items() if isinstance(i, int) and 0 <= i < len(pieces) and types[i] == CONTROL
    }
    return vocabulary.document(where), config | ({"add_bos_token": True} if kind == BPE and "bos_token" in config else {})


def _fields(data: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: numbers as int, everything else as bytes."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while at < len(data) and shift < 64:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise _damaged(where, f"a number does not end at byte {at}")

    while at < len(data):
        tag = number()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, number()
            continue
        if kind not in (1, 2, 5):
            raise _damaged(where, f"a field of wire type {kind} at byte {at}")
        size = number() if kind == 2 else 8 if kind == 1 else 4
        if size > len(data) - at:
            raise _damaged(where, f"it ends inside a field of {size} bytes at byte {at}")
        yield tag >> 3, data[at : at + size]
        at += size


def _bytes(value: Any, where: str) -> bytes:
    if not isinstance(value, bytes):
        raise _damaged(where, "a number stands where a message or text belongs")
    return value


def _text(value: Any, where: str) -> str:
    try:
        return _bytes(value, where).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(where, f"a piece is not UTF-8: {error.reason}") from None


def _float(value: Any, where: str) -> float:
    if len(_bytes(value, where)) != 4:
        raise _damaged(where, "a score is no float")
    return float(struct.unpack("<f", value)[0])


def finite(score: Any) -> bool:
    """Whether it is a number that float32 holds."""
    return isinstance(score, int | float) and -3e38 < score < 3e38


def _damaged(where: str, why: str) -> DamagedError:
    return DamagedError("the SentencePiece model cannot be read", where=where, why=why, fix="download it again")


def _refused(where: str, why: str) -> UserError:
    fix = "use a SentencePiece model of the kind BPE or unigram, as Llama 2 and T5 publish"
    return UserError("this SentencePiece model is not read", where=where, why=why, fix=fix)
