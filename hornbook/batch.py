"""What goes into an objective and what comes out: `Batch` and `Loss`.

Losses are sums with their counts, never means: the mean is taken once, over all micro-batches, so that k ragged micro-batches
equal one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100  # a target that counts for nothing, as in torch's cross-entropy


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and what should be said at each; or rows of frames and the letters said in them.

    tokens_bt      ids (B, T); of sound, log-mel frames (B, mels, S)
    targets_bt     the id to be said there (B, T): the one that follows, or the one that was hidden; for classification one class
                   per row (B,); `IGNORE` where nothing is asked
    documents_bt   a number per token where a row packs several documents, else None
    positions_bt   positions that start anew with each packed document, else None
    text_bytes     bytes of text that the counted targets stand for, for bits per byte
    source_bs      ids (B, S) that the encoder of an encoder-decoder reads; tokens_bt are the decoder's
    padding_bs     True where a token or frame is the row's own and not padding: of the source where there is one, else of
                   tokens_bt; None: everywhere
    """

    tokens_bt: Tensor
    targets_bt: Tensor
    documents_bt: Tensor | None = None
    positions_bt: Tensor | None = None
    text_bytes: int = 0
    source_bs: Tensor | None = None
    padding_bs: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A sum over targets, in nats mostly, how many targets it sums, and figures by name (sums too, without gradients)."""

    total: Tensor
    count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def shifted_right(targets_bt: Tensor, start: int, pad: int) -> Tensor:
    """What a decoder reads to say `targets_bt` (B, T): `start`, then all of them but the last, `pad` in the place of `IGNORE`."""
    first_b1 = torch.full_like(targets_bt[:, :1], start)
    return torch.cat((first_b1, targets_bt[:, :-1].masked_fill(targets_bt[:, :-1] == IGNORE, pad)), 1)
