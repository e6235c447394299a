"""A published tokenizer.json of byte-level BPE, in and out: pieces, merges, patterns and specials, checked.

One idea: what is not understood is refused by name, so that no published file gives other ids here than elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from hornbook.errors import DamagedError, UserError
from hornbook.text import bpe
from hornbook.text.split import PATTERNS, literal

NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")


class Published:
    """A parsed tokenizer.json, checked: pieces by id (empty for a special), merges by rank, patterns, specials."""

    def __init__(self, document: Mapping[str, Any], where: str):
        self._where = where
        model = document.get("model") or {}
        if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
            self._refuse(f"its model is {model.get('type') if isinstance(model, dict) else model!r}, not BPE with a vocabulary")
        for option in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "byte_fallback"):
            if model.get(option):
                self._refuse(f"its model sets {option}={model[option]!r}")
        if self._dict("decoder", document.get("decoder")).get("type") != "ByteLevel":
            self._refuse("its decoder is not ByteLevel")
        self.normalizer = self._normalizer(self._dict("normalizer", document.get("normalizer")))
        self.patterns = self._patterns(self._dict("pre_tokenizer", document.get("pre_tokenizer")))
        self.whole = bool(model.get("ignore_merges"))
        self.specials = self._read_specials(self._list("added_tokens", document.get("added_tokens")))
        self.pieces = self._read_pieces(model["vocab"])
        self.merges = self._read_merges(self._list("merges", model.get("merges")))

    def _refuse(self, why: str) -> NoReturn:
        refuse(self._where, why, "a byte-level BPE, as GPT-2, Llama 3 and Qwen publish")

    def _dict(self, name: str, part: Any) -> dict[str, Any]:
        return part if isinstance(part, dict) else {} if part is None else self._refuse(f"its {name} is {part!r}, not an object")

    def _list(self, name: str, part: Any) -> list[Any]:
        return part if isinstance(part, list) else [] if part is None else self._refuse(f"its {name} is {part!r}, not a list")

    def _normalizer(self, part: dict[str, Any]) -> Literal["NFC", "NFD", "NFKC", "NFKD"] | None:
        if not part:
            return None
        if part.get("type") not in NORMALIZERS:
            self._refuse(f"its normalizer is {part.get('type')}; known: none, {', '.join(NORMALIZERS)}")
        return cast(Literal["NFC", "NFD", "NFKC", "NFKD"], part["type"])

    def _patterns(self, part: dict[str, Any]) -> list[str]:
        """The patterns of a ByteLevel pre-tokenizer, or of a sequence of splits that ends in one."""
        several = part.get("type") == "Sequence"
        steps = self._list("pretokenizers", part.get("pretokenizers")) if several else [part]
        steps = [self._dict("pre-tokenizer", step) for step in steps]
        last = steps[-1] if steps else {}
        if last.get("type") != "ByteLevel":
            self._refuse(f"its pre-tokenizer is {part.get('type')} and does not end in ByteLevel")
        if last.get("add_prefix_space", True):
            self._refuse("it adds a space before each part of the text (add_prefix_space), and is not ByteLevel alone")
        patterns = [self._pattern(step) for step in steps[:-1]]
        return [*patterns, PATTERNS["gpt2"]] if last.get("use_regex", True) else patterns

    def _pattern(self, step: dict[str, Any]) -> str:
        if step.get("type") == "Digits":
            return r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
        if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
            self._refuse(f"its pre-tokenizer has the step {step}; known: Digits, and Split that is Isolated and not inverted")
        rule = self._dict("pattern", step.get("pattern"))
        text = rule.get("Regex", rule.get("String", ""))
        if not isinstance(text, str):
            self._refuse(f"its pre-tokenizer's pattern is {text!r}, not a string")
        return text if "Regex" in rule else literal(text)

    def _read_specials(self, entries: list[Any]) -> dict[str, int]:
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
                self._refuse(f"its added token {entry} has no content or no id")
            if not entry.get("special") and not entry["content"].strip():
                self._refuse(f"it adds the token {entry['content']!r}, which stands for text outside the merges")
        return {entry["content"]: entry["id"] for entry in entries}

    def _read_pieces(self, vocab: dict[str, Any]) -> list[bytes]:
        wrong = next((item for item in vocab.items() if type(item[1]) is not int), None)
        if wrong:
            self._refuse(f"its piece {wrong[0]!r} has the id {wrong[1]!r}, which is no whole number")
        pieces: dict[int, bytes] = {i: b"" for i in self.specials.values()}
        for text, i in vocab.items():
            if text not in self.specials:
                pieces[i] = bpe.unspell(text) or self._refuse(f"its piece {text!r} is not spelled in bytes")
        rows = len(pieces)
        if rows != len(self.specials.keys() | vocab.keys()) or not all(i in pieces for i in range(rows)):
            self._refuse(f"the ids of its {len(vocab)} pieces and {len(self.specials)} added tokens are not 0, 1, 2, ...")
        return [pieces[i] for i in range(rows)]

    def _read_merges(self, merges: list[Any]) -> list[tuple[int, int]]:
        id_of = {piece: i for i, piece in enumerate(self.pieces) if piece}
        pairs = []
        for merge in merges:
            left, right = (bpe.unspell(half) or b"" for half in halves(merge))
            if left not in id_of or right not in id_of or left + right not in id_of:
                self._refuse(f"its merge {merge!r} does not join two pieces into a third")
            pairs.append((id_of[left], id_of[right]))
        return pairs


def refuse(where: str, why: str, wanted: str) -> NoReturn:
    """Where every reader of a tokenizer.json ends with what it does not read."""
    raise UserError("this tokenizer cannot be read", where=where, why=why[:500], fix=f"use {wanted}")


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
    added = [added_token(i, name, name not in ordinary) for name, i in specials.items()]
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


def added_token(i: int, name: str, special: bool = True) -> dict[str, Any]:
    """An entry of `added_tokens`; one that is not special is text to a reader."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": name, **flags, "special": special}


def halves(merge: Any) -> tuple[str, str]:
    """The pieces that a merge joins, whether it is "a b" or ["a", "b"]; empty where it is neither."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    whole = isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)
    return (parts[0], parts[1]) if whole else ("", "")


def merges_of(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of a document that was read."""
    return [halves(merge) for merge in document["model"].get("merges") or []]


def read_text(file: Path) -> str:
    """A file of a tokenizer, which is UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError("the file is not UTF-8", where=str(file), why=str(error), fix="download it again") from None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a tokenizer's file."""
    text = read_text(file)
    try:
        content = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # as every file that spells emoji in ASCII has them, but in pairs
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as problem:
        raise UserError("the file is not JSON", where=str(file), why=str(problem), fix="name a tokenizer.json") from None
    if not isinstance(content, dict):
        what = "the file is not a JSON object"
        raise UserError(what, where=str(file), why=f"it is a {type(content).__name__}", fix="name a tokenizer.json")
    return content
