"""bf16 weights with float32 masters: the model computes with the short ones, the optimizers move the long ones (Micikevicius et al.
2018, section 3.1).

A step of less than 2^-9 of a weight would be lost in bf16; in the masters it adds up until the short weight follows. Gradients
add up in float32, too. A state holds the masters beside the moments, so that a resumed run goes on from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.optim.build import Optimizers


class Masters(Optimizers):
    """`optimizer`, not stepped yet, now moves float32 copies of what it was given; the model's parameters become bf16.

    `finish` gives the model the masters for good: what is published is what was learned.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers):
        self._short: list[Tensor] = [*optimizer.parameters()]
        self._long: list[Tensor] = [nn.Parameter(each.detach().float().clone()) for each in self._short]
        masters: dict[Any, Any] = dict(zip(self._short, self._long, strict=True))
        for group in optimizer.groups():
            group["params"] = [masters[each] for each in group["params"]]
        super().__init__(optimizer.parts, masters)
        self._frozen = [(each, each.dtype) for each in model.parameters() if each not in masters]
        for each in model.parameters():
            each.data = each.data.bfloat16()
            if each.requires_grad:
                each.grad_dtype = torch.float32

    def states(self) -> Iterator[tuple[nn.Parameter, nn.Parameter, dict[str, Any]]]:
        for short, long, moments in super().states():
            yield short, long, {**moments, "master": long.detach()}

    @torch.no_grad()
    def put(self, states: Iterable[tuple[nn.Parameter, dict[str, Any]]]) -> None:
        found = list(states)
        for mine, moments in found:
            mine.copy_(moments.pop("master"))
        super().put(found)

    @torch.no_grad()
    def step(self, clip: float | None = None, norm: Tensor | None = None) -> None:
        super().step(clip, norm)
        torch._foreach_copy_(self._short, self._long)

    def finish(self) -> None:
        for short, long in zip(self._short, self._long, strict=True):
            short.data, short.grad_dtype = long.data, None
        for each, dtype in self._frozen:
            each.data = each.data.to(dtype)
