"""Stems: raw input -> the residual stream. `TokenStem`: ids (B, T) -> x (B, T, D)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hornbook.model.attention import default_positions
from hornbook.model.spec import Context, Spec, build


@dataclass(frozen=True, kw_only=True)
class TokenStem:
    vocab: int
    positions: int | None = None  # learned absolute positions; None: the tower's rope carries the order
    norm: Spec | None = None

    def build(self, dim: int) -> TokenStemLayer:
        return TokenStemLayer(self, dim)


class TokenStemLayer(nn.Module):
    def __init__(self, spec: TokenStem, dim: int):
        super().__init__()
        self.tokens = nn.Embedding(spec.vocab, dim)
        self.positions = nn.Embedding(spec.positions, dim) if spec.positions else None
        self.norm = build(spec.norm, dim)

    def forward(self, tokens_bt: Tensor, ctx: Context) -> Tensor:
        x = self.tokens(tokens_bt)
        if self.positions is not None:
            x = x + self.positions(default_positions(tokens_bt) if ctx.positions_bt is None else ctx.positions_bt)
        return self.norm(x)
