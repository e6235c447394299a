"""Norms: x (..., dim) -> x of unit scale over the last axis, times a learned weight.

LayerNorm (Ba et al. 2016): (x - mean) / sqrt(var + eps) * w + b.
RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps) * w, or * (1 + w) where `offset` (Gemma), so that w starts at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LayerNorm:
    eps: float = 1e-5

    def build(self, dim: int) -> nn.Module:
        return nn.LayerNorm(dim, eps=self.eps)


@dataclass(frozen=True)
class RMSNorm:
    eps: float = 1e-6
    offset: bool = False

    def build(self, dim: int) -> nn.Module:
        return OffsetRMSNorm(dim, self.eps) if self.offset else nn.RMSNorm(dim, eps=self.eps)


class OffsetRMSNorm(nn.Module):
    """Scaled by 1 + weight, in float32 until the end, as Gemma is published."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.weight.shape, 1 + self.weight.to(wide), self.eps).to(x.dtype)
