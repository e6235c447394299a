"""Rotary positions: q or k (B, T, heads, K) and positions -> the same, each pair of channels turned by position * frequency.

The dot product of two turned vectors depends on their distance alone (Su et al. 2021, equation 34). Pairs are (i, i + K/2), the
"rotate half" order of published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """theta: the base; channel pair i of K/2 turns by theta ** (-2i / K) per position."""

    head_dim: int
    theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rope, which turns pairs of channels: {self.head_dim}")

    def angles(self, positions_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (B or 1, T, 1, K/2), computed in float32 (float64 for a float64 model), then cast to `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        pairs_k = torch.arange(0, self.head_dim, 2, device=positions_bt.device, dtype=torch.float32).to(wide)
        frequency_k = 1.0 / self.theta ** (pairs_k / self.head_dim)
        angle_bt1k = positions_bt[:, :, None, None].to(wide) * frequency_k
        return angle_bt1k.cos().to(dtype), angle_bt1k.sin().to(dtype)


def rotate(x_bthk: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x_bthk.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
