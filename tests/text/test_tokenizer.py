"""The tokenizer's promises: nothing is lost, text stays text, files open elsewhere with the same ids."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import normalizers

from hornbook.errors import UserError
from hornbook.text.tokenizer import DEFAULT_SPECIALS, Tokenizer

PARTS = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2028", "\x00", "\ufeff", "'s", "'LL", "'\u017f", "don't", "the"]
PARTS += [" The", "é", "e\u0301", "12", "1234567", "½", "你好", "のカ", "한", "\u1112\u1161\u11ab", "नि"]
PARTS += ["...", "//", "🙂", "👩‍🚀", "ﬁ", "Å", "\u212b"]
SPECIAL_PARTS = [*DEFAULT_SPECIALS, "<|", "|>", "<|end", "end|>", "<|bos|", "<|<|end|>|>"]
SPECIAL_PARTS += ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>"]


def fuzz(count: int, seed: int, parts: list[str] = PARTS) -> list[str]:
    dice = random.Random(seed)
    return ["".join(dice.choices(parts, k=dice.randrange(1, 14))) for _ in range(count)]


@pytest.fixture(scope="module")
def source() -> str:
    return Path(random.__file__).read_text(encoding="utf-8") + "".join(fuzz(200, seed=0))


@pytest.fixture(scope="module")
def tok(source: str) -> Tokenizer:
    return Tokenizer.train([source], vocab=1024)


def any_unicode(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    limits = [0x80, 0x800, 0x10000, 0x110000]

    def character() -> str:
        code = dice.randrange(dice.choice(limits))
        return chr(code if not 0xD800 <= code < 0xE000 else 0xE000)

    return ["".join(character() for _ in range(dice.randrange(20))) for _ in range(count)]


def test_any_text_comes_back(tok: Tokenizer) -> None:
    for text in ["", *any_unicode(2000, seed=1), *fuzz(500, seed=2)]:
        ids = tok.encode(text)
        assert tok.decode(ids) == text and tok.decode_bytes(ids) == text.encode()
        assert b"".join(map(tok.token_bytes, ids)) == text.encode()


def test_decode_bytes_gives_any_bytes_and_decode_replaces_what_is_no_text(tok: Tokenizer) -> None:
    dice = random.Random(3)
    id_of = {tok.token_bytes(i): i for i in range(256)}
    assert len(id_of) == 256
    for _ in range(300):
        ids = [dice.randrange(tok.vocab_size - len(DEFAULT_SPECIALS)) for _ in range(dice.randrange(12))]
        assert tok.decode(ids) == tok.decode_bytes(ids).decode("utf-8", errors="replace")
        data = dice.randbytes(dice.randrange(12))
        assert tok.decode_bytes([id_of[bytes([byte])] for byte in data]) == data


def test_specials_show_as_their_names_and_stand_for_no_bytes(tok: Tokenizer) -> None:
    ids = [tok.special("<|bos|>"), *tok.encode("hi"), tok.special("<|end|>")]
    assert tok.decode(ids) == "<|bos|>hi<|end|>" and tok.decode_bytes(ids) == b"hi"
    assert tok.token_bytes(tok.special("<|end|>")) == b""
    assert sorted(tok.specials.values()) == list(range(tok.vocab_size - len(DEFAULT_SPECIALS), tok.vocab_size))
    assert tok.end_ids == (tok.special("<|end|>"),)


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "o200k", "digits"])
def test_special_strings_inside_text_never_become_specials(split: str) -> None:
    """Even when the documents were full of them."""
    documents = fuzz(500, seed=4, parts=[*SPECIAL_PARTS, *PARTS])
    tok = Tokenizer.train(documents, vocab=600, split=split)
    specials = set(tok.specials.values())
    for text in fuzz(2500, seed=5, parts=[*SPECIAL_PARTS, " ", "\n", "", "a"]):
        ids = tok.encode(text)
        assert not specials & set(ids) and tok.decode(ids) == text


def test_a_piece_is_never_spelled_like_a_special(tmp_path: Path) -> None:
    """Both would have the same key in the vocabulary of tokenizer.json."""
    specials = ("<|end|>", "user", "Ġuser", "的的")
    tok = Tokenizer.train(["<|end|> user Ġuser user的的" * 9], vocab=275, pattern=r"[\s\S]+", specials=specials)
    assert not {b"<|end|>", b"user", b" user"} & {tok.token_bytes(i) for i in range(tok.vocab_size)}
    tok.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == tok.vocab_size
    assert all(theirs.token_to_id(name) == i for name, i in tok.specials.items())


def test_stream_equals_decode_and_never_shows_half_a_character(tok: Tokenizer) -> None:
    texts = [*any_unicode(300, seed=6), *fuzz(300, seed=7)]
    id_of = {tok.token_bytes(i): i for i in range(256)}
    for text in texts:
        for ids in (tok.encode(text), [id_of[bytes([byte])] for byte in text.encode()]):
            stream = tok.stream()
            pieces = [stream.push(i) for i in ids]
            assert "".join(pieces) == text and stream.flush() == ""
            if "\ufffd" not in text:
                assert not any("\ufffd" in piece for piece in pieces)
            for cut in range(len(ids)):
                stream = tok.stream()
                assert "".join([stream.push(i) for i in ids[:cut]]) + stream.flush() == tok.decode(ids[:cut])
    dice = random.Random(8)
    for _ in range(500):
        ids = [dice.randrange(tok.vocab_size) for _ in range(20)]
        stream = tok.stream()
        assert "".join([stream.push(i) for i in ids]) + stream.flush() == tok.decode(ids)


def test_arrays_and_batches_hold_the_same_ids(tok: Tokenizer) -> None:
    texts = ["", *fuzz(20, seed=9), ""]
    array = tok.encode_array(texts[1])
    assert array.dtype == np.uint32 and array.tolist() == tok.encode(texts[1])
    ids, offsets = tok.encode_batch(texts)
    assert ids.dtype == np.uint32 and offsets.dtype == np.int64 and len(offsets) == len(texts) + 1
    for n, text in enumerate(texts):
        assert ids[offsets[n] : offsets[n + 1]].tolist() == tok.encode(text)
    assert tok.decode(ids[offsets[1] : offsets[2]]) == texts[1]
    ids, offsets = tok.encode_batch([])
    assert ids.dtype == np.uint32 and len(ids) == 0 and offsets.tolist() == [0]


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "o200k", "digits"])
def test_what_was_saved_opens_in_hugging_face_with_equal_ids(split: str, source: str, tmp_path: Path) -> None:
    tok = Tokenizer.train([source], vocab=700, split=split)
    tok.save(tmp_path, model_max_length=512)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in [*fuzz(500, seed=10), *any_old_unicode(300, seed=11), source[:5000]]:
        ids = tok.encode(text)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text
    assert auto(source[:3000])["input_ids"] == tok.encode(source[:3000])
    theirs.encode_special_tokens = True
    for text in fuzz(500, seed=12, parts=[*SPECIAL_PARTS, *PARTS]):
        assert theirs.encode(text).ids == tok.encode(text)
    assert auto.model_max_length == 512 and len(auto) == tok.vocab_size
    assert (auto.bos_token_id, auto.eos_token_id) == (tok.special("<|bos|>"), tok.end_ids[0])


def any_old_unicode(count: int, seed: int) -> list[str]:
    """Characters of Unicode 3 blocks, which every engine's tables class alike."""
    dice = random.Random(seed)
    ranges = [(0x20, 0x250), (0x3041, 0x3094), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x2500, 0x2570), (0x410, 0x450)]

    def character() -> str:
        return chr(dice.randrange(*dice.choice(ranges)))

    return ["".join(character() for _ in range(dice.randrange(1, 20))) for _ in range(count)]


