"""Experts on many ranks: losses and gradients are one process's, with every kind of router."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from hornbook.batch import IGNORE, Batch
from hornbook.errors import UserError
from hornbook.families import build
from hornbook.model import ExpertChoice, Hash, TopK, TransformerModel
from hornbook.model.moe import MoE, MoELayer
from hornbook.parallel.expert import expert_parallel
from hornbook.parallel.tensor import tensor_parallel
from hornbook.train.objective import causal_lm
from tests.parallel.pool import ranks
from tests.reference.models import small_config

VOCAB, LENGTH = 100, 8
ROUTERS = {
    "all rows at once": TopK(top_k=2),
    "balance and z": TopK(top_k=2, balance=0.1, z=0.1),
    "capacity": TopK(top_k=2, capacity=0.5),
    "expert choice": ExpertChoice(),
    "hash": Hash(vocab=VOCAB),
}


def perturbed(router: Any, shared: bool, biased: bool) -> TransformerModel:
    """Three layers of experts; every parameter matters, and every rank has the same."""
    spec = build(small_config("qwen2_moe", VOCAB)).spec

    def changed(moe: MoE) -> MoE:
        expert = replace(moe.expert, bias=biased)
        return replace(moe, router=router, expert=expert, **({} if shared else {"shared": None, "shared_gate": False}))

    blocks = tuple(replace(block, ffn=replace(block.ffn, op=changed(block.ffn.op))) for block in spec.tower.blocks)
    model = replace(spec, tower=replace(spec.tower, blocks=blocks)).build().double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model.train()


def rows_of(first: int, last: int) -> Batch:
    """Some of 4 rows, of which the last asks for nothing."""
    ids = torch.randint(0, VOCAB, (4, LENGTH + 1), generator=torch.Generator().manual_seed(2))
    targets = ids[:, 1:].masked_fill(ids[:, 1:] % 5 == 0, IGNORE)
    targets[3] = IGNORE
    return Batch(ids[first:last, :-1], targets[first:last])


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach()


def expected(one: TransformerModel, batches: list[Batch]) -> Tensor:
    """One process's summed loss; its gradients stay on the model."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        loss = causal_lm(one, batch).total
        loss.backward()
        total += loss.detach()
    return total


def found(cut: TransformerModel, mesh: DeviceMesh, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The ranks' summed loss, and gradients: summed over ranks but for the experts', as a training loop does."""
    total = causal_lm(cut, batch).total
    total.backward()
    total = total.detach().clone()
    torch.distributed.all_reduce(total, group=mesh.get_group())
    gradients = {}
    for name, parameter in cut.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if not (isinstance(grad, DTensor) and "expert" in (grad.device_mesh.mesh_dim_names or ())):
            torch.distributed.all_reduce(grad.to_local() if isinstance(grad, DTensor) else grad, group=mesh.get_group())
        gradients[name] = whole(grad)
    return total, gradients


def compared(rank: int, router: Any, at_once: bool, tensor: int = 1, sequence: bool = False, biased: bool = True) -> float:
    """How far losses and gradients of this rank's experts and rows are from the whole model's."""
    world = torch.distributed.get_world_size()
    meshes = init_device_mesh("cpu", (world // tensor, tensor), mesh_dim_names=("expert", "tensor"))
    one = perturbed(router, shared=True, biased=biased)
    cut = copy.deepcopy(one)
    if tensor > 1:
        tensor_parallel(cut, meshes["tensor"], sequence)
    expert_parallel(cut, meshes["expert"])
    parts = world // tensor
    layer = next(module for module in cut.modules() if isinstance(module, MoELayer))
    assert layer.gate.to_local().shape[0] == layer.spec.experts // parts
    batches = [rows_of(4 // parts * part, 4 // parts * (part + 1)) for part in range(parts)]
    wanted = expected(one, [rows_of(0, 4)] if at_once else batches)
    total, gradients = found(cut, meshes["expert"], batches[meshes["expert"].get_local_rank()])
    differences = [(total - wanted).abs() / wanted]
    for name, parameter in one.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        differences.append((gradients[name] - grad).abs().max() / grad.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())


def all_compared(rank: int) -> dict[str, float]:
    return {name: compared(rank, router, name == "all rows at once") for name, router in ROUTERS.items()}


def refusal(rank: int, config: dict[str, Any]) -> str:
    try:
        expert_parallel(build(config), init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_router_is_one_process(world: int) -> None:
    for figures in ranks(world).run(all_compared):
        assert {name: figure for name, figure in figures.items() if not figure < 1e-10} == {}


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [False, True], ids=["tensor", "sequence"])
def test_with_tensor_parallelism(sequence: bool) -> None:
    assert max(ranks(4).run(compared, ROUTERS["balance and z"], False, 2, sequence)) < 1e-10


def test_what_has_no_experts_to_share_is_refused() -> None:
    assert "needs a mixture of experts" in ranks(2).run(refusal, small_config("llama"))[0]
    assert "experts=3, expert=2" in ranks(2).run(refusal, small_config("mixtral", num_local_experts=3))[0]
