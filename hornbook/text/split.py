"""Pre-tokenizers: text in, pieces of text out, and the pieces joined are the text again.

A merge never crosses the edge of a piece, so the pattern decides what a token may be: whether a word keeps the space before
it, whether punctuation sticks to letters, how many digits share one token. The patterns are the published ones, spelled so
that the `regex` module and Oniguruma (which reads them from a tokenizer.json) agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from hornbook.errors import UserError, near

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SINGLE_DIGITS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES

PATTERNS = {
    # Letters, digits and the rest apart, each with at most one space before it.
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    # Any one sign may lead a word, digits go in threes, line ends stick to the punctuation before them.
    "cl100k": _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES,
    # Words also break where capitals begin and keep their contraction; marks count as letters.
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS + "?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS + "?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
    ),
    # Qwen's pattern is cl100k with every digit alone, so it has two names: whose it is, and what it does.
    "qwen2": _SINGLE_DIGITS,
    "digits": _SINGLE_DIGITS,
}


def pattern_named(name: str) -> str:
    """The regular expression of a named pre-tokenizer."""
    if name not in PATTERNS:
        raise UserError(f"no split is named {name!r}", why="split takes a known name", fix=near(name, PATTERNS))
    return PATTERNS[name]


def literal(text: str) -> str:
    """The pattern that matches this text and nothing else."""
    return str(regex.escape(text))


class Splitter:
    """Cuts text by one pattern, or by several one after the other, each within the pieces of the one before."""

    def __init__(self, patterns: Sequence[str]):
        self.patterns = tuple(patterns)
        self._compiled = [_compile(pattern) for pattern in self.patterns]

    def __call__(self, text: str) -> list[str]:
        """The pieces in order; what a pattern does not match is kept as a piece of its own."""
        pieces = [text] if text else []
        for pattern in self._compiled:
            pieces = [part for piece in pieces for part in _cut(pattern, piece)]
        return pieces


def _compile(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except regex.error as problem:
        what = "the split pattern is not a regular expression"
        raise UserError(what, where=pattern, why=str(problem), fix="correct it, or use split=NAME") from None


def _cut(pattern: regex.Pattern[str], text: str) -> list[str]:
    if not pattern.groups:
        pieces: list[str] = pattern.findall(text)
        # Matches never overlap, so when their lengths add up nothing was left between them.
        if all(pieces) and sum(map(len, pieces)) == len(text):
            return pieces
    pieces, end = [], 0
    for match in pattern.finditer(text):
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    return [piece for piece in (*pieces, text[end:]) if piece]
