"""A look into the layers at a step, from outside: what flows, what is learned, what is dead; a row of lists, a value per block.

`activation` is the root mean square of the residual stream after the block; `attention_logit` the largest logit of its attention;
`gradient` (before clipping) and `weight` are norms; `update` is |w' - w| / |w| of the step just taken; `dead` is the share of the
feed-forward's hidden units that were silent on every token. A unit's column of the matrix `down` has the gradient sum over tokens
of (dL/dy) h, so a silent unit's is nothing, and experts need no look inside. None: the block has no such part, or the figure is
not finite. Looking draws no random number and writes to nothing that training reads; for its step the weights are held twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from hornbook.adapt.probes import attention_peaks, residual_squares
from hornbook.model.block import BlockLayer
from hornbook.model.mlp import MLPLayer
from hornbook.model.moe import MoELayer

LAYERS = "layers.jsonl"
SILENT = 1e-6  # of the loudest unit's gradient: gelu and silu are never zero, only next to it


class NoLook:
    """Around a step's forward and backward passes; `taken` is called after the optimizer's step, before the gradients go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def taken(self) -> None:
        return


def no_look(step: int, model: nn.Module) -> NoLook:
    return NoLook()


def looks(stage: str, every: int, log: Callable[[dict[str, Any]], None]) -> Callable[[int, nn.Module], NoLook]:
    """A look, whose row goes to `log`, at step 1 and at each multiple of `every`, and none at the others."""

    def look(step: int, model: nn.Module) -> NoLook:
        return Look({"stage": stage, "step": step}, model, log) if step == 1 or step % every == 0 else NoLook()

    return look


class Look(NoLook):
    def __init__(self, about: dict[str, Any], model: nn.Module, log: Callable[[dict[str, Any]], None]):
        self.about, self.model, self.log = about, model, log
        self.blocks = {name: module for name, module in model.named_modules() if isinstance(module, BlockLayer)}
        self.hooks, self.row, self.before = ExitStack(), dict[str, list[float | None]](), list[list[Tensor]]()

    def __enter__(self) -> Self:
        self.peaks = self.hooks.enter_context(attention_peaks(self.model))
        self.squares = self.hooks.enter_context(residual_squares(self.model))
        return self

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        self.hooks.close()
        self.before = [[p.detach().clone() for p in block.parameters()] for block in self.blocks.values()]
        self.row = {
            "activation": [_plain(_root_mean(self.squares.get(name))) for name in self.blocks],
            "attention_logit": [_plain(self._peak(f"{name}.")) for name in self.blocks],
            "gradient": [_plain(_norm(p.grad for p in block.parameters())) for block in self.blocks.values()],
            "weight": [_plain(_norm(weights)) for weights in self.before],
            "dead": [_plain(_dead(block)) for block in self.blocks.values()],
        }

    @torch.no_grad()
    def taken(self) -> None:
        pairs = [zip(block.parameters(), old, strict=True) for block, old in zip(self.blocks.values(), self.before, strict=True)]
        moved = [_plain(_norm(new - old for new, old in pair)) for pair in pairs]
        ratios = [move / size if move is not None and size else None for move, size in zip(moved, self.row["weight"], strict=True)]
        self.log({**self.about, "layers": list(self.blocks), **self.row, "update": ratios})

    def _peak(self, block: str) -> Tensor | None:
        found = [peak for name, peak in self.peaks.items() if name.startswith(block)]
        return torch.stack(found).max() if found else None


def _norm(parts: Iterable[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.nn.utils.get_total_norm(found) if found else None


def _root_mean(squares: Tensor | None) -> Tensor | None:
    return None if squares is None else (squares[0] / squares[1]).sqrt()


def _dead(block: nn.Module) -> Tensor | None:
    layers = [module for module in block.modules() if isinstance(module, MLPLayer | MoELayer)]
    downs = [layer.down.weight if isinstance(layer, MLPLayer) else layer.down for layer in layers]
    norms = [down.grad.norm(dim=-2).flatten() for down in downs if down.grad is not None]
    if not norms:
        return None
    loud = torch.cat(norms)
    return torch.where(loud.max().isfinite(), (loud <= SILENT * loud.max()).float().mean(), torch.nan)


def _plain(value: Tensor | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
