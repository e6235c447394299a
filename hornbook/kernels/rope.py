"""Rotary positions: q or k (B, T, H, K) and cos, sin (B or 1, T, 1, K/2) -> each pair (a, b) of channels turned by its angle.

(a, b) -> (a cos - b sin, b cos + a sin) (Su et al. 2021, equation 34), the pairs half a head apart as in `model.rope.rotate`.
Backward is the transposed turn, which is the same with -sin.

A program takes one position: it reads the cos and sin of its K/2 pairs once, for all heads, and each channel once, where torch's
chain of products, sums and a concatenation takes each of them through memory several times.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hornbook.kernels import check


def rotate(x_bthk: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x turned by (cos, sin), computed in float32; channels beyond the turned pairs stay. cos and sin get no gradient."""
    check(x_bthk, *rotation)
    return _Rotate.apply(x_bthk, *rotation)


@triton.jit
def _turn(
    x_ptr, cos_ptr, sin_ptr, y_ptr, angles, heads, half, width,
    INVERSE: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # position t of row b: b T + t
    h = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    angle = row % angles * half + pair  # one row's angles serve all where there is but one
    cos = tl.load(cos_ptr + angle, mask=pair < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + angle, mask=pair < half, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    inside = (h < heads) & (pair < half)
    at = (row * heads + h) * width + pair
    a = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + at + half, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + at + half, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=inside)


def _turned(x_bthk: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, inverse: bool) -> Tensor:
    x_bthk, half = x_bthk.contiguous(), cos.shape[-1]
    rows, length, heads, width = x_bthk.shape
    y_bthk = torch.empty_like(x_bthk, dtype=dtype)
    y_bthk[..., 2 * half :] = x_bthk[..., 2 * half :]
    padded = triton.next_power_of_2(heads), triton.next_power_of_2(half)
    _turn[(rows * length,)](x_bthk, cos, sin, y_bthk, cos.numel() // half, heads, half, width, inverse, *padded)
    return y_bthk


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bthk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x_bthk.dtype
        return _turned(x_bthk, cos, sin, torch.promote_types(x_bthk.dtype, cos.dtype), inverse=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_bthk: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(dy_bthk, cos, sin, ctx.dtype, inverse=True), None, None
