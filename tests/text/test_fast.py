"""The compiled path against the Python one, which is itself held against the textbook: the same merges, the same ids."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from hornbook.errors import UserError
from hornbook.text import bpe, fast
from hornbook.text import tokenizer as module
from hornbook.text.scan import MACHINES
from hornbook.text.split import PATTERNS, Splitter
from hornbook.text.tokenizer import Tokenizer

NAMES = sorted({PATTERNS[name]: name for name in PATTERNS if PATTERNS[name] in MACHINES}.values())
WORDS = ["the", "then", "there", "aaa", "aaaa", "abab", " a", " b", " ab", "中文", "中文中文", "😀", "é", " the", "\n", "  ", "1",
         "123", "abc", "bc", "cab", "bcab", "'s", "'RE", "Ab", "\u0301", "の", "\u3000", "٣", "b" * 70, "ナツ" * 12]  # fmt: skip


def text(generator: random.Random, most: int) -> str:
    return "".join(generator.choice(WORDS) for _ in range(generator.randint(0, most)))


@pytest.mark.parametrize("name", NAMES)
def test_merges_are_those_of_python_for_any_number_of_threads(name: str) -> None:
    generator = random.Random(0)
    for _ in range(125):
        documents = [text(generator, 60) for _ in range(generator.randint(1, 6))]
        rows, forbidden = 256 + generator.randint(1, 60), ["abab", "then", "中文"][: generator.randint(0, 3)]
        words = bpe.count_words(documents, Splitter([PATTERNS[name]]))
        banned = [word.encode() for word in forbidden]
        expected = bpe.train(words, rows, banned)
        for counted in (*(fast.count(documents, MACHINES[PATTERNS[name]], threads) for threads in (1, 2, 3)), fast.weighed(words)):
            assert fast.train(counted, rows, banned) == expected


def test_counts_are_64_bits_wide() -> None:
    counted = fast.weighed({"ab": 3_000_000_000, "bc": 3_000_000_001, "cd": 2_999_999_999})
    pieces, merges = fast.train(counted, 258)
    assert pieces[256:] == [b"bc", b"ab"] and len(merges) == 2


def both_ways(tokenizer: Tokenizer, documents: list[str], monkeypatch: pytest.MonkeyPatch, threads: int = 1) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module, "SMALL", 10**12)
        patched.setattr(module, "WORTH", 10**12)
        expected = [tokenizer.encode(document) for document in documents]
    with monkeypatch.context() as patched:
        patched.setattr(module, "SMALL", 0)
        patched.setattr(module, "WORTH", 0)
        assert [tokenizer.encode(document) for document in documents] == expected
        ids, offsets = tokenizer.encode_batch(documents, threads)
        assert tokenizer._compiled is not None
    assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == expected


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(1)
    documents = [text(generator, 40) for _ in range(300)]
    tokenizer = Tokenizer.train(documents, vocab=500, split=name, at_most=True)
    fresh = [
        "",
        "a",
        "中",
        *(text(generator, 40) for _ in range(300)),
        "a" * 5000,
        " " * 4999,
        "中文の" * 700,
        "ab" * 2500,
        "é" * 999,
    ]
    both_ways(tokenizer, fresh, monkeypatch, threads=2)


@pytest.mark.parametrize("name", ["llama3", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_published_ids_are_those_of_python(name: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3 has pieces that its merges do not make; a text with all pieces of the vocabulary has them too."""
    tokenizer, generator = Tokenizer.load(data_folder / "tokenizers" / name), random.Random(2)
    pieces = [tokenizer.token_bytes(i).decode("utf-8", errors="ignore") for i in range(tokenizer.vocab_size)]
    documents = pieces[::3] + ["".join(generator.choices(pieces, k=200)) for _ in range(100)]
    both_ways(tokenizer, documents, monkeypatch)


def test_large_texts_take_the_compiled_path_and_small_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.train(["a b c"], vocab=262)
    tokenizer.encode("word " * 1000)
    assert tokenizer._compiled is None
    tokenizer.encode("word " * 30_000)
    assert tokenizer._compiled is not None


def test_training_on_much_text_is_training_on_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [text(random.Random(n), 50) for n in range(2000)]
    fast_one, custom = (Tokenizer.train(documents, vocab=400, **how) for how in ({}, {"pattern": r"[a-z]+|[^a-z]+"}))
    monkeypatch.setattr(module, "SMALL", 10**12)
    assert fast_one.document == Tokenizer.train(documents, vocab=400).document
    assert custom.document == Tokenizer.train(documents, vocab=400, pattern=r"[a-z]+|[^a-z]+").document


def test_half_a_surrogate_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 10)
    with pytest.raises(UserError, match="lone surrogate, U.D800"):
        Tokenizer.train(["a b c"], vocab=262).encode_array("a long text \ud800 with half a character")


def test_a_million_equal_characters_are_encoded() -> None:
    """What merges one place after the other over the whole run would not finish."""
    tokenizer = Tokenizer.train(["aaaa aaaaaaaa"], vocab=264)
    ids = tokenizer.encode_array("a" * 1_000_000)
    longest = max(range(tokenizer.vocab_size), key=lambda i: len(tokenizer.token_bytes(i).strip(b" ")))
    assert set(ids.tolist()) == {longest} and tokenizer.decode(ids.tolist()) == "a" * 1_000_000


def test_compiled_code_is_kept_in_the_users_cache_folder(tmp_path: Path) -> None:
    code = (
        "import numba; before = numba.config.CACHE_DIR; from hornbook.text import compiled; compiled.part('cut'); "
        "assert numba.config.CACHE_DIR == before"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment | {"XDG_CACHE_HOME": str(tmp_path)})
    assert list((tmp_path / "hornbook" / "compiled").rglob("*.nbi"))
