"""What a floating point type can hold: its bits and its range, all of it derived from `torch.finfo`.

A number is (-1)^sign * 1.mantissa * 2^exponent. Below the smallest normal one the leading 1 is given up, bit by bit: these are the
subnormal numbers, and the last of them is the smallest normal number times eps (IEEE 754; for float8, Micikevicius et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

FLOATS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
}


@dataclass(frozen=True)
class FloatType:
    """eps: the step from 1 to the next number."""

    name: str
    sign: int
    exponent: int
    mantissa: int
    largest: float
    smallest_normal: float
    smallest_subnormal: float
    eps: float


def float_type(name: str) -> FloatType:
    """One of `FLOATS`."""
    found = torch.finfo(FLOATS[name])
    sign, mantissa = int(found.min < 0), round(-math.log2(found.eps))
    return FloatType(
        name, sign, found.bits - sign - mantissa, mantissa, found.max, found.smallest_normal, found.smallest_normal * found.eps,
        found.eps,
    )  # fmt: skip
