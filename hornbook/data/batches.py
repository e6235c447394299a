"""Rows -> batches, in a seeded order that can be taken up at any sample.

The position counts samples that were consumed, never those that were only prepared, so a run that stops anywhere continues with
exactly the samples that it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hornbook.batch import IGNORE, Batch


class Rows(Protocol):
    """Samples by number. `take(order)` gives the batch of those samples; `epoch` may shift how a stream is cut."""

    def __len__(self) -> int: ...

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch: ...


class Batches:
    """An endless iterator of batches over `rows`: each epoch a new permutation, drawn from (seed, epoch) alone."""

    def __init__(self, rows: Rows, batch_rows: int, seed: int, device: torch.device | str = "cpu"):
        if len(rows) < 1:
            raise ValueError("there must be at least one row of data")
        self.rows, self.batch_rows, self.seed, self.device = rows, batch_rows, seed, device
        self.sample = 0
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """The next `batch_rows` samples; an epoch's last batch may be smaller, so that no sample is left out."""
        epoch, start = divmod(self.sample, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.rows))
        samples = self._order[start : start + self.batch_rows]
        batch = self.rows.take(samples, epoch)
        self.sample += len(samples)
        return batch if str(self.device) == "cpu" else moved(batch, self.device)

    def state(self) -> dict[str, int]:
        return {"sample": self.sample}

    def load_state(self, state: dict[str, int]) -> None:
        self.sample = state["sample"]


def moved(batch: Batch, device: torch.device | str) -> Batch:
    tensors: dict[str, Any] = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **{name: value.to(device) for name, value in tensors.items()})


class StreamRows:
    """One long stream of ids, cut into windows of `context`: documents follow each other and rows run across their ends.

    Each epoch is cut at another offset, so that a token is not always at the same place of a row. Every target is used once per
    epoch, but for the fewer than two windows at the two ends.
    """

    def __init__(self, ids: NDArray[np.generic], context: int, lengths_v: NDArray[np.int64], seed: int = 0):
        self.ids, self.context, self.lengths_v, self.seed = ids, context, lengths_v, seed

    def __len__(self) -> int:
        return max(0, (len(self.ids) - 1) // self.context - 1)

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        shift = int(np.random.Generator(np.random.PCG64([self.seed, epoch, 1])).integers(self.context))
        starts = shift + samples * self.context
        window = self.ids[starts[:, None] + np.arange(self.context + 1)].astype(np.int64)
        ids = torch.from_numpy(window)
        return Batch(ids[:, :-1], ids[:, 1:], text_bytes=int(self.lengths_v[window[:, 1:]].sum()))


@dataclass(frozen=True)
class PackedRows:
    """Rows that hold several documents each, with masks between them: arrays (rows, context) as in `Batch`."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int64]
    positions: NDArray[np.int64]
    lengths_v: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        targets = self.targets[samples]
        return Batch(
            torch.from_numpy(self.tokens[samples]), torch.from_numpy(targets), torch.from_numpy(self.documents[samples]),
            torch.from_numpy(self.positions[samples]), int(self.lengths_v[targets[targets != IGNORE]].sum()),
        )  # fmt: skip
