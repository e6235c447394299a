"""How many tokens per second this machine trains, by training a little."""

from __future__ import annotations

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

WARM_STEPS, STEPS, SECONDS = 2, 5, 4.0  # long enough that a moment's noise does not settle a run of minutes


def tokens_per_second(config: dict[str, Any], rows: int, context: int, optimizer: str, device: torch.device) -> float:
    """The mean over some seconds of whole training steps on random ids, after a few steps that do not count."""
    model = initialize(families.build(config), 0).to(device)
    vocab = int(config["vocab_size"])
    ids = np.random.Generator(np.random.PCG64(0)).integers(vocab, size=(rows * (WARM_STEPS + STEPS) + 2) * context + 1)
    batches = Batches(StreamRows(ids, context, np.ones(vocab, np.int64)), rows, 0, device)
    optimizers = build_optimizer(model, optimizer, 1e-4)

    def train(steps: int) -> None:
        fit(model, batches, causal_lm, optimizers, lambda step: 1.0, Run(steps=steps))

    train(WARM_STEPS)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS or steps < STEPS:
        train(STEPS)
        steps += STEPS
    return rows * context * steps / (time.perf_counter() - start)
