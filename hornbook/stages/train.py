"""What every training stage does alike: batches, precision, optimizer and schedule as its recipe says, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hornbook.adapt.compile import compile_blocks, compile_seconds
from hornbook.adapt.dropout import attention_dropout
from hornbook.adapt.flex import use_flex
from hornbook.adapt.fp8 import use_fp8
from hornbook.adapt.kernels import fitting, use_kernels
from hornbook.adapt.recompute import recompute
from hornbook.batch import Batch
from hornbook.checkpoint.saver import check_room, most_states
from hornbook.checkpoint.state import load_weights, newest_state
from hornbook.data.batches import Batches, Rows
from hornbook.errors import UserError
from hornbook.files import append_line, digest, write_json
from hornbook.model import TransformerModel, Undrawn, shapes_only
from hornbook.optim.build import build_optimizer
from hornbook.optim.masters import Masters
from hornbook.optim.schedule import batch_ramp, warmup_decay
from hornbook.parallel.team import Team
from hornbook.ranks import from_first, patient_group
from hornbook.stages.bench import LONG, matmul_peak
from hornbook.stages.keep import INPUTS, states
from hornbook.stages.settings import Learning
from hornbook.stages.track import tracking
from hornbook.stages.voice import Voice
from hornbook.train.layers import LAYERS, looks, no_look
from hornbook.train.loop import Hook, Objective, Run, fit, ignore
from hornbook.train.precision import allow_tf32, choose_precision, said

ROLLBACK_POINTS = 20  # states of a run that training may go back to
ROWS = 100  # of figures, in a run


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its name, what it is made from, the run's folder, the processes that train, and who is told.

    resume     the command that continues it
    log        writes a row of figures, and says what it wrote
    describe   a batch as text, for the record of an incident
    """

    name: str
    inputs: dict[str, Any]
    run: Path
    team: Team
    voice: Voice
    resume: str
    log: Callable[[dict[str, Any]], dict[str, Any]]
    describe: Callable[[Batch], list[str]] | None = None


def check(model: TransformerModel, recipe: Learning, team: Team, folder: Path) -> None:
    """Refuse, before any work is done, what `train` would refuse of this model, of which its shape is enough."""
    choose_precision(recipe.precision, team.device)
    _check_alone(recipe, team)
    allow_tf32(recipe.tf32, team.device)
    check_room(folder, model, most_states(recipe.steps, _save_every(recipe), recipe.keep_every, recipe.keep_best))
    with shapes_only():
        shape = model.spec.build()
    shape.config = model.config
    switch(shape, recipe, ignore, team.device)
    team.check(shape, recipe.rows)


