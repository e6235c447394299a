"""Attention: x (B, T, D) -> (B, T, D), each position a weighted mean of the values it may see.

softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017, equation 1), H query heads over G key/value heads (Ainslie et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.mask import plain_causal, visible
from hornbook.model.rope import Rope, rotate
from hornbook.model.spec import Context, Spec


@dataclass(frozen=True)
class PerHead:
    """A norm over each head's own channels (Qwen3)."""

    norm: Spec

    def build(self, head_dim: int) -> nn.Module:
        return self.norm.build(head_dim)


@dataclass(frozen=True, kw_only=True)
class Attention:
    heads: int
    head_dim: int
    kv_heads: int | None = None  # None: one per query head
    causal: bool = True
    rope: Rope | None = None
    qk_norm: PerHead | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    scale: float | None = None  # None: head_dim ** -0.5

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "kv_heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1: {value}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads: heads={self.heads}, kv_heads={self.kv_heads}")

    def build(self, dim: int) -> AttentionLayer:
        return AttentionLayer(self, dim)


class AttentionLayer(nn.Module):
    def __init__(self, spec: Attention, dim: int):
        super().__init__()
        self.spec = spec
        kv_heads = spec.kv_heads or spec.heads
        self.q = nn.Linear(dim, spec.heads * spec.head_dim, bias=spec.qkv_bias)
        self.k = nn.Linear(dim, kv_heads * spec.head_dim, bias=spec.qkv_bias)
        self.v = nn.Linear(dim, kv_heads * spec.head_dim, bias=spec.qkv_bias)
        self.o = nn.Linear(spec.heads * spec.head_dim, dim, bias=spec.out_bias)
        self.q_norm = spec.qk_norm.build(spec.head_dim) if spec.qk_norm else nn.Identity()
        self.k_norm = spec.qk_norm.build(spec.head_dim) if spec.qk_norm else nn.Identity()

    @property
    def rope(self) -> Rope | None:
        return self.spec.rope

    def kv_shape(self) -> tuple[int, int]:
        """What one position costs in the cache: (G, K), once for keys and once for values."""
        return self.k.out_features // self.spec.head_dim, self.spec.head_dim

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        spec = self.spec
        q_bthk = self.q_norm(self.q(x).unflatten(-1, (-1, spec.head_dim)))
        k_bsgk = self.k_norm(self.k(x).unflatten(-1, (-1, spec.head_dim)))
        v_bsgk = self.v(x).unflatten(-1, (-1, spec.head_dim))
        if spec.rope is not None:
            assert ctx.rotations is not None  # the tower sets them
            q_bthk, k_bsgk = (rotate(t, ctx.rotations[spec.rope]) for t in (q_bthk, k_bsgk))
        if plain_causal(ctx, spec.causal):
            y_bthk = attend(q_bthk, k_bsgk, v_bsgk, None, True, spec.scale)
        else:
            positions_bt = positions_bs = default_positions(x) if ctx.positions_bt is None else ctx.positions_bt
            if ctx.cache is not None:
                k_bsgk, v_bsgk, positions_bs = ctx.cache.update(ctx.layer, k_bsgk, v_bsgk, positions_bt)
            y_bthk = attend(q_bthk, k_bsgk, v_bsgk, visible(ctx, spec.causal, positions_bt, positions_bs), False, spec.scale)
        return self.o(y_bthk.flatten(-2))


def default_positions(x: Tensor) -> Tensor:
    """0 .. T-1 as (1, T), for a call that names no positions."""
    return torch.arange(x.shape[1], device=x.device)[None]


def attend(q_bthk: Tensor, k_bsgk: Tensor, v_bsgk: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """Weighted values (B, T, H, K). A query that may see nothing gives zeros, and finite gradients."""
    q, k, v = (t.transpose(1, 2) for t in (q_bthk, k_bsgk, v_bsgk))
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    return y.transpose(1, 2)
