"""Heads: hidden (B, T, D) -> what is asked of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.mlp import activation
from hornbook.model.spec import Spec


@dataclass(frozen=True, kw_only=True)
class LMHead:
    """Logits (B, T, V), of the next token, or of a frame's letter (CTC)."""

    vocab: int
    bias: bool = False
    scale: float = 1.0  # of the hidden values (T5)
    softcap: float | None = None  # logits -> softcap * tanh(logits / softcap) (Gemma 2)

    def build(self, dim: int) -> LMHeadLayer:
        return LMHeadLayer(self, dim)


class LMHeadLayer(nn.Module):
    def __init__(self, spec: LMHead, dim: int):
        super().__init__()
        self.spec, self.out = spec, nn.Linear(dim, spec.vocab, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits_btv = self.out(x if self.spec.scale == 1.0 else x * self.spec.scale)
        cap = self.spec.softcap
        return logits_btv if cap is None else cap * torch.tanh(logits_btv / cap)


@dataclass(frozen=True, kw_only=True)
class MLMHead:
    """Logits (B, T, V) of the hidden token (Devlin et al. 2019)."""

    vocab: int
    norm: Spec
    act: str = "gelu"

    def build(self, dim: int) -> MLMHeadLayer:
        return MLMHeadLayer(self, dim)


class MLMHeadLayer(nn.Module):
    def __init__(self, spec: MLMHead, dim: int):
        super().__init__()
        self.act, self.dense = activation(spec.act), nn.Linear(dim, dim)
        self.norm, self.out = spec.norm.build(dim), nn.Linear(dim, spec.vocab)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.act(self.dense(x))))


@dataclass(frozen=True, kw_only=True)
class ClassHead:
    """Logits (B, classes) of the whole input, from its first position, through a dense layer where there is an `act`.

    With `classes` None the pooled first position itself (B, D): BERT's pooler.
    """

    classes: int | None
    act: str | None = None
    dropout: float = 0.0
    dense_dropout: float = 0.0  # before the dense layer, too (RoBERTa)

    def build(self, dim: int) -> ClassHeadLayer:
        return ClassHeadLayer(self, dim)


class ClassHeadLayer(nn.Module):
    def __init__(self, spec: ClassHead, dim: int):
        super().__init__()
        self.spec = spec
        self.dense = nn.Linear(dim, dim) if spec.act else None
        self.out = nn.Linear(dim, spec.classes) if spec.classes else None

    def forward(self, x: Tensor) -> Tensor:
        x_bd = F.dropout(x[:, 0], self.spec.dense_dropout, self.training)
        if self.dense is not None:
            x_bd = activation(self.spec.act or "")(self.dense(x_bd))
        x_bd = F.dropout(x_bd, self.spec.dropout, self.training)
        return x_bd if self.out is None else self.out(x_bd)


@dataclass(frozen=True, kw_only=True)
class TagHead:
    """Logits (B, T, classes) of every position; with two classes, where an answer begins and ends (B, T, 2)."""

    classes: int
    dropout: float = 0.0

    def build(self, dim: int) -> TagHeadLayer:
        return TagHeadLayer(self, dim)


class TagHeadLayer(nn.Module):
    def __init__(self, spec: TagHead, dim: int):
        super().__init__()
        self.dropout, self.out = spec.dropout, nn.Linear(dim, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(x, self.dropout, self.training))


@dataclass(frozen=True)
class HiddenHead:
    """The hidden values (B, T, D) themselves, of a published model without a head."""

    def build(self, dim: int) -> nn.Module:
        return nn.Identity()
