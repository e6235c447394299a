"""BERT's WordPiece: text in, ids out, by the longest piece of the vocabulary that each word begins with.

One idea: three passes over the characters (drop and space, take accents off, small letters with punctuation set apart) leave
words between spaces, and a word is cut greedily (Wu et al. 2016; Devlin et al. 2019). The text does not come back as it was:
case, accents and spaces are gone, and a word that cannot be cut is one unknown token. Characters are classed by Python's
Unicode, which is newer than the tables of Hugging Face's tokenizers: some hundred rare marks are punctuation or accents here only.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from hornbook.errors import UserError
from hornbook.text.bpe import utf8
from hornbook.text.normalize import Edit, Span, followed, forms
from hornbook.text.published import added_token, read_text, refuse
from hornbook.text.tokenizer import Tokenizer

INSIDE = "##"  # how a piece inside a word is spelled
SPECIALS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
NORMALIZER = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
# The ranges of ideographs as BERT's code lists them, but for the gap before 2B920, which is that of Hugging Face's tokenizers.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
CACHED_WORDS = 1 << 18


class WordPiece(Tokenizer):
    """A `Tokenizer` of whole words and their pieces; `encode` gives the text alone, `pair` what an encoder reads."""

    in_bytes = False

    def __init__(self, document: Mapping[str, Any], config: Mapping[str, Any] | None = None, where: str = "tokenizer.json"):
        self._where, self.document, self._config = where, document, dict(config or {})
        self.normalizer, self.patterns = None, ()
        model, added = self._checked_parts()
        self.specials = {entry["content"]: entry["id"] for entry in added}
        unknown = model.get("unk_token", "[UNK]")
        if not isinstance(unknown, str) or unknown not in model["vocab"]:
            self._refuse(f"its token for unknown words, {unknown!r}, is not in the vocabulary")
        self._unknown, self._longest_word = model["vocab"][unknown], model.get("max_input_chars_per_word", 100)
        self._id_of = {piece: i for piece, i in model["vocab"].items() if i not in self.specials.values()}
        self._longest = max(map(len, self._id_of), default=0)
        names = dict(sorted((i, piece) for piece, i in (model["vocab"] | self.specials).items()))
        if list(names) != list(range(len(model["vocab"] | self.specials))):
            self._refuse(f"the ids of its {len(names)} pieces and added tokens are not 0, 1, 2, ...")
        self._names = list(names.values())
        self._shown = [utf8(_spaced(piece)) for piece in self._names]
        self._pieces = [b"" if i in self.specials.values() else shown for i, shown in enumerate(self._shown)]
        self._passes = self._character_passes()
        self._known = lru_cache(CACHED_WORDS)(self._cut)

    def encode(self, text: str) -> list[int]:
        """Text to ids; special strings in it stay ordinary text. A word that the vocabulary cannot write is the unknown token."""
        clean, bare, words = self._passes
        utf8(text)  # a lone surrogate is an error here too, though cleaning would drop it
        text = text.translate(clean)
        if bare is not None:
            text = unicodedata.normalize("NFD", text).translate(bare)
        return [i for word in text.translate(words).split(" ") if word for i in self._ids(word)]

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        clean, bare, words = self._passes
        accents = [] if bare is None else [forms("NFD"), bare.edits]
        text, spans = followed(text, [(n, n + 1) for n in range(len(text))], (clean.edits, *accents, words.edits))
        ids: list[int] = []
        found: list[Span] = []
        at = 0
        for word in text.split(" "):
            cut, start = self._ids(word) if word else [], at
            for n, i in enumerate(cut):
                end = at + len(word) if n == len(cut) - 1 else start + len(self._names[i].removeprefix(INSIDE if n else ""))
                found.append((spans[start][0], spans[end - 1][1]))
                start = end
            ids += cut
            at += len(word) + 1
        return ids, found

    def pair(self, a: str, b: str | None = None) -> tuple[list[int], list[int]]:
        """(ids, types) of one text or of two: [CLS] a [SEP] of type 0, then b [SEP] of type 1."""
        begin, end = (self.special(self.configured(name) or SPECIALS[name]) for name in ("cls_token", "sep_token"))
        first = [begin, *self.encode(a), end]
        second = [] if b is None else [*self.encode(b), end]
        return first + second, [0] * len(first) + [1] * len(second)

    def decode(self, ids: Any) -> str:
        """Ids to text: words with a space between, none before a full stop, comma, question or exclamation mark."""
        return super().decode(ids).removeprefix(" ")

    def spelled(self, token: int) -> str:
        return self._names[self._checked(token)]

    def alone(self, token: int) -> list[int]:
        """A piece inside a word is asked for behind one letter, the first that does not join it."""
        rest = self.spelled(token).removeprefix(INSIDE)
        if rest == self.spelled(token):
            return self.encode(rest)
        behind = (self.encode(letter + rest) for letter in self._names if len(letter) == 1)
        return next(([token] for ids in behind if ids[1:] == [token]), self.encode(rest))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids."""
        parts = [self.document["model"], self.document.get("normalizer"), sorted(self.specials.items())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("ascii")).hexdigest()

    def settings(self) -> dict[str, Any]:
        return {**{key: name for key, name in SPECIALS.items() if name in self.specials}, **super().settings()}

    def _ids(self, word: str) -> list[int]:
        return [self._unknown] if len(word) > self._longest_word else self._known(word)

    def _cut(self, word: str) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(word):
            lead = INSIDE if start else ""
            ends = range(min(len(word), start + self._longest), start, -1)
            end = next((end for end in ends if lead + word[start:end] in self._id_of), None)
            if end is None:
                return [self._unknown]
            ids.append(self._id_of[lead + word[start:end]])
            start = end
        return ids

    def _refuse(self, why: str) -> NoReturn:
        refuse(self._where, why, "a WordPiece tokenizer as BERT publishes it")

    def _checked_parts(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The model and the added tokens, of the types that they must have."""
        model, added = self.document.get("model"), self.document.get("added_tokens") or []
        if not isinstance(model, dict) or model.get("type") != "WordPiece" or not isinstance(model.get("vocab"), dict):
            self._refuse("its model is not WordPiece with a vocabulary")
        if model.get("continuing_subword_prefix", INSIDE) != INSIDE:
            self._refuse(f"its pieces inside a word begin with {model['continuing_subword_prefix']!r}, not {INSIDE!r}")
        for name, kind in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
            part = self.document.get(name)
            if not isinstance(part, dict) or part.get("type") != kind:
                self._refuse(f"its {name} is not {kind}")
        entries = isinstance(added, list) and all(isinstance(entry, dict) for entry in added)
        if not entries or not all(isinstance(entry.get("content"), str) for entry in added):
            self._refuse("an added token has no content")
        numbers = [*model["vocab"].values(), *(entry.get("id") for entry in added), model.get("max_input_chars_per_word", 100)]
        if not all(type(number) is int for number in numbers):
            self._refuse("an id or max_input_chars_per_word is no whole number")
        return model, added

    def _character_passes(self) -> tuple[_Each, _Each | None, _Each]:
        """Tables for `str.translate`: what to drop and set apart, which accents to take off, how words are written."""
        part = {**NORMALIZER, **self.document["normalizer"]}
        cleans, ideographs, small = part["clean_text"], part["handle_chinese_chars"], part["lowercase"]
        strips = small if part["strip_accents"] is None else part["strip_accents"]

        def clean(character: str) -> str:
            if cleans and (character in "\0\ufffd" or _is_control(character)):
                return ""
            if cleans and _is_space(character):
                return " "
            apart = ideographs and any(low <= ord(character) <= high for low, high in IDEOGRAPHS)
            return f" {character} " if apart else character

        def written(character: str) -> str:
            if _is_space(character):
                return " "
            return f" {character} " if _is_punctuation(character) else character.lower() if small else character

        bare = _Each(lambda character: "" if unicodedata.category(character) == "Mn" else character)
        return _Each(clean), bare if strips else None, _Each(written)


class _Each(dict[int, str]):
    """A table for `str.translate` that computes what it lacks."""

    def __init__(self, of: Callable[[str], str]):
        super().__init__()
        self._of = of

    def __missing__(self, code: int) -> str:
        self[code] = found = self._of(chr(code))
        return found

    def edits(self, text: str) -> Iterator[Edit]:
        """What the table changes, for offsets."""
        return ((n, n + 1, new) for n, old in enumerate(text) if (new := self[ord(old)]) != old)


def _is_control(character: str) -> bool:
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs")


def _is_space(character: str) -> bool:
    """Unicode's White_Space: Python counts four separators of files too."""
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_punctuation(character: str) -> bool:
    ascii_mark = "!" <= character <= "~" and not character.isalnum()
    return ascii_mark or unicodedata.category(character).startswith("P")


def _spaced(piece: str) -> str:
    """A piece as it stands in a text: what begins a word has a space before it."""
    if piece.startswith(INSIDE):
        return piece[len(INSIDE) :]
    return piece if piece.startswith((".", "?", "!", ",")) else " " + piece


def read_vocabulary(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that a vocab.txt, a piece per line, and its tokenizer_config.json stand for."""
    lines = read_text(path).removesuffix("\n").split("\n")
    vocab = {line.rstrip(): i for i, line in enumerate(lines)}
    if len(vocab) != len(lines):
        why = f"{len(lines) - len(vocab)} of its {len(lines)} lines repeat another"
        raise UserError("this vocabulary cannot be read", where=str(path), why=why, fix="name a BERT's vocab.txt")
    return wordpiece_document(vocab, config)


def wordpiece_document(vocab: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json of a BERT whose pieces have these ids; `config` is its tokenizer_config.json."""
    given = {key: value.get("content") if isinstance(value, dict) else value for key, value in config.items()}
    names = [str(given.get(key) or name) for key, name in SPECIALS.items()]
    switches = {
        "lowercase": config.get("do_lower_case", True), "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
    }  # fmt: skip
    begin, end = (str(given.get(key) or SPECIALS[key]) for key in ("cls_token", "sep_token"))
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(vocab[name], name) for name in dict.fromkeys(names) if name in vocab],
        "normalizer": {**NORMALIZER, **switches}, "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "BertProcessing", "cls": [begin, vocab.get(begin, 0)], "sep": [end, vocab.get(end, 0)],
        },
        "decoder": {"type": "WordPiece", "prefix": INSIDE, "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": str(given.get("unk_token") or "[UNK]"), "continuing_subword_prefix": INSIDE,
            "max_input_chars_per_word": 100, "vocab": dict(vocab),
        },
    }  # fmt: skip
