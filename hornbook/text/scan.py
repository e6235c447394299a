"""Pre-tokenizers as tables: what each character does to the piece that is open, so that a text is cut in one pass.

One idea: all published patterns speak of a few classes of characters, so each is a machine of some twenty states that reads a class
and says where a piece begins: before this character, before the last one (a run of spaces leaves its last to the next piece), or
not where it was thought to (a line end later in a run of spaces, a small letter after capitals). The tables are held equal to the
`regex` module's reading of the same patterns. `compiled/` runs them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import regex

from hornbook.text.split import PATTERNS

# Classes of characters.
SMALL, CAPITAL, LETTER, MARK, DIGIT, SPACE, BLANK, LINE, APOSTROPHE, SLASH, OTHER = range(11)
CLASSES = 16  # columns of a table: a power of two
WORDS = {
    SMALL: r"\p{Ll}", CAPITAL: r"[\p{Lu}\p{Lt}]", LETTER: r"[\p{Lm}\p{Lo}]", MARK: r"\p{M}", DIGIT: r"\p{N}", BLANK: r"\s",
    LINE: r"[\r\n]", SPACE: " ", APOSTROPHE: "'", SLASH: "/",
}  # fmt: skip

# What a step says: the next state, which is the row of the table where it begins, and above it what to do.
STATES, RETRACT, BEFORE_LAST, BEFORE, CONTRACTION, JOINED = 31 * CLASSES, 512, 1024, 2048, 4096, 8192


@dataclass(frozen=True)
class Rules:
    """What a published pattern does.

    contractions   0: none of its own; 1: 's and its like are a piece, small letters only; 2: of any case; 3: they end a word
    prefix         any one sign or blank may lead a word; else only a space
    digits         how many make a piece; 0: any number, and a space may lead them
    lines          line ends stick to the punctuation or the blanks before them
    cased          a word ends where capitals begin; marks are letters
    slash          slashes stick like line ends
    """

    contractions: int
    prefix: bool = True
    digits: int = 3
    lines: bool = True
    cased: bool = False
    slash: bool = False


MACHINES = {
    PATTERNS["gpt2"]: Rules(1, prefix=False, digits=0, lines=False),
    PATTERNS["cl100k"]: Rules(2),
    PATTERNS["qwen2"]: Rules(2, digits=1),
    PATTERNS["o200k"]: Rules(3, cased=True, slash=True),
}

# States: what is open. The blanks' states say how the run ends, in a space (S) or another blank (B), one long or longer (M), and
# whether it follows line ends that closed a piece (T).
(CLOSED, WORD, CAPITALS, LETTERS, CAPITALS_AFTER, DIGIT1, DIGIT2, DIGIT3, SIGN, SIGNS, LINES, S, B, MS, MB, BROKEN, TS, TB, TMS, TMB) = range(0, 20 * CLASSES, CLASSES)  # fmt: skip  # noqa: E501
TAIL = {SPACE: {S: MS, B: MS, MS: MS, MB: MS, TS: TMS, TB: TMS, TMS: TMS, TMB: TMS},
        BLANK: {S: MB, B: MB, MS: MB, MB: MB, TS: TMB, TB: TMB, TMS: TMB, TMB: TMB}}  # fmt: skip
MANY, THOUGHT = (MS, MB, TMS, TMB), (TS, TB, TMS, TMB)


@cache
def machine(rules: Rules) -> npt.NDArray[np.uint16]:
    """The table: entry [state + class] is the next state and what is said of this character."""
    table = np.zeros(STATES + CLASSES, np.uint16)
    for state in range(CLOSED, TMB + CLASSES, CLASSES):
        for kind in range(OTHER + 1):
            table[state + kind] = _step(rules, state, kind)
    return table


def _step(rules: Rules, state: int, kind: int) -> int:
    if kind == MARK and not rules.cased:
        kind = OTHER
    if kind == LINE and not rules.lines:
        kind = BLANK
    word = kind in (SMALL, CAPITAL, LETTER, MARK)
    begin = BEFORE | _begin(rules, kind)
    if state in (WORD, CAPITALS, LETTERS, CAPITALS_AFTER):
        if word:
            return _within_word(rules, state, kind)
        return begin | CONTRACTION | JOINED if kind == APOSTROPHE and rules.contractions == 3 else begin
    if state in (DIGIT1, DIGIT2, DIGIT3):
        if kind == DIGIT and rules.digits == 0:
            return state
        return state + CLASSES if kind == DIGIT and state < DIGIT1 + CLASSES * (rules.digits - 1) else begin
    if state in (SIGN, SIGNS):
        if kind in (APOSTROPHE, SLASH, OTHER) or (kind == MARK and state == SIGNS):
            return SIGNS
        if kind == LINE:
            return LINES
        return _begin(rules, kind) if word and state == SIGN and rules.prefix else begin
    if state == LINES:
        return LINES if kind == LINE or (kind == SLASH and rules.slash) else begin
    if state == BROKEN:
        return BROKEN if kind == LINE else BEFORE | (TS if kind == SPACE else TB) if kind in (SPACE, BLANK) else begin
    if state == CLOSED:
        return begin
    return _after_blanks(rules, state, kind, word, begin)


def _begin(rules: Rules, kind: int) -> int:
    """The state that a piece's first character opens."""
    if kind in (SMALL, CAPITAL, LETTER, MARK):
        return {SMALL: WORD, CAPITAL: CAPITALS}.get(kind, LETTERS) if rules.cased else WORD
    if kind == APOSTROPHE and rules.contractions in (1, 2):
        return SIGN | CONTRACTION
    return {DIGIT: DIGIT1, SPACE: S, BLANK: B, LINE: BROKEN}.get(kind, SIGN)


def _within_word(rules: Rules, state: int, kind: int) -> int:
    """Capitals (and letters without case), then small ones (and letters without case): a capital after small ones begins a word.

    After letters without case, capitals are thought to begin a word, which what follows them may prove wrong.
    """
    if not rules.cased:
        return WORD
    wrong = RETRACT if state == CAPITALS_AFTER else 0
    if state == WORD:
        return BEFORE | CAPITALS if kind == CAPITAL else WORD
    if kind == CAPITAL:
        return BEFORE | CAPITALS_AFTER if state == LETTERS else state
    return wrong | (WORD if kind == SMALL else LETTERS)


def _after_blanks(rules: Rules, state: int, kind: int, word: bool, begin: int) -> int:
    if kind in TAIL:
        return TAIL[kind][state]
    if kind == LINE:
        return BROKEN | (RETRACT if state in THOUGHT else 0)
    space = state in (S, MS, TS, TMS)
    many = BEFORE_LAST if state in MANY else 0
    if word and (rules.prefix or space):
        return many | _begin(rules, kind)
    if space and kind in (APOSTROPHE, SLASH, OTHER):
        return many | SIGNS
    return many | (DIGIT1 if space and kind == DIGIT and rules.digits == 0 else begin)


@cache
def classes() -> npt.NDArray[np.uint8]:
    """The class of every code point, as the `regex` module's Unicode has it."""
    found = np.full(sys.maxunicode + 1, OTHER, np.uint8)
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    for kind, pattern in WORDS.items():
        for run in regex.finditer(f"{pattern}+", every):
            found[run.start() : run.end()] = kind
    return found
