"""What every training stage does alike: batches, precision, optimizer and schedule as its recipe says, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hornbook.adapt.compile import compile_blocks, compile_seconds
from hornbook.adapt.dropout import attention_dropout
from hornbook.adapt.recompute import recompute
from hornbook.batch import Batch
from hornbook.data.batches import Batches, Rows
from hornbook.files import digest
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.optim.masters import Masters
from hornbook.optim.schedule import warmup_decay
from hornbook.stages.settings import Learning
from hornbook.stages.voice import Voice
from hornbook.train.loop import Hook, Objective, Run, fit
from hornbook.train.precision import allow_tf32, choose_precision

ROLLBACK_POINTS = 20  # states of a run that training may go back to
LOOKS, ROWS = 4, 100  # calls of the hooks and rows of figures, in a run


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its name, what it is made from, the run's folder, the device, and who is told.

    resume     the command that continues it
    log        is called with each row of figures
    describe   a batch as text, for the record of an incident
    """

    name: str
    inputs: dict[str, Any]
    run: Path
    device: torch.device
    voice: Voice
    resume: str
    log: Callable[[dict[str, Any]], None]
    describe: Callable[[Batch], list[str]] | None = None


def train(
    model: TransformerModel, rows: Rows, recipe: Learning, objective: Objective, stage: Stage, hooks: Sequence[Hook] = ()
) -> None:  # fmt: skip
    """Train the model on the rows, from the state that `stage.run` holds, if there is one."""
    precision = choose_precision(recipe.precision, stage.device)
    stage.voice.say(f"precision: {precision}")
    allow_tf32(recipe.tf32, stage.device)
    attention_dropout(model, recipe.attention_dropout)
    recompute(model, recipe.recompute)
    if recipe.compile:
        compile_blocks(model)
    optimizer = build_optimizer(
        model, recipe.optimizer, recipe.learning_rate, embedding_rate=recipe.embedding_rate, weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2), momentum=recipe.momentum, nesterov=recipe.nesterov,
    )  # fmt: skip
    masters = Masters(model, optimizer) if recipe.weights == "bf16" else None
    run = Run(
        steps=recipe.steps, accumulate=recipe.accumulate, clip=recipe.clip, precision=precision, sigmas=recipe.sigmas,
        folder=stage.run / "checkpoints" / stage.name, save_seconds=recipe.save_seconds,
        save_every=max(1, recipe.steps // ROLLBACK_POINTS), log_every=max(1, recipe.steps // ROWS),
        hook_every=max(1, recipe.steps // LOOKS), stage=stage.name, name=digest(stage.inputs), resume=stage.resume,
        describe=stage.describe, log=stage.log, say=stage.voice.say,
    )  # fmt: skip
    batches = Batches(rows, recipe.rows, recipe.seed, stage.device)
    fit(
        model,
        batches,
        objective,
        masters or optimizer,
        warmup_decay(recipe.steps, recipe.warmup, recipe.decay, recipe.decay_steps),
        run,
        hooks,
    )
    if masters:
        masters.finish()
    if recipe.compile:
        stage.voice.say(f"compiling took {compile_seconds():.0f} s")
