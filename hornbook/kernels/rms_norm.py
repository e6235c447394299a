"""RMSNorm: x (..., D) and w (D) -> y = n w, where n = x r and r = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019, equation 4).

Backward, with g = dy w: dx = r (g - n mean(g n)), and dw is the sum of dy n over the rows.

A program takes a tile of whole rows, so that a mean never leaves it: x is read once and y written once. The backward kernel walks
over several tiles and keeps their share of dw in registers; torch adds the programs' shares, in the same order each time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hornbook.kernels import check

TILE = 4096  # numbers: 16 for each of the 256 threads of a program
PROGRAMS = 512  # of the backward kernel, at most: some for each of a GPU's processors, and so many rows of shares to add


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: bool = False) -> Tensor:
    """x (..., D) normed and times `weight` (D), or 1 + `weight` where `offset`: computed in float32, rounded once to x's format."""
    check(x, weight)
    return _RMSNorm.apply(x, weight, eps, offset)


@triton.jit
def _forward(x_ptr, w_ptr, y_ptr, r_ptr, rows, dim, eps, OFFSET: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, WIDTH)  # a power of two: what is beyond D is loaded as 0 and not stored
    at = row[:, None] * dim + d[None, :]
    inside = (row[:, None] < rows) & (d[None, :] < dim)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + d, mask=d < dim, other=0.0).to(tl.float32) + OFFSET
    r = 1.0 / tl.sqrt(tl.sum(x * x, 1) / dim + eps)
    tl.store(r_ptr + row, r, mask=row < rows)
    tl.store(y_ptr + at, (x * r[:, None] * w[None, :]).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    dy_ptr, x_ptr, w_ptr, r_ptr, dx_ptr, shares_ptr, rows, dim, OFFSET: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    d = tl.arange(0, WIDTH)
    w = tl.load(w_ptr + d, mask=d < dim, other=0.0).to(tl.float32) + OFFSET
    share = tl.zeros((ROWS, WIDTH), tl.float32)
    for tile in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        at = row[:, None] * dim + d[None, :]
        inside = (row[:, None] < rows) & (d[None, :] < dim)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(r_ptr + row, mask=row < rows, other=0.0)[:, None]
        n = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * r
        g = dy * w[None, :]
        dx = r * (g - n * (tl.sum(g * n, 1) / dim)[:, None])
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        share += dy * n
    tl.store(shares_ptr + tl.program_id(0).to(tl.int64) * dim + d, tl.sum(share, 0), mask=d < dim)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: bool) -> Tensor:
        x = x.contiguous()
        dim, width = weight.numel(), triton.next_power_of_2(weight.numel())
        rows, each = x.numel() // dim, max(1, TILE // width)
        y, r = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
        _forward[(triton.cdiv(rows, each),)](x, weight, y, r, rows, dim, eps, offset, each, width, num_warps=8)
        ctx.save_for_backward(x, weight, r)
        ctx.offset, ctx.tile = offset, (each, width)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        rows, dim = len(r), weight.numel()
        programs = min(PROGRAMS, triton.cdiv(rows, ctx.tile[0]))
        dx, shares = torch.empty_like(x), torch.empty(programs, dim, dtype=torch.float32, device=x.device)
        _backward[(programs,)](dy.contiguous(), x, weight, r, dx, shares, rows, dim, ctx.offset, *ctx.tile, num_warps=8)
        return dx, shares.sum(0).to(weight.dtype), None, None
