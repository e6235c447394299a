"""SentencePiece's BPE by scores: the ids of its own library, on any text, and text stays text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from hornbook.checkpoint.gguf import read_gguf
from hornbook.checkpoint.gguf_model import gguf_tokenizer
from hornbook.errors import UserError
from hornbook.text.scored import ScoredTokenizer

PARTS = [
    " ",
    "  ",
    "\n",
    "\t",
    "the",
    " The",
    "ing",
    "é",
    "e\u0301",
    "1234",
    "你好",
    "🙂",
    "नि",
    "ﬁ",
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
]
PARTS += ["...", "//", "aaaa", "don't", "\ufeff", "_"]


@pytest.fixture(scope="module")
def llama2(data_folder: Path) -> tuple[ScoredTokenizer, Any]:
    """Llama 2's vocabulary as llama.cpp stores it, and the published model that it was made of."""
    ours = gguf_tokenizer(read_gguf(data_folder / "tokenizers" / "gguf_vocab" / "ggml-vocab-llama-spm.gguf"))
    assert isinstance(ours, ScoredTokenizer)
    return ours, sentencepiece.SentencePieceProcessor(model_file=str(data_folder / "tokenizers" / "llama2" / "tokenizer.model"))


def test_the_ids_are_sentencepieces(llama2: tuple[ScoredTokenizer, Any], data_folder: Path) -> None:
    ours, theirs = llama2
    dice = random.Random(0)
    texts = ["".join(dice.choices(PARTS, k=dice.randrange(12))) for _ in range(500)]
    for text in [*texts, (data_folder / "README.md").read_text(encoding="utf-8")]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == (" " + text if text else "")
        assert b"".join(map(ours.token_bytes, ids)) == ours.decode_bytes(ids) == ours.decode(ids).encode()


def test_its_own_space_sign_in_a_text_is_not_lost(llama2: tuple[ScoredTokenizer, Any]) -> None:
    assert llama2[0].decode(llama2[0].encode("a▁b")) == " a▁b"


def test_pieces_come_as_a_stream_and_specials_have_ids(llama2: tuple[ScoredTokenizer, Any]) -> None:
    ours, theirs = llama2
    text = "Zoë 你好 🙂 x"
    pieces = ours.stream()
    assert "".join([*map(pieces.push, ours.encode(text)), pieces.flush()]) == " " + text
    assert (ours.begin_ids, ours.end_ids, ours.vocab_size) == ((theirs.bos_id(),), (theirs.eos_id(),), theirs.vocab_size())
    assert ours.special("<s>") == 1 and ours.decode([1, *ours.encode("Hi")]) == "<s> Hi"
    assert ours.encode_array("Hi").tolist() == ours.encode("Hi")


def test_equal_scores_join_from_the_left_and_a_lost_byte_is_an_error(tmp_path: Path) -> None:
    small = ScoredTokenizer(["a", "aa", "<0x62>"], [0.0, 1.0, 0.0], {}, {}, "here", lead="")
    assert small.encode("aaa") == [1, 0] and small.encode("aba") == [0, 2, 0]
    with pytest.raises(UserError, match="no token for 'é'"):
        small.encode("é")
    with pytest.raises(UserError, match="cannot be written yet"):
        small.save(tmp_path)
    with pytest.raises(UserError, match=r"2 pieces and 1 scores(.|\n)*here"):
        ScoredTokenizer(["a", "b"], [0.0], {}, {}, "here")
    others = [
        ScoredTokenizer(["a", "aa", "<0x62>"], [0.0, score, 0.0], {}, {}, "here", lead)
        for score, lead in ((1, ""), (2, ""), (1, " "))
    ]
    assert [other.fingerprint == small.fingerprint for other in others] == [True, False, False]
