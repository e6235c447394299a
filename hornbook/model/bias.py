"""What a distance adds to attention's scores: positions of queries and keys -> a bias (B or 1, H, T, S).

ALiBi: -slope * distance, one slope per head (Press et al. 2022). T5's: learned, one value per head and bucket of distances
(Raffel et al. 2020, section 2.1); layers share one table through the model's `ties`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class BiasSpec(Protocol):
    def build(self, heads: int) -> nn.Module: ...


@dataclass(frozen=True)
class ALiBi:
    def build(self, heads: int) -> nn.Module:
        return ALiBiLayer(heads)


def slopes(heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... for n heads, a power of two; for other numbers, the rest from the next power's odd places."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return first + [2 ** (-4 * (2 * h + 1) / power) for h in range(heads - power)]


class ALiBiLayer(nn.Module):
    def __init__(self, heads: int):
        super().__init__()
        self.slopes = slopes(heads)

    def forward(self, positions_bt: Tensor, positions_bs: Tensor, dtype: torch.dtype) -> Tensor:
        distance_b1ts = (positions_bs[:, None, :] - positions_bt[:, :, None])[:, None].to(dtype)
        return torch.tensor(self.slopes, dtype=dtype, device=distance_b1ts.device)[:, None, None] * distance_b1ts


@dataclass(frozen=True, kw_only=True)
class BucketBias:
    """Half of the buckets hold one distance each, the other half grow to `max_distance`, beyond which all share the last."""

    buckets: int = 32
    max_distance: int = 128
    causal: bool = True  # False: half of the buckets look ahead

    def build(self, heads: int) -> nn.Module:
        return BucketBiasLayer(self, heads)


class BucketBiasLayer(nn.Module):
    def __init__(self, spec: BucketBias, heads: int):
        super().__init__()
        self.spec, self.table = spec, nn.Embedding(spec.buckets, heads)

    def bucket(self, distance: Tensor) -> Tensor:
        """The bucket of each distance key - query."""
        spec, buckets = self.spec, self.spec.buckets
        side = torch.zeros_like(distance)
        if spec.causal:
            distance = (-distance).clamp(min=0)
        else:
            buckets //= 2
            side, distance = (distance > 0).long() * buckets, distance.abs()
        exact = buckets // 2
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(spec.max_distance / exact)
        far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
        return side + torch.where(distance < exact, distance, far)

    def forward(self, positions_bt: Tensor, positions_bs: Tensor, dtype: torch.dtype) -> Tensor:
        distance_bts = positions_bs[:, None, :] - positions_bt[:, :, None]
        return self.table(self.bucket(distance_bts)).permute(0, 3, 1, 2).to(dtype)
