"""Any tokenizer file -> a `Tokenizer`: what a file is, by its name and its first bytes, decides who reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hornbook.errors import UserError
from hornbook.text import gguf_vocabulary, sentencepiece, tiktoken, vocabularies
from hornbook.text.published import read_json, read_text
from hornbook.text.scored import ScoredTokenizer
from hornbook.text.spaced import SpacedTokenizer, puts_a_space
from hornbook.text.tokenizer import Tokenizer
from hornbook.text.wordpiece import WordPiece, read_vocabulary

# What a folder may hold, the best first.
FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "encoder.json", "vocab.json", "vocab.txt")
ENDINGS = (".tiktoken", ".model", ".gguf")


def load(path_or_name: str | Path, split: str | None = None) -> Tokenizer:
    """See `Tokenizer.load`."""
    path = Path(path_or_name)
    if not path.exists() and str(path_or_name) in vocabularies.NAMES:
        path, split = vocabularies.find(str(path_or_name))
    file = _in_folder(path) if path.is_dir() else path
    if not file.is_file():
        known = f"one of {', '.join(vocabularies.NAMES)}, a file that ends in {', '.join(ENDINGS)}, or a folder with one of"
        raise UserError("there is no tokenizer here", where=str(path), fix=f"name {known} {', '.join(FILES)}")
    return _reader(file)(file, _settings(file), split)


def _in_folder(folder: Path) -> Path:
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    files = [] if found else sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)
    if len(files) > 1:
        raise UserError(f"{len(files)} tokenizers are here", where=str(folder), fix=f"name one, such as {files[0].name}")
    return found or (files[0] if files else folder / FILES[0])


def _settings(file: Path) -> dict[str, Any]:
    """The tokenizer_config.json and the chat template beside a tokenizer's file, where there are some."""
    config, template = file.with_name("tokenizer_config.json"), file.with_name("chat_template.jinja")
    settings = read_json(config) if config.is_file() else {}
    if template.is_file():
        settings["chat_template"] = read_text(template)
    return settings


Reader = Callable[[Path, dict[str, Any], str | None], Tokenizer]


def _reader(file: Path) -> Reader:
    if file.name in tiktoken.PAIRS or file.name in tiktoken.PAIRS.values():
        return _pair
    if file.suffix == ".model":
        return _model
    readers: dict[str, Reader] = {".txt": _words, ".gguf": _gguf, ".tiktoken": _ranks, ".gz": _ranks}
    return readers.get(file.suffix, _document)


def _document(file: Path, settings: dict[str, Any], split: str | None) -> Tokenizer:
    return of_document(read_json(file), settings, str(file))


def of_document(document: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a parsed tokenizer.json, whatever its kind."""
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind == "WordPiece":
        return WordPiece(document, settings, where)
    steps = [*_kinds(document, "pre_tokenizer", "pretokenizers"), *_kinds(document, "decoder", "decoders")]
    if kind == "Unigram" or (kind == "BPE" and "ByteLevel" not in steps):
        return ScoredTokenizer(document, settings, where)
    return (SpacedTokenizer if puts_a_space(document) else Tokenizer)(document, settings, where)


def _kinds(document: Mapping[str, Any], name: str, inner: str) -> list[Any]:
    """What a part of the document and its steps call themselves; whether these are well formed, their reader asks."""
    part = document.get(name)
    steps = part.get(inner) if isinstance(part, dict) else None
    return [step.get("type") for step in [part, *(steps if isinstance(steps, list) else [])] if isinstance(step, dict)]


def _model(file: Path, settings: dict[str, Any], split: str | None) -> Tokenizer:
    if tiktoken.looks_like_ranks(file):  # Llama 3 published its ranks under this name
        return _ranks(file, settings, split)
    document, config = sentencepiece.read_model(file)
    return ScoredTokenizer(document, config | settings, str(file))


def _ranks(file: Path, settings: dict[str, Any], split: str | None) -> Tokenizer:
    return Tokenizer(tiktoken.read_ranks(file, split), settings, str(file))


def _pair(file: Path, settings: dict[str, Any], split: str | None) -> Tokenizer:
    return of_document(tiktoken.read_pair(file, settings, split), settings, str(file))


def _words(file: Path, settings: dict[str, Any], split: str | None) -> Tokenizer:
    return WordPiece(read_vocabulary(file, settings), settings, str(file))


def _gguf(file: Path, settings: dict[str, Any], split: str | None) -> Tokenizer:
    return gguf_vocabulary.load_gguf(file)
