"""Attention the slow way: one query, one head and one key at a time, with rotations as complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

MaySee = Callable[[int, int, int], bool]  # batch row, query, key


Change = Callable[[int, int, int, int, Tensor], Tensor]  # batch row, head, query, key, score


def weighted_values(
    q_bthk: Tensor, k_bsgk: Tensor, v_bsgk: Tensor, may_see: MaySee, scale: float | None = None, change: Change | None = None,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale) v over the keys that each query may see; zeros where it sees none.

    `change` turns a score into another; a head's sink is the score of one more key, whose value is zero.
    """
    batch, length, heads, width = q_bthk.shape
    share = heads // k_bsgk.shape[2]  # query heads per key/value head
    scale = 1 / math.sqrt(width) if scale is None else scale
    rows = []
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                seen = [s for s in range(k_bsgk.shape[1]) if may_see(b, t, s)]
                value = torch.zeros(width, dtype=q_bthk.dtype)
                if seen:
                    scores = [scale * (q_bthk[b, t, h] * k_bsgk[b, s, h // share]).sum() for s in seen]
                    if change is not None:
                        scores = [change(b, h, t, s, score) for s, score in zip(seen, scores, strict=True)]
                    weights = [torch.exp(score) for score in scores]
                    parts = [weight * v_bsgk[b, s, h // share] for weight, s in zip(weights, seen, strict=True)]
                    beside = torch.exp(sinks[h]) if sinks is not None else 0.0
                    value = torch.stack(parts).sum(0) / (torch.stack(weights).sum() + beside)
                rows.append(value)
    return torch.stack(rows).unflatten(0, (batch, length, heads))


def turned(x_bthk: Tensor, positions: Sequence[Sequence[int]], theta: float) -> Tensor:
    """Rotary positions: channels (i, i + K/2) as one complex number, times exp(i * position * theta^(-2i/K))."""
    half = x_bthk.shape[-1] // 2
    frequencies = torch.tensor([theta ** (-2 * i / x_bthk.shape[-1]) for i in range(half)], dtype=torch.float64)
    angles = torch.tensor(positions, dtype=torch.float64)[:, :, None, None] * frequencies
    numbers = torch.complex(x_bthk[..., :half].double(), x_bthk[..., half:].double()) * torch.exp(1j * angles)
    return torch.cat((numbers.real, numbers.imag), dim=-1)


def attention_layer(
    weights: Mapping[str, Tensor], x: Tensor, heads: int, kv_heads: int, may_see: MaySee, *, theta: float | None = None,
    positions: Sequence[Sequence[int]] = (), norm_eps: float | None = None, scale: float | None = None,
    change: Change | None = None,
) -> Tensor:  # fmt: skip
    """The whole layer from its weights by name; `norm_eps` where each head's queries and keys are RMS-normed."""

    def project(name: str, count: int) -> Tensor:
        y = torch.einsum("btd,od->bto", x, weights[f"{name}.weight"])
        y = y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y
        return y.reshape(*x.shape[:2], count, -1)

    q, k, v = project("q", heads), project("k", kv_heads), project("v", kv_heads)
    if norm_eps is not None:
        q, k = (
            part / torch.sqrt((part * part).mean(-1, keepdim=True) + norm_eps) * weights[f"{name}_norm.weight"]
            for name, part in (("q", q), ("k", k))
        )
    if theta is not None:
        q, k = turned(q, positions, theta), turned(k, positions, theta)
    y = weighted_values(q, k, v, may_see, scale, change, weights.get("sinks")).reshape(*x.shape[:2], -1)
    y = torch.einsum("bto,do->btd", y, weights["o.weight"])
    return y + weights["o.bias"] if "o.bias" in weights else y
