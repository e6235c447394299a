"""One optimizer out of several: AdamW for everything, or Muon for the tower's matrices with AdamW for the rest.

AdamW (Loshchilov and Hutter 2019); Muon is in `optim/muon.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from hornbook.errors import near
from hornbook.model import TransformerModel
from hornbook.optim.groups import parameter_groups
from hornbook.optim.muon import Muon

OPTIMIZERS = ("adamw", "muon")


class Optimizers:
    """Several torch optimizers that step as one. Each group remembers its peak rate; `set_rate` scales them all."""

    def __init__(self, parts: Iterable[Optimizer]):
        self.parts = list(parts)
        for group in self.groups():
            group.setdefault("peak_lr", group["lr"])

    def groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def set_rate(self, factor: float) -> float:
        """Set every group to `factor` of its peak; returns the first group's rate, for the log."""
        for group in self.groups():
            group["lr"] = group["peak_lr"] * factor
        return float(self.groups()[0]["lr"])

    def parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.groups() for parameter in group["params"]]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def build_optimizer(
    model: TransformerModel, kind: str, learning_rate: float, *, embedding_rate: float | None = None, weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Optimizers:  # fmt: skip
    """`learning_rate` is the matrices' peak; embeddings and vectors take `embedding_rate` (None: the same). Vectors never decay."""
    if kind not in OPTIMIZERS:
        raise ValueError(f"optimizer must be a known one: {kind!r} ({near(kind, OPTIMIZERS)})")
    groups, rate = parameter_groups(model), embedding_rate or learning_rate
    rest = [
        {"params": groups.embeddings, "lr": rate, "weight_decay": weight_decay if kind == "adamw" else 0.0},
        {"params": groups.vectors, "lr": rate, "weight_decay": 0.0},
    ]
    if kind == "adamw":
        whole = [{"params": groups.matrices, "lr": learning_rate, "weight_decay": weight_decay}, *rest]
        return Optimizers([AdamW(whole, betas=betas, fused=True)])
    muon = Muon(groups.matrices, lr=learning_rate, weight_decay=weight_decay)
    return Optimizers([muon, AdamW(rest, betas=betas, fused=True)])
