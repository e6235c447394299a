"""The tables that cut texts, read one character after the other in Python, against the `regex` module."""

from __future__ import annotations

import random

import pytest
import regex

from hornbook.text.scan import (
    BEFORE,
    BEFORE_LAST,
    CLOSED,
    CONTRACTION,
    JOINED,
    MACHINES,
    RETRACT,
    STATES,
    classes,
    machine,
)
from hornbook.text.split import PATTERNS

NAMES = [name for name, pattern in PATTERNS.items() if pattern in MACHINES]
PARTS = (  # of all classes, with what folds to an s or a t in another case
    "a b s S t ſ ll LL ve A B é É ǅ 中 文 の ー ʰ 1 2 3 ½ ' ' ! / ? … 😀 _ - 're 'RE 'd ß Ⴀ ა ١ ㎏ Ⅷ ⓐ"
).split() + [" ", "  ", "\n", "\r", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\u0301", "\u200d", "\0", "\u0903"]  # fmt: skip


def cut(text: str, name: str) -> list[str]:
    rules = MACHINES[PATTERNS[name]]
    table, kinds = machine(rules), classes()
    contraction = regex.compile("'(?:s|t|re|ve|m|ll|d)", regex.IGNORECASE if rules.contractions > 1 else 0)
    starts: list[int] = []
    state, i = CLOSED, 0
    while i < len(text):
        said = int(table[state + int(kinds[ord(text[i])])])
        state, size = said & STATES, 1
        found = contraction.match(text, i) if said & CONTRACTION else None
        if found:
            state, size = CLOSED, found.end() - i
            said &= ~BEFORE if said & JOINED else ~0
        if said & RETRACT:
            starts.pop()
        starts += [i - 1] if said & BEFORE_LAST else []
        starts += [i] if said & BEFORE else []
        i += size
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_those_of_the_pattern(name: str) -> None:
    pattern, generator = regex.compile(PATTERNS[name]), random.Random(0)
    for _ in range(4000):
        text = "".join(generator.choice(PARTS) for _ in range(generator.randint(1, 14)))
        assert cut(text, name) == pattern.findall(text), text


def test_the_published_patterns_have_machines() -> None:
    assert {"gpt2", "cl100k", "o200k", "qwen2"} <= set(NAMES)
