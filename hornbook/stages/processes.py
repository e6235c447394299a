"""A model's shape and the sizes of a run -> what each of its processes holds and sends, before there is any of them.

Weights, gradients and moments are float32, as they are on several processes. Processes of one pipeline stage are alike; a model is
cut here as a run cuts it, on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hornbook.errors import UserError
from hornbook.parallel.sizes import Parallel
from hornbook.plan import traffic

EACH = 4  # bytes of a float32


def processes(
    build: Callable[[], Any] | None, parameters: int, sizes: Parallel, rows: int, context: int, micro_batches: int
) -> dict[str, Any]:
    """What `hornbook plan` says of a run on several processes. rows: of all of them together, per micro-batch.

    build: the model on the meta device, a new one with each call; without it `parameters` is all that is known.
    """
    sizes.check_rows(rows)
    if build is None:
        if sizes.world != sizes.data:
            raise UserError(
                "a size alone has no layers, heads or experts to cut", where="--parallel", why="it can only be copied",
                fix="name a config.json, or set parallel.data alone",
            )  # fmt: skip
        each = [_process(parameters, 0, 0, {}, sizes, micro_batches)]
    else:
        tokens = rows // sizes.parts * context
        each = [_stage(build(), stage, sizes, tokens, micro_batches) for stage in range(sizes.pipeline)]
    return {"world": sizes.world, "rows": rows, "context": context, "accumulate": micro_batches, "stages": each}


def _process(
    whole: float, outside: float, spread: float, sent: dict[str, float], sizes: Parallel, micro_batches: int
) -> dict[str, Any]:  # fmt: skip
    """Bytes of a process with `whole` parameters, `outside` of them in no block, and `spread` ones of its own experts beside."""
    zero, both = sizes.zero, whole + spread
    own = both if zero == 0 else whole / sizes.parts + spread / sizes.data
    weights = both if zero == 0 else both + own if zero < 3 else own + outside * (1 - 1 / sizes.parts)
    holds = {"weights": weights, "gradients": both if zero < 2 else own, "first_moment": own, "second_moment": own}
    data = traffic.copies(whole, outside, sizes.parts, zero, micro_batches)
    sends = {"data": data + traffic.copies(spread, 0, sizes.data, zero, micro_batches), **sent}
    return {
        "memory": _bytes({**holds, "total": sum(holds.values())}), "sent_per_step": _bytes({**sends, "total": sum(sends.values())}),
    }  # fmt: skip


def _bytes(numbers: dict[str, float]) -> dict[str, int]:
    return {name: round(EACH * many) for name, many in numbers.items()}


def _stage(model: Any, stage: int, sizes: Parallel, tokens: int, micro_batches: int) -> dict[str, Any]:
    from hornbook.model import TransformerModel
    from hornbook.model.block import BlockLayer
    from hornbook.model.moe import MoELayer
    from hornbook.model.stem import TokenStemLayer
    from hornbook.parallel.pipeline import cut

    if not isinstance(model, TransformerModel) or not isinstance(model.stem, TokenStemLayer):
        raise UserError(
            "what processes hold and send is known of models of one tower that read tokens", where="--parallel",
            why=f"this is a {type(model).__name__}", fix="leave the sizes of parallel out",
        )  # fmt: skip
    top_k = [getattr(layer.spec.router, "top_k", 1) for layer in model.modules() if isinstance(layer, MoELayer)][:1]
    ties = 0.0
    if sizes.pipeline > 1:
        share = cut(model, stage, sizes.pipeline)
        ties = sum(model.get_parameter(name).numel() for name in share.shared) / sizes.tensor / (sizes.parts if sizes.zero else 1)
    parts, norms, ops = _tensor_parts(model)
    of_experts = {
        id(weight) for layer in model.modules() if isinstance(layer, MoELayer)
        for name, weight in layer.named_parameters() if name.split(".")[0] in ("gate", "up", "down", "biases")
    }  # fmt: skip
    inside = {id(weight) for block in model.modules() if isinstance(block, BlockLayer) for weight in block.parameters()}
    size = {id(weight): weight.numel() / (sizes.tensor if id(weight) in parts else 1) for weight in model.parameters()}
    spread = sum(size.pop(each) for each in of_experts) / sizes.expert if sizes.expert > 1 else 0
    outside = sum(many for each, many in size.items() if each not in inside)

    sent, hidden = dict[str, float](), tokens * model.spec.tower.dim
    if sizes.tensor > 1:
        ends = [isinstance(model.stem, TokenStemLayer), hasattr(model.head, "out")]
        once = traffic.tensor(hidden, ops, sum(ends), sizes.tensor, sizes.sequence, norms)
        sent["tensor"] = micro_batches * (once + (traffic.rows(tokens, sizes.tensor) if ends[1] else 0))
    if sizes.pipeline > 1:
        sent["pipeline"] = traffic.pipeline(hidden, stage, sizes.pipeline, micro_batches, ties)
    if sizes.expert > 1:
        mixtures = sum(isinstance(layer, MoELayer) for layer in model.modules())
        sent["expert"] = micro_batches * traffic.experts(hidden * (top_k or [0])[0], mixtures, sizes.expert)
    return _process(sum(size.values()), outside, spread, sent, sizes, micro_batches)


def _tensor_parts(model: Any) -> tuple[set[int], int, int]:
    """The parameters that `tensor_parallel` cuts, by id; those of a tower's norms, counted; and the ops that sum."""
    from hornbook.model.attention import AttentionLayer
    from hornbook.model.mlp import MLPLayer
    from hornbook.model.moe import MoELayer

    ops = [layer for layer in model.tower.modules() if isinstance(layer, AttentionLayer | MLPLayer | MoELayer)]
    within = {id(part) for layer in ops if isinstance(layer, MoELayer) and layer.shared for part in layer.shared.modules()}
    layers = [*ops, *(layer for layer in (getattr(model.stem, "tokens", None), getattr(model.head, "out", None)) if layer)]
    found = {
        id(weight) for layer in layers for name, weight in layer.named_parameters()
        if not any(whole in name for whole in ("norm", "router", "o.bias", "down.bias", "biases.down", "shared_gate"))
    }  # fmt: skip
    norms = sum(weight.numel() for name, weight in model.tower.named_parameters() if id(weight) not in found)
    return found, norms, sum(id(layer) not in within for layer in ops)
