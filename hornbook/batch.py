"""What goes into an objective and what comes out: `Batch` and `Loss`.

Losses are sums with their counts, never means: the mean is taken once, over all micro-batches, so that k ragged micro-batches
equal one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

IGNORE = -100  # a target that counts for nothing, as in torch's cross-entropy


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and what should follow each; or rows of frames and the letters said in them.

    tokens_bt      ids (B, T); of sound, log-mel frames (B, mels, S)
    targets_bt     the id that follows (B, T), `IGNORE` where nothing is asked
    documents_bt   a number per token where a row packs several documents, else None
    positions_bt   positions that start anew with each packed document, else None
    text_bytes     bytes of text that the counted targets stand for, for bits per byte
    padding_bs     true where a token or frame is the row's own and not padding, else None: all are
    """

    tokens_bt: Tensor
    targets_bt: Tensor
    documents_bt: Tensor | None = None
    positions_bt: Tensor | None = None
    text_bytes: int = 0
    padding_bs: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A sum over targets, how many targets it sums, and figures by name (sums too)."""

    total: Tensor
    count: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
