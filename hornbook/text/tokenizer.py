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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hornbook.errors import UserError, near
from hornbook.text import bpe, chat
from hornbook.text.normalize import Span, followed, forms
from hornbook.text.published import Published, byte_level
from hornbook.text.scan import MACHINES, Rules
from hornbook.text.split import Splitter, patterns_named

if TYPE_CHECKING:
    from hornbook.text import fast

DEFAULT_SPECIALS = chat.SPECIALS
SMALL, WORTH = 100_000, 300  # characters: up to the one no text waits for a compiler, under the other it would not pay
MOST_COMPILED = 1 << 20  # rows: ids have twenty bits there


class Tokenizer:
    """Byte-level BPE with special tokens; make one with `train` or `load`.

    A text of more than SMALL bytes goes through compiled code (`fast`), which some seconds are spent on once per machine; a smaller
    one never waits for it. The ids are the same.
    """

    in_bytes = True  # whether merges begin with single bytes
    _scan_rules: Rules | None = None  # how compiled code cuts texts; None: it cannot
    _compiled: fast.Encoder | None = None
    _numbers: npt.NDArray[np.object_]

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
        every_byte = all(bytes([byte]) in id_of for byte in range(256))
        if len(self.patterns) == 1 and every_byte and max(len(self._pieces), len(self._merges)) < MOST_COMPILED:
            self._scan_rules = MACHINES.get(self.patterns[0])

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
        threads: int = 1,
    ) -> Tokenizer:
        """Learn a vocabulary of `vocab` rows: the 256 bytes, the merges, then the specials.

        `documents` is read once, one text at a time, and no token crosses from one into the next. `pattern` is a regular
        expression that replaces the named `split`; to open elsewhere, it has to mean the same to Oniguruma.
        Text that allows fewer merges is an error, unless `vocab` is only meant as `at_most`: then `vocab_size` tells. Any number
        of `threads`, which count, learns the same.
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
        pieces, merges = learned(documents, splitter, rows, forbidden, progress, threads)
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

    @staticmethod
    def load(path_or_name: str | Path, split: str | None = None) -> Tokenizer:
        """Open any published tokenizer, by its file, its folder, or a known name such as "cl100k".

        tokenizer.json (byte-level BPE, SentencePiece's kinds, WordPiece), *.tiktoken, encoder.json + vocab.bpe or vocab.json +
        merges.txt, SentencePiece's .model, vocab.txt, .gguf. `split` names how ranks or merges cut text: they do not say it, though
        a tokenizer_config.json beside them may.
        """
        from hornbook.text.load import load  # the kinds are built on this class

        return load(path_or_name, split)

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
        if self._fast(len(text)):
            found: list[int] = self._numbers.take(self.encode_array(text)).tolist()
            return found
        if self.normalizer:
            text = unicodedata.normalize(self.normalizer, text)
        words = self._words
        return [i for word in self._split(text) for i in words[word]]

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """`encode` as a uint32 array: faster, for a list takes longer to make than its ids."""
        encoder = self._fast(len(text))
        if encoder:
            return encoder([unicodedata.normalize(self.normalizer, text) if self.normalizer else text])[0]
        return np.array(self.encode(text), dtype=np.uint32)

    def encode_batch(self, texts: Iterable[str], threads: int = 1) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Encode many texts into (ids, offsets): text n is ids[offsets[n]:offsets[n + 1]]."""
        texts = list(texts)
        encoder = self._fast(sum(map(len, texts)))
        if encoder:
            normal = self.normalizer
            return encoder([unicodedata.normalize(normal, text) for text in texts] if normal else texts, threads)
        arrays = [self.encode_array(text) for text in texts]
        offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return np.concatenate([np.zeros(0, dtype=np.uint32), *arrays]), offsets

    def _fast(self, size: int) -> fast.Encoder | None:
        """Compiled code for a text of so many characters, where it can be had and pays."""
        if self._scan_rules is None or size < (WORTH if self._compiled else SMALL):
            return None
        if self._compiled is None:
            from hornbook.text import fast

            self._numbers = np.arange(len(self._pieces)).astype(object)  # numbers that are there are listed faster than made
            self._compiled = fast.Encoder(self._pieces, self._merges, self._scan_rules, self._whole)
            if not self._compiled.exact:
                self._scan_rules = None
        return self._compiled if self._scan_rules else None

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """`encode`, and for each id the (start, end) that it stands for in `text`, in characters before any normalization.

        A token that holds a part of a character stands for the whole character.
        """
        spans = [(n, n + 1) for n in range(len(text))]
        ids = self.encode(text)
        text, spans = followed(text, spans, [forms(self.normalizer)] if self.normalizer else [])
        owners = [span for character, span in zip(text, spans, strict=True) for _ in range(len(character.encode()))]
        ends = list(accumulate(len(self._pieces[i]) for i in ids))
        return ids, [(owners[start][0], owners[end - 1][1]) for start, end in zip([0, *ends], ends, strict=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; a special shows as its name, and bytes that are no UTF-8 show as U+FFFD."""
        return b"".join([self._shown[self._checked(i)] for i in ids]).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of the text that the ids stand for; a special stands for no text, so it gives none."""
        return b"".join([self._pieces[self._checked(i)] for i in ids])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for; none for a special, so that sums of lengths count text only."""
        return self._pieces[self._checked(token)]

    def spelled(self, token: int) -> str:
        """How the vocabulary spells a token; a special has its name."""
        return bpe.spell(self.token_bytes(token)) or self.decode([token])

    def alone(self, token: int) -> list[int]:
        """The ids of a token's own text: itself, where a text can give it. Bytes that are no text are a `UnicodeDecodeError`."""
        return self.encode(self.token_bytes(token).decode("utf-8"))

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
        if chat.MASK in self.specials:
            config["mask_token"] = chat.MASK
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


def learned(
    documents: Iterable[str], splitter: Splitter, rows: int, forbidden: Collection[bytes],
    progress: Callable[[int, int], None] | None, threads: int,
) -> tuple[list[bytes], list[bpe.Pair]]:  # fmt: skip
    """Pieces and merges, as `bpe.train` learns them: through compiled code where the documents are more than SMALL."""
    documents, first, size = iter(documents), list[str](), 0
    for document in documents:
        first.append(document)
        size += len(document)
        if size > SMALL:
            break
    else:
        return bpe.train(bpe.count_words(first, splitter), rows, forbidden, progress)
    from hornbook.text import fast

    rules = MACHINES.get(splitter.patterns[0]) if len(splitter.patterns) == 1 else None
    counted = (
        fast.count(chain(first, documents), rules, threads)
        if rules
        else fast.weighed(bpe.count_words(chain(first, documents), splitter))
    )
    return fast.train(counted, rows, forbidden, progress)


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
