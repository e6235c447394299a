"""The tokenizer laboratory, comparison: tokenizers and texts in; tokens, bytes per token and fertility out.

One idea: every claim about tokenizers is a count of tokens on a named text, with its other half beside it: the language that the
tokenizer did not learn, the same data in another notation, the same string backwards. Fertility is tokens per word (Rust et al.,
"How Good is Your Tokenizer?", 2021, section 3); in scripts that put no space between words, tokens per character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import regex

from hornbook.errors import UserError
from hornbook.text.tokenizer import Tokenizer

UNSPACED = "".join(rf"\p{{{name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"))
WORDS = regex.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}_])+")
PIECES = regex.compile(rf"{WORDS.pattern}|.", regex.DOTALL)  # a word tokenizer's: nothing is lost between words
# Short strings whose cuts answer a question at sight.
PROBES = (
    "strawberry",
    "yrrebwarts",
    "1234567",
    "7654321",
    "12345 + 67 = 12412",
    "        return x",
    "<|endoftext|>",
    "论文的结构",
    "研究の方法",
)
BPE_ROWS = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Measure:
    """One tokenizer on one text; `words` are characters in scripts without spaces."""

    tokens: int
    words: int
    characters: int
    bytes: int

    def record(self) -> dict[str, float]:
        """The counts and what follows from them."""
        per_token = self.bytes / self.tokens if self.tokens else 0.0
        return asdict(self) | {"bytes_per_token": per_token, "fertility": self.tokens / self.words if self.words else 0.0}


def measure(tokenizer: Tokenizer, text: str) -> Measure:
    return Measure(len(tokenizer.encode(text)), len(WORDS.findall(text)), len(text), len(text.encode()))


def compare(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, str]) -> dict[str, Any]:
    """Every tokenizer on every text, and the cuts of `PROBES`: {"texts": {text: {tokenizer: ...}}, "probes": ...}."""
    return {
        "vocab": {name: tokenizer.vocab_size for name, tokenizer in tokenizers.items()},
        "texts": {
            title: {name: measure(tokenizer, text).record() for name, tokenizer in tokenizers.items()}
            for title, text in texts.items()
        },
        "probes": {probe: {name: cuts(tokenizer, probe) for name, tokenizer in tokenizers.items()} for probe in PROBES},
    }


def cuts(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text token by token; bytes that are no whole character show as `\\xe4`."""
    ids = tokenizer.encode(text)
    return [tokenizer.token_bytes(i).decode("utf-8", errors="backslashreplace") or tokenizer.spelled(i) for i in ids]


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer on held-out text: `unknown` is the share of its tokens that it has no row for."""

    name: str
    vocab: int
    tokens: int
    unknown: float
    bytes_per_token: float


def kinds(learn: Sequence[str], held_out: Sequence[str], rows: Iterable[int] = BPE_ROWS) -> list[Kind]:
    """Bytes, characters, words and BPE, learned from one corpus and measured on other documents of it.

    Words are tried with every word that was seen, and with the most frequent where they outnumber the largest BPE's rows.
    """
    size = sum(len(text.encode()) for text in held_out)
    if not size or not any(learn):
        raise UserError("too little text to compare on", fix="give a corpus of at least two documents that are not empty")
    trained = [Tokenizer.train(learn, vocab=wanted, specials=(), at_most=True) for wanted in rows]
    found = [Kind("bytes", 256, size, 0.0, 1.0)]
    letters, words = (Counter(part for text in learn for part in cut(text)) for cut in (list, PIECES.findall))
    tried = {"characters": (letters, list), "words": (words, PIECES.findall)}
    if (most := max(tokenizer.vocab_size for tokenizer in trained)) < len(words):
        tried["frequent words"] = Counter(dict(words.most_common(most))), PIECES.findall
    for name, (known, cut) in tried.items():
        parts = [part for text in held_out for part in cut(text)]
        lost = sum(part not in known for part in parts)
        found.append(Kind(name, len(known) + 1, len(parts), lost / len(parts), size / len(parts)))  # one row for unknown
    for tokenizer in {tokenizer.vocab_size: tokenizer for tokenizer in trained}.values():
        tokens = sum(len(tokenizer.encode(text)) for text in held_out)
        found.append(Kind("BPE", tokenizer.vocab_size, tokens, 0.0, size / tokens))
    return found
