"""Rows of an embedding beside the tokens of a tokenizer: which rows no token has, and which tokens have no row.

The published files flow in, a `Vocabulary` flows out. A tokenizer counts its base vocabulary and the tokens that were added to it
(control tokens, mostly) apart; the embedding has one row per id, and often more, so that its height is a round number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hornbook.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """base: tokens that were learned; added: tokens beside them; spare: rows that no token has."""

    rows: int
    base: int
    added: int
    spare: int

    def explained(self) -> str:
        """The relation in words."""
        begin = f"{self.rows:,} rows for {self.base + self.added:,} tokens ({self.base:,} base + {self.added:,} added)"
        if not self.spare:
            return f"{begin}: every row is a token's."
        multiple = self.rows & -self.rows  # the largest power of two that divides the rows
        padded = f" {self.rows:,} is a multiple of {multiple}: rows are padded so that matrices are cut evenly and multiply fast."
        never = "one row stands for no token" if self.spare == 1 else f"{self.spare:,} rows stand for no token"
        return f"{begin}: {never} and must never be sampled.{padded if multiple >= 8 else ''}"


def vocabulary(rows: int, tokenizer: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Vocabulary:
    """Compare `rows` with a parsed tokenizer.json and tokenizer_config.json; a token past the last row is a `UserError`."""
    try:
        pieces = tokenizer["model"]["vocab"]
        named = pieces.items() if isinstance(pieces, dict) else ((piece[0], i) for i, piece in enumerate(pieces))
        base = {int(i): str(name) for name, i in named}
        tokens = {int(i): str(token["content"]) for i, token in (config.get("added_tokens_decoder") or {}).items()}
        tokens |= {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens") or ()} | base
        last = max(tokens)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            "the tokenizer's vocabulary cannot be read", where=where, why=f"{type(error).__name__}: {error}", fix="copy it again"
        ) from error
    if past := sorted(i for i in tokens if i >= rows):
        raise UserError(
            f"token {tokens[past[0]]!r} has id {past[0]}, and the embedding has {rows} rows", where=where,
            why=f"{len(past)} of its {len(tokens)} tokens lie past the last row, which is that of id {rows - 1}",
            fix=f"use the tokenizer that the model was trained with, or give the embedding {last + 1} rows",
        )  # fmt: skip
    return Vocabulary(rows, len(base), len(tokens) - len(base), rows - len(tokens))
