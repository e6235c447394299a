"""Heads: hidden (B, T, D) -> what is asked of the model. `LMHead`: logits (B, T, V) of the next token."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LMHead:
    vocab: int
    bias: bool = False

    def build(self, dim: int) -> LMHeadLayer:
        return LMHeadLayer(self, dim)


class LMHeadLayer(nn.Module):
    def __init__(self, spec: LMHead, dim: int):
        super().__init__()
        self.out = nn.Linear(dim, spec.vocab, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)
