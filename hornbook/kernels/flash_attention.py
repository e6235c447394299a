"""Flash attention: q (B, T, H, K), k and v (B, S, G, K) -> softmax(scale q k^T) v, without the (T, S) scores ever being in memory.

Forward (Dao et al. 2022, algorithm 1; Dao 2023, algorithm 1). A program takes a block of queries of one head and walks over the
blocks of keys that they may see. It keeps three things in registers: the largest score so far, m, the sum of exp(score - m), and
the same sum of exp(score - m) times the values. A new largest score m' shrinks both sums by exp(m - m'). At the end the second
divided by the first is the answer, and log Z = m + log(sum), one number per query, is kept for backward.

Backward (Dao 2023, algorithm 2), with P = exp(scale q k^T - log Z) computed again tile by tile, dP = dY v^T, and
delta = sum(dY Y) over a query's channels:

    dS = P (dP - delta)        dq = scale dS k        dk = scale dS^T q        dv = P^T dY

It is two kernels. One owns a block of queries and walks over keys, for dq. The other owns a block of keys and walks over queries,
those of all the heads that share the keys, for dk and dv. Each number has one owner, so nothing is added by two programs, and the
sums are the same in every run; the price is that P is computed in both.

Scores and sums are float32. Products of float32 are taken in full ("ieee"), not in TF32; P and dS are rounded to a short format
before their products, as the published kernels do. Tensors lie as the model has them, (B, T, H, K): a head's rows are H K apart.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hornbook.kernels import check

WIDEST = 256  # channels of a head: a block of them must fit into a processor's shared memory
LOWEST = tl.constexpr(-1e30)  # below every score; not -inf, since -inf - -inf is no number


def flash_attention(
    q_bthk: Tensor, k_bsgk: Tensor, v_bsgk: Tensor, *, causal: bool = False, window: int | None = None, scale: float | None = None
) -> Tensor:  # fmt: skip
    """Weighted values (B, T, H, K). H is a multiple of G; scale None is 1 / sqrt(K).

    causal: query i sees the keys up to i; with a window, the last `window` of them. A query that sees nothing gives zeros.
    """
    check(q_bthk, k_bsgk, v_bsgk)
    (rows, _, heads, width), (_, keys, groups, _) = q_bthk.shape, k_bsgk.shape
    if k_bsgk.shape != v_bsgk.shape or k_bsgk.shape != (rows, keys, groups, width) or not groups or heads % groups:
        raise ValueError(
            f"q (B, T, H, K), k and v (B, S, G, K), H a multiple of G: {[*map(list, (q_bthk.shape, k_bsgk.shape, v_bsgk.shape))]}"
        )
    if not q_bthk.dtype == k_bsgk.dtype == v_bsgk.dtype:
        raise ValueError(f"q, k and v must be of one format: {q_bthk.dtype}, {k_bsgk.dtype}, {v_bsgk.dtype}")
    if width > WIDEST:
        raise ValueError(f"head_dim must be at most {WIDEST}: {width}")
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window must be at least 1, and causal: window={window}, causal={causal}")
    return _Flash.apply(q_bthk, k_bsgk, v_bsgk, causal, window or 0, width**-0.5 if scale is None else scale)


@triton.jit
def _seen(i, j, queries, keys, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Whether query i sees key j: (M, 1) and (1, N) -> (M, N). What is beyond the end sees nothing and is not seen."""
    seen = (i < queries) & (j < keys)
    if CAUSAL:
        seen = seen & (j <= i)
    if WINDOW:
        seen = seen & (i - j < WINDOW)
    return seen


