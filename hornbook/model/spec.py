"""What every part of the core shares: the `Spec` protocol and the `Context` that a layer may read.

A spec is a frozen description with one method, `build(dim)`. State never lives on a module: positions, masks and the cache come
in the `Context`, so the same model can serve training, packed rows and cached decoding without a "set up" call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Spec(Protocol):
    """A frozen description that can build its module for a residual stream of width `dim`."""

    def build(self, dim: int) -> nn.Module: ...


class Cache(Protocol):
    """Keys and values of the past: takes this call's and gives back all that a query may look at, with their positions."""

    def update(self, layer: int, k_btgk: Tensor, v_btgk: Tensor, positions_bt: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Context:
    """What a layer may know besides the residual stream. Every field may be absent.

    positions_bt       position of each query (B or 1, T); None: 0 .. T-1, which also keeps the fastest attention path
    padding_bs         True where a key may be seen (B, S)
    documents_bt       a number per token; tokens see only their own document (packed rows)
    types_bt           which of a pair of texts a token is of (BERT); None: the first
    prefix_b           so many first positions are seen by all, the rest causally
    memory             what cross-attention looks at (B, S, D), with memory_padding_bs, True where it may be seen
    cache              keys and values of earlier calls
    aux_scale          the weight of the layers' own losses, in tokens (mixture of experts); None: they have no gradient
    tokens_bt          set by the stem: the ids, for what routes by id
    rotations          set by the tower: cos and sin (B or 1, T, 1, K/2) of each distinct rope
    layer              set by the tower: the layer's slot in the cache
    """

    positions_bt: Tensor | None = None
    padding_bs: Tensor | None = None
    documents_bt: Tensor | None = None
    types_bt: Tensor | None = None
    prefix_b: Tensor | None = None
    memory: Tensor | None = None
    memory_padding_bs: Tensor | None = None
    cache: Cache | None = None
    aux_scale: Tensor | None = None
    tokens_bt: Tensor | None = None
    rotations: Mapping[Any, tuple[Tensor, Tensor]] | None = None
    layer: int = 0


_FIELDS = [field.name for field in fields(Context)]
# Registered, so that whatever splits, casts or checkpoints a call's tensors sees those inside the context too.
pytree.register_pytree_node(
    Context,
    lambda ctx: ([getattr(ctx, name) for name in _FIELDS], None),
    lambda values, _: Context(*values),
    serialized_type_name="hornbook.Context",
)


def build(spec: Spec | None, dim: int) -> nn.Module:
    """The spec's module, or the identity where a slot is empty."""
    return nn.Identity() if spec is None else spec.build(dim)
