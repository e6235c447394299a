"""Attention: x (B, T, D) -> (B, T, D), each position a weighted mean of the values it may see.

softmax(q k^T / sqrt(K)) v (Vaswani et al. 2017, equation 1), H query heads over G key/value heads (Ainslie et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.bias import BiasSpec
from hornbook.model.mask import plain_causal, visible
from hornbook.model.rope import Rope, rotate
from hornbook.model.spec import Context, Spec


class HeadNorm(Protocol):
    def build(self, heads: int, head_dim: int) -> nn.Module: ...


@dataclass(frozen=True)
class PerHead:
    """A norm over each head's own channels (Qwen3, Gemma 3)."""

    norm: Spec

    def build(self, heads: int, head_dim: int) -> nn.Module:
        return self.norm.build(head_dim)


@dataclass(frozen=True)
class Whole:
    """A norm over the channels of all heads together (OLMo-2)."""

    norm: Spec

    def build(self, heads: int, head_dim: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-2), self.norm.build(heads * head_dim), nn.Unflatten(-1, (heads, head_dim)))


@dataclass(frozen=True, kw_only=True)
class Attention:
    heads: int
    head_dim: int
    kv_heads: int | None = None  # None: one per query head
    causal: bool = True
    window: int | None = None  # how many positions a query looks back, its own counted
    cross: bool = False  # keys and values come from the context's memory
    rope: Rope | None = None
    bias: BiasSpec | None = None
    qk_norm: HeadNorm | None = None
    softcap: float | None = None  # scores -> softcap * tanh(scores / softcap) (Gemma 2)
    sinks: bool = False  # a learned score per head for looking at nothing (gpt-oss)
    dropout: float = 0.0
    dropout_kind: Literal["weights", "keys"] = "weights"  # keys: a key of a head, for all queries (Zehui et al. 2019, columns)
    qkv_bias: bool = False
    k_bias: bool | None = None  # None: as qkv_bias; a bias of keys changes nothing, and Whisper has none
    out_bias: bool = False
    scale: float | None = None  # None: head_dim ** -0.5

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "kv_heads", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1: {value}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads: heads={self.heads}, kv_heads={self.kv_heads}")
        if self.dropout_kind not in ("weights", "keys"):
            raise ValueError(f"dropout_kind must be weights or keys: {self.dropout_kind!r}")
        if self.window is not None and (self.cross or not self.causal):
            raise ValueError("window needs causal attention within one text")

    def build(self, dim: int) -> AttentionLayer:
        return AttentionLayer(self, dim)


