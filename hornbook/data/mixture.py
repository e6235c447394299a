"""Several sources of rows -> one, in which each has its share of every stretch.

The one idea: an epoch of a mixture is a block of some samples that holds each source in its quota, so `Batches`, which puts each
epoch in an order of its own, mixes the block; and block and sample say by a division where in its source a sample stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hornbook.batch import Batch
from hornbook.data.batches import Rows, joined, samples_at

BLOCK = 1024


class Mixture:
    """Rows of several sources by weight; a source that is exhausted begins anew, in another order and with its next epoch.

    Every `BLOCK` samples from a multiple of it on hold each source in its exact quota. Sources count their own epochs. Raises
    `ValueError` for weights that are not above 0 or too small for one sample in a block, and for a source without rows.
    """

    def __init__(self, rows: Sequence[Rows], weights: Sequence[float], seed: int = 0):
        if len(rows) != len(weights):
            raise ValueError(f"each source must have a weight: {len(rows)} sources, {len(weights)} weights")
        for index, source in enumerate(rows):
            if not len(source):
                raise ValueError(f"rows[{index}] has no rows: leave the source out")
        self.rows, self.quotas = rows, quotas(weights, BLOCK)
        self.ends = np.cumsum(self.quotas)
        self.seeds = [int(np.random.SeedSequence([seed, index, 2]).generate_state(1)[0]) for index in range(len(rows))]

    def __len__(self) -> int:
        return BLOCK

    def take(self, samples: NDArray[np.int64], epoch: int) -> Batch:
        sources = np.searchsorted(self.ends, samples, side="right")
        places = (epoch + 1) * self.quotas[sources] + samples - self.ends[sources]
        parts = [samples_at(self.rows[one], self.seeds[one], places[sources == one]) for one in np.unique(sources)]
        return joined(parts, np.argsort(sources, kind="stable"))


def quotas(weights: Sequence[float], size: int) -> NDArray[np.int64]:
    """Whole shares of `size` by weight: rounded down, and what is left goes to the largest remainders."""
    for index, weight in enumerate(weights):
        if not 0 < weight < np.inf:
            raise ValueError(f"weights[{index}] must be above 0 and finite: {weight}")
    exact = np.asarray(weights, np.float64) / sum(weights) * size
    found = exact.astype(np.int64)
    found[np.argsort(found - exact, kind="stable")[: size - found.sum()]] += 1
    if not found.all():
        index = int(np.argmin(found))
        share = weights[index] / sum(weights)
        raise ValueError(f"weights[{index}] must be at least 1/{size} of all: {share:.2g}; raise it, or leave the source out")
    return found
