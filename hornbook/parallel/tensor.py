"""Tensor parallelism: a built model becomes one rank's part of it, a part of every matrix, from outside.

One plan by layer type for all families (Shoeybi et al. 2019, "Megatron-LM", section 3): what widens (q, k, v; gate, up) is cut by
its outputs, what narrows (o, down) by its inputs, so that a rank has whole heads and whole hidden channels and the ranks' results
are summed once per op. Experts are cut like any feed-forward; embeddings and heads by vocabulary; norms and routers are whole.

With `sequence` each rank has a part of the positions between the ops (Korthikanti et al. 2022, section 4.2.2): what enters an op is
gathered and what leaves it scattered as it is summed. The gathered x is kept for the backward pass.

What a layer computes with is plain tensors: an op's own parameters are read as this rank's parts. Outside of the ops (and with
`sequence` outside of the tower) a tensor is whole and the same on every rank, and so is its gradient. What is cut is a DTensor on
the mesh; all other parameters stay as they are, and every rank computes their whole gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import gcd
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, RowwiseParallel, parallelize_module

from hornbook.errors import UserError
from hornbook.families import spelled
from hornbook.model.attention import AttentionLayer, Whole
from hornbook.model.bias import ALiBiLayer, BucketBiasLayer
from hornbook.model.block import ParallelLayer, ResidualLayer, TowerLayer
from hornbook.model.head import LMHeadLayer, MLMHeadLayer
from hornbook.model.mlp import MLPLayer
from hornbook.model.moe import Assignments, MoELayer
from hornbook.model.spec import Context
from hornbook.model.stem import TokenStemLayer
from hornbook.model.transformer import Tied

Use = Shard | Literal["once", "summed"]
Plan = dict[str, ParallelStyle]


def tensor_parallel(model: Tied, mesh: DeviceMesh, sequence: bool = False) -> None:
    """Cut `model`, which every rank of the 1-D `mesh` holds whole and alike. A size that does not divide is a `UserError`.

    Ranks must draw the same random numbers: dropout of whole tensors drops the same values everywhere, and what a rank has alone
    (its heads, its hidden channels, its positions) gets draws of its own. With `sequence` the positions of a batch that is
    learned from must divide too.
    """
    check_tensor(model, mesh.size())
    within = {id(part) for moe in model.modules() if isinstance(moe, MoELayer) and moe.shared for part in moe.shared.modules()}
    for layer in list(model.modules()):
        if isinstance(layer, AttentionLayer | MLPLayer | MoELayer):
            parallelize_module(layer, mesh, CutOp(sequence, apart=id(layer) not in within))
        elif isinstance(layer, LMHeadLayer | MLMHeadLayer):
            parallelize_module(layer.out, mesh, VOCABULARY)
        elif isinstance(layer, TokenStemLayer):
            parallelize_module(layer.tokens, mesh, RowwiseParallel(input_layouts=Replicate()), src_data_rank=None)
            layer.tokens.weight.register_post_accumulate_grad_hook(_cut_gradient)
        elif isinstance(layer, TowerLayer):
            parallelize_module(layer, mesh, Between(sequence))
    model.tie()


def moved(x: Tensor, mesh: DeviceMesh, source: Placement, target: Placement, gradient: Placement | None = None) -> Tensor:
    """This rank's part of what has the placement `source` as it is with `target`; the gradient that comes back is `gradient`."""
    found = DTensor.from_local(x, mesh, [source], run_check=False).redistribute(placements=[target])
    return found.to_local(grad_placements=[gradient or target])


def entered(x: Tensor, mesh: DeviceMesh, split: bool = False) -> Tensor:
    """What is whole (or split over positions) as the input of a computation that each rank does a part of."""
    return moved(x, mesh, Shard(1) if split else Replicate(), Replicate(), Partial())


def summed(y: Tensor, mesh: DeviceMesh, split: bool = False) -> Tensor:
    """The sum of the ranks' parts, whole (or split over positions)."""
    return moved(y, mesh, Partial(), Shard(1) if split else Replicate())


def _cut_gradient(parameter: Tensor) -> None:
    """Torch leaves the gradient of cut embeddings whole."""
    if isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor):
        parameter.grad = parameter.grad.redistribute(placements=parameter.placements)


# --- parameters -----------------------------------------------------------------------------------------------------------


class Parts(ParallelStyle):
    """How a module uses its parameters, by name: `Shard(n)`: this rank's part, cut along n; "once": whole, on one rank, so that
    the ranks' sum has it once; "summed": whole, and what the ranks' uses of it give to its gradient is summed.
    """

    def __init__(self, uses: Mapping[str, Use]):
        super().__init__()
        self.uses = uses

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        used: list[tuple[nn.Module, str, Use]] = []
        for name, use in self.uses.items():
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            parameter = owner._parameters.get(leaf)
            if parameter is None:
                continue
            used.append((owner, leaf, use))
            if isinstance(use, Shard):
                part = nn.Parameter(_cut(parameter.detach(), mesh, use), requires_grad=parameter.requires_grad)
                owner.register_parameter(leaf, part)
        if used:
            wrap(module, partial(_with_parts, used, mesh))
        return module


