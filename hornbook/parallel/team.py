"""The processes of a run: this one's place among them, its part of the model, and the sums that make many steps one.

Where there is one process, every sum is the number itself and nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hornbook.batch import Batch
from hornbook.data.batches import moved
from hornbook.model import TransformerModel
from hornbook.optim.shards import plain
from hornbook.parallel.sizes import AXES, Parallel
from hornbook.ranks import is_cut, rank

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from hornbook.parallel.pipeline import Pipeline

BATCH = ("data", "expert")  # the axes over which every batch is cut
PATIENCE = 22.0  # seconds that a rank waits for the others in one collective: more than any of them should be late


class Team:
    """`part` of `parts`: this process's place among those that a batch is cut for."""

    def __init__(self, sizes: Parallel | None = None, device: torch.device | str = "cpu"):
        self.sizes, self.device, self.part = sizes or Parallel(), torch.device(device), 0
        self.mesh: DeviceMesh | None = None
        self.pipeline: Pipeline | None = None
        if self.sizes.world == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh

        shape = tuple(getattr(self.sizes, axis) for axis in AXES)
        self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=AXES)
        self.part = self.mesh.get_local_rank("data") * self.sizes.expert + self.mesh.get_local_rank("expert")
        self._batch = self.mesh[BATCH]._flatten("batch")
        self._sums = self.mesh[("pipeline", *BATCH)]._flatten("sums")

    @property
    def parts(self) -> int:
        return self.sizes.parts

    @property
    def counts(self) -> bool:
        """True of the stage of a pipeline that counts the batches, which all stages have."""
        return self.pipeline is None or self.pipeline.last

    @property
    def first(self) -> bool:
        """True of the one process that speaks and writes for all."""
        return rank() == 0

    def watched(self) -> AbstractContextManager[None]:
        """Within this, a rank that dies or hangs is named by the others: see `alive`."""
        if self.mesh is None or "MASTER_ADDR" not in os.environ:
            return nullcontext()
        from hornbook.parallel.alive import watched

        return watched(rank(), self.sizes.world)

    def check(self, model: TransformerModel, rows: int) -> None:
        """Refuse rows of a batch, and a model of shapes only, that cannot be cut by the sizes; nothing is left of the model."""
        self.sizes.check_rows(rows)
        if self.sizes.world == 1:
            return
        from hornbook.parallel.expert import check_expert
        from hornbook.parallel.pipeline import cut
        from hornbook.parallel.tensor import check_tensor

        if self.sizes.tensor > 1:
            check_tensor(model, self.sizes.tensor)
        if self.sizes.expert > 1:
            check_expert(model, self.sizes.expert)
        if self.sizes.pipeline > 1:
            cut(model, 0, self.sizes.pipeline)

    def spread(self, model: TransformerModel) -> None:
        """Make a whole model, which is the same on every process, this process's part of it."""
        if self.mesh is None:
            return
        from hornbook.parallel.expert import expert_parallel
        from hornbook.parallel.pipeline import Pipeline
        from hornbook.parallel.shard import shard
        from hornbook.parallel.tensor import tensor_parallel

        if self.sizes.pipeline > 1:
            self.pipeline = Pipeline(model, self.mesh["pipeline"], self.sizes.schedule)
            model.whole_names = self.pipeline.share.names
        if self.sizes.tensor > 1:
            tensor_parallel(model, self.mesh["tensor"], self.sizes.sequence)
        if self.sizes.expert > 1:
            expert_parallel(model, self.mesh["expert"])
        if self.parts > 1:
            shard(model, self._batch, self.sizes.zero, self.mesh["data"])

    def before_micro_batch(self, model: nn.Module, last: bool) -> None:
        """Must be called before each forward pass of a step; `last`: no other micro-batch of this step follows."""
        if self.mesh is not None and self.parts > 1:
            from hornbook.parallel.shard import before_micro_batch

            before_micro_batch(model, self.sizes.zero, last)

    def after_micro_batches(self, model: nn.Module) -> None:
        """Must be called behind a step's last backward pass: what its sums have not done yet."""
        if self.mesh is not None and self.sizes.expert > 1 and self.sizes.data > 1 and not self.sizes.zero:
            from hornbook.parallel.shard import sum_experts

            sum_experts(model, self.mesh["data"])

    def sums(self, *values: Tensor | int) -> tuple[Tensor | int, ...]:
        """Each number summed over the parts of the batch, and over the stages of a pipeline: alike on every rank."""
        if self.mesh is None:
            return values
        import torch.distributed as dist

        total = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.mesh.device_type) for value in values])
        dist.all_reduce(total, group=self._sums.get_group())
        dist.broadcast(total, 0)  # every rank decides by these numbers: they must be the same to the bit
        return total.unbind()

    def gathered(self, batches: list[Batch]) -> list[Batch]:
        """The batches of all parts, one part after the other, on every rank and in its processor's memory."""
        if self.parts == 1:
            return batches
        import torch.distributed as dist

        found: list[list[Batch]] = [[] for _ in range(self.parts)]
        dist.all_gather_object(found, [moved(batch, "cpu") for batch in batches], group=self._batch.get_group())
        return [batch for part in found for batch in part]

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true everywhere where it is true on any rank."""
        if self.mesh is None:
            return list(flags)
        import torch.distributed as dist

        raised = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def norm(self, named: Mapping[str, Tensor]) -> Tensor:
        """The 2-norm of all ranks' gradients together, by name: those that are cut are summed over the axes that cut them."""
        gradients = [each for name, each in named.items() if self.pipeline is None or name in self.pipeline.share.owned]
        if self.mesh is None:
            return torch.nn.utils.get_total_norm(gradients)
        import torch.distributed as dist

        squares: dict[tuple[ProcessGroup, ...], list[Tensor]] = {}
        for gradient in gradients:
            groups: list[ProcessGroup] = []
            if is_cut(gradient):
                axes = [axis for axis, place in enumerate(gradient.placements) if not place.is_replicate()]
                groups = [gradient.device_mesh.get_group(axis) for axis in axes]
            squares.setdefault(tuple(groups), []).append(plain(gradient))
        total = torch.zeros((), dtype=torch.float64, device=self.mesh.device_type)
        for cut, members in squares.items():
            found = torch.stack(torch._foreach_norm(members)).double().square().sum()
            for group in cut:
                dist.all_reduce(found, group=group)
            total += found
        if self.sizes.pipeline > 1:
            dist.all_reduce(total, group=self.mesh.get_group("pipeline"))
        dist.broadcast(total, 0)
        return total.sqrt().to(gradients[0].dtype)


def join(sizes: Parallel, device: torch.device) -> Team:
    """Take this process's place in a run of several, as torchrun gives it; alone where there is one."""
    import torch.distributed as dist

    world = int(os.environ.get("WORLD_SIZE", 1))
    sizes.check_world(world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        # torchrun's store outlives a restart of the ranks, with the addresses of those that are gone: each start has its own keys.
        store, place, world = next(rendezvous("env://"))
        own = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=own, rank=place, world_size=world, timeout=timedelta(seconds=PATIENCE))
    return Team(sizes, device)
