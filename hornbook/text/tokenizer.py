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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import numpy as np
import numpy.typing as npt

from hornbook.errors import UserError, near
from hornbook.text import bpe, chat
from hornbook.text.scan import MACHINES, Rules
from hornbook.text.split import PATTERNS, Splitter, literal, pattern_named

if TYPE_CHECKING:
    from hornbook.text import fast

DEFAULT_SPECIALS = chat.SPECIALS
SMALL, WORTH = 100_000, 300  # characters: up to the one no text waits for a compiler, under the other it would not pay
MOST_COMPILED = 1 << 20  # rows: ids have twenty bits there
NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")


class Tokenizer:
    """Byte-level BPE with special tokens; make one with `train` or `load`.

    A text of more than SMALL bytes goes through compiled code (`fast`), which some seconds are spent on once per machine; a smaller
    one never waits for it. The ids are the same.
    """

    _rules: Rules | None = None  # how compiled code cuts texts; None: it cannot
    _compiled: fast.Encoder | None = None

    def __init__(self, document: Mapping[str, Any], config: Mapping[str, Any] | None = None, where: str = "tokenizer.json"):
        """Read a parsed tokenizer.json and, where there is one, tokenizer_config.json; `where` names it in errors."""
        published = _Published(document, where)
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
            self._rules = MACHINES.get(self.patterns[0])

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
        Text that allows fewer merges is an error, unless `vocab` is only meant as `at_most`. Any number of `threads`, which
        count, learns the same.
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
        splitter = Splitter([pattern_named(split) if pattern is None else pattern])
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
        if self._fast(len(text)):
            found: list[int] = self.encode_array(text).tolist()
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
        if self._rules is None or size < (WORTH if self._compiled else SMALL):
            return None
        if self._compiled is None:
            from hornbook.text import fast

            self._compiled = fast.Encoder(self._pieces, self._merges, self._rules, self._whole)
            if not self._compiled.exact:
                self._rules = None
        return self._compiled if self._rules else None

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
            template = {str(entry.get("name")): entry.get("template") for entry in template}.get("default")
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


