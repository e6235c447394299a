"""WordPiece against Hugging Face's tokenizers, on BERT's own vocabulary and on small ones made to hurt."""

from __future__ import annotations

import json
import random
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import BertWordPieceTokenizer
from tokenizers import Tokenizer as Theirs

from hornbook.checkpoint.pretrained import load_tokenizer
from hornbook.errors import UserError
from hornbook.text.tokenizer import Tokenizer
from hornbook.text.wordpiece import WordPiece

HARD = [
    "", " ", "\n\n\t \r", "Hello, world!", "don't stop...believing?!", "naïve café ÀÉÎÕÜ Ångström Straße İstanbul ǅ ΟΔΟΣ ς ﬁ",
    "e\u0301 a\u0308\u0323 \u0301alone", "我爱北京天安门 and 東京タワー 한국어 ㍿ 豈更",
    "a\x00b\x01c\x7fd\x85e\ufffdf\u200bg\u00adh\u200d", "\x1ca\x1db\x1e",
    "😀👩‍👩‍👧‍👦🇫🇷 emoji🙂mid", "x" * 99, "x" * 100, "x" * 101, "é" * 101, "unaffable" * 12, "supercalifragilisticexpialidocious",
    "[SEP]", "a [SEP] b[CLS]c [MASK] [PAD] [UNK]", "[ SEP ]", "[unused1] ##ing # # ing",
    "a\u2028b\u2029c\u00a0d\u3000e\u2003f\u1680g",
    "$100 + 5% = ^_^ `code` ~x|y", "“quoted” — ‘it’s’ … «là» ¿qué? ¡no!", "मानक हिन्दी ไทย العربية עִבְרִית",
    "𝒜𝓑 𠀀𠀁 \U0001f1e6", "x\U0002b820y\U0002b920z", "1,234.56 2nd 3/4 ½ Ⅷ",
    "a" + "\u0301" * 300 + "b", "A\u030aB\u0327\u0301C", "\u1e9b\u0323 ẛ̣", "ａｂｃ　ＡＢＣ。",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(data_folder: Path) -> Path:
    found = data_folder / "tokenizers" / "wordpiece"
    if not found.is_dir():
        pytest.skip(f"no WordPiece vocabulary at {found}")
    return found


@pytest.fixture(scope="module")
def ours(folder: Path) -> WordPiece:
    found = Tokenizer.load(folder)
    assert isinstance(found, WordPiece)
    return found


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Theirs:
    return as_text(Theirs.from_file(str(folder / "tokenizer.json")))


def as_text(theirs: Theirs) -> Theirs:
    """Their tokenizer, for which special strings in a text are text too."""
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True
    return theirs


def ids(theirs: Theirs, text: str) -> list[int]:
    return list(theirs.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_have_their_ids(text: str, ours: WordPiece, theirs: Theirs) -> None:
    found = ours.encode(text)
    assert found == ids(theirs, text)
    assert not set(found) & (set(ours.specials.values()) - {ours.special("[UNK]")})
    assert ours.decode(found) == theirs.decode(found, skip_special_tokens=False)
    for line in text.splitlines():
        stream = ours.stream()
        assert "".join([*map(stream.push, ours.encode(line)), stream.flush()]).removeprefix(" ") == ours.decode(ours.encode(line))


@pytest.mark.parametrize(
    "name",
    [
        "wikitext-2/valid.txt",
        "japanese/wagahaiwa_nekodearu.txt",
        "chinese-poetry/lunyu.json",
        "tinystories_30k/TinyStories-valid.txt",
    ],
)  # fmt: skip
def test_a_corpus_has_their_ids(name: str, data_folder: Path, ours: WordPiece, theirs: Theirs) -> None:
    file = data_folder / "corpora" / name
    if not file.is_file():
        pytest.skip(f"no {file}")
    text = file.read_text(encoding="utf-8")[:300_000]
    for start in range(0, len(text), 10_000):
        piece = text[start : start + 10_000]
        assert ours.encode(piece) == ids(theirs, piece)


def test_random_characters_have_their_ids(ours: WordPiece, theirs: Theirs) -> None:
    dice = random.Random(0)
    parts = [*"abIeé 我.[]'\n\t\0", "##", "[SEP]", "ing", "\u0301", "ß", "İ", "Σ", "😀", "\u200d", "\ufffd", "漢字", "한", "x" * 98]
    for _ in range(3000):
        text = "".join(dice.choices(parts, k=dice.randrange(12)))
        assert ours.encode(text) == ids(theirs, text), repr(text)


def test_every_character_of_the_basic_plane(ours: WordPiece, theirs: Theirs) -> None:
    """Their tables are of an older Unicode: marks that came since then, about three in a thousand, are apart."""
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    different = [c for c in characters if ours.encode(f"a{c}b c{c}") != ids(theirs, f"a{c}b c{c}")]
    assert len(different) < 200 and not [c for c in different if ord(c) < 0x590]


@pytest.mark.parametrize(("lower", "accents", "ideographs"), list(product([True, False], [None, True, False], [True, False])))
def test_the_switches_of_tokenizer_config_mean_what_they_mean_to_them(
    lower: bool, accents: bool | None, ideographs: bool, folder: Path, tmp_path: Path
) -> None:
    shutil.copyfile(folder / "vocab.txt", tmp_path / "vocab.txt")
    config = {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": ideographs}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = load_tokenizer(tmp_path)
    expected: Any = BertWordPieceTokenizer(
        str(tmp_path / "vocab.txt"), lowercase=lower, strip_accents=accents, handle_chinese_chars=ideographs
    )
    other = as_text(expected._tokenizer)
    assert isinstance(found, WordPiece)
    for text in HARD:
        assert found.encode(text) == ids(other, text), text


def test_text_that_is_not_cleaned(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["normalizer"]["clean_text"] = False
    found, other = WordPiece(document), as_text(Theirs.from_str(json.dumps(document)))
    for text in HARD:
        assert found.encode(text) == ids(other, text), text


def test_pairs_are_those_of_the_published_template(ours: WordPiece, theirs: Theirs) -> None:
    for a, b in ((HARD[3], None), ("", None), ("Who?", "Me, 我."), (HARD[5], ""), (HARD[11], HARD[4])):
        expected = theirs.encode(a, b)
        assert ours.pair(a, b) == (expected.ids, expected.type_ids)


def test_what_we_save_opens_in_both(folder: Path, tmp_path: Path, ours: WordPiece) -> None:
    shutil.copyfile(folder / "vocab.txt", tmp_path / "vocab.txt")
    from_vocabulary = load_tokenizer(tmp_path)
    from_vocabulary.save(tmp_path / "saved")
    again, theirs = load_tokenizer(tmp_path / "saved"), transformers.AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(again, WordPiece) and again.fingerprint == from_vocabulary.fingerprint
    assert (theirs.cls_token, theirs.sep_token, theirs.pad_token, theirs.mask_token) == ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    for text in HARD[3:10]:
        assert again.encode(text) == from_vocabulary.encode(text) == ours.encode(text)
        assert again.pair(text)[0] == theirs(text).input_ids


def test_bytes_of_ids(ours: WordPiece) -> None:
    found = ours.encode("unaffable, you")
    assert b"".join(map(ours.token_bytes, found)) == ours.decode_bytes(found) == b" unaffable, you"
    assert ours.token_bytes(ours.special("[SEP]")) == b"" and ours.end_ids == () and ours.vocab_size == 30522
    with pytest.raises(UserError, match="outside the vocabulary"):
        ours.decode([30522])


SMALL: dict[str, Any] = {
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "sep": 1, "a": 2, "##b": 3}},
    "normalizer": {"type": "BertNormalizer", "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"},
    "added_tokens": [{"content": "sep", "id": 1, "special": True}],
}  # fmt: skip


def test_no_word_becomes_a_special_even_where_its_name_is_one() -> None:
    small = WordPiece(SMALL)
    assert small.encode("ab sep SEP b") == [2, 3, 0, 0, 0] and small.special("sep") == 1


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("model", None, "WordPiece"), ("model", {"type": "BPE", "vocab": {}}, "WordPiece"), ("normalizer", None, "BertNormalizer"),
        ("model", {**SMALL["model"], "vocab": {"a": 0}}, "unknown words"), ("pre_tokenizer", {"type": "Whitespace"}, "BertPreTok"),
        ("model", {**SMALL["model"], "vocab": {"[UNK]": 0, "a": 5}}, "0, 1, 2"), ("added_tokens", [{"id": 1}], "no content"),
        ("model", {**SMALL["model"], "vocab": {"[UNK]": 0, "a": "1"}}, "whole number"), ("added_tokens", 3, "no content"),
        ("model", {**SMALL["model"], "vocab": {"[UNK]": 0, "sep": 1, "a": 0}}, "0, 1, 2"), ("normalizer", [], "BertNormalizer"),
        ("model", {**SMALL["model"], "continuing_subword_prefix": "@@"}, "'@@'"),
        ("model", {**SMALL["model"], "max_input_chars_per_word": "x"}, "whole number"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(part: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=rf"cannot be read(.|\n)*bert/tokenizer\.json(.|\n)*{says}(.|\n)*Fix:"):
        WordPiece({**SMALL, part: value}, where="bert/tokenizer.json")


def test_damaged_vocabularies_and_absent_ones_are_named(tmp_path: Path) -> None:
    for content, says in ((b"[UNK]\na\na\n", "repeat"), (b"\xff\xfe", "UTF-8"), (b"", "unknown words")):
        (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(UserError, match=rf"(.|\n)*vocab\.txt(.|\n)*{says}|{says}(.|\n)*vocab\.txt"):
            load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"no tokenizer here(.|\n)*vocab\.txt"):
        Tokenizer.load(tmp_path)
