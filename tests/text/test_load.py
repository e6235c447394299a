"""Every file of a published tokenizer opens by `Tokenizer.load` and survives save and load; names are files with known hashes."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import gguf
import pytest
import tokenizers
import transformers

from hornbook.checkpoint.gguf_write import write_vocabulary
from hornbook.errors import DamagedError, UserError
from hornbook.text import vocabularies
from hornbook.text.tiktoken import write_ranks
from hornbook.text.tokenizer import Tokenizer
from tests.reference.scripts import strings

FILES = [
    "gpt2", "llama2", "t5/t5_tokenizer_base.model", "wordpiece", "gguf_vocab/ggml-vocab-bert-bge.gguf",
    "gguf_vocab/ggml-vocab-gpt-2.gguf", "gguf_vocab/ggml-vocab-llama-spm.gguf",
]  # fmt: skip
LARGE = ["qwen3", "llama3/tokenizer.json", "tiktoken/cl100k_base.tiktoken", "tiktoken/o200k_base.tiktoken"]
# Two files of one vocabulary, which have to give the same ids.
TWINS = {
    "gpt2": "tiktoken/r50k_base.tiktoken",
    "gguf_vocab/ggml-vocab-llama-spm.gguf": "llama2",
    "wordpiece": "wordpiece/vocab.txt",
}
TWINS |= {"gguf_vocab/ggml-vocab-gpt-2.gguf": "gpt2", "gguf_vocab/ggml-vocab-bert-bge.gguf": "wordpiece"}


@pytest.mark.parametrize("name", [*FILES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_file_survives_save_and_load(name: str, data_folder: Path, tmp_path: Path) -> None:
    tok = Tokenizer.load(data_folder / "tokenizers" / name)
    tok.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    twin = Tokenizer.load(data_folder / "tokenizers" / TWINS[name]) if name in TWINS else again
    assert type(again) is type(tok) and again.fingerprint == tok.fingerprint and again.specials == tok.specials
    for text in strings(seed=1, count=200):
        ids = tok.encode(text)
        assert again.encode(text) == twin.encode(text) == ids
        assert again.decode(ids) == tok.decode(ids)


@pytest.mark.parametrize("name", ["wordpiece", "gpt2"])
def test_offsets_are_those_of_tokenizers(name: str, data_folder: Path, tmp_path: Path) -> None:
    tok = Tokenizer.load(data_folder / "tokenizers" / name)
    tok.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    theirs.no_truncation()
    theirs.no_padding()
    compared = 0
    for text in strings(seed=2, count=500):
        ids, spans = tok.encode_offsets(text)
        assert ids == tok.encode(text) and all(0 <= start < end <= len(text) for start, end in spans)
        expected = theirs.encode(text, add_special_tokens=False)
        if expected.ids == ids and (theirs.normalizer is None or theirs.normalizer.normalize_str(text) == text):
            compared += 1
            assert spans == expected.offsets, text
    assert compared > (20 if name == "wordpiece" else 400)


@pytest.mark.parametrize("split", ["gpt2", "cl100k", "qwen2"])
def test_a_home_trained_tokenizer_opens_everywhere(split: str, tmp_path: Path) -> None:
    """In tokenizers, transformers, ggml's own reader and hornbook, with the same ids."""
    tok = Tokenizer.train(strings(seed=3, count=300), vocab=700, split=split)
    tok.save(tmp_path)
    write_vocabulary(tok, tmp_path / "vocabulary.gguf")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    reread = Tokenizer.load(tmp_path / "vocabulary.gguf")
    for text in strings(seed=4, count=300):
        ids = tok.encode(text)
        assert theirs.encode(text).ids == auto(text, add_special_tokens=False)["input_ids"] == reread.encode(text) == ids
    fields = gguf.GGUFReader(tmp_path / "vocabulary.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == {"gpt2": "gpt-2", "cl100k": "smaug-bpe", "qwen2": "stablelm2"}[split]
    shown = fields["tokenizer.ggml.tokens"].contents()
    assert shown == [theirs.id_to_token(i) for i in range(tok.vocab_size)]


# --- names ----------------------------------------------------------------------------------------------------------------


def test_a_name_is_the_users_copy_or_a_packages(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="hornbook tokenizer fetch gpt2$"):
        Tokenizer.load("gpt2")
    with pytest.raises(UserError, match="fetch llama3 --url"):
        Tokenizer.load("llama3")
    place = vocabularies.folder("gpt2") / vocabularies.NAMES["gpt2"].file
    place.parent.mkdir(parents=True)
    shutil.copy(data_folder / "tokenizers" / "tiktoken" / place.name, place)
    assert Tokenizer.load("gpt2").fingerprint == Tokenizer.load(data_folder / "tokenizers" / "gpt2").fingerprint
    qwen3 = (data_folder / "tokenizers" / "qwen3" / "tokenizer.json").read_bytes()
    assert hashlib.sha256(qwen3).hexdigest() == vocabularies.NAMES["qwen3"].sha256
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="SHA-256"):
        Tokenizer.load("gpt2")


@pytest.mark.slow
def test_llama3_by_name_is_metas_own_file(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks, written out of the tokenizer.json, have the hash of the tokenizer.model that Meta publishes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    theirs = Tokenizer.load(data_folder / "tokenizers" / "llama3")
    place = vocabularies.folder("llama3") / vocabularies.NAMES["llama3"].file
    write_ranks(theirs, place)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == vocabularies.NAMES["llama3"].sha256
    ours = Tokenizer.load("llama3")
    assert all(ours.encode(text) == theirs.encode(text) for text in strings(seed=5, count=10_000))
    named = {name: i for name, i in ours.specials.items() if "reserved" not in name}
    assert named.items() <= theirs.specials.items() and ours.vocab_size == theirs.vocab_size


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_the_files_inside_of_a_package_are_the_published_ones(name: str, data_folder: Path) -> None:
    known = vocabularies.NAMES[name]
    try:
        files = distribution(str(known.package)).files or []
    except PackageNotFoundError:
        pytest.skip(f"{known.package} is not installed")
    (file,) = [Path(str(file.locate())) for file in files if file.name == known.file + ".gz"]
    raw = gzip.decompress(file.read_bytes())
    assert raw == (data_folder / "tokenizers" / "tiktoken" / known.file).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == known.sha256 and vocabularies.find(name)[0].name.startswith(known.file)


def test_what_is_no_tokenizer_says_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cl100k, o200k"):
        Tokenizer.load("cl10k")
    for name in ("a.gguf", "b.tiktoken"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"2 tokenizers are here"):
        Tokenizer.load(tmp_path)