def _cut(whole: Tensor, mesh: DeviceMesh, use: Shard) -> Tensor:
    if not isinstance(whole, DTensor):
        return distribute_tensor(whole, mesh, [use], src_data_rank=None)
    both = DeviceMesh._concatenate([mesh, whole.device_mesh])  # what tensor_parallel has cut, cut again for the experts
    own = whole.to_local().chunk(mesh.size(), use.dim)[mesh.get_local_rank()].clone()
    return DTensor.from_local(own, both, [use, *whole.placements], run_check=False)


def wrap(module: nn.Module, around: Callable[..., Any]) -> None:
    """From now on the module's forward is `around(its forward, *what it is given)`."""
    module.forward = partial(around, module.forward)


def _with_parts(used: list[tuple[nn.Module, str, Use]], mesh: DeviceMesh, forward: Callable[..., Any], *given: Any) -> Any:
    kept = [(owner._parameters, name, owner._parameters[name]) for owner, name, _ in used]  # as they are in this call
    try:
        for (held, name, parameter), (_, _, use) in zip(kept, used, strict=True):
            assert parameter is not None
            held[name] = cast(nn.Parameter, _used(parameter, use, mesh))
        return forward(*given)
    finally:
        for held, name, parameter in kept:
            held[name] = parameter


def _used(parameter: Tensor, use: Use, mesh: DeviceMesh) -> Tensor:
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if use == "summed":
        return entered(own, mesh)
    if use == "once":  # every rank computes the whole gradient, whatever it adds
        return own.detach() * float(mesh.get_local_rank() == 0) + (own - own.detach())
    return own


WIDENS, NARROWS = Parts({"weight": Shard(0), "bias": Shard(0)}), Parts({"weight": Shard(1), "bias": "once"})
PER_RANK = Parts({"weight": "summed", "bias": "summed"})


# --- layers ---------------------------------------------------------------------------------------------------------------


class CutOp(ParallelStyle):
    """An attention, feed-forward or mixture. Inside another op (not `apart`) the tensors around it are parts already."""

    def __init__(self, sequence: bool, apart: bool):
        super().__init__()
        self.sequence, self.apart = sequence, apart

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, AttentionLayer):
            _cut_attention(module, mesh)
        elif isinstance(module, MoELayer):
            _cut_experts(module, mesh)
        else:
            plan: Plan = {"up": WIDENS, "down": NARROWS, **({"gate": WIDENS} if hasattr(module, "gate") else {})}
            parallelize_module(module, mesh, plan)
        if _drops(module):
            wrap(module, partial(_own_draws, module, mesh))
        if self.apart:
            cuts = self.sequence
            module.register_forward_pre_hook(lambda _, given: (entered(given[0], mesh, cuts and _learns()), *given[1:]))
            module.register_forward_hook(lambda _, given, y: summed(y, mesh, cuts and _learns()))
        return module


def _cut_attention(layer: AttentionLayer, mesh: DeviceMesh) -> None:
    plan: Plan = {"q": WIDENS, "k": WIDENS, "v": WIDENS, "o": NARROWS}
    if isinstance(layer.spec.qk_norm, Whole):
        for norm in (layer.q_norm, layer.k_norm):
            assert isinstance(norm, nn.Sequential)
            # Its mean is over all ranks' channels: it sees them all, and each rank goes on with its own.
            norm[1].register_forward_pre_hook(lambda _, given: moved(given[0], mesh, Shard(2), Replicate()))
            norm[1].register_forward_hook(lambda _, given, y: moved(y, mesh, Replicate(), Shard(2)))
            vars(norm[2])["unflattened_size"] = (-1, layer.spec.head_dim)
    else:
        plan.update(q_norm=PER_RANK, k_norm=PER_RANK)
    if isinstance(layer.bias, BucketBiasLayer):
        plan["bias.table"] = Parts({"weight": Shard(1)})
    elif isinstance(layer.bias, ALiBiLayer):
        heads = len(layer.bias.slopes) // mesh.size()
        layer.bias.slopes = layer.bias.slopes[mesh.get_local_rank() * heads :][:heads]
    parallelize_module(layer, mesh, plan)
    parallelize_module(layer, mesh, Parts({"sinks": Shard(0)}))


def _cut_experts(layer: MoELayer, mesh: DeviceMesh) -> None:
    """The router and the shared expert's gate are whole: of their inputs' gradients, which are summed, each rank gives a share.

    A router's own losses reach it on every rank, and its inputs through that share: they are counted once.
    """
    biases: dict[str, Use] = {"biases.gate": Shard(1), "biases.up": Shard(1), "biases.down": "once"}
    parallelize_module(layer, mesh, Parts({"gate": Shard(1), "up": Shard(1), "down": Shard(2), **biases}))

    def enter_weights(_: nn.Module, given: Any, found: Assignments) -> Assignments:
        return replace(found, weight_a=entered(found.weight_a, mesh))

    def share(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x = given[0].view_as(given[0])
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient / mesh.size())
        return x, *given[1:]

    layer.router.register_forward_pre_hook(share)
    layer.router.register_forward_hook(enter_weights)
    if layer.shared_gate is not None:
        layer.shared_gate.register_forward_pre_hook(share)
        layer.shared_gate.register_forward_hook(lambda _, given, y: entered(y, mesh))


