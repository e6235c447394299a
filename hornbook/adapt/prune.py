"""Attention heads from outside: scaled by a mask, or taken out for good (Michel et al. 2019).

A head's output is K channels of what `o` reads, so nothing inside attention needs to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.model.attention import AttentionLayer, PerHead
from hornbook.model.bias import ALiBiLayer, BucketBiasLayer


def attention_layers(model: nn.Module) -> dict[str, AttentionLayer]:
    """Every attention layer by its name, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AttentionLayer)}


@contextmanager
def head_mask(model: nn.Module, mask_lh: Tensor) -> Iterator[None]:
    """Within the `with`, head h of attention layer l counts `mask_lh[l, h]` times; ones change nothing, exactly."""
    layers = list(attention_layers(model).values())
    if mask_lh.shape != (len(layers), layers[0].spec.heads):
        raise ValueError(f"mask_lh must be ({len(layers)} layers, {layers[0].spec.heads} heads): {list(mask_lh.shape)}")
    with ExitStack() as stack:
        for layer, mask_h in zip(layers, mask_lh, strict=True):
            stack.callback(layer.o.register_forward_pre_hook(_scaled(mask_h)).remove)
        yield


def _scaled(mask_h: Tensor) -> Any:
    def scale(module: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        return (given[0].unflatten(-1, (len(mask_h), -1)) * mask_h.to(given[0])[:, None]).flatten(-2)

    return scale


@torch.no_grad()
def prune_heads(model: nn.Module, heads: Mapping[str, Iterable[int]]) -> None:
    """Take heads out of attention layers, by the layers' names. With grouped heads a group goes as a whole.

    The model then has a shape that no config.json tells: it cannot be saved as a published folder.
    """
    layers = attention_layers(model)
    for name, gone in heads.items():
        if name not in layers:
            raise ValueError(f"no attention layer is called {name!r}: there are {', '.join(layers)}")
        _prune(layers[name], sorted(set(gone)))


def _prune(layer: AttentionLayer, gone: list[int]) -> None:
    spec, (groups, width) = layer.spec, layer.kv_shape()
    share = spec.heads // groups
    if gone and not 0 <= gone[0] <= gone[-1] < spec.heads or len(gone) == spec.heads:
        raise ValueError(f"heads must be some, not all, of 0 to {spec.heads - 1}: {gone}")
    if not isinstance(spec.qk_norm, PerHead | None):
        raise ValueError("a norm over all heads together leaves no head to take out")
    kept = [head for head in range(spec.heads) if head not in gone]
    kept_groups = [group for group in range(groups) if any(head // share == group for head in kept)]
    if len(kept) != len(kept_groups) * share:
        raise ValueError(f"heads that share keys go together, {share} to a group: {gone}")
    for part, members in (("q", kept), ("k", kept_groups), ("v", kept_groups)):
        rows = torch.cat([torch.arange(member * width, (member + 1) * width) for member in members])
        setattr(layer, part, _cut(getattr(layer, part), rows, 0))
    layer.o = _cut(layer.o, torch.cat([torch.arange(head * width, (head + 1) * width) for head in kept]), 1)
    if layer.sinks is not None:
        layer.sinks = nn.Parameter(layer.sinks[kept].clone())
    if isinstance(layer.bias, ALiBiLayer):
        layer.bias.slopes = [layer.bias.slopes[head] for head in kept]
    elif isinstance(layer.bias, BucketBiasLayer):  # the layers that shared its table keep the whole one
        layer.bias.table = nn.Embedding.from_pretrained(layer.bias.table.weight[:, kept].clone(), freeze=False)
    layer.spec = replace(spec, heads=len(kept), kv_heads=len(kept_groups))


def _cut(linear: nn.Linear, kept: Tensor, axis: int) -> nn.Linear:
    """The rows (axis 0) or columns (axis 1) that are kept."""
    weight = linear.weight.index_select(axis, kept.to(linear.weight.device))
    with torch.device("meta"):
        found = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None)
    found.weight = nn.Parameter(weight.contiguous())
    if linear.bias is not None:
        found.bias = nn.Parameter(linear.bias[kept].clone() if axis == 0 else linear.bias.clone())
    return found
