"""bf16 weights with float32 masters: the model computes with the short ones, the optimizers move the long ones (Micikevicius et al.
2018, section 3.1).

A step of less than 2^-9 of a weight would be lost in bf16; in the masters it adds up until the short weight follows. Gradients
add up in float32, too. A state holds the masters beside the moments, so that a resumed run goes on from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hornbook.optim.build import Optimizers


class Masters(Optimizers):
    """`optimizer`, not stepped yet, now moves float32 copies of what it was given; the model's parameters become bf16.

    `finish` gives the model the masters for good: what is published is what was learned.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers):
        super().__init__(optimizer.parts)
        self._short: list[Tensor] = super().parameters()
        self._long: list[Tensor] = [nn.Parameter(each.detach().float().clone()) for each in self._short]
        longs = dict(zip(map(id, self._short), self._long, strict=True))
        for group in self.groups():
            group["params"] = [longs[id(each)] for each in group["params"]]
        for part in self.parts:
            part.register_state_dict_post_hook(_with_masters)
            part.register_load_state_dict_pre_hook(_take_masters)
        self._frozen = [(each, each.dtype) for each in model.parameters() if id(each) not in longs]
        for each in model.parameters():
            each.data = each.data.bfloat16()
            if each.requires_grad:
                each.grad_dtype = torch.float32

    def parameters(self) -> list[Tensor]:
        return self._short

    @torch.no_grad()
    def step(self) -> None:
        for short, long in zip(self._short, self._long, strict=True):
            long.grad = short.grad
        super().step()
        torch._foreach_copy_(self._short, self._long)

    def zero_grad(self) -> None:
        for each in (*self._short, *self._long):
            each.grad = None

    def finish(self) -> None:
        for short, long in zip(self._short, self._long, strict=True):
            short.data, short.grad_dtype = long.data, None
        for each, dtype in self._frozen:
            each.data = each.data.to(dtype)


def _with_masters(part: Optimizer, found: dict[str, Any]) -> None:
    found["state"] = {index: {**found["state"].get(index, {}), "master": each.detach()} for index, each in enumerate(_moved(part))}


@torch.no_grad()
def _take_masters(part: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
    for index, each in enumerate(_moved(part)):
        each.copy_(given["state"][index]["master"])
    rest = {index: {name: v for name, v in values.items() if name != "master"} for index, values in given["state"].items()}
    return {**given, "state": {index: values for index, values in rest.items() if values}}


def _moved(part: Optimizer) -> list[Tensor]:
    return [each for group in part.param_groups for each in group["params"]]
