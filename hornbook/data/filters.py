"""A document in; the document, perhaps tidied, or None out. `FILTERS` is the order they are asked in, and names the reasons.

The one idea: each filter is one figure of the text and one limit on it, so that it can be read, argued about and replaced
alone. The limits are set to keep every kind of real text (verse with refrains, tables of digits, source code, any script) and
to catch what no reader would call text. Conversations are only checked for holding an answer. After Rae et al. 2021, "Scaling
Language Models: Methods, Analysis & Insights from Training Gopher", appendix A.1, with shares of characters in place of shares
of words and lines: they mean the same in every script.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import regex

from hornbook.data.documents import Document

Filter = Callable[[Document], Document | None]

SHORTEST = 8  # characters that are not white space
NOISE_SHARE = 0.005
REPEATED_SHARE = 0.75  # of the characters of all lines, in lines that have been there before
REPEATED_LINE_SHARE = 0.5  # of the characters of all lines, in one line
REPEATED_LINE_TIMES = 6
WORD_SHARE = 0.4

# Control characters but tabs, line ends and form feed; U+FFFD, which stands where a decoder gave up; and the marks of
# UTF-8 that was read as another encoding and saved again: of curly quotes and dashes, of U+FFFD itself, and of U+FFFD as GBK.
_NOISE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]|\u00e2\u20ac.|\u00ef\u00bf\u00bd|\u951f\u65a4\u62f7")
# UTF-8 read as Latin-1 or Windows-1252: a first byte as a letter, then as many following bytes as it announces. Two letters may
# stand like this by chance (a French word in capitals before a closing quotation mark), so a single find is no proof.
_FOLLOWING = (
    "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
_MOJIBAKE = re.compile(f"[\u00c2-\u00df]{_FOLLOWING}|[\u00e0-\u00ef]{_FOLLOWING}{{2}}|[\u00f0-\u00f4]{_FOLLOWING}{{3}}")

_LINE_END = re.compile("\r\n?|\x85")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ufeff]")

_ASCII_WORD = bytes(range(ord("0"), ord("9") + 1)) + bytes(range(ord("A"), ord("Z") + 1)) + bytes(range(ord("a"), ord("z") + 1))
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def without_noise(document: Document) -> Document | None:
    """Drops text of which a share above `NOISE_SHARE` is control characters, U+FFFD or wrongly decoded UTF-8."""
    text = document.text
    noise = sum(map(len, _NOISE.findall(text)))
    if not text.isascii() and len(wrong := _MOJIBAKE.findall(text)) > 1:
        noise += sum(map(len, wrong))
    return None if noise > NOISE_SHARE * len(text) else document


def tidy(document: Document) -> Document | None:
    """Never drops: line ends become "\\n", and stray control characters and byte order marks go."""
    text = document.text
    if _INVISIBLE.search(text) or "\x85" in text:
        return replace(document, text=_INVISIBLE.sub("", _LINE_END.sub("\n", text)))
    return document


def not_empty(document: Document) -> Document | None:
    """Drops text of fewer than `SHORTEST` characters, white space not counted."""
    return None if solid(document.text) < SHORTEST else document


def not_repeated(document: Document) -> Document | None:
    """Drops text that is mostly lines which have been there before, or to the larger part one line again and again."""
    lines = [line for raw in document.text.split("\n") if (line := raw.strip())]
    total = sum(map(len, lines))
    repeated = total - sum(map(len, set(lines)))
    if repeated > REPEATED_SHARE * total:
        return None
    # One line's share cannot be large where the share of all repeats is small: count only where it may be.
    if 2 * repeated > REPEATED_LINE_SHARE * total:
        for line, times in Counter(lines).most_common():
            if times < REPEATED_LINE_TIMES:
                break
            if times * len(line) > REPEATED_LINE_SHARE * total:
                return None
    return document


def not_symbols(document: Document) -> Document | None:
    """Drops text of which less than `WORD_SHARE` is letters, their marks and digits, of any script, without white space."""
    text = document.text
    raw = text.encode("utf-8", "surrogatepass")
    words = len(raw) - len(raw.translate(None, _ASCII_WORD))
    if not text.isascii():
        words += sum(map(len, _WORD.findall(" ".join(_BEYOND_ASCII.findall(text)))))
    return None if words < WORD_SHARE * solid(text) else document


def solid(text: str) -> int:
    """Characters that are not white space."""
    return sum(map(len, text.split()))


def with_answer(document: Document) -> Document | None:
    """Drops a conversation without an answer: an assistant's message that says something."""
    answers = (message["content"] for message in document.messages if message["role"] == "assistant")
    return document if any(answer.strip() for answer in answers) else None


# Noise is judged before tidying takes its signs away.
FILTERS: dict[str, Filter] = {
    "noise": without_noise,
    "tidy": tidy,
    "empty": not_empty,
    "repeated": not_repeated,
    "symbols": not_symbols,
}
CONVERSATION_FILTERS: dict[str, Filter] = {"no answer": with_answer}
