"""SentencePiece's BPE and unigram: the ids and the text of its own library, and the ids of tokenizers, in many scripts."""

from __future__ import annotations

import json
import random
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers

from hornbook.errors import UserError
from hornbook.text.scored import ScoredTokenizer
from hornbook.text.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary, read_model
from hornbook.text.tokenizer import Tokenizer
from tests.reference.scripts import strings

MODELS = {"llama2": "llama2/tokenizer.model", "t5": "t5/t5_tokenizer_base.model"}
every = pytest.mark.parametrize("name", sorted(MODELS))


def model(name: str, data_folder: Path) -> tuple[ScoredTokenizer, Any]:
    file = data_folder / "tokenizers" / MODELS[name]
    ours = Tokenizer.load(file)
    assert isinstance(ours, ScoredTokenizer)
    return ours, sentencepiece.SentencePieceProcessor(model_file=str(file))


@every
def test_ids_and_text_are_those_of_sentencepiece(name: str, data_folder: Path) -> None:
    ours, theirs = model(name, data_folder)
    assert ours.vocab_size == theirs.vocab_size()
    for text in [*strings(seed=1, count=10_000), (data_folder / "README.md").read_text(encoding="utf-8")]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids), text


@every
def test_what_is_saved_opens_in_tokenizers_and_transformers(name: str, data_folder: Path, tmp_path: Path) -> None:
    """Their Precompiled step works on whole graphemes, SentencePiece on the longest prefix: where these agree, so do the ids."""
    ours, _ = model(name, data_folder)
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    auto = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    texts, same, ties = strings(seed=2, count=1000), 0, 0
    for text in texts:
        ids = ours.encode(text)
        assert again.encode(text) == ids
        assert theirs.decode(ids, skip_special_tokens=False) == ours.decode(ids) or 2 in ids
        if theirs.normalizer.normalize_str(text) == normalized(ours, text):
            same += 1
            found = theirs.encode(text, add_special_tokens=False).ids
            assert found == ids or abs(worth(ours, found) - worth(ours, ids)) < 1e-4, text  # they sum in float64
            ties += found != ids
    assert ties < (1 if name == "llama2" else 10)
    assert same == len(texts) if name == "llama2" else same > 0.8 * len(texts)
    assert auto("Hello  world 12", add_special_tokens=False)["input_ids"] == ours.encode("Hello  world 12")
    assert again.fingerprint == ours.fingerprint and (again.begin_ids, again.end_ids) == (ours.begin_ids, ours.end_ids)


def worth(tok: ScoredTokenizer, ids: list[int]) -> float:
    return sum(tok.document["model"]["vocab"][i][1] for i in ids)


def normalized(tok: ScoredTokenizer, text: str) -> str:
    return tok._normalized(text)[0]


def rebuilt(name: str, ours: ScoredTokenizer) -> Any:
    """The tokenizer that transformers makes of the same pieces."""
    document = ours.document["model"]
    if name == "llama2":
        pairs = [tuple(pair) for pair in document["merges"]]
        return transformers.LlamaTokenizer(vocab=dict(document["vocab"]), merges=pairs)
    return transformers.T5Tokenizer(vocab=[tuple(row) for row in document["vocab"]], extra_ids=0)


@every
def test_what_transformers_writes_opens_here(name: str, data_folder: Path, tmp_path: Path) -> None:
    theirs = rebuilt(name, model(name, data_folder)[0])
    theirs.save_pretrained(str(tmp_path))
    ours = Tokenizer.load(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.encode_special_tokens = True
    for text in strings(seed=3, count=1000):
        expected = backend.encode(text, add_special_tokens=False)
        ids, spans = ours.encode_offsets(text)
        assert ids == expected.ids == ours.encode(text), text
        if name == "llama2":
            assert spans == expected.offsets, text


@every
def test_offsets_are_those_of_tokenizers(name: str, data_folder: Path) -> None:
    """Of what normalization drops or joins, theirs keep one character; so texts that it leaves alone are compared."""
    ours, _ = model(name, data_folder)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(ours.document))
    theirs.encode_special_tokens = True
    compared = 0
    for text in strings(seed=4, count=1500):
        ids, spans = ours.encode_offsets(text)
        assert ids == ours.encode(text)
        assert all(0 <= start < end <= len(text) for start, end in spans) and spans == sorted(spans)
        if normalized(ours, text) == "▁" * bool(text) + text.replace(" ", "▁"):
            compared += 1
            assert spans == theirs.encode(text, add_special_tokens=False).offsets, text
    assert compared > (1000 if name == "llama2" else 150)


@every
def test_a_stream_gives_whole_characters_and_all_of_the_text(name: str, data_folder: Path) -> None:
    ours, _ = model(name, data_folder)
    for text in strings(seed=5, count=500):
        ids = ours.encode(text)
        stream = ours.stream()
        pieces = [*map(stream.push, ids), stream.flush()]
        assert "".join(pieces).removeprefix(" ") == ours.decode(ids)
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_specials_have_ids_and_text_never_has_them(data_folder: Path) -> None:
    ours, theirs = model("llama2", data_folder)
    assert (ours.begin_ids, ours.end_ids) == ((theirs.bos_id(),), (theirs.eos_id(),))
    assert ours.special("<s>") == 1 and ours.decode([1, *ours.encode("Hi")]) == "<s> Hi"
    assert not {0, 1, 2} & set(ours.encode("<s> </s> <unk> <0x0A>")) and ours.encode("<0x0A>") == theirs.encode("<0x0A>")
    assert ours.encode_array("Hi").tolist() == ours.encode("Hi")


