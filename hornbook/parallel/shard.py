"""Copies of a model, each of which sees its own part of every batch, and what they share out among themselves.

Gradients are summed over the copies, never averaged: the mean is taken once, over the global count of targets. With `zero` the
copies share out moments, then gradients, then weights too (Rajbhandari et al. 2020, "ZeRO", section 5), through torch's FSDP2; the
unit that is gathered and given back is the block. What each stage sends per step of k micro-batches, of W bytes of weights, R of
them outside the blocks, on n ranks in a ring (`plan/traffic.py`; `tests/parallel/test_traffic.py` counts it):

    0, copies     all-reduce of the gradients                         2 W (n-1)/n
    1, moments    reduce-scatter and all-gather of the weights, once  2 W (n-1)/n
    2, gradients  reduce-scatter once per micro-batch                 (1 + k) W (n-1)/n
    3, weights    and all-gathers in every forward and backward       k (3 W - R) (n-1)/n; R stays gathered in between
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo, ShardPlacementResult
from torch.distributed.tensor import Shard

from hornbook.model.block import BlockLayer
from hornbook.optim.shards import plain
from hornbook.ranks import is_cut

ENTRIES = ("hidden", "encode")  # beside `forward`, the methods through which an objective enters a model


def shard(model: nn.Module, mesh: DeviceMesh, zero: int, data: DeviceMesh) -> None:
    """Make the model one of the copies on `mesh`, of one dimension. Every rank must have the same weights before.

    data: for experts that are spread over ranks, the part of `mesh` on which there are copies of them.
    """
    blocks, spread = [module for module in model.modules() if isinstance(module, BlockLayer)], set(spread_experts(model))

    among = FSDPMeshInfo(data, shard_mesh_dim=0) if spread and zero else None

    def place(parameter: nn.Parameter) -> ShardPlacementResult | None:
        return ShardPlacementResult(Shard(0), among) if among and parameter in spread else None

    for module in (*blocks, model):
        if zero:
            # The last to be gathered, the model itself, stays gathered: the loss reads the head's matrix after the forward pass.
            gathered = zero == 3 and module is not model
            fully_shard(module, mesh=mesh, reshard_after_forward=gathered, shard_placement_fn=place if spread else None)
        else:
            replicate(module, mesh=mesh, ignored_params=spread)
    for entry in ENTRIES:
        if hasattr(model, entry):
            register_fsdp_forward_method(model, entry)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no product beside the sum


def spread_experts(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that `expert_parallel` has cut."""

    def spread(parameter: Tensor) -> bool:
        return is_cut(parameter) and "expert" in (parameter.device_mesh.mesh_dim_names or ())

    return [parameter for parameter in model.parameters() if spread(parameter)]


def sum_experts(model: nn.Module, data: DeviceMesh) -> None:
    """Sum the gradients of spread experts over their copies, which `replicate` leaves alone."""
    for parameter in spread_experts(model):
        if parameter.grad is not None:
            dist.all_reduce(plain(parameter.grad), group=data.get_group())


def before_micro_batch(model: nn.Module, zero: int, last: bool) -> None:
    """Say how the coming backward pass ends: whether gradients are summed over the copies, and gathered weights kept."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last or zero >= 2)
    model.set_is_last_backward(last)
    if zero in (1, 2):
        model.set_reshard_after_backward(last)
