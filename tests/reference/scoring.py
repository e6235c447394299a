"""Scores the slow way: one full forward for each scored token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hornbook.model import TransformerModel
from hornbook.text.tokenizer import Tokenizer


def nats(model: TransformerModel, before: Sequence[int], token: int) -> float:
    """-log p(token | before)."""
    logits = model(torch.tensor([list(before)]))[0, -1].detach().double()
    return float(logits.logsumexp(-1) - logits[token])


def document_nats(model: TransformerModel, tokenizer: Tokenizer, text: str, context: int) -> list[float]:
    """Nats of each token of the text itself.

    A token among the first `context` sees everything before it. The later ones come in groups of half a context; a group's tokens
    see the text from `context` tokens before the group's end.
    """
    ids = [tokenizer.special("<|bos|>"), *tokenizer.encode(text), tokenizer.special("<|end|>")]
    starts = {place: 0 for place in range(1, min(context, len(ids) - 1) + 1)}
    while len(starts) < len(ids) - 1:
        group = list(range(len(starts) + 1, len(ids)))[: context // 2]
        starts |= {place: group[-1] - context for place in group}
    return [nats(model, ids[start:place], ids[place]) for place, start in starts.items() if place < len(ids) - 1]


def bits_per_byte(model: TransformerModel, tokenizer: Tokenizer, texts: Sequence[str], context: int) -> float:
    total = sum(sum(document_nats(model, tokenizer, text, context)) for text in texts)
    return total / math.log(2) / sum(len(text.encode()) for text in texts)


def ending(model: TransformerModel, before: Sequence[int], ids: Sequence[int]) -> float:
    """log p(ids | before), one word after the other."""
    return -sum(nats(model, [*before, *ids[:n]], ids[n]) for n in range(len(ids)))
