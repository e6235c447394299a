"""Rotary positions: q or k (B, T, heads, K) and positions -> the same, each pair of channels turned by position * frequency.

The dot product of two turned vectors depends on their distance alone (Su et al. 2021, equation 34). Pairs are (i, i + K/2), the
"rotate half" order of published checkpoints. A scaling stretches the frequencies, for texts longer than those of the training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Scaling(Protocol):
    """Changes a rope's frequencies (K/2); `magnitude` multiplies cos and sin."""

    @property
    def magnitude(self) -> float: ...
    def stretched(self, frequency_k: Tensor, rope: Rope, positions_bt: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Rope:
    """theta: the base; channel pair i of `turned` channels turns by theta ** (-2i / turned) per position; the rest stay."""

    head_dim: int
    theta: float = 10_000.0
    turned: int | None = None  # None: all of head_dim
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        for name in ("head_dim", "turned"):
            value = getattr(self, name)
            if value is not None and (value % 2 or not 0 < value <= self.head_dim):
                raise ValueError(f"{name} must be even for rope, which turns pairs of channels, and at most head_dim: {value}")

    @property
    def width(self) -> int:
        return self.turned or self.head_dim

    def angles(self, positions_bt: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (B or 1, T, 1, width/2), computed in float32 (float64 for a float64 model), then cast to `dtype`."""
        wide = torch.promote_types(dtype, torch.float32)
        pairs_k = torch.arange(0, self.width, 2, device=positions_bt.device, dtype=torch.float32).to(wide)
        frequency_k, magnitude = 1.0 / self.theta ** (pairs_k / self.width), 1.0
        if self.scaling is not None:
            frequency_k, magnitude = self.scaling.stretched(frequency_k, self, positions_bt), self.scaling.magnitude
        angle_bt1k = positions_bt[:, :, None, None].to(wide) * frequency_k
        return (angle_bt1k.cos() * magnitude).to(dtype), (angle_bt1k.sin() * magnitude).to(dtype)


def rotate(x_bthk: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    half = cos.shape[-1]
    a, b, still = x_bthk.split((half, half, x_bthk.shape[-1] - 2 * half), dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, still), dim=-1)


def halved(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads * K, ...) of q or k whose turned pairs are neighbours -> rows whose pairs are half a head apart."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def paired(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `halved`."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


@dataclass(frozen=True)
class Linear:
    """Every position divided by `factor` (Chen et al. 2023)."""

    factor: float
    magnitude: float = 1.0

    def stretched(self, frequency_k: Tensor, rope: Rope, positions_bt: Tensor) -> Tensor:
        return frequency_k / self.factor


@dataclass(frozen=True)
class Dynamic:
    """A larger theta once a text outgrows `context`, by the text's own length ("dynamic NTK", Peng et al. 2023, appendix B)."""

    factor: float
    context: int
    magnitude: float = 1.0

    def stretched(self, frequency_k: Tensor, rope: Rope, positions_bt: Tensor) -> Tensor:
        length = (positions_bt.max() + 1).clamp(min=self.context)
        growth = (self.factor * length / self.context - (self.factor - 1)) ** (rope.width / (rope.width - 2))
        pairs_k = torch.arange(0, rope.width, 2, device=frequency_k.device, dtype=torch.float32).to(frequency_k.dtype)
        return 1.0 / (rope.theta * growth) ** (pairs_k / rope.width)


@dataclass(frozen=True)
class Yarn:
    """Slow pairs are stretched by `factor`, fast ones stay, a ramp between (Peng et al. 2023, equations 19 to 22)."""

    factor: float
    context: int
    magnitude: float = 1.0
    fast: float = 32.0  # turns within the context from which on a pair stays
    slow: float = 1.0  # turns up to which a pair is stretched fully
    truncate: bool = True  # the ramp's ends rounded to whole pairs

    def stretched(self, frequency_k: Tensor, rope: Rope, positions_bt: Tensor) -> Tensor:
        def pair(turns: float) -> float:
            return rope.width * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

        low, high = pair(self.fast), pair(self.slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.width - 1)
        index_k = torch.arange(len(frequency_k), device=frequency_k.device, dtype=torch.float32)
        ramp_k = ((index_k - low) / (high - low or 0.001)).clamp(0, 1)
        return frequency_k / self.factor * ramp_k + frequency_k * (1 - ramp_k)


@dataclass(frozen=True)
class Llama3:
    """Long waves are stretched by `factor`, short ones stay, a blend between (Grattafiori et al. 2024, Llama 3.1's own)."""

    factor: float
    context: int
    low: float = 1.0  # waves within the context up to which a pair is stretched fully
    high: float = 4.0  # and from which on it stays
    magnitude: float = 1.0

    def stretched(self, frequency_k: Tensor, rope: Rope, positions_bt: Tensor) -> Tensor:
        waves_k = self.context * frequency_k / (2 * math.pi)
        blend_k = ((waves_k - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - blend_k) * frequency_k / self.factor + blend_k * frequency_k


@dataclass(frozen=True)
class LongRope:
    """A divisor per pair, one list within `context` and one beyond (Ding et al. 2024)."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    context: int
    magnitude: float = 1.0

    def stretched(self, frequency_k: Tensor, rope: Rope, positions_bt: Tensor) -> Tensor:
        short_k, long_k = (frequency_k.new_tensor(factors) for factors in (self.short, self.long))
        return frequency_k / torch.where(positions_bt.max() + 1 > self.context, long_k, short_k)
