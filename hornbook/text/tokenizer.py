"""The tokenizer: text in, ids out, and back without loss; learned from documents, or read from a published file.

One idea: a tokenizer *is* its tokenizer.json (Hugging Face's format, byte-level BPE). Training writes that document, loading
reads it, and everything here is a view of it; so what was saved opens elsewhere with the same ids, and what others published
opens here. Text stays text: no string in it ever becomes a special id.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook.errors import UserError, near
from hornbook.text import bpe, chat
from hornbook.text.published import Published, byte_level, read_json
from hornbook.text.split import Splitter, patterns_named

DEFAULT_SPECIALS = chat.SPECIALS


class Tokenizer:
    """Byte-level BPE with special tokens; make one with `train` or `load`."""

    def __init__(self, document: Mapping[str, Any], config: Mapping[str, Any] | None = None, where: str = "tokenizer.json"):
        """Read a parsed tokenizer.json and, where there is one, tokenizer_config.json; `where` names it in errors."""
        published = Published(document, where)
        self.document, self._config = document, dict(config or {})
        self.specials: Mapping[str, int] = published.specials
        self.normalizer = published.normalizer
        self._pieces, self._merges, self._whole = published.pieces, published.merges, published.whole
        self._shown = list(self._pieces)
        for name, i in self.specials.items():
            self._shown[i] = bpe.utf8(name)
        id_of = {piece: i for i, piece in enumerate(self._pieces) if piece}
        self._words = bpe.Words(id_of, self._merges, self._pieces, self._whole)
        self._split = Splitter(published.patterns)
        self.patterns: Sequence[str] = self._split.patterns

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        vocab: int = 8192,
        split: str = "cl100k",
        pattern: str | None = None,
        specials: Sequence[str] = DEFAULT_SPECIALS,
        progress: Callable[[int, int], None] | None = None,
        at_most: bool = False,
    ) -> Tokenizer:
        """Learn a vocabulary of `vocab` rows: the 256 bytes, the merges, then the specials.

        `documents` is read once, one text at a time, and no token crosses from one into the next. `pattern` is a regular
        expression that replaces the named `split`; to open elsewhere, it has to mean the same to Oniguruma.
        Text that allows fewer merges is an error, unless `vocab` is only meant as `at_most`.
        """
        if isinstance(documents, str):
            raise UserError("documents is one string", why="it is an iterable of texts", fix="give [text] instead of text")
        _check_specials(specials)
        rows = vocab - len(specials)
        if rows < 256:
            raise UserError(
                f"vocab={vocab} is too small",
                why=f"the 256 bytes and {len(specials)} special tokens need a row each",
                fix=f"use vocab={256 + len(specials)} or more",
            )
        splitter = Splitter(patterns_named(split) if pattern is None else [pattern])
        # A piece that is spelled like a special would share its key in the vocabulary of tokenizer.json.
        forbidden = {piece for piece in map(bpe.unspell, specials) if piece is not None}
        pieces, merges = bpe.train(bpe.count_words(documents, splitter), rows, forbidden, progress)
        if len(pieces) < rows and not at_most:
            raise UserError(
                f"too little text for vocab={vocab}",
                why=f"it asks for {rows - 256} merges, and these documents allow {len(pieces) - 256}",
                fix=f"give more text, or use vocab={len(pieces) + len(specials)} or less",
            )
        spelled = [bpe.spell(piece) for piece in pieces]
        pairs = [f"{spelled[left]} {spelled[right]}" for left, right in merges]
        ids = {name: len(pieces) + n for n, name in enumerate(specials)}
        return cls(byte_level({text: i for i, text in enumerate(spelled)}, pairs, splitter.patterns, ids))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Open a folder that holds a tokenizer.json, or the file itself; any byte-level BPE in Hugging Face's format."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UserError("there is no tokenizer here", where=str(file), fix="name a folder with a tokenizer.json")
        config = file.with_name("tokenizer_config.json")
        settings = read_json(config) if config.is_file() else {}
        template = file.with_name("chat_template.jinja")
        if template.is_file():
            settings["chat_template"] = template.read_text(encoding="utf-8")
        return cls(read_json(file), settings, where=str(file))

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary: every id is below it."""
        return len(self._pieces)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text or a turn, the configured one first; empty when there is none."""
        names = dict.fromkeys([self.configured("eos_token"), *chat.PUBLISHED_ENDS])
        return tuple(self.specials[name] for name in names if name in self.specials)

    @cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """The ids that stand before a document's text; empty when it begins at once."""
        name = chat.BOS if chat.BOS in self.specials else self.configured("bos_token") if self._config.get("add_bos_token") else ""
        return (self.specials[name],) if name in self.specials else ()

    def special(self, name: str) -> int:
        """The id of a special token."""
        if name not in self.specials:
            known = near(name, self.specials) if self.specials else "train a tokenizer with special tokens"
            raise UserError(f"this tokenizer has no special token {name!r}", fix=known)
        return self.specials[name]

    def encode(self, text: str) -> list[int]:
        """Text to ids; special strings in it stay ordinary text, and nothing is added."""
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)
        words = self._words
        return [i for word in self._split(text) for i in words[word]]

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """`encode` as a uint32 array."""
        return np.array(self.encode(text), dtype=np.uint32)

    def encode_batch(self, texts: Iterable[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Encode many texts into (ids, offsets): text n is ids[offsets[n]:offsets[n + 1]]."""
        arrays = [self.encode_array(text) for text in texts]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return np.concatenate([np.zeros(0, dtype=np.uint32), *arrays]), offsets

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; a special shows as its name, and bytes that are no UTF-8 show as U+FFFD."""
        return b"".join([self._shown[self._checked(i)] for i in ids]).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of the text that the ids stand for; a special stands for no text, so it gives none."""
        return b"".join([self._pieces[self._checked(i)] for i in ids])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for; none for a special, so that sums of lengths count text only."""
        return self._pieces[self._checked(token)]

    def stream(self) -> TextStream:
        """A decoder for ids that come one at a time."""
        return TextStream(self)

    def render(self, messages: Sequence[Mapping[str, str]], prompt: bool = False) -> tuple[list[int], list[int]]:
        """Turn a conversation into (ids, mask) by the published chat template, or by hornbook's own, see `chat`."""
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several, each with a name
            template = {str(e.get("name")): e.get("template") for e in template if isinstance(e, dict)}.get("default")
        if not isinstance(template, str) or template == chat.JINJA:
            return chat.render(self, messages, prompt)
        names = {name: self.configured(name) for name in ("bos_token", "eos_token")}
        return chat.render_published(self, template, names, messages, prompt)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids: vocabulary, merges, normalizer, patterns, specials."""
        pieces = [piece.hex() for piece in self._pieces]
        specials = sorted(self.specials.items(), key=lambda item: item[1])
        parts = [pieces, self._merges, self._whole, self.normalizer, self._split.patterns, specials]
        return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers opens with the same ids.

        One difference is theirs: transformers reads special strings inside text as specials.
        """
        folder, config = Path(folder), self.settings()
        folder.mkdir(parents=True, exist_ok=True)
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        for name, content in (("tokenizer.json", self.document), ("tokenizer_config.json", config)):
            text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
            (folder / name).write_text(text, encoding="utf-8", newline="\n")

    def settings(self) -> dict[str, Any]:
        """The tokenizer_config.json: what was read, and what follows from the special tokens."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if chat.BOS in self.specials:
            config["bos_token"] = chat.BOS
        if self.end_ids:
            config["eos_token"] = next(name for name, i in self.specials.items() if i == self.end_ids[0])
        if self.specials.keys() >= set(chat.SPECIALS):
            config["chat_template"] = chat.JINJA
        return config | self._config

    def _checked(self, token: int) -> int:
        if not 0 <= token < len(self._pieces):
            raise UserError(
                f"token id {int(token)} is outside the vocabulary",
                why=f"ids are 0 to {len(self._pieces) - 1}",
                fix="decode with the tokenizer that made these ids",
            )
        return token

    def configured(self, name: str, settings: Mapping[str, Any] | None = None) -> str:
        """A token named in tokenizer_config.json, where it is a string or an object with its content; "" where there is none."""
        value = (self._config if settings is None else settings).get(name)
        return str(value.get("content", "") if isinstance(value, dict) else value or "")


class TextStream:
    """Text from ids as they come: a character appears with its last byte, and the pieces joined are `decode` of all ids."""

    def __init__(self, tok: Tokenizer):
        self._tok = tok
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that this id completes, often a word, sometimes nothing yet."""
        return self._decoder.decode(self._tok._shown[self._tok._checked(token)])

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the ids stopped inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _check_specials(specials: Sequence[str]) -> None:
    if isinstance(specials, str):
        raise UserError("specials is one string", why="it is a sequence of names", fix=f"give ({specials!r},)")
    for n, name in enumerate(specials):
        if len(name) < 2 or name in specials[:n]:
            raise UserError(
                f"special token {name!r} cannot be used",
                why="a name has at least two characters and appears once",
                fix="use names such as '<|end|>', each once",
            )
