"""Objectives: (model, Batch) -> Loss, a sum over targets and its count."""

from __future__ import annotations

from torch.nn import functional as F

from hornbook.batch import IGNORE, Batch, Loss
from hornbook.model import Context, TransformerModel


def causal_lm(model: TransformerModel, batch: Batch) -> Loss:
    """Next-token cross-entropy in nats: -sum log p(target | tokens so far)."""
    count = (batch.targets_bt != IGNORE).sum()
    ctx = Context(positions_bt=batch.positions_bt, documents_bt=batch.documents_bt, aux_scale=count)
    logits_btv = model(batch.tokens_bt, ctx)
    total = F.cross_entropy(logits_btv.flatten(0, 1), batch.targets_bt.flatten(), ignore_index=IGNORE, reduction="sum")
    return Loss(total, count)