@triton.jit
def _keys_seen(first_query, keys, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The first block of keys that a block of queries sees, and where to stop."""
    begin, end = first_query * 0, keys
    if CAUSAL:
        end = tl.minimum(keys, first_query + M)
    if WINDOW:
        begin = tl.maximum(0, first_query - WINDOW + 1) // N * N
    return begin, end


@triton.jit
def _place(length, HEADS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """A program's text, head and first row: the programs of one head are neighbours, and find its keys in the cache."""
    blocks = tl.cdiv(length, BLOCK)
    both = tl.program_id(0) // blocks
    return (both // HEADS).to(tl.int64), both % HEADS, tl.program_id(0) % blocks * BLOCK


@triton.jit
def _at(text, head, rows, length, HEADS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    """Where a block of a head's rows lies in (B, T, HEADS, K), as (block, WIDTH), and which of it is there."""
    channel = tl.arange(0, WIDTH)[None, :]  # a power of two: what is beyond K is loaded as 0
    at = ((text * length + rows[:, None]) * HEADS + head) * K + channel
    return at, (rows[:, None] < length) & (channel < K)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, y_ptr, log_z_ptr, queries, keys, scale, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    text, head, first_query = _place(queries, HEADS, K, M)
    i = first_query + tl.arange(0, M)
    q_at, q_inside = _at(text, head, i, queries, HEADS, K, WIDTH)
    q = tl.load(q_ptr + q_at, mask=q_inside, other=0.0)
    top = tl.full((M,), LOWEST, tl.float32)
    above = tl.zeros((M,), tl.float32)  # the sum of exp(score - top)
    y = tl.zeros((M, WIDTH), tl.float32)
    begin, end = _keys_seen(first_query, keys, CAUSAL, WINDOW, M, N)
    for first_key in range(begin, end, N):
        j = first_key + tl.arange(0, N)
        k_at, k_inside = _at(text, head // (HEADS // GROUPS), j, keys, GROUPS, K, WIDTH)
        k = tl.load(k_ptr + k_at, mask=k_inside, other=0.0)
        v = tl.load(v_ptr + k_at, mask=k_inside, other=0.0)
        seen = _seen(i[:, None], j[None, :], queries, keys, CAUSAL, WINDOW)
        score = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, LOWEST)
        new_top = tl.maximum(top, tl.max(score, 1))
        p = tl.where(seen, tl.exp(score - new_top[:, None]), 0.0)
        shrink = tl.exp(top - new_top)
        above = above * shrink + tl.sum(p, 1)
        y = y * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new_top
    blind = above == 0.0
    y = y / tl.where(blind, 1.0, above)[:, None]
    tl.store(y_ptr + q_at, y.to(y_ptr.dtype.element_ty), mask=q_inside)
    log_z = top + tl.log(tl.where(blind, 1.0, above))
    tl.store(log_z_ptr + (text * HEADS + head) * queries + i, log_z, mask=i < queries)


@triton.jit
def _again(q, k, v, dy, log_z, delta, seen, scale):
    """P and dS of a tile (M, N), for the backward pass."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    p = tl.where(seen, tl.exp(score - log_z[:, None]), 0.0)
    return p, p * (tl.dot(dy, tl.trans(v), input_precision="ieee") - delta[:, None])


@triton.jit
def _backward_q(
    q_ptr, k_ptr, v_ptr, y_ptr, dy_ptr, log_z_ptr, delta_ptr, dq_ptr, queries, keys, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    text, head, first_query = _place(queries, HEADS, K, M)
    i = first_query + tl.arange(0, M)
    q_at, q_inside = _at(text, head, i, queries, HEADS, K, WIDTH)
    q = tl.load(q_ptr + q_at, mask=q_inside, other=0.0)
    dy = tl.load(dy_ptr + q_at, mask=q_inside, other=0.0)
    y = tl.load(y_ptr + q_at, mask=q_inside, other=0.0)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    per_query = (text * HEADS + head) * queries + i
    tl.store(delta_ptr + per_query, delta, mask=i < queries)  # for the other kernel, which runs after this one
    log_z = tl.load(log_z_ptr + per_query, mask=i < queries, other=0.0)
    dq = tl.zeros((M, WIDTH), tl.float32)
    begin, end = _keys_seen(first_query, keys, CAUSAL, WINDOW, M, N)
    for first_key in range(begin, end, N):
        j = first_key + tl.arange(0, N)
        k_at, k_inside = _at(text, head // (HEADS // GROUPS), j, keys, GROUPS, K, WIDTH)
        k = tl.load(k_ptr + k_at, mask=k_inside, other=0.0)
        v = tl.load(v_ptr + k_at, mask=k_inside, other=0.0)
        seen = _seen(i[:, None], j[None, :], queries, keys, CAUSAL, WINDOW)
        _, ds = _again(q, k, v, dy, log_z, delta, seen, scale)
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dq_ptr + q_at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=q_inside)


@triton.jit
def _backward_kv(
    q_ptr, k_ptr, v_ptr, dy_ptr, log_z_ptr, delta_ptr, dk_ptr, dv_ptr, queries, keys, scale,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    text, group, first_key = _place(keys, GROUPS, K, N)
    j = first_key + tl.arange(0, N)
    k_at, k_inside = _at(text, group, j, keys, GROUPS, K, WIDTH)
    k = tl.load(k_ptr + k_at, mask=k_inside, other=0.0)
    v = tl.load(v_ptr + k_at, mask=k_inside, other=0.0)
    dk = tl.zeros((N, WIDTH), tl.float32)
    dv = tl.zeros((N, WIDTH), tl.float32)
    begin, end = first_key * 0, queries
    if CAUSAL:
        begin = first_key // M * M
    if WINDOW:
        end = tl.minimum(queries, first_key + N + WINDOW - 1)
    for head in range(group * (HEADS // GROUPS), (group + 1) * (HEADS // GROUPS)):
        for first_query in range(begin, end, M):
            i = first_query + tl.arange(0, M)
            q_at, q_inside = _at(text, head, i, queries, HEADS, K, WIDTH)
            q = tl.load(q_ptr + q_at, mask=q_inside, other=0.0)
            dy = tl.load(dy_ptr + q_at, mask=q_inside, other=0.0)
            per_query = (text * HEADS + head) * queries + i
            log_z = tl.load(log_z_ptr + per_query, mask=i < queries, other=0.0)
            delta = tl.load(delta_ptr + per_query, mask=i < queries, other=0.0)
            seen = _seen(i[:, None], j[None, :], queries, keys, CAUSAL, WINDOW)
            p, ds = _again(q, k, v, dy, log_z, delta, seen, scale)
            dv += tl.dot(tl.trans(p).to(dy.dtype), dy, input_precision="ieee")
            dk += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision="ieee")
    tl.store(dk_ptr + k_at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=k_inside)
    tl.store(dv_ptr + k_at, dv.to(dv_ptr.dtype.element_ty), mask=k_inside)


def _sizes(q_bthk: Tensor) -> dict[str, int]:
    """The padded width of a head, how many queries (M) and keys (N) make a block, and with how many threads.

    All blocks of a program together fit into the shared memory that GPUs since Ampere give one, 99 KB on most of them. Float32 goes
    by smaller ones: its products are no work for tensor cores, and each of them becomes instructions and registers.
    """
    short = q_bthk.element_size() == 2
    width = max(16, triton.next_power_of_2(q_bthk.shape[-1]))  # tl.dot takes no side under 16
    block = (64 if width <= 128 else 32) if short else (32 if width <= 64 else 16)
    launch = {"num_warps": 8 if block * width > 4096 else 4, "num_stages": 2 if short else 1}
    return {"K": q_bthk.shape[-1], "WIDTH": width, "M": block, "N": block, **launch}


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int, scale: float) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        (rows, queries, heads, _), (_, keys, groups, _) = q.shape, k.shape
        y, log_z = torch.empty_like(q), torch.empty(rows, heads, queries, dtype=torch.float32, device=q.device)
        ctx.given = {"CAUSAL": causal, "WINDOW": window, "HEADS": heads, "GROUPS": groups, **_sizes(q)}
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, y, log_z)
        programs = rows * heads * triton.cdiv(queries, ctx.given["M"])
        _forward[(programs,)](q, k, v, y, log_z, queries, keys, scale, **ctx.given)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, y, log_z = ctx.saved_tensors
        (rows, queries, heads, _), (_, keys, groups, _) = q.shape, k.shape
        dy, delta = dy.contiguous(), torch.empty_like(log_z)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        programs = rows * heads * triton.cdiv(queries, ctx.given["M"]), rows * groups * triton.cdiv(keys, ctx.given["N"])
        _backward_q[programs[:1]](q, k, v, y, dy, log_z, delta, dq, queries, keys, ctx.scale, **ctx.given)
        _backward_kv[programs[1:]](q, k, v, dy, log_z, delta, dk, dv, queries, keys, ctx.scale, **ctx.given)
        return dq, dk, dv, None, None, None
