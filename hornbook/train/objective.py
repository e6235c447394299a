"""Objectives: (model, Batch) -> Loss, a sum over targets and its count."""

from __future__ import annotations

from hornbook.batch import IGNORE, Batch, Loss
from hornbook.model import Context, TransformerModel
from hornbook.train.cross_entropy import cross_entropy


def causal_lm(model: TransformerModel, batch: Batch) -> Loss:
    """Next-token cross-entropy in nats: -sum log p(target | tokens so far)."""
    count = (batch.targets_bt != IGNORE).sum()
    ctx = Context(positions_bt=batch.positions_bt, documents_bt=batch.documents_bt, aux_scale=count)
    return Loss(cross_entropy(model.head, model.hidden(batch.tokens_bt, ctx), batch.targets_bt), count)
