"""Feed-forward parts: x (B, T, D) -> (B, T, D), every position by itself.

MLP: down(act(up(x))).   GatedMLP: down(act(gate(x)) * up(x)) (Shazeer 2020, equation 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.errors import near
from hornbook.model.spec import Context, Spec


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021)."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), near to gelu (Hendrycks and Gimpel 2016)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "hardswish": F.hardswish,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu_squared": relu_squared,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise ValueError(f"act must be a known activation: {name!r} ({near(name, ACTIVATIONS)})")
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class MLP:
    hidden: int
    act: str = "gelu"
    bias: bool = True
    dropout: float = 0.0  # of the hidden values

    def build(self, dim: int) -> MLPLayer:
        return MLPLayer(self, dim)


class MLPLayer(nn.Module):
    def __init__(self, spec: MLP | GatedMLP, dim: int):
        super().__init__()
        self.spec, self.act = spec, activation(spec.act)
        self.up = nn.Linear(dim, spec.hidden, bias=spec.bias)
        self.down = nn.Linear(spec.hidden, dim, bias=spec.bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.down(F.dropout(self.act(self.up(x)), self.spec.dropout, self.training))


@dataclass(frozen=True)
class GatedMLP:
    """With a `limit`, act(gate) * (up + 1), the gate at most `limit` and up within it (gpt-oss)."""

    hidden: int
    act: str = "silu"
    bias: bool = False
    dropout: float = 0.0
    limit: float | None = None

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit) + 1
        return activation(self.act)(gate) * up

    def build(self, dim: int) -> GatedMLPLayer:
        return GatedMLPLayer(self, dim)


class GatedMLPLayer(MLPLayer):
    spec: GatedMLP

    def __init__(self, spec: GatedMLP, dim: int):
        super().__init__(spec, dim)
        self.gate = nn.Linear(dim, spec.hidden, bias=spec.bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.down(F.dropout(self.spec.gated(self.gate(x), self.up(x)), self.spec.dropout, self.training))


@dataclass(frozen=True)
class Chunked:
    """An op on `size` positions at a time: equal, and hidden values of one chunk alone are held (Kitaev et al. 2020)."""

    op: Spec
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1: {self.size}")

    def build(self, dim: int) -> ChunkedLayer:
        return ChunkedLayer(self, dim)


class ChunkedLayer(nn.Module):
    def __init__(self, spec: Chunked, dim: int):
        super().__init__()
        self.spec, self.op = spec, spec.op.build(dim)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return torch.cat([self.op(chunk, ctx) for chunk in x.split(self.spec.size, dim=1)], dim=1)
