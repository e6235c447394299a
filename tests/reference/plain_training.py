"""Training written out by hand, slow and obvious: every row alone, every target by itself, AdamW line by line from its paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hornbook.batch import Batch
from hornbook.model import TransformerModel

Rates = Callable[[str, Tensor], tuple[float, float]]  # a parameter's name and value -> its learning rate and its decay


def target_losses(model: TransformerModel, batch: Batch) -> list[Tensor]:
    """-log p of each counted target, one by one."""
    losses = []
    for tokens, targets in zip(batch.tokens_bt, batch.targets_bt, strict=True):
        logprobs = model(tokens[None])[0].log_softmax(-1)
        losses += [-logprobs[place, target] for place, target in enumerate(targets.tolist()) if target >= 0]
    return losses


def mean_gradients(model: TransformerModel, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The mean loss over all targets of all the batches together, and its gradients."""
    losses = [loss for batch in batches for loss in target_losses(model, batch)]
    mean = torch.stack(losses).mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return mean.item(), dict(zip(names, torch.autograd.grad(mean, parameters), strict=True))


def mean_of_means(model: TransformerModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The gradients of the well-known mistake: each micro-batch's own mean, then the mean of those."""
    each = [mean_gradients(model, [batch])[1] for batch in batches if target_losses(model, batch)]
    return {name: torch.stack([gradients[name] for gradients in each]).sum(0) / len(batches) for name in each[0]}


def train(
    model: TransformerModel, steps: Sequence[Sequence[Batch]], factors: Sequence[float], rates: Rates, clip: float,
    betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
) -> list[tuple[float, float]]:  # fmt: skip
    """Train in place with AdamW (Loshchilov and Hutter 2019, algorithm 2); returns each step's loss and gradient norm."""
    first = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    second = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    rows = []
    for step, (batches, factor) in enumerate(zip(steps, factors, strict=True), 1):
        loss, gradients = mean_gradients(model, batches)
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        rows.append((loss, norm))
        scale = min(1.0, clip / (norm + 1e-6))
        with torch.no_grad():
            for name, value in model.named_parameters():
                rate, decay = rates(name, value)
                gradient = gradients[name] * scale
                first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
                second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient**2
                m = first[name] / (1 - betas[0] ** step)
                v = second[name] / (1 - betas[1] ** step)
                value -= factor * rate * (m / (v.sqrt() + eps) + decay * value)
    return rows
