"""Splits against Hugging Face's splitter, which runs the same patterns on another engine (Oniguruma)."""

from __future__ import annotations

import random

import pytest
from tokenizers import Regex, pre_tokenizers

from hornbook.errors import UserError
from hornbook.text.split import PATTERNS, Splitter, pattern_named

# Whitespace of every kind, contractions with a long s and capitals, digits of several scripts, marks, joiners, controls.
PARTS = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0085", "\u2028", "\x1c", "\x00", "\u200b", "\u200d", "\ufeff"]
PARTS += ["'s", "'S", "'\u017f", "'ll", "'LL", "'Ve", "\u2019s", "don't", "a", "Z", "ß", "İ", "ǅ", "é"]
PARTS += ["e\u0301", "\u0301", "ʰ", "ª", "1", "12", "1234567", "٣", "Ⅷ", "½", "你好", "のカ", "한", "ก", "नि"]
PARTS += ["!", "...", "//", "_", "$", "🙂", "👩‍🚀", "<|end|>", "|"]


def fuzz(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    return ["".join(dice.choices(PARTS, k=dice.randrange(1, 14))) for _ in range(count)]


@pytest.mark.parametrize("name", PATTERNS)
def test_pieces_equal_those_of_hugging_face(name: str) -> None:
    theirs = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    ours = Splitter([PATTERNS[name]])
    for text in fuzz(3000, seed=1):
        assert ours(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], text


def test_gpt2_equals_the_pattern_inside_hugging_face() -> None:
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = Splitter([pattern_named("gpt2")])
    for text in fuzz(2000, seed=2):
        spans = [span for _, span in theirs.pre_tokenize_str(text)]
        assert ours(text) == [text[start:end] for start, end in spans], text


def test_several_patterns_cut_one_after_the_other() -> None:
    theirs = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.Split(Regex(PATTERNS["gpt2"]), "isolated")])
    ours = Splitter([r"\p{N}", PATTERNS["gpt2"]])
    for text in fuzz(2000, seed=3):
        assert ours(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], text


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), r"\d", r"(a)|(b)", r"x*", r"(?<=,)", r"[a-z]+"])
def test_nothing_is_lost_whatever_the_pattern_matches(pattern: str) -> None:
    ours = Splitter([pattern])
    for text in ["", *fuzz(300, seed=4), "abba, xx, 12"]:
        assert "".join(ours(text)) == text and all(ours(text))


def test_what_the_published_patterns_are_known_for() -> None:
    def cut(name: str, text: str) -> list[str]:
        return Splitter([pattern_named(name)])(text)

    assert cut("gpt2", "I'LL say 12345") == ["I", "'", "LL", " say", " 12345"]
    assert cut("cl100k", "I'LL say 12345") == ["I", "'LL", " say", " ", "123", "45"]
    assert cut("digits", "I'LL say 123") == ["I", "'LL", " say", " ", "1", "2", "3"]
    assert cut("o200k", "I'LL sayHello") == ["I'LL", " say", "Hello"]


def test_errors_name_the_near_name_and_the_fault() -> None:
    with pytest.raises(UserError, match="did you mean 'cl100k'"):
        pattern_named("cl100")
    with pytest.raises(UserError, match="missing \\)"):
        Splitter(["(a"])
