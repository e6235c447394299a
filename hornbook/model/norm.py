"""Norms: x (..., dim) -> x of unit scale over the last axis, times a learned weight.

LayerNorm (Ba et al. 2016): (x - mean) / sqrt(var + eps) * w + b.
RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * w.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LayerNorm:
    eps: float = 1e-5

    def build(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim, eps=self.eps)


@dataclass(frozen=True)
class RMSNorm:
    eps: float = 1e-6

    def build(self, dim: int) -> nn.Module:
        return nn.RMSNorm(dim, eps=self.eps)
