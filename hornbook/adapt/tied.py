"""Tied embeddings with one gradient: the rows that were looked up are added into the head's gradient, which is whole anyway.

Autograd alone makes a second gradient as large as the vocabulary's matrix for the look-up, zeros but for those rows, and adds
the two: for GPT-2 124M at 512 tokens the largest thing that a step holds. Sums come in another order, so last bits differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.model.transformer import Tied


@contextmanager
def one_gradient(model: Tied) -> Iterator[None]:
    """Within this, a forward pass whose gradients of a tied embedding come back together, and with them as one.

    Behind it the model is what it was. Without effect for weights that are cut over ranks, short, frozen or on another device
    than a processor.
    """
    places = _places(model)
    try:
        for weight, modules in places:
            for module, alias in zip(modules, _Places.apply(weight, len(modules)), strict=True):
                vars(module)["weight"] = alias  # found before the parameter, which stays the module's
                if isinstance(module, nn.Embedding):
                    module.sparse = True
        yield
    finally:
        for module in [module for _, modules in places for module in modules]:
            vars(module).pop("weight", None)
            if isinstance(module, nn.Embedding):
                module.sparse = False


def _places(model: Tied) -> list[tuple[Tensor, list[nn.Module]]]:
    """Each embedding that is also the head's matrix, and the modules that read it."""
    found: list[tuple[Tensor, list[nn.Module]]] = []
    for owner in {owner for name, owner in model.ties if name.startswith("head.")}:
        weight = model.get_parameter(owner)
        names = [owner, *(name for name, tied in model.ties if tied == owner)]
        modules = [model.get_submodule(name.rpartition(".")[0]) for name in names]
        plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.requires_grad
        if plain and weight.dtype.itemsize >= 4 and all(type(module) in (nn.Embedding, nn.Linear) for module in modules):
            found.append((weight, modules))
    return found


class _Places(torch.autograd.Function):
    """A weight -> the same weight for each place; backward: their gradients, of looked-up rows or whole -> one whole gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, places: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(weight.detach() for _ in range(places))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        found = sorted((each for each in gradients if each is not None), key=lambda each: each.is_sparse)
        if not found:
            return None, None
        whole, *others = found
        whole = whole.to_dense() if whole.is_sparse else whole
        for each in others:
            whole.add_(each)  # torch's own sum of whole and rows would be a third tensor
        return whole, None
