"""The training loop, once for every kind of training: batches and an objective in, a trained model and its state out.

The order of the file is the order of events. The mean is taken once: gradients of summed losses, divided by the global count of
targets, so k ragged micro-batches equal one batch. Resuming is the same path as starting: a state is read if there is one. A step
that the guard finds odd is not learned from; after several the run goes back to a sound state and on with the data behind them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from hornbook.batch import Batch, Loss
from hornbook.checkpoint.state import Saved, newest_state, random_numbers, restore, save_state, set_random_numbers
from hornbook.errors import Interrupted, UserError
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers
from hornbook.optim.schedule import Schedule
from hornbook.train.guard import PATIENCE, ROLLBACKS, Guard
from hornbook.train.incident import Step, write_incident
from hornbook.train.meter import LOG, Meter
from hornbook.train.precision import Precision
from hornbook.train.signals import Stop

Objective = Callable[[TransformerModel, Batch], Loss]
Hook = Callable[[int, TransformerModel], dict[str, Any]]


class BatchSource(Protocol):
    """An endless iterator of batches that can say where it is and go there."""

    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...
    def load_state(self, state: dict[str, Any]) -> None: ...


def ignore(*_: Any) -> None:
    """For a caller that wants neither rows nor words."""


@dataclass(frozen=True)
class Run:
    """How long and how: everything about a run that is not model, data, objective, optimizer or schedule.

    steps          optimizer steps in all
    accumulate     micro-batches per step
    clip           the gradient's largest norm
    precision      fp32, bf16 or fp16: see `Precision`
    sigmas         how far from usual a step's loss or gradient norm may be: see `Guard`
    folder         where states and incidents are kept; None: nowhere
    save_seconds   at most this much work is lost to a kill
    save_every     steps per state that a rollback may go back to, at the same steps in every run (0: none)
    describe       a batch as text, for the record of an incident
    log_every      steps per row; hook_every: steps per call of the hooks (0: only at the end)
    name           what a state must say it belongs to, or it is refused
    resume         the command that continues the run, for `Interrupted`
    """

    steps: int
    accumulate: int = 1
    clip: float = 1.0
    precision: str = "fp32"
    sigmas: float = 6.0
    folder: Path | None = None
    save_seconds: float = 20.0
    save_every: int = 0
    describe: Callable[[Batch], list[str]] | None = None
    log_every: int = 10
    hook_every: int = 0
    stage: str = "pretrain"
    name: str = ""
    resume: str = "the same command"
    log: LOG = field(default=ignore)
    say: Callable[[str], None] = field(default=ignore)


@dataclass
class TrainState:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    resumed_at: int | None = None


@dataclass(frozen=True)
class Parts:
    """What a run's state holds beside weights, moments, random numbers and the data's position."""

    meter: Meter
    guard: Guard
    precision: Precision


def fit(
    model: TransformerModel, batches: BatchSource, objective: Objective, optimizer: Optimizers, schedule: Schedule, run: Run,
    hooks: Sequence[Hook] = (),
) -> TrainState:  # fmt: skip
    """Train until `run.steps`. Raises `Interrupted` after saving when a signal asked for it, `UserError` when steps stay odd."""
    parts = Parts(Meter(), Guard(run.sigmas), Precision(run.precision, next(model.parameters()).device.type))
    state = _restored(model, batches, optimizer, parts, run)
    saved = time.perf_counter()
    model.train()
    with Stop() as stop:
        while state.step < run.steps:
            step = gradients(model, batches, objective, parts.precision, run.accumulate)
            rate = optimizer.set_rate(schedule(state.step))
            overflowed = parts.precision.overflowed(math.isfinite(step.norm))
            odd = None if overflowed else parts.guard.judge(step.loss, step.norm)
            if not overflowed and odd is None:
                torch.nn.utils.clip_grads_with_norm_(optimizer.parameters(), run.clip, step.norm_tensor)
                optimizer.step()
            elif odd:
                _left_out(odd, state.step + 1, step, model, objective, parts.precision, run)
            optimizer.zero_grad()
            state.step += 1
            parts.meter.add(step, learned=not overflowed and odd is None)
            state.tokens, state.skipped, last = parts.meter.tokens, parts.guard.skipped, state.step == run.steps
            if (state.step % run.log_every == 0 or last or state.step == 1) and parts.meter.steps:
                run.log(parts.meter.row(run.stage, state.step, rate, step.norm))
            if parts.guard.in_a_row == PATIENCE:
                state.step, last = _rolled_back(odd or "", model, batches, optimizer, parts, run), False
            elif hooks and (last or (run.hook_every and state.step % run.hook_every == 0)):
                _call(hooks, state.step, model, run)
            asked = stop.asked  # once: a signal that comes after this line is seen one step later, with a save
            due = run.save_every and state.step % run.save_every == 0
            if run.folder and (last or asked or due or time.perf_counter() - saved > run.save_seconds):
                _save(state.step, model, batches, optimizer, parts, run)
                saved = time.perf_counter()
            if asked and not last:
                raise Interrupted(run.resume)
    model.eval()
    return state


def gradients(model: TransformerModel, batches: BatchSource, objective: Objective, precision: Precision, accumulate: int) -> Step:
    """One step's gradients: the mean over all targets of all micro-batches, not clipped yet."""
    position, numbers, taken = batches.state(), random_numbers(), list[Batch]()
    total, count = torch.zeros(()), torch.zeros((), dtype=torch.long)
    for _ in range(accumulate):
        batch = next(batches)
        with precision.autocast():
            loss = objective(model, batch)
        (loss.total * precision.scale if precision.scale != 1 else loss.total).backward()
        total, count = total.to(loss.total) + loss.total.detach(), count.to(loss.count) + loss.count
        taken.append(batch)
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch._foreach_div_(found, (count.clamp(min=1) * precision.scale).to(found[0]))
    norm = torch.nn.utils.get_total_norm(found)
    return Step(taken, position, numbers, float(total), int(count), float(norm), norm)


