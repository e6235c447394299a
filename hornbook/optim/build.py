"""A model and an optimizer's name -> `Optimizers`, which step as one: torch's own, or Muon with AdamW beside it.

SGD (with momentum, Sutskever et al. 2013 for Nesterov's), Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019) take
everything. Adam and SGD add the decay to the gradient, so that momentum and Adam's division act on it too; AdamW and Muon shrink
the weights themselves. Muon (`optim/muon.py`) takes the tower's matrices alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hornbook.model import TransformerModel
from hornbook.optim.groups import parameter_groups
from hornbook.optim.kinds import MOMENTUM, check_optimizer
from hornbook.optim.muon import Muon
from hornbook.optim.shards import local, plain

Update = Literal["fused", "foreach", "plain"]


class Optimizers:
    """Several torch optimizers that step as one. Each group remembers its peak rate; `set_rate` scales them all.

    mine: what stands in the groups for a parameter that is cut over ranks: this rank's part.
    """

    def __init__(self, parts: Iterable[Optimizer], mine: Mapping[nn.Parameter, nn.Parameter] | None = None):
        self.parts = list(parts)
        self._cut = [(parameter, part) for parameter, part in (mine or {}).items() if part is not parameter]
        self._whole = {part: parameter for parameter, part in self._cut}
        for group in self.groups():
            group.setdefault("peak_lr", group["lr"])

    def groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def set_rate(self, factor: float) -> float:
        """Set every group to `factor` of its peak; returns the first group's rate, for the log."""
        for group in self.groups():
            group["lr"] = group["peak_lr"] * factor
        return float(self.groups()[0]["lr"])

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.groups() for parameter in group["params"]]

    def states(self) -> Iterator[tuple[nn.Parameter, nn.Parameter, dict[str, Any]]]:
        """Each parameter, this rank's part of it, and the moments that the optimizer keeps for that part."""
        for part in self.parts:
            for group in part.param_groups:
                yield from ((self._whole.get(each, each), each, part.state[each]) for each in group["params"])

    def put(self, states: Iterable[tuple[nn.Parameter, dict[str, Any]]]) -> None:
        """Set the moments of this rank's parts of parameters."""
        owners = {each: part for part in self.parts for group in part.param_groups for each in group["params"]}
        for mine, moments in states:
            owners[mine].state[mine] = moments

    def step(self, clip: float | None = None, norm: torch.Tensor | None = None) -> None:
        """One step, with the gradients scaled to a norm of at most `clip` where theirs, `norm`, is larger."""
        for parameter, mine in self._cut:
            mine.grad = None if parameter.grad is None else plain(parameter.grad)
        if clip is not None and norm is not None and norm > clip - 1e-6:  # else torch would multiply everything by one
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), clip, norm)
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for parameter, _ in self._cut:
            parameter.grad = None
        for part in self.parts:
            part.zero_grad(set_to_none=True)


def uncompiled(kind: type[Optimizer]) -> Any:
    """The optimizer without torch's words to its compiler, that none of this is to be compiled: they load it, two seconds long."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def build_optimizer(
    model: TransformerModel, kind: str, learning_rate: float, *, embedding_rate: float | None = None, weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95), momentum: float | None = None, nesterov: bool = False,
    update: Update = "fused",
) -> Optimizers:  # fmt: skip
    """`learning_rate` is the matrices' peak; embeddings and vectors take `embedding_rate` (None: the same). Vectors never decay.

    Beside Muon the embeddings do not decay either. betas: of Adam and AdamW, also of the one beside Muon. momentum: of SGD and
    Muon (None: the usual of each). nesterov: SGD's momentum looks ahead; Muon's always does. update: torch's steps
    all at once in one kernel, an operation at a time for all parameters, or a parameter at a time; Muon's own step is one anyway.
    """
    check_optimizer(kind, betas, momentum, nesterov)
    groups, rate = parameter_groups(model), embedding_rate or learning_rate
    mine = {parameter: local(parameter) for members in vars(groups).values() for parameter in members}

    def group(members: list[nn.Parameter], lr: float, decay: float) -> dict[str, Any]:
        return {"params": [mine[parameter] for parameter in members], "lr": lr, "weight_decay": decay}

    matrices, vectors = group(groups.matrices, learning_rate, weight_decay), group(groups.vectors, rate, 0.0)
    embeddings = group(groups.embeddings, rate, 0.0 if kind == "muon" else weight_decay)
    how = {"fused": update == "fused", "foreach": update == "foreach"}
    kept = MOMENTUM.get(kind, 0.0) if momentum is None else momentum
    if kind == "muon":
        muon = uncompiled(Muon)(
            matrices["params"], lr=learning_rate, weight_decay=weight_decay, momentum=kept, wholes=groups.matrices
        )
        return Optimizers([muon, uncompiled(AdamW)([embeddings, vectors], betas=betas, **how)], mine)
    every = [matrices, embeddings, vectors]
    if kind == "sgd":
        return Optimizers([uncompiled(SGD)(every, momentum=kept, nesterov=nesterov, **how)], mine)
    return Optimizers([uncompiled(Adam if kind == "adam" else AdamW)(every, betas=betas, **how)], mine)
