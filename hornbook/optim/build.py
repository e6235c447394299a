"""A model and an optimizer's name -> `Optimizers`, which step as one: torch's own, fused, or Muon with AdamW beside it.

SGD (with momentum, Sutskever et al. 2013 for Nesterov's), Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019) take
everything. Adam and SGD add the decay to the gradient, so that momentum and Adam's division act on it too; AdamW and Muon shrink
the weights themselves. Muon (`optim/muon.py`) takes the tower's matrices alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from hornbook.model import TransformerModel
from hornbook.optim.groups import parameter_groups
from hornbook.optim.kinds import MOMENTUM, check_optimizer
from hornbook.optim.muon import Muon


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
    betas: tuple[float, float] = (0.9, 0.95), momentum: float | None = None, nesterov: bool = False,
) -> Optimizers:  # fmt: skip
    """`learning_rate` is the matrices' peak; embeddings and vectors take `embedding_rate` (None: the same). Vectors never decay.

    Beside Muon the embeddings do not decay either. betas: of Adam and AdamW, also of the one beside Muon. momentum: of SGD and
    Muon (None: the usual of each). nesterov: SGD's momentum looks ahead; Muon's always does.
    """
    check_optimizer(kind, betas, momentum, nesterov)
    groups, rate = parameter_groups(model), embedding_rate or learning_rate
    matrices = {"params": groups.matrices, "lr": learning_rate, "weight_decay": weight_decay}
    embeddings = {"params": groups.embeddings, "lr": rate, "weight_decay": 0.0 if kind == "muon" else weight_decay}
    vectors = {"params": groups.vectors, "lr": rate, "weight_decay": 0.0}
    kept = MOMENTUM.get(kind, 0.0) if momentum is None else momentum
    if kind == "muon":
        muon = Muon(groups.matrices, lr=learning_rate, weight_decay=weight_decay, momentum=kept)
        return Optimizers([muon, AdamW([embeddings, vectors], betas=betas, fused=True)])
    whole = [matrices, embeddings, vectors]
    if kind == "sgd":
        return Optimizers([SGD(whole, momentum=kept, nesterov=nesterov, fused=True)])
    return Optimizers([(Adam if kind == "adam" else AdamW)(whole, betas=betas, fused=True)])
