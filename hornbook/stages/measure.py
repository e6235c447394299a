"""How many tokens per second this machine trains, by training a little."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from hornbook import families
from hornbook.data.batches import Batches, StreamRows
from hornbook.model import initialize
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm

WARM_STEPS, STEPS = 2, 5


def tokens_per_second(config: dict[str, Any], rows: int, context: int, optimizer: str, device: torch.device) -> float:
    """The median over a few whole training steps on random ids, after a few that do not count."""
    model = initialize(families.build(config), 0).to(device)
    vocab = int(config["vocab_size"])
    ids = np.random.Generator(np.random.PCG64(0)).integers(vocab, size=(rows * (WARM_STEPS + STEPS) + 2) * context + 1)
    batches = Batches(StreamRows(ids, context, np.ones(vocab, np.int64)), rows, 0, device)
    optimizers, seconds = build_optimizer(model, optimizer, 1e-4), []
    for _ in range(WARM_STEPS + STEPS):
        start = time.perf_counter()
        fit(model, batches, causal_lm, optimizers, lambda step: 1.0, Run(steps=1))
        seconds.append(time.perf_counter() - start)
    return rows * context / statistics.median(seconds[WARM_STEPS:])