def small(pieces: dict[str, int], unigram: bool = False, **options: Any) -> ScoredTokenizer:
    scores = [-float(i) for i in range(len(pieces))]
    return ScoredTokenizer(Vocabulary(list(pieces), scores, list(pieces.values()), unigram, **options).document("here"), {}, "here")


def test_without_bytes_a_lost_character_is_unknown_or_an_error() -> None:
    pieces = {"a": NORMAL, "aa": NORMAL, "<0x62>": BYTE}
    assert small(pieces, prefix=False).encode("aaa") == [1, 0] and small(pieces, prefix=False).encode("aba") == [0, 2, 0]
    with pytest.raises(UserError, match="no token for 'é'"):
        small(pieces, prefix=False).encode("é")
    for unigram in (False, True):
        known = small({"<unk>": UNKNOWN, "a": NORMAL, "▁": NORMAL}, unigram)
        assert known.encode("aéèa") == [2, 1, 0, 1] and known.decode([2, 1, 0, 1]) == "a ⁇ a"


@pytest.mark.parametrize("unigram", [False, True])
def test_pieces_defined_by_hand_are_kept_whole(unigram: bool, tmp_path: Path) -> None:
    """As sentencepiece does with a model that it trains with them."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(text for text in ("a<b> cab ab <b>b", "abc <c> <b>", "cab<b>abc bca") for _ in range(30)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=20, model_type="unigram" if unigram else "bpe",
        user_defined_symbols=["<b>", "ab<", "<c> "], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    ours, theirs = Tokenizer.load(tmp_path / "m.model"), sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    for text in strings(seed=6, count=300):
        text = text[:3] + "".join(("<b>", "ab<b>", "cab", " <c> a", "<c", "b b")[ord(character) % 6] for character in text[:9])
        assert ours.encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("change", ["cut", "flip"])
def test_a_damaged_model_is_an_error_that_names_it(change: str, data_folder: Path, tmp_path: Path) -> None:
    raw, dice = (data_folder / "tokenizers" / MODELS["t5"]).read_bytes(), random.Random(0)
    head = raw[:2000] + raw[-240_000:]
    file, opened = tmp_path / "hurt.model", 0
    for _ in range(60):
        hurt = bytearray(head[: dice.randrange(len(head))] if change == "cut" else head)
        for _ in range(3):
            hurt[dice.choice((dice.randrange(len(hurt)), dice.randrange(min(2000, len(hurt)))))] ^= 1 << dice.randrange(8)
        file.write_bytes(hurt)
        try:
            tok = Tokenizer.load(file)
            tok.encode("½ ﬁ " + unicodedata.normalize("NFD", "naïve Ångström"))
            opened += 1
        except UserError as error:
            assert "hurt.model" in str(error) and "Fix:" in str(error)
    assert opened < 60


def test_a_length_that_the_file_does_not_hold_costs_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "huge.model"
    file.write_bytes(b"\x0a" + b"\xff" * 9 + b"\x01")
    tracemalloc.start()
    with pytest.raises(UserError, match="ends inside a field"):
        read_model(file)
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()


def test_what_a_document_cannot_be_is_named(data_folder: Path) -> None:
    document = small({"<unk>": UNKNOWN, "<s>": CONTROL, "a": NORMAL, "aa": NORMAL, "▁x": USER_DEFINED}).document
    for part, value, says in (
        ("normalizer", {"type": "Lowercase"}, "Lowercase"), ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}, "known expressions"),
        ("decoder", {"type": "WordPiece"}, "WordPiece"), ("added_tokens", [{"id": 9, "content": "<far>"}], "are not 0, 1, 2"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "trie"), ("normalizer", [3], "no list of steps"),
        ("model", {**document["model"], "merges": [["a", "b"]]}, "does not join"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says) as caught:
            ScoredTokenizer({**document, part: value}, {}, "there/tokenizer.json")
        assert "there/tokenizer.json" in str(caught.value)


def test_a_hostile_document_opens_or_is_an_error_of_ours() -> None:
    pieces = {
        "<unk>": UNKNOWN,
        "<s>": CONTROL,
        "<b>": USER_DEFINED,
        "<0x62>": BYTE,
        **dict.fromkeys(("a", "aa", "▁", "▁a"), NORMAL),
    }
    odd: list[Any] = [None, -1, 2**70, 1.5, float("nan"), "", "a", "▁", [], {}, [[]], ["a"], True, {"type": "Strip"}]
    odd += ["\ud800", {"type": "Sequence"}]
    dice, opened = random.Random(0), 0

    def changed(value: Any, depth: int) -> Any:
        if depth and isinstance(value, dict) and value:
            key = dice.choice(sorted(value))
            return {**value, key: changed(value[key], depth - 1)}
        if depth and isinstance(value, list) and value:
            n = dice.randrange(len(value))
            return [*value[:n], changed(value[n], depth - 1), *value[n + 1 :]]
        return dice.choice(odd)

    for n in range(1500):
        document = small(pieces, unigram=n % 2 == 0, charsmap=b"\x04\0\0\0\0\4\0\0x\0", tidy=True).document
        try:
            tok = ScoredTokenizer(changed(document, dice.randrange(1, 6)), {}, "there")
            tok.decode(tok.encode_offsets("a aab<b> x")[0])
            opened += 1
        except UserError as error:
            assert "Fix:" in str(error)
    assert 0 < opened < 1500


def test_a_normalizer_that_makes_texts_grow_without_end_is_stopped() -> None:
    document = small({"<unk>": UNKNOWN, "a": NORMAL}).document
    twice = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    tok = ScoredTokenizer({**document, "normalizer": {"type": "Sequence", "normalizers": [twice] * 60}}, {}, "there")
    with pytest.raises(UserError, match="100 times as long"):
        tok.encode("a")
