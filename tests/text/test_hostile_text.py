"""Text stays text: no string of a special ever becomes its id, in any kind of vocabulary; and what is no text is an error."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from hornbook.checkpoint.gguf import read_gguf
from hornbook.checkpoint.gguf_model import gguf_tokenizer
from hornbook.errors import UserError
from hornbook.text import chat
from hornbook.text.tokenizer import Tokenizer

# Each holds another, begins one, or ends one.
OVERLAPPING = ("<|end|>", "<|end|><|end|>", "<|end", "end|>", "|><|", "<|", "user", "<|user|>", "er|>", "[SEP]", "[SEP]]")
KINDS = ["byte-level", "WordPiece", "SentencePiece"]


@pytest.fixture(scope="module")
def overlapping() -> Tokenizer:
    """Byte-level, of documents that were full of its specials."""
    documents = list(texts(["the", " ", "a user", "the end ", *OVERLAPPING], 300, seed=1))
    return Tokenizer.train(documents, vocab=400, specials=OVERLAPPING, at_most=True)


@pytest.fixture(scope="module")
def of_kind(overlapping: Tokenizer, data_folder: Path) -> dict[str, Tokenizer]:
    folder = data_folder / "tokenizers"
    scored = gguf_tokenizer(read_gguf(folder / "gguf_vocab" / "ggml-vocab-llama-spm.gguf"))
    return {"byte-level": overlapping, "WordPiece": Tokenizer.load(folder / "wordpiece"), "SentencePiece": scored}


def texts(parts: list[str], count: int, seed: int) -> Iterator[str]:
    dice = random.Random(seed)
    for _ in range(count):
        yield "".join(dice.choices(parts, k=dice.randrange(1, 9)))


def pieces_of(names: list[str], dice: random.Random) -> list[str]:
    """The names whole, cut anywhere, in other cases, with a space, a joiner or a mark inside."""
    found = [*names, " ", "\n", "a", "##", "▁", "Ġ", "\x00", "\u200b", "\ufdd0", "İ", "ß"]
    for name in dice.choices(names, k=60):
        at = dice.randrange(len(name) + 1)
        found += [name[:at], name[at:], name.upper(), name.lower(), f"{name[:at]}{dice.choice(found)}{name[at:]}"]
    return found


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_has_a_special_id(kind: str, count: int, of_kind: dict[str, Tokenizer]) -> None:
    tok = of_kind[kind]
    unknown = tok.specials.get("[UNK]")  # the one special that a text has, where no piece can write a word
    forbidden = {i for i in tok.specials.values() if i != unknown}
    assert forbidden
    for text in texts(pieces_of([name for name in tok.specials if name], random.Random(2)), count, seed=3):
        assert forbidden.isdisjoint(tok.encode(text)), repr(text)


def test_overlapping_specials_in_a_template_are_read_longest_first(overlapping: Tokenizer, tmp_path: Path) -> None:
    """As Hugging Face's tokenizers reads them in a text: the leftmost, and of those the longest."""
    overlapping.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts([*OVERLAPPING, "x", " ", "<", "|", ">", "e"], 1000, seed=4):
        tok = Tokenizer(overlapping.document, {"chat_template": "{% raw %}" + text + "{% endraw %}"})
        assert tok.render([{"role": "user", "content": "not in the template"}])[0] == theirs.encode(text).ids, text


def test_overlapping_specials_in_a_content_stay_text(overlapping: Tokenizer) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|><|{% endfor %}"
    tok = Tokenizer(overlapping.document, {"chat_template": template, "eos_token": "<|end|>"})
    specials = set(tok.specials.values())
    for text in texts([*OVERLAPPING, " ", "x", "\ufdd0"], 1000, seed=5):
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        bare = tok.render([{**message, "content": "x"} for message in talk])[0]
        assert [i for i in tok.render(talk)[0] if i in specials] == [i for i in bare if i in specials], text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["half \ud83d", "\udc00", "a\udfffb", "\ud83d\ud83d\ude42"])
def test_a_lone_surrogate_is_an_error_that_says_where(kind: str, text: str, of_kind: dict[str, Tokenizer]) -> None:
    tok: Any = of_kind[kind]
    calls = [
        tok.encode,
        tok.encode_array,
        lambda text: tok.encode_batch(["fine", text]),
        *([tok.pair] if kind == "WordPiece" else []),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"(?s)surrogate, U\+D.*Where:.*stands before it.*Fix:"):
            call(text)


def test_a_lone_surrogate_in_a_conversation_or_a_corpus_is_an_error() -> None:
    tok = Tokenizer.train(["some text"], vocab=262, at_most=True)
    for template in (None, "{% for m in messages %}{{ m.content }}{% endfor %}", "\ud800{{ messages[0].content }}"):
        own = Tokenizer(tok.document, {"chat_template": template} if template else None)
        with pytest.raises(UserError, match="surrogate"):
            own.render([{"role": "user", "content": "a \ud83d b"}])
    for call in (lambda: chat.document(tok, "\ud83d"), lambda: Tokenizer.train(["\ud83d"], vocab=261)):
        with pytest.raises(UserError, match="surrogate"):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_outside_the_vocabulary_are_errors_in_every_kind(kind: str, of_kind: dict[str, Tokenizer]) -> None:
    tok = of_kind[kind]
    for wrong in (-1, tok.vocab_size, 2**40):
        for call in (tok.token_bytes, tok.stream().push, lambda i: tok.decode([0, i]), lambda i: tok.decode_bytes([i])):
            with pytest.raises(UserError, match=rf"token id {wrong} is outside(.|\n)*0 to {tok.vocab_size - 1}(.|\n)*Fix:"):
                call(wrong)


def test_bytes_that_are_no_text_come_back(overlapping: Tokenizer) -> None:
    id_of = {overlapping.token_bytes(i): i for i in range(256)}
    dice = random.Random(6)
    for data in (b"\xff\xfe", b"\xed\xa0\xbd", b"\xc0\x80", b"\xf5", b"\xe4\xbd", *(dice.randbytes(9) for _ in range(500))):
        ids = [id_of[bytes([byte])] for byte in data]
        assert overlapping.decode_bytes(ids) == data and overlapping.decode(ids) == data.decode("utf-8", errors="replace")


def test_a_vocabulary_too_small_an_empty_corpus_and_one_that_runs_out_of_pairs() -> None:
    for vocab in (-1, 0, 255, 260):
        with pytest.raises(UserError, match=rf"(?s)vocab={vocab} .*Why:.*256 bytes and 5 special.*Fix:.*vocab=261 or more"):
            Tokenizer.train(["text"], vocab=vocab)
    for documents, merges in (([], 0), ([""], 0), (["", ""], 0), (["a"], 0), (["abab"], 2)):
        with pytest.raises(UserError, match=rf"(?s)vocab=300.*39 merges.*allow {merges}\n.*Fix:.*vocab={261 + merges} or less"):
            Tokenizer.train(documents, vocab=300)
        assert Tokenizer.train(documents, vocab=300, at_most=True).vocab_size == 261 + merges
