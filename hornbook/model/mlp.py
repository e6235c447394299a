"""Feed-forward parts: x (B, T, D) -> (B, T, D), every position by itself.

MLP: down(act(up(x))).   GatedMLP: down(act(gate(x)) * up(x)) (Shazeer 2020, equation 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.errors import near
from hornbook.model.spec import Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
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

    def build(self, dim: int) -> MLPLayer:
        return MLPLayer(self, dim)


class MLPLayer(nn.Module):
    def __init__(self, spec: MLP | GatedMLP, dim: int):
        super().__init__()
        self.up = nn.Linear(dim, spec.hidden, bias=spec.bias)
        self.down = nn.Linear(spec.hidden, dim, bias=spec.bias)
        self.act = activation(spec.act)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.down(self.act(self.up(x)))


@dataclass(frozen=True)
class GatedMLP:
    hidden: int
    act: str = "silu"
    bias: bool = False

    def build(self, dim: int) -> GatedMLPLayer:
        return GatedMLPLayer(self, dim)


class GatedMLPLayer(MLPLayer):
    def __init__(self, spec: GatedMLP, dim: int):
        super().__init__(spec, dim)
        self.gate = nn.Linear(dim, spec.hidden, bias=spec.bias)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))
