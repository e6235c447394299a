"""Muon (Jordan et al. 2024): momentum whose matrix gives way to the nearest orthogonal one, so that all directions move equally.

Matrices of one shape are stacked and turned together: a small model has many small matrices, and one large product costs less than
many small ones. Steps have AdamW's size (Liu et al. 2025, "Muon is scalable", equation 4), so that rates carry over.

What Muon needs: whole matrices. A slice's orthogonal matrix is not a slice of the matrix's, so an update that is cut over ranks, as
tensor parallelism and sharding cut it, is gathered, turned, and cut again. Embeddings, heads and vectors are no maps between hidden
spaces: not for Muon.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hornbook.optim.shards import part, whole

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic that is steepest at zero (Jordan et al. 2024)
ADAMW_RMS = 0.2  # the usual root mean square of an AdamW step, in units of the rate


def orthogonal(matrices_nab: Tensor) -> Tensor:
    """U S' V^T for every matrix U S V^T of a stack (n, a, b): S' lies in about [0.5, 1.2]. Zero stays zero.

    Newton-Schulz: x <- a x + (b A + c A A) x with A = x x^T, along the shorter side.
    """
    tall = matrices_nab.shape[1] > matrices_nab.shape[2]
    x = matrices_nab.mT if tall else matrices_nab
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """For matrices and stacks of them (experts). A step is lr * 0.2 * sqrt(max(a, b)) times the orthogonal momentum (a, b).

    wholes: where `matrices` are this rank's parts, the parameters that they are cut from, in the same order.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, *, weight_decay: float = 0.1, momentum: float = 0.95,
        wholes: Iterable[nn.Parameter] | None = None,
    ):  # fmt: skip
        matrices = list(matrices)
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._whole = dict(zip(matrices, matrices if wholes is None else wholes, strict=True))
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
                    raise ValueError(f"Muon moves matrices and stacks of them: a parameter has shape {list(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with Nesterov momentum and decoupled weight decay. A parameter without a gradient stays."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not moved:
                continue
            gradients = [parameter.grad for parameter in moved]
            for parameter in moved:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in moved]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            cut = torch._foreach_lerp(gradients, buffers, group["momentum"])
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            updates = [whole(update, self._whole.get(parameter, parameter)) for parameter, update in zip(moved, cut, strict=True)]
            alike: dict[torch.Size, list[Tensor]] = {}
            for update in updates:
                alike.setdefault(update.shape[-2:], []).extend([update] if update.ndim == 2 else update.unbind())
            for shape, members in alike.items():
                turned = orthogonal(torch.stack(members)).mul_(group["lr"] * ADAMW_RMS * max(shape) ** 0.5)
                torch._foreach_copy_(members, turned.unbind())  # a stack's matrices are views of it
            torch._foreach_sub_(moved, [part(update, self._whole.get(p, p)) for p, update in zip(moved, updates, strict=True)])
