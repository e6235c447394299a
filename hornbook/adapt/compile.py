"""torch.compile from outside: each block's training step as one compiled piece, which blocks of one shape share.

Blocks and not the model, so that compiling takes the time of one layer. Names of parameters stay; calls without gradients or with a
cache (evaluation, generation, other lengths) go the plain way, so what is measured does not depend on the switch. Call it after
`recompute`, which it holds inside, and before copies of the model are joined, whose sums and gathers stay outside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from hornbook.errors import UserError
from hornbook.model.block import BlockLayer
from hornbook.model.spec import Context


def compile_blocks(model: nn.Module, backend: str = "inductor", device: torch.device | None = None) -> None:
    """Compile each block when it first trains. Raises `UserError` where torch would find no compiler.

    device: where the model will be, if it is not there yet.
    """
    needed = backend == "inductor" and (device or next(model.parameters()).device).type == "cpu"
    if needed and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError(
            "compile needs a C++ compiler on this device", where="compile", why="none of c++, g++ and clang++ is found",
            fix="install g++, or set compile to false",
        )  # fmt: skip
    for block in model.modules():
        if isinstance(block, BlockLayer):
            compiled = torch.compile(block.forward, dynamic=False, backend=backend)
            block.forward = partial(_trained, compiled, block.forward)  # type: ignore[method-assign]


def compile_seconds() -> float:
    """How long this process has compiled."""
    from torch._dynamo.utils import cumulative_time_spent_ns  # slow to import

    return cumulative_time_spent_ns["entire_frame_compile"] / 1e9


def _trained(compiled: Callable[..., Tensor], plain: Callable[..., Tensor], x: Tensor, ctx: Context) -> Tensor:
    return (compiled if torch.is_grad_enabled() and ctx.cache is None else plain)(x, ctx)
