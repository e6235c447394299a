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
    """base: tokens that were learned; added: tokens beside them; `last` has the highest id."""

    rows: int
    base: int
    added: int
    last: str
    last_id: int

    @property
    def spare(self) -> int:
        """Rows that no token has."""
        return self.rows - self.base - self.added

    @property
    def multiple(self) -> int:
        """The largest power of two that divides the rows."""
        return self.rows & -self.rows

    def explained(self) -> str:
        """The relation in words."""
        tokens = f"{self.base + self.added:,} tokens ({self.base:,} base + {self.added:,} added)"
        if not self.spare:
            return f"{self.rows:,} rows for {tokens}: every row is a token's."
        padded = (
            f" {self.rows:,} is a multiple of {self.multiple}: rows are padded so that matrices are cut evenly and multiply fast."
        )
        never = "one row stands for no token" if self.spare == 1 else f"{self.spare:,} rows stand for no token"
        return f"{self.rows:,} rows for {tokens}: {never} and must never be sampled.{padded if self.multiple >= 8 else ''}"


def vocabulary(rows: int, tokenizer: Mapping[str, Any], config: Mapping[str, Any], where: str) -> Vocabulary:
    """Compare `rows` with a parsed tokenizer.json and tokenizer_config.json; a token past the last row is a `UserError`."""
    try:
        pieces = tokenizer["model"]["vocab"]
        named = pieces.items() if isinstance(pieces, dict) else ((piece[0], i) for i, piece in enumerate(pieces))
        base = {int(i): str(name) for name, i in named}
        added = {int(token["id"]): str(token["content"]) for token in tokenizer.get("added_tokens") or ()}
        added |= {int(i): str(token["content"]) for i, token in (config.get("added_tokens_decoder") or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            "the tokenizer's vocabulary cannot be read", where=where, why=f"{type(error).__name__}: {error}", fix="copy it again"
        ) from error
    tokens = added | base
    if not tokens:
        raise UserError("the tokenizer has no tokens", where=where, fix="copy it again")
    last = max(tokens)
    past = min((i for i in tokens if i >= rows), default=None)
    if past is not None:
        many = sum(i >= rows for i in tokens)
        raise UserError(
            f"token {tokens[past]!r} has id {past}, and the embedding has {rows} rows", where=where,
            why=f"{many} of its {len(tokens)} tokens lie past the last row, which is that of id {rows - 1}",
            fix=f"use the tokenizer that the model was trained with, or give the embedding {last + 1} rows",
        )  # fmt: skip
    return Vocabulary(rows, len(base), len(tokens) - len(base), tokens[last], last)
