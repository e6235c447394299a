"""Byte-level BPE that puts a space before the text (add_prefix_space), as RoBERTa's and BART's relatives may.

The first word is then written as any other; the text comes back with that space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hornbook.text.normalize import Span, moved, prepends
from hornbook.text.tokenizer import Tokenizer

_SPACE = prepends(" ", unless_there=True)


def puts_a_space(document: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json has nothing but a ByteLevel pre-tokenizer, and that with add_prefix_space."""
    part = document.get("pre_tokenizer")
    return isinstance(part, dict) and part.get("type") == "ByteLevel" and part.get("add_prefix_space", True) is True


class SpacedTokenizer(Tokenizer):
    """A `Tokenizer` whose every text begins with a space."""

    def __init__(self, document: Mapping[str, Any], config: Mapping[str, Any] | None = None, where: str = "tokenizer.json"):
        without = {**document, "pre_tokenizer": {**document["pre_tokenizer"], "add_prefix_space": False}}
        super().__init__(without, config, where)
        self.document = document

    def encode(self, text: str) -> list[int]:
        return super().encode(_spaced(text))

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        return super().encode_array(_spaced(text))

    def encode_batch(self, texts: Iterable[str], threads: int = 1) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        return super().encode_batch(map(_spaced, texts), threads)

    def encode_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        ids, spans = super().encode_offsets(_spaced(text))
        origin = moved([(n, n + 1) for n in range(len(text))], _SPACE(text))
        return ids, [(origin[start][0], origin[end - 1][1]) for start, end in spans]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids."""
        return hashlib.sha256(f"space before {super().fingerprint}".encode("ascii")).hexdigest()


def _spaced(text: str) -> str:
    return f" {text}" if text and not text.startswith(" ") else text