class CutVocabulary(Parts):
    """A head's last matrix: whole x in, whole logits out.

    `train/cross_entropy.py` does not call it where it can compute with each rank's own logits: not behind a softcap or in an
    `MLMHead`, whose loss is that of the gathered logits.
    """

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        module.register_forward_pre_hook(lambda _, given: entered(given[0], mesh))
        module.register_forward_hook(lambda _, given, y: moved(y, mesh, Shard(y.ndim - 1), Replicate()))
        return super()._apply(module, mesh)


VOCABULARY = CutVocabulary({"weight": Shard(0), "bias": Shard(0)})


class Between(ParallelStyle):
    """A tower, between its ops: the memory that cross-attention looks at enters once for all layers; with `sequence`, x is split
    in front of the first block and whole again behind the last norm.
    """

    def __init__(self, sequence: bool):
        super().__init__()
        self.sequence = sequence

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, TowerLayer)

        def enter_memory(_: nn.Module, given: tuple[Tensor, Context]) -> tuple[Tensor, Context]:
            x, ctx = given
            return x, ctx if ctx.memory is None else replace(ctx, memory=entered(ctx.memory, mesh))

        module.register_forward_pre_hook(enter_memory)
        if self.sequence and len(module.blocks):
            module.blocks[0].register_forward_pre_hook(lambda _, given: (_split(given[0], mesh), *given[1:]) if _learns() else None)
            # A copy, for torch's FSDP warns of a module that returns a view.
            module.norm.register_forward_hook(
                lambda _, given, y: moved(y, mesh, Shard(1), Replicate()).clone() if _learns() else None
            )
            for part in module.modules():
                if isinstance(part, ResidualLayer):
                    if _drops(part):
                        wrap(part, partial(_own_draws, part, mesh))
                    parallelize_module(part, mesh, dict.fromkeys(("pre", "post", "outer"), PER_RANK))
                elif isinstance(part, ParallelLayer):
                    parallelize_module(part, mesh, dict.fromkeys(("attn_norm", "ffn_norm"), PER_RANK))
            parallelize_module(module.norm, mesh, PER_RANK)
        return module


def _learns() -> bool:
    """Positions are split for what the backward pass would keep; without one, rows may have any length, as in generation."""
    return torch.is_grad_enabled()


def _split(x: Tensor, mesh: DeviceMesh) -> Tensor:
    if x.shape[1] % mesh.size():
        raise UserError(
            f"positions must be a multiple of parallel.tensor: {x.shape[1]} positions, tensor={mesh.size()}",
            where="parallel.sequence", why="every rank holds as many positions of a row",
            fix="set parallel.sequence to false, or make rows of another length",
        )  # fmt: skip
    return moved(x, mesh, Replicate(), Shard(1))


# --- dropout --------------------------------------------------------------------------------------------------------------


def _drops(layer: nn.Module) -> bool:
    return any(getattr(getattr(part, "spec", part), "dropout", 0.0) for part in layer.modules())


def _own_draws(layer: nn.Module, mesh: DeviceMesh, forward: Callable[..., Any], x: Tensor, *given: Any) -> Any:
    """What a rank has alone is dropped by its own draws: they begin from one that the ranks share, and end with the call."""
    if not layer.training or (isinstance(layer, ResidualLayer) and not _learns()):  # which then has what every rank has
        return forward(x, *given)
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(seed + mesh.get_local_rank())
        return forward(x, *given)


# --- what is refused ------------------------------------------------------------------------------------------------------


def check_tensor(model: nn.Module, ranks: int) -> None:
    """Refuse a model, of which shapes are enough, that cannot be cut for so many ranks."""
    config = getattr(model, "config", {})
    for name, layer in model.named_modules():
        for field, size in _sizes(layer).items():
            if size % ranks:
                raise UserError(
                    f"{field} must be a multiple of parallel.tensor: {field}={size}, tensor={ranks}", where=name,
                    why="every rank holds as many heads, hidden channels and words of the vocabulary",
                    fix=f"set parallel.tensor to {gcd(size, ranks)}, or {spelled(config, field)} to {-(-size // ranks) * ranks}",
                )  # fmt: skip


def _sizes(layer: nn.Module) -> dict[str, int]:
    """What is cut, by its field."""
    if isinstance(layer, AttentionLayer):
        return {"heads": layer.q.out_features // layer.spec.head_dim, "kv_heads": layer.kv_shape()[0]}
    if isinstance(layer, MLPLayer):
        return {"hidden": layer.up.out_features}
    if isinstance(layer, MoELayer):
        return {"hidden": layer.spec.expert.hidden}
    if isinstance(layer, LMHeadLayer | MLMHeadLayer):
        return {"vocab": layer.out.out_features}
    return {"vocab": layer.tokens.num_embeddings} if isinstance(layer, TokenStemLayer) else {}