def _left_out(
    odd: str, number: int, step: Step, model: TransformerModel, objective: Objective, precision: Precision, run: Run
) -> None:  # fmt: skip
    """Say and record a step that is not learned from."""
    run.log({"stage": run.stage, "step": number, "left_out": odd})
    place = None
    if run.folder:
        about = {"stage": run.stage, "objective": getattr(objective, "__name__", ""), "precision": precision.state()}
        about["config"] = model.config
        kept, folder = random_numbers(), run.folder / "incidents"
        place = write_incident(folder, odd, number, step, model, about, run.describe, lambda batch: objective(model, batch))
        set_random_numbers(kept)  # that the step was looked at changes nothing that follows
    run.say(f"step {number} of {run.stage} is left out: {odd}" + (f" ({place})" if place else ""))


def _rolled_back(
    odd: str, model: TransformerModel, batches: BatchSource, optimizer: Optimizers, parts: Parts, run: Run
) -> int:  # fmt: skip
    """Go back to the weights of the newest state at a multiple of `save_every`, and on with the data that comes next: its step."""
    parts.guard.rollbacks += 1
    every = run.save_every or math.inf
    found = newest_state(run.folder, run.say, lambda step: step % every == 0) if run.folder else None
    if found is None or parts.guard.rollbacks > ROLLBACKS:
        raise UserError(
            f"{PATIENCE} steps of {run.stage} in a row cannot be learned from", where=str(run.folder or "no folder of states"),
            why=odd + (f", after {ROLLBACKS} rollbacks" if found else ", and there is no state to go back to"),
            fix="lower the learning rate, or look at the incidents with hornbook replay; the states that were saved are sound",
        )  # fmt: skip
    restore(found, model, optimizer)
    parts.guard.in_a_row = 0
    _save(found.step, model, batches, optimizer, parts, run)
    run.say(f"{run.stage} goes back to step {found.step}, and on with other data")
    return found.step


def _save(
    step: int, model: TransformerModel, batches: BatchSource, optimizer: Optimizers, parts: Parts, run: Run
) -> None:  # fmt: skip
    assert run.folder is not None
    record = {"name": run.name, **{name: part.state() for name, part in vars(parts).items()}}
    save_state(run.folder, step, model, optimizer, batches.state(), record, run.save_every)


def _restored(
    model: TransformerModel, batches: BatchSource, optimizer: Optimizers, parts: Parts, run: Run
) -> TrainState:  # fmt: skip
    found: Saved | None = newest_state(run.folder, run.say) if run.folder else None
    if found is None:
        return TrainState()
    if found.run["name"] != run.name:
        raise UserError(
            "the saved state belongs to another run", where=str(run.folder), why="its plan, data or settings differ",
            fix="choose another --out, or delete that folder to begin anew",
        )  # fmt: skip
    restore(found, model, optimizer)
    batches.load_state(found.position)
    for name, part in vars(parts).items():
        part.load_state(found.run[name])
    run.say(f"continuing {run.stage} at step {found.step} of {run.steps}")
    return TrainState(found.step, parts.meter.tokens, parts.guard.skipped, resumed_at=found.step)


def _call(hooks: Sequence[Hook], step: int, model: TransformerModel, run: Run) -> None:
    model.eval()
    for hook in hooks:
        run.log({"stage": run.stage, "step": step, **hook(step, model)})
    model.train()
