"""Edits: the text that Unicode's own tables give, and for each character where it came from."""

from __future__ import annotations

import random
import unicodedata

import pytest

from hornbook.text.normalize import Form, edited, forms, moved, prepends, replaces
from tests.reference.scripts import strings


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_edits_of_a_form_give_the_form(form: Form) -> None:
    dice = random.Random(0)
    marks = "ab\u0301\u0323\u0328éÅ\u1100\u1161\u11a8가ﬁ½\u09c7\u09be\u0f71\u0f72가"
    mixed = ["".join(dice.choices(marks, k=dice.randrange(1, 12))) for _ in range(2000)]
    for text in ["", *mixed, *strings(seed=1, count=1000)]:
        edits = list(forms(form)(text))
        assert edited(text, edits) == unicodedata.normalize(form, text), ascii(text)
        spans = moved([(n, n + 1) for n in range(len(text))], edits)
        assert len(spans) == len(unicodedata.normalize(form, text)) and spans == sorted(spans)
        for start, end in set(spans):  # each stretch, normalized alone, is what stands for it
            new = "".join(c for c, span in zip(edited(text, edits), spans, strict=True) if span == (start, end))
            assert new == unicodedata.normalize(form, text[start:end])


def test_a_moved_character_knows_its_place() -> None:
    text = " ab  c"
    spans = [(n, n + 1) for n in range(len(text))]
    for rule in (replaces(r"\A +", ""), replaces(" {2,}", " "), prepends("▁"), replaces(" ", "▁")):
        edits = list(rule(text))
        text, spans = edited(text, edits), moved(spans, edits)
    assert text == "▁ab▁c" and spans == [(1, 2), (1, 2), (2, 3), (3, 5), (5, 6)]
    assert edited("", prepends("▁")("")) == "" and list(prepends(" ", unless_there=True)(" a")) == []
