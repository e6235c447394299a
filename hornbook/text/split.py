"""Pre-tokenizers: text in, pieces of text out, and the pieces joined are the text again.

A merge never crosses the edge of a piece, so the pattern decides what a token may be: whether a word keeps the space before
it, whether punctuation sticks to letters, how many digits share one token. The patterns are the published ones, spelled so
that the `regex` module and Oniguruma (which reads them from a tokenizer.json) agree. Any other pattern runs against the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import regex

from hornbook.errors import UserError, near

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SINGLE_DIGITS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES

# A published pattern needs a ten-thousandth of this time, and is a tenth of that length.
SECONDS, CHARACTERS_PER_SECOND = 1.0, 100_000
LENGTH, REPEATS = 10_000, 10_000
NO_END = regex.compile(
    r"(?<!\\)(?:\\\\)*\\K|\(\?(?:R|[+-]?\d|&|P>)"
)  # \K can find one place for ever; a pattern in itself fills memory

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
# Llama 3 took cl100k's; by what it does, it is the one with digits in threes.
PATTERNS["llama3"] = PATTERNS["threes"] = PATTERNS["cl100k"]

SPLITS: Mapping[str, tuple[str, ...]] = {name: (pattern,) for name, pattern in PATTERNS.items()} | {
    # DeepSeek-V3: digits, then Chinese and Japanese, then the rest, where a sign may lead a word of ASCII and marks are letters.
    "deepseek": (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
    ),
}


def patterns_named(name: str) -> tuple[str, ...]:
    """The regular expressions of a named pre-tokenizer, each for the pieces of the one before."""
    if name not in SPLITS:
        raise UserError(f"no split is named {name!r}", why="split takes a known name", fix=near(name, SPLITS))
    return SPLITS[name]


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
        limit = SECONDS + len(text) / CHARACTERS_PER_SECOND
        end = time.monotonic() + limit
        for pattern in self._compiled:
            try:
                pieces = [part for piece in pieces for part in _cut(pattern, piece, max(end - time.monotonic(), 1e-3))]
            except TimeoutError:
                why = f"cutting {len(text)} characters took more than {limit:.1f} seconds"
                fix = "use split=NAME, or a pattern whose repeats cannot share a character"
                raise UserError("the split pattern is too slow", where=_shown(pattern.pattern), why=why, fix=fix) from None
        return pieces


def _compile(pattern: str) -> regex.Pattern[str]:
    what, why = "the split pattern is not a regular expression", ""
    if len(pattern) > LENGTH or math.prod(max(1, int(n)) for n in regex.findall(r"\{\s*(\d{1,9})", pattern)) > REPEATS:
        what, why = "the split pattern is too large", f"at most {LENGTH} characters, and {REPEATS} repeats, each within another"
    elif NO_END.search(pattern):
        what, why = "the split pattern cannot be used", r"\K and patterns that call themselves have no end"
    else:
        try:
            compiled = regex.compile(pattern)
            if not compiled.flags & regex.REVERSE:
                return compiled
            what, why = "the split pattern cannot be used", "it searches backwards"
        except (regex.error, RecursionError, OverflowError, ValueError) as problem:
            why = str(problem)
    raise UserError(what, where=_shown(pattern), why=why, fix="correct it, or use split=NAME")


def _shown(pattern: str) -> str:
    return pattern if len(pattern) <= 200 else pattern[:197] + "..."


def _cut(pattern: regex.Pattern[str], text: str, seconds: float) -> list[str]:
    if not pattern.groups:
        pieces: list[str] = pattern.findall(text, timeout=seconds)
        # Matches never overlap, so when their lengths add up nothing was left between them.
        if all(pieces) and sum(map(len, pieces)) == len(text):
            return pieces
    pieces, end = [], 0
    for match in pattern.finditer(text, timeout=seconds):
        pieces += [text[end : match.start()], match.group()]
        end = match.end()
    return [piece for piece in (*pieces, text[end:]) if piece]
