"""The vocabulary learns from training documents alone, and the shards hold every one of them, whole and in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hornbook.data.shards import read_ids
from hornbook.stages.corpus import make_corpus, saved_documents
from hornbook.stages.tokens import SMALLEST, lengths, make_shards, train_tokenizer
from hornbook.stages.voice import Silent
from hornbook.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    make_corpus("town", "en", 0, 40_000, 0, folder, Silent())
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return train_tokenizer(corpus, 400, "cl100k", corpus.parent / "tokenizer", Silent())


def test_the_shards_are_the_training_documents(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    make_shards(corpus, tokenizer, tmp_path / "shards", Silent())
    ids = read_ids(tmp_path / "shards" / "train.bin", tokenizer.vocab_size)
    begin = tokenizer.special("<|bos|>")
    pieces = np.split(ids, np.flatnonzero(ids == begin))[1:]
    found = [tokenizer.decode([int(token) for token in piece if int(token) not in tokenizer.specials.values()]) for piece in pieces]
    assert found == [document.text for document in saved_documents(corpus, "train")]
    assert all(int(piece[-1]) in tokenizer.end_ids for piece in pieces)
    assert int(lengths(tokenizer)[ids].sum()) == sum(document.size for document in saved_documents(corpus, "train"))


def test_a_kept_tokenizer_is_the_same_one(corpus: Path, tokenizer: Tokenizer) -> None:
    again = train_tokenizer(corpus, 400, "cl100k", corpus.parent / "tokenizer", Silent())
    assert again.fingerprint == tokenizer.fingerprint


def test_a_small_corpus_gets_a_small_vocabulary(corpus: Path, tmp_path: Path) -> None:
    size = sum(document.size for document in saved_documents(corpus, "train"))
    found = train_tokenizer(corpus, 100_000, "cl100k", tmp_path / "tokenizer", Silent(), at_most=True)
    assert SMALLEST <= found.vocab_size <= size // 64


class Heard(Silent):
    """A voice that remembers how stages ended."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def end(self, outcome: str) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize("text", ["One short line.\n", None])
def test_a_text_that_runs_out_of_pairs_says_so(text: str | None, corpus: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "texts").mkdir()
        for n in range(2):
            (tmp_path / "texts" / f"{n}.txt").write_text(text * (n + 1), encoding="utf-8")
        make_corpus(str(tmp_path / "texts"), "en", 0, 10_000, 0, corpus := tmp_path / "corpus", Silent())
    heard = Heard()
    found = train_tokenizer(corpus, 1024, "cl100k", tmp_path / "tokenizer", heard, at_most=True)
    said = f"{found.vocab_size:,} rows" + (": the text allows no more merges" if text else "")
    assert heard.outcomes == [said] and (found.vocab_size < SMALLEST) == (text is not None)