class _Published:
    """A parsed tokenizer.json, checked: pieces by id (empty for a special), merges by rank, patterns, specials."""

    def __init__(self, document: Mapping[str, Any], where: str):
        self._where = where
        model = document.get("model") or {}
        if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
            self._refuse(f"its model is {model.get('type') if isinstance(model, dict) else model!r}, not BPE with a vocabulary")
        for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback"):
            if model.get(option):
                self._refuse(f"its model sets {option}={model[option]!r}")
        if (document.get("decoder") or {}).get("type") != "ByteLevel":
            self._refuse("its decoder is not ByteLevel")
        self.normalizer = self._normalizer(document.get("normalizer"))
        self.patterns = self._patterns(document.get("pre_tokenizer") or {})
        self.whole = bool(model.get("ignore_merges"))
        self.specials = self._read_specials(document.get("added_tokens") or [])
        self.pieces = self._read_pieces(model["vocab"])
        self.merges = self._read_merges(model.get("merges") or [])

    def _refuse(self, why: str) -> NoReturn:
        fix = "use a byte-level BPE, as GPT-2, Llama 3 and Qwen publish"
        raise UserError("this tokenizer cannot be read", where=self._where, why=why, fix=fix)

    def _normalizer(self, part: dict[str, Any] | None) -> Literal["NFC", "NFD", "NFKC", "NFKD"] | None:
        if part is None:
            return None
        if part.get("type") not in NORMALIZERS:
            self._refuse(f"its normalizer is {part.get('type')}; known: none, {', '.join(NORMALIZERS)}")
        return cast(Literal["NFC", "NFD", "NFKC", "NFKD"], part["type"])

    def _patterns(self, part: dict[str, Any]) -> list[str]:
        """The patterns of a ByteLevel pre-tokenizer, or of a sequence of splits that ends in one."""
        steps = part.get("pretokenizers", []) if part.get("type") == "Sequence" else [part]
        last = steps[-1] if steps else {}
        if last.get("type") != "ByteLevel":
            self._refuse(f"its pre-tokenizer is {part.get('type')} and does not end in ByteLevel")
        if last.get("add_prefix_space", True):
            self._refuse("it adds a space before the text (add_prefix_space), so text would not come back as it was")
        patterns = [self._pattern(step) for step in steps[:-1]]
        return [*patterns, PATTERNS["gpt2"]] if last.get("use_regex", True) else patterns

    def _pattern(self, step: dict[str, Any]) -> str:
        if step.get("type") == "Digits":
            return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
        if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
            self._refuse(f"its pre-tokenizer has the step {step}; known: Digits, and Split that is Isolated and not inverted")
        rule = step.get("pattern") or {}
        return str(rule["Regex"]) if "Regex" in rule else literal(str(rule.get("String", "")))

    def _read_specials(self, entries: list[dict[str, Any]]) -> dict[str, int]:
        for entry in entries:
            if not isinstance(entry.get("content"), str) or not isinstance(entry.get("id"), int):
                self._refuse(f"its added token {entry} has no content or no id")
            if not entry.get("special") and not entry["content"].strip():
                self._refuse(f"it adds the token {entry['content']!r}, which stands for text outside the merges")
        return {entry["content"]: entry["id"] for entry in entries}

    def _read_pieces(self, vocab: dict[str, int]) -> list[bytes]:
        pieces: dict[int, bytes] = {i: b"" for i in self.specials.values()}
        for text, i in vocab.items():
            if text not in self.specials:
                pieces[i] = bpe.unspell(text) or self._refuse(f"its piece {text!r} is not spelled in bytes")
        rows = len(pieces)
        if rows != len(self.specials.keys() | vocab.keys()) or not all(i in pieces for i in range(rows)):
            self._refuse(f"the ids of its {len(vocab)} pieces and {len(self.specials)} added tokens are not 0, 1, 2, ...")
        return [pieces[i] for i in range(rows)]

    def _read_merges(self, merges: list[str | list[str]]) -> list[tuple[int, int]]:
        id_of = {piece: i for i, piece in enumerate(self.pieces) if piece}
        pairs = []
        for merge in merges:
            halves = merge.split(" ") if isinstance(merge, str) else merge
            left, right = (bpe.unspell(half) or b"" for half in halves) if len(halves) == 2 else (b"", b"")
            if left not in id_of or right not in id_of or left + right not in id_of:
                self._refuse(f"its merge {merge!r} does not join two pieces into a third")
            pairs.append((id_of[left], id_of[right]))
        return pairs


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

    rules = MACHINES.get(splitter.patterns[0])
    counted = (
        fast.count(chain(first, documents), rules, threads)
        if rules
        else fast.weighed(bpe.count_words(chain(first, documents), splitter))
    )
    return fast.train(counted, rows, forbidden, progress)


def byte_level(
    vocab: Mapping[str, int],
    merges: Sequence[str],
    patterns: Sequence[str],
    specials: Mapping[str, int],
    ordinary: Collection[str] = (),
    normalizer: str | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """The tokenizer.json of a byte-level BPE whose pieces are spelled in visible characters.

    `ordinary`: the specials that are text to a reader; `whole`: a word that is a piece is taken without asking the merges.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": name, **flags, "special": name not in ordinary} for name, i in specials.items()]
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    bytes_at_last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None if normalizer is None else {"type": normalizer},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes_at_last]},
        "post_processor": None,
        "decoder": bytes_at_last,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole,
            "vocab": dict(vocab),
            "merges": list(merges),
        },
    }


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


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a tokenizer's file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError("the file is not JSON", where=str(file), why=str(problem), fix="name a tokenizer.json") from None
    if not isinstance(content, dict):
        what = "the file is not a JSON object"
        raise UserError(what, where=str(file), why=f"it is a {type(content).__name__}", fix="name a tokenizer.json")
    return content
