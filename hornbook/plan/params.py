"""A built model -> how many parameters it has and what each is for.

The model may stand on the meta device, where a parameter has a shape and no memory: counts are exact and take seconds at any size.
The one idea: a parameter belongs to the module that holds it. A tied one is counted once, where it comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from hornbook.model.mlp import MLPLayer

OTHER = "norms_and_other"
GROUPS = ("embedding", "attention", "feed_forward", "experts", OTHER, "head")


@dataclass(frozen=True)
class Parameters:
    """groups: numbers by use. active: how many of them one token meets. shared: how many more there would be without ties.
    cache_values: keys and values that one token leaves in the cache, over all layers."""

    groups: dict[str, int]
    active: int
    shared: int
    cache_values: int

    @property
    def total(self) -> int:
        return sum(self.groups.values())


def count(model: nn.Module) -> Parameters:
    """The parameters of a model whose children are stems, towers and a head.

    A module with an attribute `active_share` holds experts: the parameters directly on it are theirs, and one token meets that
    share of them. Its children (the router, shared experts) are feed-forward.
    """
    groups, seen, shared, idle = dict.fromkeys(GROUPS, 0), set[int](), 0, 0
    for name, child in model.named_children():
        begin = "embedding" if name.endswith("stem") else "head" if name == "head" else OTHER
        for parameter, group, share in _owned(child, begin):
            if id(parameter) in seen:
                shared += parameter.numel()
                continue
            seen.add(id(parameter))
            groups[group] += parameter.numel()
            idle += round(parameter.numel() * (1 - share))
    shapes = [kv_shape() for module in model.modules() if (kv_shape := getattr(module, "kv_shape", None))]
    return Parameters(groups, sum(groups.values()) - idle, shared, sum(2 * kv_heads * width for kv_heads, width in shapes))


def _owned(module: nn.Module, group: str) -> Iterator[tuple[nn.Parameter, str, float]]:
    """Each parameter with its group and the share of it that one token meets; a module of no known kind is of its parent's."""
    share = getattr(module, "active_share", None)
    if "norm" in type(module).__name__.lower():
        group = OTHER
    elif hasattr(module, "kv_shape"):
        group = "attention"
    elif isinstance(module, MLPLayer) or share is not None:
        group = "feed_forward"
    for parameter in module.parameters(recurse=False):
        yield (parameter, group, 1.0) if share is None else (parameter, "experts", share)
    for child in module.children():
        yield from _owned(child, group)