def test_a_saved_tokenizer_loads_with_the_same_ids_and_fingerprint(tok: Tokenizer, source: str, tmp_path: Path) -> None:
    tok.save(tmp_path / "a")
    for path in (tmp_path / "a", str(tmp_path / "a" / "tokenizer.json")):
        again = Tokenizer.load(path)
        assert again.fingerprint == tok.fingerprint and again.encode(source) == tok.encode(source)
        assert (again.vocab_size, again.specials, again.end_ids) == (tok.vocab_size, tok.specials, tok.end_ids)
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_fingerprint_changes_with_all_that_decides_ids(source: str) -> None:
    def made(**changed: Any) -> str:
        return Tokenizer.train([changed.pop("text", source)], **{"vocab": 400, **changed}).fingerprint

    prints = [made(), made(vocab=401), made(split="gpt2"), made(specials=("<|end|>",)), made(text=source[2000:])]
    prints.append(made(specials=tuple(reversed(DEFAULT_SPECIALS))))
    assert len(set(prints)) == len(prints) and made() == prints[0] and all(len(bytes.fromhex(p)) == 32 for p in prints)


def test_too_little_text_says_how_many_merges_there_are_and_the_fix_works() -> None:
    with pytest.raises(UserError) as caught:
        Tokenizer.train(["abc abc"], vocab=8192)
    possible = 256 + len(DEFAULT_SPECIALS) + int(str(caught.value.why).split()[-1])
    assert f"vocab={possible} " in caught.value.fix
    assert Tokenizer.train(["abc abc"], vocab=possible).vocab_size == possible
    with pytest.raises(UserError):
        Tokenizer.train(["abc abc"], vocab=possible + 1)
    assert Tokenizer.train([], vocab=256, specials=()).decode([64]) == Tokenizer.train(["a"], vocab=261).decode([64])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "cl10k"}, "did you mean 'cl100k'"),
        ({"pattern": "(a"}, "not a regular expression"),
        ({"vocab": 260}, "vocab=261 or more"),
        ({"specials": ("<|a|>", "<|a|>")}, "appears once"),
        ({"specials": ("a",)}, "two characters"),
        ({"specials": "<|end|>"}, "sequence of names"),
        ({"documents": "one text"}, "iterable of texts"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        Tokenizer.train(**{"documents": ["abc"], "vocab": 261, **options})
    assert says in str(caught.value) and "Fix:" in str(caught.value)


def test_ids_and_names_outside_the_vocabulary_are_refused(tok: Tokenizer) -> None:
    for wrong in (-1, tok.vocab_size):
        for call in (tok.token_bytes, tok.stream().push, lambda i: tok.decode([i]), lambda i: tok.decode_bytes([i])):
            with pytest.raises(UserError, match="outside the vocabulary"):
                call(wrong)
    with pytest.raises(UserError, match="did you mean '<|end|>'".replace("|", "\\|")):
        tok.special("<|ennd|>")
    with pytest.raises(UserError, match="surrogate"):
        tok.encode("half \ud83d")


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_published_tokenizers_give_their_published_ids(name: str, data_folder: Path) -> None:
    folder = data_folder / "tokenizers" / name
    tok = Tokenizer.load(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.encode_special_tokens = True
    assert tok.vocab_size == theirs.get_vocab_size()
    library = Path(subprocess.__file__).read_text(encoding="utf-8")
    for text in [*fuzz(800, seed=13, parts=[*SPECIAL_PARTS, *PARTS]), *any_old_unicode(500, seed=14), library]:
        ids = tok.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids, text
        assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    ends = {"qwen3": {"<|im_end|>", "<|endoftext|>"}, "llama3": {"<|eot_id|>", "<|end_of_text|>"}}
    assert {tok.decode([i]) for i in tok.end_ids} == ends[name]


def changed(tok: Tokenizer, tmp_path: Path, **parts: Any) -> Path:
    """A saved tokenizer.json with some of its parts replaced; `model` is updated, not replaced."""
    tok.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    model = {**document["model"], **parts.pop("model", {})}
    file.write_text(json.dumps({**document, **parts, "model": model}), encoding="utf-8")
    return file


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
HASH = {"type": "Split", "pattern": {"String": "+."}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": BYTE_LEVEL},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [HASH, {**DIGITS, "individual_digits": False}, BYTE_LEVEL]}},
        {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
        {"model": {"ignore_merges": True}},
        *({"normalizer": {"type": form}} for form in ("NFC", "NFD", "NFKC", "NFKD")),
    ],
)
def test_every_form_that_is_read_gives_hugging_faces_ids(parts: dict[str, Any], tok: Tokenizer, tmp_path: Path) -> None:
    file = changed(tok, tmp_path, **parts)
    ours, theirs = Tokenizer.load(file), tokenizers.Tokenizer.from_file(str(file))
    for text in fuzz(500, seed=15, parts=[*PARTS, "a+.b", "+", "."]):
        expected = theirs.encode(text)
        ids, spans = ours.encode_offsets(text)
        assert ours.encode(text) == ours.encode_array(text).tolist() == ids == expected.ids
        if "normalizer" in parts:  # of a character that is made of several, theirs keep the first only
            assert [start for start, _ in spans] == sorted(start for start, _ in spans) and all(
                a < b <= len(text) for a, b in spans
            )
        else:
            assert spans == expected.offsets
        if "normalizer" in parts:
            assert ours.decode(ours.encode(text)) == getattr(normalizers, parts["normalizer"]["type"])().normalize_str(text)


def test_what_hornbook_does_not_use_is_saved_as_it_was(tok: Tokenizer, tmp_path: Path) -> None:
    """A published file's post-processor, tokens that are added but not special, its class and its template."""
    added = [{"id": i, "content": name, "special": True} for name, i in tok.specials.items()]
    added.append({"id": tok.vocab_size, "content": "<think>", "special": False})
    file = changed(tok, tmp_path / "a", post_processor={**BYTE_LEVEL, "trim_offsets": False}, added_tokens=added)
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": {"content": "<|end|>", "lstrip": False}, "unk_token": None}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b", model_max_length=99)
    assert json.loads((tmp_path / "b" / "tokenizer.json").read_text()) == json.loads(file.read_text())
    saved = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert saved.items() >= {**config, "chat_template": "{{ messages }}", "model_max_length": 99}.items()


def test_merges_are_read_as_strings_and_as_pairs(tok: Tokenizer, source: str, tmp_path: Path) -> None:
    tok.save(tmp_path)
    merges = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    pairs = Tokenizer.load(changed(tok, tmp_path, model={"merges": [merge.split(" ") for merge in merges]}))
    assert pairs.fingerprint == tok.fingerprint and pairs.encode(source) == tok.encode(source)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"model": {"type": "Unigram"}}, "no list of pieces and scores"),
        ({"model": {"vocab": ["a"]}}, "not BPE with a vocabulary"),
        ({"model": {"byte_fallback": True}}, "byte_fallback"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": {"merges": ["a b c"]}}, "'a b c'"),
        ({"model": {"merges": [["a", "zzzzz"]]}}, "does not join"),
        ({"model": {"vocab": {"a": 0, "b": 0}, "merges": []}}, "are not 0, 1, 2"),
        ({"model": {"vocab": {"a b": 0}, "merges": []}}, "not spelled in bytes"),
        ({"decoder": None}, "decoder"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": None}, "does not end in ByteLevel"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, {**BYTE_LEVEL, "add_prefix_space": True}]}},
            "add_prefix",
        ),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**HASH, "behavior": "Removed"}, BYTE_LEVEL]}}, "Removed"),
        ({"added_tokens": [{"id": 1}]}, "no content"),
        ({"added_tokens": [{"id": 5000, "content": "<|far|>", "special": True}]}, "are not 0, 1, 2"),
        ({"added_tokens": [{"id": 1024, "content": "   ", "special": False}]}, "outside the merges"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(parts: dict[str, Any], says: str, tok: Tokenizer, tmp_path: Path) -> None:
    file = changed(tok, tmp_path, **parts)
    with pytest.raises(UserError) as caught:
        Tokenizer.load(file)
    assert says in str(caught.value) and caught.value.where == str(file)


def test_a_byte_without_a_piece_is_refused_where_a_text_has_it(tok: Tokenizer, tmp_path: Path) -> None:
    few = Tokenizer.load(changed(tok, tmp_path, model={"vocab": {"a": 0, "b": 1}, "merges": []}, added_tokens=[]))
    assert few.encode("abba") == [0, 1, 1, 0] and few.decode([1, 0]) == "ba"
    with pytest.raises(UserError, match="no token for the byte 0x63"):
        few.encode("abc")


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"model": ')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    faults = {"list.json": "JSON object", "cut.json": "not JSON", "binary.json": "not UTF-8", "": "no tokenizer here"}
    for name, says in faults.items():
        with pytest.raises(UserError, match=says):
            Tokenizer.load(tmp_path / name)


def test_importing_the_tokenizer_imports_no_torch() -> None:
    code = "import hornbook.text.tokenizer, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