def train(
    model: TransformerModel, rows: Rows, recipe: Learning, objective: Objective, stage: Stage, hooks: Sequence[Hook] = (),
    draw: Callable[[], Any] = ignore,
) -> None:  # fmt: skip
    """Train the model on the rows, from the state that `stage.run` holds; where there is none, from the weights of `draw`."""
    precision = choose_precision(recipe.precision, stage.team.device)
    stage.voice.say(f"precision: {said(recipe.precision, stage.team.device)}")
    _check_alone(recipe, stage.team)
    folder = states(stage.run, stage.name)
    found = newest_state(folder, stage.voice.say)
    if found is None:
        draw()
    allow_tf32(recipe.tf32, stage.team.device)
    switch(model, recipe, stage.voice.say)
    every = max(1, recipe.steps // recipe.monitor) if recipe.monitor and stage.team.sizes.world == 1 else 0
    stage.team.spread(model)
    torch.manual_seed(recipe.seed + stage.team.part)  # dropout's, another for each part of a batch
    optimizer = build_optimizer(
        model, recipe.optimizer, recipe.learning_rate, embedding_rate=recipe.embedding_rate, weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2), momentum=recipe.momentum, nesterov=recipe.nesterov,
        update=recipe.update,
    )  # fmt: skip
    masters = Masters(model, optimizer) if recipe.weights == "bf16" else None
    run = Run(
        steps=recipe.steps, accumulate=batch_ramp(1, recipe.accumulate, recipe.ramp),
        clip=recipe.clip, precision=precision, sigmas=recipe.sigmas,
        peak=matmul_peak(stage.team.device, precision, measure=recipe.steps >= LONG and stage.team.first),
        folder=folder, found=found, save_seconds=recipe.save_seconds,
        save_every=_save_every(recipe), keep_every=recipe.keep_every,
        keep_best="held_out_loss" if recipe.keep_best else "", log_every=max(1, recipe.steps // ROWS),
        hook_every=max(1, recipe.steps // recipe.looks), stage=stage.name, name=digest(stage.inputs), resume=stage.resume,
        look=looks(stage.name, every, lambda row: append_line(stage.run / LAYERS, row)) if every else no_look,
        describe=stage.describe, say=stage.voice.say, team=stage.team,
    )  # fmt: skip
    batches = Batches(rows, recipe.rows, recipe.seed, stage.team.device, stage.team.part, stage.team.parts, recipe.workers)
    schedule = warmup_decay(recipe.steps, recipe.warmup, recipe.decay, recipe.decay_steps)
    kind = recipe.track if stage.team.first else ""
    from_first(lambda: write_json(folder / INPUTS, stage.inputs))
    with tracking(kind, stage.run, stage.name, vars(recipe)) as track, batches:
        run = replace(run, log=lambda row: track(stage.log(row)))
        fit(model, batches, objective, masters or optimizer, schedule, run, hooks)
    if masters:
        masters.finish()
    if recipe.compile:
        stage.voice.say(f"compiling took {compile_seconds():.0f} s")


def _save_every(recipe: Learning) -> int:
    """Steps from one state that a rollback may go back to, to the next."""
    return max(1, recipe.steps // ROLLBACK_POINTS)


def switch(model: TransformerModel, recipe: Learning, say: Callable[[str], Any], device: torch.device | None = None) -> None:
    """Change how the built model computes, as the recipe says. device: where it will be, if it is not there yet."""
    attention_dropout(model, recipe.attention_dropout)
    if recipe.kernels == "triton":
        names = [name for name in fitting(model) if name != "attention" or recipe.attention != "flex"]
        use_kernels(model, names, device)
        say(f"kernels: {', '.join(names)}")
    if recipe.attention == "flex":
        use_flex(model, device)
    if recipe.precision == "fp8":
        say("fp8: {} of {} matrices of blocks; the others' sizes are no multiples of 16".format(*use_fp8(model)))
    recompute(model, recipe.recompute)
    if recipe.compile:
        compile_blocks(model, device=device)


def _check_alone(recipe: Learning, team: Team) -> None:
    proven_alone = {
        "weights": recipe.weights == "bf16", "attention": recipe.attention == "flex", "precision": recipe.precision == "fp8",
        "kernels": recipe.kernels == "triton",
    }  # fmt: skip
    asked = {name: ("one process", 1) for name, used in proven_alone.items() if used}
    asked |= {"compile": ("copies", team.sizes.data)} if recipe.compile else {}
    for name, (where, most) in asked.items():
        if team.sizes.world > most:
            raise UserError(
                f"{name} = {getattr(recipe, name)!r} is proven on {where} alone", where=name,
                why=f"this run has {team.sizes.world} processes", fix=f"leave {name} out, or the other sizes of [parallel]",
            )  # fmt: skip


def keep_model(model: TransformerModel, stage: Stage, write: Callable[[TransformerModel], None]) -> None:
    """Have the trained model written, whole, by the first of the processes."""
    if stage.team.sizes.world == 1:
        return write(model)
    found = newest_state(states(stage.run, stage.name), stage.voice.say)
    assert found is not None  # the last step's

    def gather() -> None:
        with Undrawn():
            whole = model.spec.build()
        whole.config = model.config
        load_weights(found, whole)
        write(whole)

    from_first(gather, patient_group("waiting"))
