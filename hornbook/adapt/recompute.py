"""Activation checkpointing: a block keeps what flows into it, and computes the rest again when its gradients are wanted.

Memory for time (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). `blocks` keeps a block's input alone, for about
a third more work. `selective` also keeps the results of matrix products and of attention, which are what costs, and computes norms,
activations and rotations again (Korthikanti et al. 2022, section 5). Either gives the same gradients, dropout included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from hornbook.errors import near
from hornbook.model.block import BlockLayer
from hornbook.model.spec import Context

Recompute = Literal["none", "blocks", "selective"]
KINDS: tuple[Recompute, ...] = ("none", "blocks", "selective")
DEAR = [
    getattr(torch.ops.aten, name).default
    for name in (
        "mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    )
]  # fmt: skip


def recompute(model: nn.Module, kind: str) -> None:
    """Let every block of the model keep less while it trains, from now on. `none` undoes it."""
    if kind not in KINDS:
        raise ValueError(f"recompute must be a known kind: {kind!r} ({near(kind, KINDS)})")
    contexts = {"context_fn": partial(create_selective_checkpoint_contexts, DEAR)} if kind == "selective" else {}
    for block in model.modules():
        if isinstance(block, BlockLayer):
            vars(block).pop("forward", None)
            if kind != "none":
                block.forward = partial(_kept, block.forward, contexts)  # type: ignore[method-assign]


def _kept(forward: Callable[[Tensor, Context], Tensor], contexts: dict[str, Any], x: Tensor, ctx: Context) -> Tensor:
    if not torch.is_grad_enabled() or ctx.cache is not None:
        return forward(x, ctx)
    found: Tensor = checkpoint(forward, x, ctx, use_reentrant=False, **contexts)
    return found
