"""Tokens from close: merges against `encode`, spellings against tokenizers', planted rows that are out of reach or double."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Theirs
from tokenizers import pre_tokenizers

from hornbook.stages.laboratory import home
from hornbook.text.bpe import spell
from hornbook.text.lab_samples import domains
from hornbook.text.lab_vocab import inspect, merge_ranks, merges, script, shown, unreachable, vocabulary
from hornbook.text.scored import ScoredTokenizer
from hornbook.text.sentencepiece import BYTE, NORMAL, UNKNOWN, Vocabulary
from hornbook.text.split import PATTERNS
from hornbook.text.tokenizer import Tokenizer, byte_level

TEXT = "Zoë paid 12 coins.\n\t你好，世界 👩\u200d🎓 e\u0301"


def test_every_word_ends_in_the_pieces_that_encode_gives() -> None:
    tokenizer = home("home-zh-en")
    for text in (*domains().values(), TEXT):
        found = inspect(tokenizer, text)
        ends = [piece for steps in found["merges"].values() for piece in steps[-1]]
        assert set(ends) == {token["piece"] for token in found["tokens"]}
        assert all(len(a) > len(b) for steps in found["merges"].values() for a, b in zip(steps, steps[1:], strict=False))


def test_the_merges_of_a_word_come_in_the_order_in_which_they_were_learned() -> None:
    tokenizer = Tokenizer.train(["abcd abcd abcd cd cd ab"], vocab=300, at_most=True, split="gpt2", specials=())
    ranks = merge_ranks(tokenizer)
    assert [[shown(piece) for piece in step] for step in merges(ranks, b"abcdx")][-1] == ["abcd", "x"]
    joined = [set(b) - set(a) for steps in [merges(ranks, b" abcd")] for a, b in zip(steps, steps[1:], strict=False)]
    order = [spell(next(iter(new))) for new in joined]
    made = ["".join(pair) for pair in ranks]
    assert [made.index(piece) for piece in order] == sorted(made.index(piece) for piece in order)


def test_the_byte_alphabet_is_that_of_tokenizers() -> None:
    byte_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = inspect(home("home-zh-en"), TEXT)
    assert "".join(token["spelled"] for token in found["tokens"]) == byte_alphabet.pre_tokenize_str(TEXT)[0][0]
    assert bytes.fromhex("".join(token["bytes"] for token in found["tokens"])).decode() == TEXT
    assert {c["character"]: (c["ord"], chr(int(c["code"][2:], 16))) for c in found["characters"]} == {c: (ord(c), c) for c in TEXT}


@pytest.mark.parametrize(
    ("piece", "where"),
    [
        (" the", "Latin"),
        ("论文", "Han"),
        ("の", "Hiragana"),
        ("123", "digits"),
        ("  \n", "spaces"),
        ("();", "signs"),
        ("Я", "Cyrillic"),
    ],
)
def test_scripts(piece: str, where: str) -> None:
    assert script(piece.encode()) == where
    assert script(piece.encode()[:-1] + b"\xe8") == "part of a character"


def planted() -> Tokenizer:
    """Bytes, one merge, and rows that no text gives: no merge leads to `xyz` or half a letter, and the pattern cuts `a b`."""
    letters = [spell(bytes([byte])) for byte in range(256)]
    pieces = [*letters, spell(b"ab"), spell(b"xyz"), spell(b"a b"), spell(b"\xe8\xae")]
    return Tokenizer(byte_level({piece: i for i, piece in enumerate(pieces)}, ["a b"], [PATTERNS["gpt2"]], {"<|end|>": 260}))


def test_planted_rows_out_of_reach_are_found_and_no_other() -> None:
    tokenizer = planted()
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert unreachable(tokenizer).keys() == never | {257, 258, 259}
    for byte in range(0x110000):  # the bytes that UTF-8 has, by asking it
        if not 0xD800 <= byte < 0xE000 and byte % 61 == 0:
            assert not never.intersection(chr(byte).encode())
    found = vocabulary(tokenizer)
    assert [row["id"] for row in found["unreachable"]] == sorted(unreachable(tokenizer))
    assert sum(found["scripts"].values()) + len(found["specials"]) == found["rows"] == 261
    assert found["longest"][0]["bytes"] == 3 and found["duplicates"] == []


def test_reach_agrees_with_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer, folder = home("home-en"), tmp_path_factory.mktemp("home")
    tokenizer.save(folder)
    theirs, lost = Theirs.from_file(str(folder / "tokenizer.json")), unreachable(tokenizer)
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
        if piece and "\ufffd" not in piece:
            assert (theirs.encode(piece, add_special_tokens=False).ids == [token]) == (token not in lost)


def test_variants_differ_in_case_or_space_alone() -> None:
    tokenizer = Tokenizer.train(["The the the THE The the"] * 3, vocab=300, at_most=True, split="gpt2", specials=())
    pieces = [shown(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
    slow = sum(any(b.strip().lower() == a.strip().lower() != "" for b in pieces[:i]) for i, a in enumerate(pieces))
    assert vocabulary(tokenizer)["variants"] == slow > 26


@pytest.mark.parametrize("name", ["llama2", "t5/t5_tokenizer_base.model", "wordpiece", "gguf_vocab/ggml-vocab-bert-bge.gguf"])
def test_other_kinds_of_vocabularies(name: str, data_folder: Path) -> None:
    """What some text gives is not called out of reach, and little else is left over."""
    tokenizer = Tokenizer.load(data_folder / "tokenizers" / name)
    lost, texts = unreachable(tokenizer), [*domains().values(), (data_folder / "README.md").read_text(encoding="utf-8"), TEXT]
    assert not lost.keys() & {token for text in texts for token in tokenizer.encode(text)}
    assert len(lost) < 0.05 * tokenizer.vocab_size
    found = inspect(tokenizer, TEXT)
    assert [token["id"] for token in found["tokens"]] == tokenizer.encode(TEXT) and found["merges"] == {}
    assert all(token["piece"] and token["spelled"] for token in found["tokens"])


@pytest.mark.parametrize("unigram", [False, True])
def test_a_piece_of_sentencepieces_that_nothing_gives(unigram: bool) -> None:
    """No pair spells abc; as the worst of all, it is never the best cut. A byte whose character is a piece is not asked for."""
    pieces = ["<unk>", "<0x61>", "<0x7A>", "▁", "a", "b", "c", "▁a", "abc", "ac"]
    scores = [0.0, 0.0, 0.0, -1.0, -1.0, -1.0, -1.0, -1.5, -9.0, -1.5]
    types = [UNKNOWN, BYTE, BYTE, *[NORMAL] * (len(pieces) - 3)]
    tokenizer = ScoredTokenizer(Vocabulary(pieces, scores, types, unigram).document(""))
    assert {tokenizer.spelled(token) for token in unreachable(tokenizer)} == {"<0x61>", "abc"}
