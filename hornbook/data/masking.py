"""Rows of ids -> rows with some tokens hidden, and what was there as targets (Devlin et al. 2019, "BERT", section 3.1 and A.1).

Each token is chosen with the same probability, alone or by whole words; of the chosen most become the mask, some another id, and
some stay, so that a model cannot know from its input which positions it is asked about. What is drawn depends on (seed, epoch,
sample) alone, so that a run that goes on hides what an uninterrupted one would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.batch import IGNORE, Batch
from hornbook.data.batches import Rows

MASKED, RANDOM = 0.8, 0.1  # of the chosen; the rest is kept


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden.

    mask           the id that hides
    lengths_v      bytes of text per id; an id of none is a special: never chosen, and never put in the place of another
    seed           of all that is drawn
    share          of the tokens, or of the words, that are chosen
    continues_v    per id, whether it goes on with the word of the id before it: then words are chosen whole (None: tokens)
    closes_v       per id, whether the next one begins a word in any case (None: no id does)
    """

    mask: int
    lengths_v: NDArray[np.int64]
    seed: int = 0
    share: float = 0.15
    continues_v: NDArray[np.bool_] | None = None
    closes_v: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1: {self.share}")
        if self.lengths_v[self.mask]:
            raise ValueError(f"mask must be a special: id {self.mask} stands for {self.lengths_v[self.mask]} bytes of text")

    def hide(self, ids_t: NDArray[np.int64], epoch: int, sample: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A row as the model reads it, and its targets: the ids where they were chosen, `IGNORE` elsewhere. All (T,)."""
        draw = np.random.Generator(np.random.PCG64([self.seed, epoch, sample, 2]))
        ordinary_t = self.lengths_v[ids_t] > 0
        word_t = np.arange(len(ids_t))
        if self.continues_v is not None:
            open_t = ordinary_t if self.closes_v is None else ordinary_t & ~self.closes_v[ids_t]
            goes_on_t = self.continues_v[ids_t] & ordinary_t & np.roll(open_t, 1)
            word_t = np.cumsum(~goes_on_t)
        chosen_t = (draw.random(len(ids_t) + 1) < self.share)[word_t] & ordinary_t
        fate_t, others = draw.random(len(ids_t)), np.flatnonzero(self.lengths_v)
        other_t = others[draw.integers(len(others), size=len(ids_t))]
        read_t = np.where(fate_t < MASKED, self.mask, np.where(fate_t < MASKED + RANDOM, other_t, ids_t))
        return np.where(chosen_t, read_t, ids_t), np.where(chosen_t, ids_t, IGNORE)

    def batch(self, ids_bt: NDArray[np.int64], epoch: int, samples: NDArray[np.int64]) -> Batch:
        """`hide` for each row, with its number among `samples`."""
        rows = [self.hide(ids_t, epoch, int(sample)) for ids_t, sample in zip(ids_bt, samples, strict=True)]
        tokens_bt, targets_bt = (np.stack(parts) for parts in zip(*rows, strict=True))
        size = int(self.lengths_v[targets_bt[targets_bt != IGNORE]].sum())
        return Batch(torch.from_numpy(tokens_bt), torch.from_numpy(targets_bt), text_bytes=size)


@dataclass(frozen=True)
class MaskedRows:
    """The same rows with tokens hidden: others in every epoch, as RoBERTa does (Liu et al. 2019, section 4.1)."""

    rows: Rows
    masking: Masking

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        whole = self.rows.take(samples, epoch)
        hidden = self.masking.batch(whole.tokens_bt.numpy(), epoch, samples)
        return Batch(hidden.tokens_bt, hidden.targets_bt, whole.documents_bt, whole.positions_bt, hidden.text_bytes)
