"""FlexAttention in the place of torch's attention, in a model that is built already, where it trains on a GPU.

A mask is a function of two places and not a (T, S) matrix: of it only the blocks of 128 x 128 pairs that hold a pair that is seen
are computed (Dong et al. 2024, "Flex Attention"). Packed documents, windows and prefixes then cost what is seen of them; softcaps,
ALiBi and T5's buckets are computed inside the kernel. The masks are those of `model/mask.py`, said for one pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from hornbook.adapt.prune import attention_layers
from hornbook.errors import UserError
from hornbook.model.attention import AttentionLayer
from hornbook.model.bias import ALiBiLayer, BucketBiasLayer
from hornbook.model.block import TowerLayer
from hornbook.model.spec import Context

NO_BACKWARD = ("cpu", "mps")  # devices on which torch can run it, and not train with it
Sight = tuple[bool, int | None]  # causal, window: what the layers of a tower differ in


@dataclass(frozen=True)
class Blocks(Context):
    """A context with the blocks of pairs that its layers see; None: all are seen."""

    masks: Mapping[Sight, BlockMask | None] = field(default_factory=dict)


def use_flex(model: nn.Module, device: torch.device | None = None) -> None:
    """Let FlexAttention compute every self-attention of a training step from now on; nothing else changes.

    The results are torch's own attention's, up to rounding. A `UserError` on a processor, for which torch has no backward pass of
    it, and where weights drop out, which it cannot do. device: where the model will be, if it is not there yet.
    """
    kind = (device or next(model.parameters()).device).type
    if kind in NO_BACKWARD:
        raise UserError(
            "attention = 'flex' cannot train on this device", where="attention",
            why=f"torch has no backward pass of it on {kind}", fix='leave attention out (sdpa), or use device = "cuda"',
        )  # fmt: skip
    layers = [layer for layer in attention_layers(model).values() if not layer.spec.cross]
    if any(layer.spec.dropout and layer.spec.dropout_kind == "weights" for layer in layers):
        raise UserError(
            "attention = 'flex' has no dropout of weights", where="attention", why="the model's attention drops weights out",
            fix='set attention_dropout = "keys", the dropout of attention in [model] to 0, or leave attention out (sdpa)',
        )  # fmt: skip
    attention, masks = _fused(kind)
    for tower in model.modules():
        if isinstance(tower, TowerLayer):
            vars(tower)["forward"] = partial(_with_blocks, masks, tower)
    for layer in layers:
        vars(layer)["forward"] = partial(_attended, attention, layer)


# A partial and not a closure: a copy of the model then computes with its own weights.
def _with_blocks(masks: Callable[..., BlockMask], tower: TowerLayer, x: Tensor, ctx: Context) -> Tensor:
    if _trains(ctx):
        sights = {_sight(layer): None for layer in attention_layers(tower).values() if not layer.spec.cross}
        given = {each.name: getattr(ctx, each.name) for each in fields(Context)}
        ctx = Blocks(**given, masks={sight: _blocks(masks, ctx, *sight, x) for sight in sights})
    return TowerLayer.forward(tower, x, ctx)


def _trains(ctx: Context) -> bool:
    return torch.is_grad_enabled() and ctx.cache is None


def _attended(attention: Callable[..., Any], layer: AttentionLayer, x: Tensor, ctx: Context) -> Tensor:
    if not isinstance(ctx, Blocks):
        return AttentionLayer.forward(layer, x, ctx)
    q_bthk, k_bsgk, v_bsgk = layer.project(x, ctx)
    if torch.is_autocast_enabled(x.device.type):
        q_bthk, k_bsgk, v_bsgk = (each.to(torch.get_autocast_dtype(x.device.type)) for each in (q_bthk, k_bsgk, v_bsgk))
    grouped, asked = q_bthk.shape[2] != k_bsgk.shape[2], AuxRequest(lse=layer.sinks is not None)
    y_bhtk, aux = attention(
        *(each.transpose(1, 2) for each in (q_bthk, k_bsgk, v_bsgk)), score_mod=_score(layer, ctx, x), scale=layer.spec.scale,
        block_mask=ctx.masks[_sight(layer)], enable_gqa=grouped, return_aux=asked,
    )  # fmt: skip
    if layer.sinks is not None:  # one more key of no value: its share of the sum is taken from all the others
        y_bhtk = y_bhtk * torch.sigmoid(aux.lse - layer.sinks[:, None])[..., None].to(y_bhtk.dtype)
    return layer.o(y_bhtk.transpose(1, 2).flatten(-2))


def _sight(layer: AttentionLayer) -> Sight:
    return layer.spec.causal, layer.spec.window


def _fused(device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Attention and the making of masks: compiled on a GPU, where neither has a matrix of pairs then."""
    if device == "cpu":
        return flex_attention, create_block_mask
    return torch.compile(flex_attention), torch.compile(create_block_mask)


def _blocks(
    masks: Callable[..., BlockMask], ctx: Context, causal: bool, window: int | None, x: Tensor
) -> BlockMask | None:  # fmt: skip
    """The blocks that hold a pair that is seen, None where every pair is: `model.mask.visible`, said for a pair."""
    place, prefix_b = _place(ctx, len(x)), ctx.prefix_b
    documents_bt, padding_bs = (None if each is None else each.expand(len(x), -1) for each in (ctx.documents_bt, ctx.padding_bs))
    if not causal and documents_bt is None and padding_bs is None:
        return None

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        found = i >= 0
        if causal:
            found = place(b, i) >= place(b, j)
            if prefix_b is not None:
                found = found | (place(b, j) < prefix_b[b])
        if window is not None:
            found = found & (place(b, i) - place(b, j) < window)
        if documents_bt is not None:
            found = found & (documents_bt[b, i] == documents_bt[b, j])
        return found if padding_bs is None else found & padding_bs[b, j]

    rows = None if all(each is None for each in (ctx.positions_bt, prefix_b, documents_bt, padding_bs)) else len(x)
    return masks(seen, rows, None, x.shape[1], x.shape[1], device=x.device)


def _score(layer: AttentionLayer, ctx: Context, x: Tensor) -> Callable[..., Tensor] | None:
    """What becomes of a score before the softmax: as in `model.attention.attention_weights`, said for a pair."""
    cap, bias, place = layer.spec.softcap, layer.bias, _place(ctx, len(x))
    if cap is None and bias is None:
        return None
    slopes_h = torch.tensor(bias.slopes, dtype=x.dtype, device=x.device) if isinstance(bias, ALiBiLayer) else None
    buckets = bias if isinstance(bias, BucketBiasLayer) else None

    def changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        distance = place(b, j) - place(b, i)
        if slopes_h is not None:
            score = score + slopes_h[h] * distance
        if buckets is not None:
            score = score + buckets.table.weight[buckets.bucket(distance), h]
        return score

    return changed


def _place(ctx: Context, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(row, index) -> the position of that token."""
    positions_bt = None if ctx.positions_bt is None else ctx.positions_bt.expand(rows, -1)
    return lambda b, i: i if positions_bt is None else positions_bt[b, i]
