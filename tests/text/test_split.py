"""Splits against strangers: tiktoken's and Hugging Face's published pre-tokenizers, on other engines and in any script."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, pre_tokenizers

from hornbook.errors import UserError
from hornbook.text.split import PATTERNS, SPLITS, Splitter, patterns_named

# Whitespace of every kind, contractions with a long s and capitals, digits of several scripts, marks, joiners, controls.
PARTS = [" ", "  ", "\n", "\r\n", "\r", "\t", "\v", "\f", "\u00a0", "\u3000", "\u0085", "\u2028", "\u2029", "\u202f", "\u1680"]
PARTS += [
    "\x1c",
    "\x1f",
    "\x00",
    "\x7f",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u180e",
    "\u00ad",
    "\ufdd0",
    "\uffff",
    "\U0010ffff",
    "\ue000",
]
PARTS += [
    "'s",
    "'S",
    "'\u017f",
    "'T",
    "'re",
    "'RE",
    "'ve",
    "'Ve",
    "'m",
    "'ll",
    "'LL",
    "'lL",
    "'d",
    "'D",
    "\u2019s",
    "'",
    "''",
    "don't",
]
PARTS += [
    "a",
    "Z",
    "the",
    "IT",
    "Hello",
    "\u212a",
    "k",
    "ß",
    "ẞ",
    "İ",
    "ı",
    "ǅ",
    "é",
    "Å",
    "ﬁ",
    "я",
    "Я",
    "Ω",
    "ς",
    "א",
    "ع",
    "𝒜",
    "ა",
]
PARTS += [
    "e\u0301",
    "\u0301",
    "\u0323\u0301",
    "ʰ",
    "ª",
    "1",
    "12",
    "123",
    "1234567",
    "٣",
    "४२",
    "Ⅷ",
    "½",
    "一",
    "〇",
    "𝟘",
    "①",
    "²",
]
PARTS += [
    "你好",
    "龥龦",
    "㐀",
    "𠀀",
    "のカ",
    "ー",
    "゛",
    "゠",
    "・",
    "ｶﾞ",
    "한",
    "\u1112\u1161\u11ab",
    "ก",
    "ที่",
    "नि",
    "தி",
    "ላ",
    "မြ",
    "\u0488",
]
PARTS += [
    "!",
    "...",
    "//",
    "/",
    "_",
    "$",
    "+",
    "<=>",
    "«",
    "。",
    "、",
    "¿",
    "€",
    "^",
    "`",
    "~a",
    "-b",
    "🙂",
    "👩\u200d🚀",
    "🇨🇳",
    "👍🏽",
    "❤️",
    "<|end|>",
    "|",
]


@cache
def known_characters() -> list[str]:
    """Some of every plane, but only what Oniguruma knows: what came to Unicode later is all that the engines class apart."""
    known = pre_tokenizers.Split(Regex(r"\P{Cn}"), "removed")
    dice = random.Random(7)
    limits = [0x250, 0x3000, 0x10000, 0x20000, 0x32000]
    picked = [dice.randrange(0x80, dice.choice(limits)) for _ in range(6000)]
    return [chr(code) for code in picked if not 0xD800 <= code < 0xE000 and not known.pre_tokenize_str(chr(code))]


def fuzz(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    characters = known_characters()
    return [
        "".join(dice.choice(dice.choice((PARTS, PARTS, characters))) for _ in range(dice.randrange(1, 14))) for _ in range(count)
    ]


AMOUNTS = [10_000, pytest.param(100_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", AMOUNTS)
@pytest.mark.parametrize(("name", "theirs"), [("gpt2", "r50k_base"), ("cl100k", "cl100k_base"), ("o200k", "o200k_base")])
def test_the_ids_of_the_pieces_are_tiktokens(
    name: str, theirs: str, count: int, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own published pattern, on its own engine: every piece of ours, encoded alone by it, gives its ids of the whole text."""
    tiktoken = pytest.importorskip("tiktoken")
    public, load = pytest.importorskip("tiktoken_ext.openai_public"), pytest.importorskip("tiktoken.load").load_tiktoken_bpe
    folder = data_folder / "tokenizers" / "tiktoken"

    def ranks(address: str, expected_hash: str) -> Any:
        return load(str(folder / Path(address).name), expected_hash)

    monkeypatch.setattr(public, "load_tiktoken_bpe", ranks)
    encoding = tiktoken.Encoding(**getattr(public, theirs)())
    piece_ids = cache(lambda piece: encoding._core_bpe.encode_single_piece(piece.encode()))
    ours = Splitter(patterns_named(name))
    for text in fuzz(count, seed=count):
        assert [i for piece in ours(text) for i in piece_ids(piece)] == encoding.encode_ordinary(text), repr(text)


