"""The fast trainer and encoder against the textbook one and against Hugging Face's."""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hornbook.errors import UserError
from hornbook.text import bpe, plain
from hornbook.text.split import PATTERNS, Splitter

CORPORA = {"shakespeare": ("tinyshakespeare/input.txt", 200_000), "japanese": ("japanese/wagahaiwa_nekodearu.txt", 20_000)}
ALPHABETS = ["ab", "aab ", "abc \n", "的一是不了 。", "🙂👩‍🚀é ", "xyxz1 2", "the cat sat ", "aé的🙂"]


def naive(words: Mapping[str, int], rows: int) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Count all pairs anew for every merge, with the textbook's own functions."""
    id_of = {byte: i for i, byte in enumerate(bpe.BYTE_ORDER)}
    lines = [([id_of[byte] for byte in word.encode()], count) for word, count in words.items()]
    pieces = [bytes([byte]) for byte in bpe.BYTE_ORDER]
    merges: list[tuple[int, int]] = []
    while len(pieces) < rows:
        stats: dict[tuple[int, int], int] = {}
        for ids, count in lines:
            for pair, times in plain.get_stats(ids).items():
                stats[pair] = stats.get(pair, 0) + times * count
        if not stats:
            break
        best = min(stats, key=lambda pair: (-stats[pair], pair))
        piece = pieces[best[0]] + pieces[best[1]]
        if piece not in pieces:
            pieces.append(piece)
        merges.append(best)
        lines = [(plain.merge(ids, best, pieces.index(piece)), count) for ids, count in lines]
    return pieces, merges


@pytest.mark.parametrize("seed", range(104))
def test_training_and_encoding_equal_the_naive_algorithm(seed: int) -> None:
    dice = random.Random(seed)
    alphabet = ALPHABETS[seed % len(ALPHABETS)]
    split = Splitter([r"(?s).+"]) if seed % 3 == 0 else Splitter([PATTERNS["cl100k"]])
    documents = ["".join(dice.choices(alphabet, k=dice.randrange(60))) for _ in range(dice.randrange(1, 8))]
    words = bpe.count_words(documents, split)
    rows = 256 + dice.randrange(40)
    pieces, merges = bpe.train(words, rows)
    assert (pieces, merges) == naive(words, rows)

    id_of = {piece: i for i, piece in enumerate(pieces)}
    known = {pair: id_of[pieces[pair[0]] + pieces[pair[1]]] for pair in merges}
    encoder = bpe.Words(id_of, merges, pieces)
    for word in [*words, "".join(dice.choices(alphabet, k=30))]:
        ids = [id_of[bytes([byte])] for byte in word.encode()]
        for pair in merges:  # in order of rank, each everywhere
            ids = plain.merge(ids, pair, known[pair])
        assert list(encoder[word]) == ids


def hugging_face(texts: list[str], vocab: int, split: str) -> Tokenizer:
    theirs = Tokenizer(models.BPE())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERNS[split]), "isolated"), spelled])
    theirs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False))
    return theirs


@pytest.mark.parametrize("source", ["standard library", *CORPORA])
@pytest.mark.parametrize("split", ["gpt2", "cl100k"])
def test_merges_and_ids_equal_those_of_hugging_face(source: str, split: str, request: pytest.FixtureRequest) -> None:
    if source == "standard library":
        text = Path(argparse.__file__).read_text(encoding="utf-8")
    else:
        file, size = CORPORA[source]
        text = (request.getfixturevalue("data_folder") / "corpora" / file).read_text(encoding="utf-8")[:size]
    theirs = hugging_face(text.splitlines(keepends=True), 1200, split)
    splitter = Splitter([PATTERNS[split]])
    pieces, merges = bpe.train(bpe.count_words(text.splitlines(keepends=True), splitter), 1200)
    vocab = theirs.get_vocab()
    assert {bpe.spell(piece): i for i, piece in enumerate(pieces)} == vocab
    words = bpe.Words({piece: i for i, piece in enumerate(pieces)}, merges, pieces)
    assert [i for word in splitter(text) for i in words[word]] == theirs.encode(text).ids


def test_a_vocabulary_that_uses_up_all_pairs_equals_hugging_face() -> None:
    texts = ["low low low lower lowest aaaaaaa aaaa", "newer wider wider", "ababababa bababab"]
    theirs = hugging_face(texts, 5000, "cl100k")
    pieces, _ = bpe.train(bpe.count_words(texts, Splitter([PATTERNS["cl100k"]])), 5000)
    assert {bpe.spell(piece): i for i, piece in enumerate(pieces)} == theirs.get_vocab()


def test_the_byte_order_is_hugging_faces_sorted_alphabet() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert [bpe.spell(bytes([byte])) for byte in bpe.BYTE_ORDER] == alphabet
    assert bpe.BYTE_ORDER == bytes([*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173])


def test_spelling_equals_hugging_face_and_is_undone() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in [" the", "é的🙂\n\t\x00", "~\u00a0\u00ad"]:
        assert bpe.spell(text.encode()) == "".join(piece for piece, _ in byte_level.pre_tokenize_str(text))
    every = bytes(range(256))
    assert bpe.unspell(bpe.spell(every)) == every
    assert bpe.unspell("a b") is None and bpe.unspell("的") is None and bpe.unspell("\u0144") is None


def test_a_document_is_an_edge_and_a_forbidden_piece_is_never_made() -> None:
    whole = Splitter([r"(?s).+"])
    pieces, _ = bpe.train(bpe.count_words(["ab"] * 9 + ["ba"], whole), 300)
    assert b"bab" not in pieces and {b"ab", b"ba"} <= set(pieces)
    pieces, _ = bpe.train(bpe.count_words(["abcabc"], whole), 300, forbidden={b"abc"})
    assert b"abc" not in pieces and len(pieces) > 257


def test_progress_is_told_every_merge() -> None:
    seen: list[tuple[int, int]] = []
    bpe.train({"abcd": 3}, 258, progress=lambda done, rows: seen.append((done, rows)))
    assert seen == [(257, 258), (258, 258)]


def test_the_cache_stays_bounded_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "CACHED_WORDS", 3)
    pieces, merges = bpe.train({"abab": 1}, 258)
    words = bpe.Words({piece: i for i, piece in enumerate(pieces)}, merges, pieces)
    for word in ["ab", "ba", "abab", "aab", "bb", "ab", "ab" * 100]:
        assert b"".join(pieces[i] for i in words[word]) == word.encode()
        assert len(words) <= 3


def test_half_a_surrogate_pair_is_an_error_that_says_where() -> None:
    with pytest.raises(UserError, match="U\\+D83D"):
        bpe.train({"ok \ud83d": 1}, 300)


def test_one_endless_word_takes_no_square_of_its_length() -> None:
    """A long text without an edge: an encoder that scans it once per merge made would take many minutes."""
    pieces, merges = bpe.train({"ab" * 50_000 + "a" * 25_000: 1}, 270)
    words = bpe.Words({piece: i for i, piece in enumerate(pieces)}, merges, pieces)
    text = "abaab" * 25_000
    assert b"".join(pieces[i] for i in words[text]) == text.encode()
