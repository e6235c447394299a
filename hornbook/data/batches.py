"""Rows -> batches, in one global seeded order that any number of processes and threads can take up at any sample.

The one idea: where a run stands is one number, the samples that were consumed. The order is an endless sequence of samples, epoch
after epoch, that seed and number of rows decide; a batch is its next piece and a process gets its part of each batch. So a run
that stops anywhere continues with exactly the samples that it has not seen, on however many processes and threads.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from hornbook.batch import IGNORE, Batch
from hornbook.data.order import permuted_nearby
from hornbook.data.prefetch import Ahead
from hornbook.errors import UserError


class Rows(Protocol):
    """Samples by number. `take(samples)` gives the batch of those samples; `epoch` may shift how a stream is cut."""

    def __len__(self) -> int: ...

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch: ...


class Batches:
    """An endless iterator of batches over `rows`; a context manager where workers are to end at once.

    batch_rows    samples per batch of all ranks together; an epoch's last samples and the next one's first share a batch
    rank, world   this process gets the rank-th of `world` equal, contiguous parts of each batch: the parts in order are the batch
    workers       threads that prepare coming batches; 0: none, a batch is made when it is asked for

    Raises `ValueError` if there are no rows, `UserError` if `world` does not divide `batch_rows`.
    """

    def __init__(
        self, rows: Rows, batch_rows: int, seed: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1,
        workers: int = 0,
    ):  # fmt: skip
        if len(rows) < 1:
            raise ValueError("there must be at least one row of data")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1: rank {rank}, world {world}")
        share, rest = divmod(batch_rows, world)
        if rest or not share:
            possible = " or ".join(str(rows) for rows in (share * world, (share + 1) * world) if rows)
            raise UserError(
                f"batch_rows must be a multiple of world: {batch_rows} rows, {world} ranks",
                why="each rank takes the same number of rows of every batch", fix=f"set it to {possible}",
            )  # fmt: skip
        self.batch_rows, self.device, self.sample = batch_rows, device, 0
        self._make = partial(_part, rows, seed, rank * share, share)
        self._ahead = Ahead(self._make, batch_rows, workers) if workers else None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        """This rank's part of the next `batch_rows` samples; the position moves here, not when a worker prepares them."""
        batch = self._ahead.take(self.sample) if self._ahead else self._make(self.sample)
        self.sample += self.batch_rows
        return batch if str(self.device) == "cpu" else moved(batch, self.device)

    def state(self) -> dict[str, int]:
        return {"sample": self.sample}

    def load_state(self, state: dict[str, int]) -> None:
        self.sample = state["sample"]

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers' threads. They also end with the object."""
        if self._ahead:
            self._ahead.close()


def _part(rows: Rows, seed: int, skipped: int, share: int, sample: int) -> Batch:
    return samples_at(rows, seed, np.arange(sample + skipped, sample + skipped + share))


def samples_at(rows: Rows, seed: int, places: NDArray[np.int64]) -> Batch:
    """The samples at these places of the endless sequence over `rows`: epoch after epoch, each in an order of its own."""
    epochs, inside = np.divmod(places, len(rows))
    parts = [
        rows.take(permuted_nearby(inside[epochs == epoch], len(rows), seed, epoch), epoch) for epoch in np.unique(epochs).tolist()
    ]
    return joined(parts, np.argsort(epochs, kind="stable"))


def joined(parts: list[Batch], places: NDArray[np.int64]) -> Batch:
    """One batch from several: row i of the parts, one after the other, becomes row `places[i]`; shorter rows are padded.

    Rows that do not say what is padding must be equally long, or it is a `ValueError`.
    """
    if len(parts) == 1:
        return parts[0]  # whose places are in order
    widths = {part.tokens_bt.shape[-1] for part in parts}
    if len(widths) > 1 and any(part.padding_bs is None for part in parts):
        raise ValueError(f"rows of one batch must be equally long: {sorted(widths)} tokens")
    if any(part.documents_bt is not None for part in parts):
        parts = [part if part.documents_bt is not None else _one_document(part) for part in parts]
    order = torch.from_numpy(np.argsort(places))

    def join(name: str, values: list[Any]) -> Any:
        if isinstance(values[0], int):
            return sum(values)
        if all(value is None for value in values):
            return None
        longest, fill = max(value.shape[-1] for value in values), IGNORE if name == "targets_bt" else 0
        if values[0].ndim > 1:
            values = [functional.pad(value, (0, longest - value.shape[-1]), value=fill) for value in values]
        return torch.cat(values)[order]

    return Batch(**{field.name: join(field.name, [getattr(part, field.name) for part in parts]) for field in fields(Batch)})


def _one_document(batch: Batch) -> Batch:
    """What no numbers mean, in numbers: each row is one document."""
    positions_bt = torch.arange(batch.tokens_bt.shape[1]).expand_as(batch.tokens_bt)
    return replace(batch, documents_bt=torch.zeros_like(batch.tokens_bt), positions_bt=positions_bt)


def moved(batch: Batch, device: torch.device | str) -> Batch:
    tensors: dict[str, Any] = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return replace(batch, **{name: value.to(device) for name, value in tensors.items()})


class StreamRows:
    """One long stream of ids, cut into windows of `context`: documents follow each other and rows run across their ends.

    Each epoch is cut at another offset, so that a token is not always at the same place of a row. Every target is used once per
    epoch, but for the fewer than two windows at the two ends.
    """

    def __init__(self, ids: NDArray[np.generic], context: int, lengths_v: NDArray[np.int64], seed: int = 0):
        self.context, self.lengths_v, self.seed = context, lengths_v, seed
        self.rows = max(0, (len(ids) - 1) // context - 1)
        # All windows at all offsets, as a view: rows are copied whole, in the shard's two or four bytes per id.
        self.windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), min(context + 1, len(ids)))

    def __len__(self) -> int:
        return self.rows

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        window = self.windows[_shift(self.seed, epoch, self.context) + samples * self.context].astype(np.int64)
        ids = torch.from_numpy(window)
        # A look-up of the whole window is faster than one of its part; the first of each row is no target.
        text_bytes = np.take(self.lengths_v, window).sum() - self.lengths_v[window[:, 0]].sum()
        return Batch(ids[:, :-1], ids[:, 1:], text_bytes=int(text_bytes))


@lru_cache
def _shift(seed: int, epoch: int, context: int) -> int:
    return int(np.random.Generator(np.random.PCG64([seed, epoch, 1])).integers(context))