@pytest.mark.parametrize("count", AMOUNTS)
@pytest.mark.parametrize(("name", "theirs"), [("llama3", "llama3"), ("qwen2", "qwen3")])
def test_the_pieces_are_those_of_the_published_file(name: str, theirs: str, count: int, data_folder: Path) -> None:
    file = data_folder / "tokenizers" / theirs / "tokenizer.json"
    steps = json.loads(file.read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"]
    assert steps[0]["pattern"] == {"Regex": PATTERNS[name]}
    published, ours = tokenizers.Tokenizer.from_file(str(file)).pre_tokenizer, Splitter(patterns_named(name))
    assert published is not None
    for text in fuzz(count, seed=count + 1):
        spans = [span for _, span in published.pre_tokenize_str(text)]
        assert ours(text) == [text[start:end] for start, end in spans], repr(text)


@pytest.mark.parametrize("count", AMOUNTS)
@pytest.mark.parametrize("name", ["gpt2", "o200k", "deepseek"])
def test_the_pieces_are_those_of_another_engine(name: str, count: int) -> None:
    theirs = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns_named(name)])
    ours = Splitter(patterns_named(name))
    for text in fuzz(count, seed=count + 2):
        assert ours(text) == [piece for piece, _ in theirs.pre_tokenize_str(text)], repr(text)


@pytest.mark.slow
def test_the_engines_class_apart_only_what_came_to_unicode_later() -> None:
    """Every character there is, in the places where its class decides."""
    pattern = PATTERNS["o200k"]
    theirs, ours = pre_tokenizers.Split(Regex(pattern), "isolated"), Splitter([pattern])
    unknown = pre_tokenizers.Split(Regex(r"\P{Cn}"), "removed")

    def differs(characters: str) -> bool:
        text = "".join(f"\nab{c}{c}x1{c}2 {c}!{c}?'{c}" for c in characters)
        return ours(text) != [piece for piece, _ in theirs.pre_tokenize_str(text)]

    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    blocks = ["".join(map(chr, codes[i : i + 500])) for i in range(0, len(codes), 500)]
    apart = [c for block in blocks if differs(block) for c in block if differs(c)]
    assert all(unknown.pre_tokenize_str(c) for c in apart)


def test_gpt2_equals_the_pattern_inside_hugging_face() -> None:
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = Splitter(patterns_named("gpt2"))
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


@pytest.mark.parametrize("name", SPLITS)
def test_nothing_is_lost_by_a_named_split(name: str) -> None:
    ours = Splitter(patterns_named(name))
    for text in ["", *fuzz(300, seed=5)]:
        assert "".join(ours(text)) == text and all(ours(text))


def test_what_the_published_patterns_are_known_for() -> None:
    def cut(name: str, text: str) -> list[str]:
        return Splitter(patterns_named(name))(text)

    assert cut("gpt2", "I'LL say 12345") == ["I", "'", "LL", " say", " 12345"]
    assert cut("cl100k", "I'LL say 12345") == ["I", "'LL", " say", " ", "123", "45"]
    assert cut("digits", "I'LL say 123") == ["I", "'LL", " say", " ", "1", "2", "3"]
    assert cut("threes", "a 1234") == ["a", " ", "123", "4"]
    assert cut("deepseek", "say 12345漢字カナabc _init()") == ["say", " ", "123", "45", "漢字カナ", "abc", " _", "init", "()"]
    assert cut("o200k", "I'LL sayHello") == ["I'LL", " say", "Hello"]


def test_errors_name_the_near_name_and_the_fault() -> None:
    with pytest.raises(UserError, match="did you mean 'cl100k'"):
        patterns_named("cl100")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a", "missing \\)"), ("(" * 3000, "recursion"), ("a" * 10_001, "too large"), ("(((a{999}){999}){999}", "too large"),
        ("(?R)?a", "call themselves"), ("(a(?1)?)b", "call themselves"), (r"(?=ab\K)|a", "have no end"), ("(?r)a+", "backwards"),
        ("a{99999999999999}", "too large|too big"), (r"\p{Nope}", "property"), (r"\L<a>", "list"), ("a{5,2}", "repeat"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_used_is_refused_when_it_is_given(pattern: str, says: str) -> None:
    with pytest.raises(UserError, match=f"(?s)split pattern.*({says}).*Fix:|({says})") as caught:
        Splitter([pattern])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("patterns", [["(a|a)*$"], ["(?:a|aa)+$"], ["!", "(?:a|aa)+b"], [r"(?:[a-z]|\w)*\d"]])
def test_a_pattern_that_never_ends_is_stopped(patterns: list[str]) -> None:
    """Not after a second for each piece, but for the text."""
    ours: Callable[[str], list[str]] = Splitter(patterns)
    begin = time.thread_time()
    with pytest.raises(UserError, match="(?s)too slow.*took more than 1.* seconds.*Fix:.*split=NAME"):
        ours(("a" * 60 + "!") * 40)
    assert time.thread_time() - begin < 2
    assert ours("aa") == ["aa"]
