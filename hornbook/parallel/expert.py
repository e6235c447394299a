"""Expert parallelism: the experts of each mixture are spread over ranks, and tokens travel to theirs and back.

Each rank reads its own rows of the batch and routes them itself; an all-to-all brings every row to the rank that holds its expert,
and another brings the result back (Lepikhin et al. 2020, "GShard", section 3.2). Nothing is dropped or padded: ranks first tell
each other how many rows come.

What a router looks at is its own rank's rows: they are a micro-batch of their own for the balance and z-loss, for a capacity and
for experts that choose. So n ranks give what one process gives that takes the n parts one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

from hornbook.errors import UserError
from hornbook.model.moe import MoELayer
from hornbook.parallel.tensor import Parts

EXPERTS = Parts({name: Shard(0) for name in ("gate", "up", "down", "biases.gate", "biases.up", "biases.down")})


def expert_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each rank of the 1-D `mesh` as many experts of every mixture in `model`, as DTensors cut along the experts.

    After a backward pass an expert's gradient is that of all ranks' rows; every other gradient is that of the own rows alone, to be
    summed over `mesh` by the caller. All ranks must call the model equally often, with rows or with few. Where the model is also
    cut by `tensor_parallel`, that comes first.
    """
    for layer in check_expert(model, mesh.size()):
        parallelize_module(layer, mesh, EXPERTS)
        vars(layer)["through_experts"] = partial(_through_experts, layer.through_experts, mesh.get_group())


def check_expert(model: nn.Module, ranks: int) -> list[MoELayer]:
    """The mixtures of a model, of which shapes are enough. One that cannot be cut for so many ranks is refused."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MoELayer)]
    if not layers:
        raise UserError(
            f"parallel.expert needs a mixture of experts: expert={ranks}", where=type(model).__name__,
            why="no layer of the model has experts", fix="set parallel.expert to 1, or choose a family such as mixtral",
        )  # fmt: skip
    for name, layer in layers:
        if layer.spec.experts % ranks:
            raise UserError(
                f"experts must be a multiple of parallel.expert: experts={layer.spec.experts}, expert={ranks}", where=name,
                why="every rank holds as many experts", fix="set parallel.expert to a number that divides the experts",
            )  # fmt: skip
    return [layer for _, layer in layers]


def _through_experts(
    own: Callable[[Tensor, Tensor, Tensor], Tensor], group: dist.ProcessGroup, x_ad: Tensor, expert_a: Tensor, ends_e: Tensor
) -> Tensor:  # fmt: skip
    """Rows sorted by expert, each through its own, wherever that is."""
    ranks = group.size()
    sent_re = ends_e.diff(prepend=ends_e.new_zeros(1)).unflatten(0, (ranks, -1))  # rows for each expert of each rank
    came_re = torch.empty_like(sent_re)  # rows of each rank for each own expert
    dist.all_to_all_single(came_re, sent_re, group=group)
    there, back = sent_re.sum(1).tolist(), came_re.sum(1).tolist()

    x_cd = travelled(x_ad, there, back, group)
    expert_c = torch.arange(came_re.shape[1], device=x_ad.device).repeat(ranks).repeat_interleave(came_re.flatten())
    order_c = expert_c.argsort(stable=True)
    y_cd = own(x_cd[order_c], expert_c[order_c], came_re.sum(0).cumsum(0))
    return travelled(y_cd[order_c.argsort()], back, there, group)


def travelled(x_ad: Tensor, there: list[int], back: list[int], group: dist.ProcessGroup) -> Tensor:
    """`there[r]` rows go to each rank r, in order; `back[r]` come from it. Gradients go the other way."""
    found: Tensor = _Travelled.apply(x_ad, there, back, group)
    return found


class _Travelled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ad: Tensor, there: list[int], back: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = back, there, group
        y_cd = x_ad.new_empty(sum(back), x_ad.shape[1])
        dist.all_to_all_single(y_cd, x_ad.contiguous(), back, there, group=group)
        return y_cd

    @staticmethod
    def backward(ctx: Any, grad_cd: Tensor) -> tuple[Tensor, None, None, None]:
        return travelled(grad_cd, *ctx.way), None, None, None
