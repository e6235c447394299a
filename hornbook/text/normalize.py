"""Normalization as edits: text in, (start, end, replacement) out, so that the same rule gives the new text and where it came from.

One idea: a rule never returns a text. `edited` makes the text, and `moved` follows each of its characters back to the stretch of
the original that it stands for; so offsets need no second copy of any rule.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, cast

import numpy as np
import regex

from hornbook.errors import DamagedError

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
Edit = tuple[int, int, str]
Rule = Callable[[str], Iterable[Edit]]
Span = tuple[int, int]
LONGEST = 256  # bytes of a replacement; the longest of Unicode's compatibility forms has 33


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with every stretch replaced; edits come from left to right and do not overlap."""
    parts, at = [], 0
    for start, end, new in edits:
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]])


def moved(spans: Sequence[Span], edits: Iterable[Edit]) -> list[Span]:
    """For each character after the edits, the stretch of the original that it stands for.

    A new character stands for the whole stretch that it replaces; one that replaces nothing, for the character after it.
    """
    out: list[Span] = []
    at = 0
    for start, end, new in edits:
        out += spans[at:start]
        old = spans[start:end] or spans[start : start + 1] or spans[-1:] or [(0, 0)]
        out += [(old[0][0], old[-1][1])] * len(new)
        at = end
    return [*out, *spans[at:]]


def followed(text: str, spans: list[Span], rules: Iterable[Rule]) -> tuple[str, list[Span]]:
    """The text after one rule and the next, and where its characters came from."""
    for rule in rules:
        edits = list(rule(text))
        text, spans = edited(text, edits), moved(spans, edits)
    return text, spans


def replaces(pattern: str, new: str) -> Rule:
    """Every match of a regular expression becomes `new`."""
    compiled = regex.compile(pattern)
    return lambda text: ((*match.span(), new) for match in compiled.finditer(text))


def prepends(prefix: str, unless_there: bool = False) -> Rule:
    """Put `prefix` before a text that is not empty."""
    return lambda text: [(0, 0, prefix)] if text and not (unless_there and text.startswith(prefix)) else []


def forms(name: Form) -> Rule:
    """A Unicode normalization form, cut where no character acts on the one before."""

    def edits(text: str) -> Iterator[Edit]:
        for start, end in _independent(name, text):
            new = unicodedata.normalize(name, text[start:end])
            if new != text[start:end]:
                yield start, end, new

    return edits


def _independent(form: Form, text: str) -> Iterator[Span]:
    start, last = 0, ""
    for end, character in enumerate(text):
        alone = unicodedata.normalize(form, character)
        free = unicodedata.combining(alone[0]) == 0
        if end and free and (text[end - 1] + character).isascii():
            yield start, end
            start, last = end, ""
        elif end and free:
            whole = unicodedata.normalize(form, text[start:end])
            if unicodedata.normalize(form, text[start:end] + character) == whole + alone:
                yield start, end
                start, last = end, ""
        last += character
    if text:
        yield start, len(text)


class Charsmap:
    """SentencePiece's compiled rules: the longest prefix that a rule knows becomes the rule's text.

    A double-array trie of UTF-8 bytes (the layout of Darts-clone) lies before its NUL-ended replacements. Every step is checked
    against the array, so a damaged one is an error and never a wrong read.
    """

    def __init__(self, blob: bytes, where: str):
        self._where = where
        size = struct.unpack_from("<I", blob)[0] if len(blob) >= 4 else 0
        if size % 4 or not 4 <= size <= len(blob) - 4:
            raise self._damaged(f"its trie should have {size} of {len(blob)} bytes")
        self._units, self._texts = np.frombuffer(blob, "<u4", size // 4, 4).tolist(), blob[4 + size :]
        self._steps: dict[tuple[int, str], tuple[int, str | None] | None] = {}
        self._root = self._offset(self._units[0])

    def __call__(self, text: str) -> Iterator[Edit]:
        start = 0
        while start < len(text):
            node, end, found = self._root, start, None
            while end < len(text) and (step := self._step(node, text[end])) is not None:
                node, end = step[0], end + 1
                if step[1] is not None:
                    found = (start, end, step[1])
            if found:
                yield found
            start = found[1] if found else start + 1

    def _step(self, node: int, character: str) -> tuple[int, str | None] | None:
        """The node after one more character and the text of the rule that ends there; None where no rule goes on."""
        key = (node, character)
        if key not in self._steps:
            self._steps[key] = self._walked(node, character.encode("utf-8", "surrogatepass"))
        return self._steps[key]

    def _walked(self, node: int, raw: bytes) -> tuple[int, str | None] | None:
        unit = 0
        for byte in raw:
            unit = self._unit(node ^ byte)
            if unit & 0x800000FF != byte:
                return None
            node ^= byte ^ self._offset(unit)
        return node, self._text(self._unit(node) & 0x7FFFFFFF) if unit >> 8 & 1 else None

    def _unit(self, place: int) -> int:
        if place >= len(self._units):
            raise self._damaged(f"its trie has {len(self._units)} places and points to {place}")
        return cast(int, self._units[place])

    def _offset(self, unit: int) -> int:
        return unit >> 10 << (unit >> 6 & 8)

    def _text(self, at: int) -> str:
        end = self._texts.find(b"\0", at, at + LONGEST)
        if end < 0:
            raise self._damaged(f"a replacement at {at} does not end within {LONGEST} bytes")
        try:
            return self._texts[at:end].decode("utf-8")
        except UnicodeDecodeError:
            raise self._damaged(f"the replacement at {at} is not UTF-8") from None

    def _damaged(self, why: str) -> DamagedError:
        return DamagedError("the normalizer's rules cannot be read", where=self._where, why=why, fix="download the tokenizer again")
