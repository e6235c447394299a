"""Objectives: (model, Batch) -> Loss, a sum over targets and its count; one that needs a setting is made by a function.

Nothing here takes a mean: see `Loss`. Figures beside the loss are sums over the same targets, or counts of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from hornbook.batch import IGNORE, Batch, Loss
from hornbook.model import Context, Seq2SeqModel, TransformerModel
from hornbook.train.cross_entropy import cross_entropy, with_z_loss


def causal_lm(model: TransformerModel, batch: Batch) -> Loss:
    """Next-token cross-entropy in nats: -sum log p(target | tokens so far)."""
    count = counted(batch)
    return Loss(cross_entropy(model.head, model.hidden(batch.tokens_bt, context(batch, count)), batch.targets_bt), count)


def causal(z_loss: float) -> Callable[[TransformerModel, Batch], Loss]:
    """`causal_lm` with PaLM's z-loss of that coefficient (theirs: 1e-4)."""
    return partial(causal_lm_with_z_loss, z_loss=z_loss)


def causal_lm_with_z_loss(model: TransformerModel, batch: Batch, z_loss: float) -> Loss:
    """Both terms of `with_z_loss`. The total's gradient is that of both; its value is that of the first alone, so that what is
    logged stays nats; the second's is the metric `z_loss`.
    """
    count = counted(batch)
    total, z = with_z_loss(model.head, model.hidden(batch.tokens_bt, context(batch, count)), batch.targets_bt, z_loss)
    return Loss(total - z, count, {"z_loss": z})


def masked_lm(model: TransformerModel, batch: Batch) -> Loss:
    """Cross-entropy in nats of the hidden tokens: -sum log p(target | the row, before and after) (Devlin et al. 2019, 3.1).

    What is hidden, `data.masking` decides. The formula is `causal_lm`'s: that the model looks both ways is the model's.
    """
    return causal_lm(model, batch)


def seq2seq(model: Seq2SeqModel, batch: Batch) -> Loss:
    """Cross-entropy in nats: -sum log p(target | source, targets so far) of an encoder-decoder (Vaswani et al. 2017).

    The batch's source_bs (B, S) is what the encoder reads, and tokens_bt (B, T) the targets one place to the right: see
    `shifted_right`. Padding at the end of targets needs no mask, since the decoder looks back only.
    """
    if batch.source_bs is None:
        raise ValueError("seq2seq needs what the encoder reads: give the batch source_bs")
    if batch.documents_bt is not None:
        raise ValueError("seq2seq reads one source per row: give no documents_bt")
    count = counted(batch)
    memory = model.encode(batch.source_bs, batch.padding_bs)
    ctx = Context(positions_bt=batch.positions_bt, memory=memory, memory_padding_bs=batch.padding_bs, aux_scale=count)
    return Loss(cross_entropy(model.head, model.hidden(batch.tokens_bt, ctx), batch.targets_bt), count)


def classification(label_smoothing: float = 0.0) -> Callable[[TransformerModel, Batch], Loss]:
    """Cross-entropy in nats of one class per row, for a model with a `ClassHead`; the batch's targets are (B,).

    With label smoothing e the class that is asked for is 1 - e + e/classes likely, each other e/classes (Szegedy et al. 2016,
    section 7). The metric `right` counts the rows whose likeliest class is the target.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1: {label_smoothing}")

    def classify(model: TransformerModel, batch: Batch) -> Loss:
        count, targets_b = counted(batch), batch.targets_bt
        logits_bc = model(batch.tokens_bt, context(batch, count))
        if logits_bc.shape[:-1] != targets_b.shape:
            raise ValueError(f"classification needs one class per row: logits {tuple(logits_bc.shape)}, {tuple(targets_b.shape)}")
        total = F.cross_entropy(logits_bc, targets_b, ignore_index=IGNORE, reduction="sum", label_smoothing=label_smoothing)
        return Loss(total, count, {"right": (logits_bc.argmax(-1) == targets_b).sum()})

    return classify


def counted(batch: Batch) -> Tensor:
    """How many targets are asked for."""
    return (batch.targets_bt != IGNORE).sum()


def context(batch: Batch, count: Tensor) -> Context:
    """What a model of one tower may know of the batch; its layers' own losses weigh as much as `count` targets."""
    return Context(
        positions_bt=batch.positions_bt, documents_bt=batch.documents_bt, padding_bs=batch.padding_bs, aux_scale=count
    )  # fmt: skip
