"""Distillation: a small model learns a large one's probabilities (Hinton et al. 2015, "Distilling the Knowledge", section 2).

A batch and a frozen teacher in, the student's `Loss` out. Over all of a vocabulary the teacher's logits would be as large as the
student's: rows are taken a chunk at a time and their logits made again in the backward pass, so that neither are ever whole.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hornbook.batch import IGNORE, Batch, Loss
from hornbook.model import TransformerModel
from hornbook.train.cross_entropy import CHUNK
from hornbook.train.objective import context, counted


def distillation(
    teacher: TransformerModel, temperature: float = 2.0, hard: float = 1.0
) -> Callable[[TransformerModel, Batch], Loss]:  # fmt: skip
    """The sum over counted targets, in nats, of temperature^2 KL(teacher || student) + hard * -log p(target).

    Both distributions of the first term are softmax(logits / temperature). Its gradient shrinks with temperature^2, which the
    factor makes good. The metrics are the sums `soft`, of KL, and `nats`, of -log p. The teacher is frozen and put in evaluation
    here; it has the student's vocabulary and reads the same batch.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0: {temperature}")
    teacher.eval().requires_grad_(False)

    def distill(model: TransformerModel, batch: Batch) -> Loss:
        count, targets_n = counted(batch), batch.targets_bt.flatten()
        asked = targets_n != IGNORE
        with torch.no_grad():
            known_nd = teacher.hidden(batch.tokens_bt, context(batch, count)).flatten(0, -2)[asked]
        x_nd, targets_n = model.hidden(batch.tokens_bt, context(batch, count)).flatten(0, -2)[asked], targets_n[asked]
        soft = nats = x_nd.sum() * 0.0  # of the graph, also where nothing is asked
        for x_cd, known_cd, targets_c in zip(x_nd.split(CHUNK), known_nd.split(CHUNK), targets_n.split(CHUNK), strict=True):
            terms = checkpoint(_terms, model.head, teacher.head, x_cd, known_cd, targets_c, temperature, use_reentrant=False)
            soft, nats = soft + terms[0], nats + terms[1]
        return Loss(temperature**2 * soft + hard * nats, count, {"soft": soft.detach(), "nats": nats.detach()})

    return distill


def _terms(
    head: nn.Module, teacher_head: nn.Module, x_cd: Tensor, known_cd: Tensor, targets_c: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums of KL(teacher || student) at the temperature, and of -log p(target)."""
    logits_cv, known_cv = head(x_cd), teacher_head(known_cd)
    if logits_cv.shape != known_cv.shape:
        raise ValueError(f"teacher and student must have one vocabulary: {known_cv.shape[-1]} and {logits_cv.shape[-1]} rows")
    log_p_cv, log_q_cv = ((each / temperature).log_softmax(-1) for each in (logits_cv, known_cv))
    soft = F.kl_div(log_p_cv, log_q_cv, reduction="sum", log_target=True)
    return soft, F.cross_entropy(logits_cv, targets_c, reduction="sum")
