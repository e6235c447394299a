"""Residuals, blocks and the tower: x (B, T, D) -> x, layer after layer.

One line carries every published order of norms: x -> outer(x + post(op(pre(x)))). Pre-norm fills `pre`, post-norm fills `outer`,
sandwich fills `pre` and `post`. Differences between layers are data: a tower holds one block spec per layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.attention import AttentionLayer, default_positions
from hornbook.model.spec import Context, Spec, build


@dataclass(frozen=True)
class Residual:
    op: Spec
    pre: Spec | None = None
    post: Spec | None = None
    outer: Spec | None = None
    dropout: float = 0.0  # of what is added

    def build(self, dim: int) -> ResidualLayer:
        return ResidualLayer(self, dim)


class ResidualLayer(nn.Module):
    def __init__(self, spec: Residual, dim: int):
        super().__init__()
        self.dropout, self.op = spec.dropout, spec.op.build(dim)
        self.pre, self.post, self.outer = (build(norm, dim) for norm in (spec.pre, spec.post, spec.outer))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = F.dropout(self.op(self.pre(x), ctx), self.dropout, self.training)
        return self.outer(x + self.post(y))


@dataclass(frozen=True)
class Parallel:
    """Attention and feed-forward of the same x, added (GPT-NeoX): one op of one residual."""

    attn: Spec
    ffn: Spec
    attn_norm: Spec | None = None
    ffn_norm: Spec | None = None
    dropout: float = 0.0  # of each

    def build(self, dim: int) -> ParallelLayer:
        return ParallelLayer(self, dim)


class ParallelLayer(nn.Module):
    def __init__(self, spec: Parallel, dim: int):
        super().__init__()
        self.dropout, self.attn, self.ffn = spec.dropout, spec.attn.build(dim), spec.ffn.build(dim)
        self.attn_norm, self.ffn_norm = build(spec.attn_norm, dim), build(spec.ffn_norm, dim)

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        y = F.dropout(self.attn(self.attn_norm(x), ctx), self.dropout, self.training)
        return y + F.dropout(self.ffn(self.ffn_norm(x), ctx), self.dropout, self.training)


@dataclass(frozen=True)
class Block:
    attn: Residual
    ffn: Residual | None = None
    cross: Residual | None = None  # between the two, in a decoder that looks at a memory

    def build(self, dim: int) -> BlockLayer:
        return BlockLayer(self, dim)


class BlockLayer(nn.Module):
    def __init__(self, spec: Block, dim: int):
        super().__init__()
        self.attn = spec.attn.build(dim)
        self.cross = spec.cross.build(dim) if spec.cross else None
        self.ffn = spec.ffn.build(dim) if spec.ffn else None

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        for part in (self.attn, self.cross, self.ffn):
            x = x if part is None else part(x, ctx)
        return x


@dataclass(frozen=True)
class Tower:
    dim: int
    blocks: tuple[Block, ...]
    norm: Spec | None = None
    dropout: float = 0.0  # of what comes out (T5)

    def build(self) -> TowerLayer:
        return TowerLayer(self)


class TowerLayer(nn.Module):
    def __init__(self, spec: Tower):
        super().__init__()
        self.blocks = nn.ModuleList(block.build(spec.dim) for block in spec.blocks)
        self.norm, self.dropout = build(spec.norm, spec.dim), spec.dropout
        layers = [module for module in self.modules() if isinstance(module, AttentionLayer)]
        self.ropes = tuple(dict.fromkeys(layer.rope for layer in layers if layer.rope is not None))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        if self.ropes:
            positions_bt = default_positions(x) if ctx.positions_bt is None else ctx.positions_bt
            ctx = replace(ctx, rotations={rope: rope.angles(positions_bt, x.dtype) for rope in self.ropes})
        for layer, block in enumerate(self.blocks):
            x = block(x, ctx if ctx.cache is None else replace(ctx, layer=layer))
        return F.dropout(self.norm(x), self.dropout, self.training)
