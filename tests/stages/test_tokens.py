"""The vocabulary learns from training documents alone, and the shards hold every one of them, whole and in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hornbook.batch import IGNORE
from hornbook.data.shards import read_ids
from hornbook.stages.corpus import make_corpus, saved_documents
from hornbook.stages.tokens import SMALLEST, lengths, make_shards, masking, train_tokenizer
from hornbook.stages.voice import Silent
from hornbook.text.chat import MASK, SPECIALS
from hornbook.text.tokenizer import Tokenizer

DOCS = Path(__file__).resolve().parents[2] / "docs"


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


def words_of(tokenizer: Tokenizer, ids: list[int]) -> list[list[int]]:
    """The places of the tokens of each word, which is what Python's split makes of the text; specials end one, too."""
    words, inside = list[list[int]](), False
    for place, token in enumerate(ids):
        for byte in tokenizer.token_bytes(token) or b" ":
            if bytes([byte]).isspace():
                inside = False
            elif not inside:
                inside = True
                words.append([place])
            elif words[-1][-1] != place:
                words[-1].append(place)
    return words


def test_words_of_real_text_are_hidden_whole() -> None:
    """With their punctuation, whatever lines they stand in; and no two of them for being neighbours."""
    text = (DOCS / "en" / "training.md").read_text(encoding="ascii", errors="ignore")
    tokenizer = Tokenizer.train([text], vocab=500, specials=(*SPECIALS, MASK))
    ids = [tokenizer.special("<|bos|>"), *tokenizer.encode(text), tokenizer.special("<|bos|>"), *tokenizer.encode("so it goes")]
    words, text_words = words_of(tokenizer, ids), [*text.split(), "so", "it", "goes"]
    assert [b"".join(map(tokenizer.token_bytes, (ids[place] for place in word))).decode().strip() for word in words] == text_words
    chosen = {words_too: [False] * len(words) for words_too in (False, True)}
    for whole in chosen:
        asked = masking(tokenizer, whole).hide(np.array(ids), 0, 0)[1] != IGNORE
        found = [{bool(asked[place]) for place in word} for word in words]
        assert (max(map(len, found)) == 1) is whole, "a word is hidden whole or not at all, where it is told to"
        chosen[whole] = [True in each for each in found]
    share = sum(chosen[True]) / len(words)
    assert abs(share - 0.15) < 5 * (0.15 * 0.85 / len(words)) ** 0.5 and sum(len(word) > 1 for word in words) > 500
    pairs = sum(first and second for first, second in zip(chosen[True], chosen[True][1:], strict=False))
    assert pairs < 2 * 0.15 * sum(chosen[True])


def test_chinese_is_hidden_by_the_token_but_not_inside_a_character() -> None:
    text = (DOCS / "zh" / "training.md").read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text[:300]], vocab=320, specials=(*SPECIALS, MASK))  # most characters stay three tokens
    ids = tokenizer.encode("同一条命令即可继续")
    hide = masking(tokenizer, True).hide
    asked = np.stack([hide(np.array(ids), 0, sample)[1] != IGNORE for sample in range(400)])
    together = (asked[:, 1:] == asked[:, :-1]).all(0).tolist()
    read = [b"".join(map(tokenizer.token_bytes, ids[:end])) for end in range(1, len(ids))]
    inside = [one.decode(errors="ignore").encode() != one for one in read]
    assert together == inside and 3 < sum(inside) < len(inside)