class AttentionLayer(nn.Module):
    rotate = staticmethod(rotate)  # `adapt.kernels` puts another in front of it

    def __init__(self, spec: Attention, dim: int):
        super().__init__()
        self.spec = spec
        kv_heads = spec.kv_heads or spec.heads
        self.q = nn.Linear(dim, spec.heads * spec.head_dim, bias=spec.qkv_bias)
        self.k = nn.Linear(dim, kv_heads * spec.head_dim, bias=spec.qkv_bias if spec.k_bias is None else spec.k_bias)
        self.v = nn.Linear(dim, kv_heads * spec.head_dim, bias=spec.qkv_bias)
        self.o = nn.Linear(spec.heads * spec.head_dim, dim, bias=spec.out_bias)
        self.q_norm = spec.qk_norm.build(spec.heads, spec.head_dim) if spec.qk_norm else nn.Identity()
        self.k_norm = spec.qk_norm.build(kv_heads, spec.head_dim) if spec.qk_norm else nn.Identity()
        self.bias = spec.bias.build(spec.heads) if spec.bias else None
        self.sinks = nn.Parameter(torch.zeros(spec.heads)) if spec.sinks else None

    @property
    def rope(self) -> Rope | None:
        return self.spec.rope

    def kv_shape(self) -> tuple[int, int]:
        """What one position costs in the cache: (G, K), once for keys and once for values."""
        return self.k.out_features // self.spec.head_dim, self.spec.head_dim

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        q, k, v, scores = self.looks(x, ctx)
        return self.o(attend(q, k, v, scores).flatten(-2))

    def looks(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Scores]:
        """Queries (B, T, H, K), keys and values (B, S, G, K), and how they meet."""
        spec, (q_bthk, k_bsgk, v_bsgk) = self.spec, self.project(x, ctx)
        mask, bias, causal = None, None, False
        if spec.cross:
            mask = None if ctx.memory_padding_bs is None else ctx.memory_padding_bs[:, None, None, :]
        else:
            positions_bt = positions_bs = default_positions(x) if ctx.positions_bt is None else ctx.positions_bt
            causal = plain_causal(ctx, spec.causal, spec.window, x.shape[1])
            if ctx.cache is not None:
                k_bsgk, v_bsgk, positions_bs = ctx.cache.update(ctx.layer, k_bsgk, v_bsgk, positions_bt)
            if not causal:
                mask = visible(ctx, spec.causal, positions_bt, positions_bs, spec.window)
            if self.bias is not None:
                bias = self.bias(positions_bt, positions_bs, q_bthk.dtype)
        dropout = spec.dropout if self.training and spec.dropout_kind == "weights" else 0.0
        return q_bthk, k_bsgk, v_bsgk, Scores(mask, bias, causal, spec.scale, spec.softcap, self.sinks, dropout)

    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values of this call alone, turned to their positions."""
        spec, source = self.spec, ctx.memory if self.spec.cross else x
        if source is None:
            raise ValueError("cross-attention needs a memory: give Context(memory=...), or call the model with a source")
        q_bthk = self.q_norm(self.q(x).unflatten(-1, (-1, spec.head_dim)))
        k_bsgk = self.k_norm(self.k(source).unflatten(-1, (-1, spec.head_dim)))
        v_bsgk = self.v(source).unflatten(-1, (-1, spec.head_dim))
        if spec.rope is not None:
            assert ctx.rotations is not None  # the tower sets them
            q_bthk, k_bsgk = (self.rotate(t, ctx.rotations[spec.rope]) for t in (q_bthk, k_bsgk))
        if spec.dropout_kind == "keys" and self.training and spec.dropout:  # outside the kernel, whose fastest path has none
            v_bsgk = v_bsgk * F.dropout(torch.ones_like(v_bsgk[..., :1]), spec.dropout)
        return q_bthk, k_bsgk, v_bsgk


def default_positions(x: Tensor) -> Tensor:
    """0 .. T-1 as (1, T), for a call that names no positions."""
    return torch.arange(x.shape[1], device=x.device)[None]


@dataclass(frozen=True)
class Scores:
    """How queries and keys meet: mask (B or 1, 1, T, S), True where seen; bias (B or 1, H, T, S) added to the scores."""

    mask: Tensor | None = None
    bias: Tensor | None = None
    causal: bool = False  # plain causal, with no mask
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0

    def seen(self, q_bthk: Tensor, k_bsgk: Tensor) -> Tensor | None:
        """The mask, built where the fast path would have needed none."""
        if not self.causal:
            return self.mask
        return torch.ones(q_bthk.shape[1], k_bsgk.shape[1], dtype=torch.bool, device=q_bthk.device).tril()


def attend(q_bthk: Tensor, k_bsgk: Tensor, v_bsgk: Tensor, how: Scores) -> Tensor:
    """Weighted values (B, T, H, K). A query that may see nothing gives zeros, and finite gradients."""
    q, k, v = (t.transpose(1, 2) for t in (q_bthk, k_bsgk, v_bsgk))
    grouped, mask = q.shape[1] != k.shape[1], how.mask
    if how.softcap is not None or how.sinks is not None:
        weights_bhts = F.dropout(attention_weights(q_bthk, k_bsgk, how), how.dropout)
        return (weights_bhts @ (v.repeat_interleave(q.shape[1] // k.shape[1], 1) if grouped else v)).transpose(1, 2)
    if how.bias is not None:
        mask = how.seen(q_bthk, k_bsgk)
        blind = how.bias if mask is None else how.bias.masked_fill(~mask, torch.finfo(q.dtype).min)
        y = F.scaled_dot_product_attention(q, k, v, blind, how.dropout, scale=how.scale, enable_gqa=grouped)
        y = y if mask is None else torch.where(mask.any(-1, keepdim=True), y, 0)
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, how.dropout, how.causal, scale=how.scale, enable_gqa=grouped)
    return y.transpose(1, 2)


def attention_weights(q_bthk: Tensor, k_bsgk: Tensor, how: Scores) -> Tensor:
    """The weights themselves (B, H, T, S), written out: for what the kernel cannot do, and for looking at them."""
    groups = q_bthk.shape[2] // k_bsgk.shape[2]
    scale = q_bthk.shape[-1] ** -0.5 if how.scale is None else how.scale
    scores_bhts = torch.einsum("bthk,bshk->bhts", q_bthk, k_bsgk.repeat_interleave(groups, 2)) * scale
    if how.softcap is not None:
        scores_bhts = how.softcap * torch.tanh(scores_bhts / how.softcap)
    if how.bias is not None:
        scores_bhts = scores_bhts + how.bias
    mask = how.seen(q_bthk, k_bsgk)
    if mask is not None:
        scores_bhts = scores_bhts.masked_fill(~mask, torch.finfo(scores_bhts.dtype).min)
    if how.sinks is not None:  # a key that is looked at and gives nothing
        sink_bht1 = how.sinks[:, None, None].expand(*scores_bhts.shape[:3], 1)
        scores_bhts = torch.cat((scores_bhts, sink_bht1.to(scores_bhts.dtype)), dim=-1)
    wide = torch.promote_types(scores_bhts.dtype, torch.float32)
    weights_bhts = scores_bhts.softmax(-1, dtype=wide).to(q_bthk.dtype)[..., : k_bsgk.shape[1]]
    return weights_bhts if mask is None else weights_bhts.masked_fill(~mask, 0)
