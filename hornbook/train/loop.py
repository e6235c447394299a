"""The training loop, once for every kind of training: batches and an objective in, a trained model and its state out.

The order of the file is the order of events. The mean is taken once: gradients of summed losses, divided by the global count of
targets, so k ragged micro-batches equal one batch. Resuming is the same path as starting: a state is read if there is one. A step
that the guard finds odd is not learned from; after several the run goes back to a sound state and on with the data behind them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hornbook.adapt.tied import one_gradient
from hornbook.batch import Batch, Loss
from hornbook.checkpoint.saver import Best, Saver, check_room, most_states
from hornbook.checkpoint.state import Keep, Saved, newest_state, random_numbers, restore, set_random_numbers, snapshot
from hornbook.data.batches import moved
from hornbook.errors import Interrupted, UserError
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers
from hornbook.optim.schedule import Schedule
from hornbook.optim.shards import plain
from hornbook.parallel.team import Team
from hornbook.ranks import from_first, patient_group
from hornbook.train.guard import PATIENCE, ROLLBACKS, Guard
from hornbook.train.incident import Step, named, write_incident
from hornbook.train.layers import NoLook, no_look
from hornbook.train.meter import LOG, Meter
from hornbook.train.precision import Precision
from hornbook.train.signals import Ended, Stop

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
    accumulate     micro-batches per step, or those of each step by its number from 0
    clip           the gradient's largest norm
    precision      fp32, bf16 or fp16: see `Precision`
    peak           FLOP/s of the device's products, for the share of them that the run reaches; 0: not known
    sigmas         how far from usual a step's loss or gradient norm may be: see `Guard`
    folder         where states and incidents are kept; None: nowhere
    found          the state to go on from, where it was looked for before: None begins anew
    save_seconds   at most this much work is lost to a kill
    save_every     steps per state that a rollback may go back to, where the steps before it were learned from (0: none)
    keep_every     steps per state that is never deleted (0: none); keep_best: the hooks' figure whose lowest state is kept
    describe       a batch as text, for the record of an incident
    look           by the step's number, what looks into the layers: see `Look`
    log_every      steps per row; hook_every: steps per call of the hooks (0: only at the end)
    name           what a state must say it belongs to, or it is refused
    resume         the command that continues the run, for `Interrupted`
    team           the processes that train together; `log` and `say` are the first one's alone
    """

    steps: int
    accumulate: int | Callable[[int], int] = 1
    clip: float = 1.0
    precision: str = "fp32"
    peak: float = 0.0
    sigmas: float = 6.0
    folder: Path | None = None
    found: Saved | Literal["the newest"] | None = "the newest"
    save_seconds: float = 20.0
    save_every: int = 0
    keep_every: int = 0
    keep_best: str = ""
    describe: Callable[[Batch], list[str]] | None = None
    look: Callable[[int, TransformerModel], NoLook] = no_look
    log_every: int = 10
    hook_every: int = 0
    stage: str = "pretrain"
    name: str = ""
    resume: str = "the same command"
    log: LOG = field(default=ignore)
    say: Callable[[str], None] = field(default=ignore)
    team: Team = field(default_factory=Team)


class Unlearnable(UserError, Ended):
    """Steps stay odd, whatever the run goes back to."""


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
    best: Best


def fit(
    model: TransformerModel, batches: BatchSource, objective: Objective, optimizer: Optimizers, schedule: Schedule, run: Run,
    hooks: Sequence[Hook] = (),
) -> TrainState:  # fmt: skip
    """Train until `run.steps`. A signal that asked for it raises `Interrupted` after saving, also in the last step, and
    `KeyboardInterrupt` where there is no folder or all is done; `UserError` when steps stay odd.
    """
    team = run.team
    if not team.first:
        run = replace(run, log=ignore, say=ignore)
    precision = Precision(run.precision, next(model.parameters()).device.type)
    parts = Parts(Meter(model, run.steps, run.peak * team.sizes.world), Guard(run.sigmas), precision, Best())
    state = _restored(model, batches, optimizer, parts, run)
    saved = time.perf_counter()
    model.train()
    with Stop() as stop, team.watched(), Saver(run.folder) as saver:
        while state.step < run.steps:
            position = batches.state()
            count = run.accumulate if isinstance(run.accumulate, int) else run.accumulate(state.step)
            taken = parts.meter.taken(batches, count)
            with run.look(state.step + 1, model) as look:
                step = gradients(model, taken, objective, parts.precision, position, team)
            rate = optimizer.set_rate(schedule(state.step))
            odd = _odd(step, state.step + 1, model, objective, parts, run)
            if not odd:
                optimizer.step(run.clip, step.norm_tensor)
            look.taken()
            optimizer.zero_grad()
            state.step += 1
            parts.meter.add(step, learned=not odd)
            point = _divides(run.save_every, state.step) and not parts.guard.in_a_row
            parts.guard.passed(state.step, learned=not odd, point=point)
            state.tokens, state.skipped, last = parts.meter.tokens, parts.guard.skipped, state.step == run.steps
            if (state.step % run.log_every == 0 or last or state.step == 1) and parts.meter.steps:
                run.log(parts.meter.row(run.stage, state.step, rate, step.norm))
            due = last or point or _divides(run.keep_every, state.step)
            if parts.guard.in_a_row == PATIENCE:
                saver.finish()  # the state to go back to may be the one that is being written
                state.step, last, due = _rolled_back(odd, state.step, model, optimizer, parts, run), False, True
            elif hooks and (last or _divides(run.hook_every, state.step)):
                figures = _call(hooks, state.step, model, run)
                due = parts.best.beaten_by(state.step, figures.get(run.keep_best)) or due
            # Asked once: a signal that comes after this line is seen one step later, with a save, or by `Stop` when all is done.
            due, asked, late = team.any(due, stop.asked, time.perf_counter() - saved > run.save_seconds)
            if run.folder and (due or asked or late):
                record = {"name": run.name, **{name: part.state() for name, part in vars(parts).items()}}
                keep = Keep(every=run.keep_every, these=(parts.best.step, parts.guard.point))
                saver.save(snapshot(state.step, model, optimizer, batches.state(), record), keep)
                saved = time.perf_counter()
            if asked:
                saver.finish()
                raise Interrupted(run.resume) if run.folder else KeyboardInterrupt
    if not parts.meter.learned:
        raise _nothing_learned(run)
    model.eval()
    return state


def gradients(
    model: TransformerModel, batches: list[Batch], objective: Objective, precision: Precision, position: dict[str, Any],
    team: Team | None = None,
) -> Step:  # fmt: skip
    """One step's gradients: the mean over all targets of all micro-batches, not clipped yet. `position`: where the data stood.

    Ranks' gradients arrive as sums, not as a mean of ranks, and so are divided once, by the targets of all.
    """
    numbers, team = random_numbers(), team or Team()
    total, count, metrics = torch.zeros(()), torch.zeros((), dtype=torch.long), dict[str, Tensor]()
    for number, batch in enumerate([] if team.pipeline else batches):
        team.before_micro_batch(model, number + 1 == len(batches))
        with precision.autocast(), one_gradient(model):
            loss = objective(model, batch)
        (loss.total * precision.scale if precision.scale != 1 else loss.total).backward()
        total, count = total.to(loss.total) + loss.total.detach(), count.to(loss.count) + loss.count
        metrics = {name: metrics.get(name, 0) + value.detach() for name, value in loss.metrics.items()}
    if team.pipeline:  # which takes the micro-batches through its stages in an order of its own
        team.before_micro_batch(model, last=len(batches) == 1)
        last = partial(team.before_micro_batch, model, last=True)
        total, count = team.pipeline.gradients(batches, objective, precision.autocast, precision.scale, last)
    team.after_micro_batches(model)
    own = batches if team.counts else []
    sizes = sum(batch.tokens_bt.numel() for batch in own), sum(batch.text_bytes for batch in own)
    nats, targets, tokens, text_bytes, *more = team.sums(total, count, *sizes, *metrics.values())
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    mine = [plain(gradient) for gradient in found.values()]
    torch._foreach_div_(mine, (torch.as_tensor(targets).clamp(min=1) * precision.scale).to(mine[0]))
    norm = team.norm(found)
    sums = {name: float(value) for name, value in zip(metrics, more, strict=True)}
    return Step(batches, position, numbers, float(nats), int(targets), int(tokens), int(text_bytes), float(norm), norm, sums)


def _odd(step: Step, number: int, model: TransformerModel, objective: Objective, parts: Parts, run: Run) -> str:
    """Why this step must not be learned from, which is said; empty where it may be."""
    scale = parts.precision.scale
    if parts.precision.overflowed(math.isfinite(step.norm)):
        odd = f"gradients overflow {run.precision} at a loss scale of {scale:g}"
        run.log({"stage": run.stage, "step": number, "left_out": odd})
        return odd
    odd = parts.guard.judge(step.loss, step.norm) or ""
    if odd:
        _left_out(odd, number, step, model, objective, parts.precision, run)
    return odd


def _left_out(
    odd: str, number: int, step: Step, model: TransformerModel, objective: Objective, precision: Precision, run: Run
) -> None:  # fmt: skip
    """Say and record a step that is not learned from."""
    step = replace(step, batches=run.team.gathered(step.batches))
    run.log({"stage": run.stage, "step": number, "left_out": odd})
    place = None
    if run.folder:
        about = {"stage": run.stage, **named(objective), "precision": precision.state(), "config": model.config}
        kept, folder, device = random_numbers(), run.folder / "incidents", next(model.parameters()).device
        pipeline = run.team.pipeline  # no stage of which can look at a batch alone: the first rank has it whole and looks
        met = pipeline.whole() if pipeline else model

        def look(batch: Batch) -> Loss | None:
            return objective(met, moved(batch, device)) if run.team.first or not pipeline else None

        place = write_incident(folder, odd, number, step, met, about, run.describe, look)
        set_random_numbers(kept)  # that the step was looked at changes nothing that follows
    run.say(f"step {number} of {run.stage} is left out: {odd}" + (f" ({place})" if place else ""))


def _rolled_back(odd: str, step: int, model: TransformerModel, optimizer: Optimizers, parts: Parts, run: Run) -> int:
    """Go back to the weights of the guard's last point, and on with the data that comes next: its step."""
    parts.guard.went_back(step)
    point = parts.guard.point
    found = newest_state(run.folder, run.say, lambda step: step == point) if run.folder else None
    if found is None or parts.guard.rollbacks > ROLLBACKS:
        raise Unlearnable(
            f"{PATIENCE} steps of {run.stage} in a row cannot be learned from", where=str(run.folder or "no folder of states"),
            why=odd + (f", after {ROLLBACKS} rollbacks" if found else ", and there is no state to go back to"),
            fix="lower the learning rate, or look at the incidents with hornbook replay",
        )  # fmt: skip
    restore(found, model, optimizer)
    run.say(f"{run.stage} goes back to step {found.step}, and on with other data")
    return found.step


def _nothing_learned(run: Run) -> UserError:
    fp16 = "give it more steps, for fp16 halves its loss scale at each overflow, or set precision to bf16 or fp32"
    return UserError(
        f"none of {run.steps} steps of {run.stage} was learned from", where=str(run.folder or "no folder of states"),
        why="each was left out", fix=fp16 if run.precision == "fp16" else "look at the incidents with hornbook replay",
    )  # fmt: skip


def _divides(every: int, step: int) -> bool:
    return every > 0 and step % every == 0


def _restored(
    model: TransformerModel, batches: BatchSource, optimizer: Optimizers, parts: Parts, run: Run
) -> TrainState:  # fmt: skip
    if run.folder:
        check_room(run.folder, model, most_states(run.steps, run.save_every, run.keep_every, bool(run.keep_best)))
    found = run.found
    if found == "the newest":
        found = newest_state(run.folder, run.say) if run.folder else None
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


def _call(hooks: Sequence[Hook], step: int, model: TransformerModel, run: Run) -> dict[str, Any]:
    """Log what each hook finds; all of it. A pipeline's first stage looks for all, at a copy of the whole model."""
    if run.team.pipeline:
        whole, alone = run.team.pipeline.whole(), replace(run, team=Team())
        return dict(from_first(lambda: _call(hooks, step, whole, alone), patient_group("waiting")))
    model.eval()
    figures: dict[str, Any] = {}
    for hook in hooks:
        found = hook(step, model)
        run.log({"stage": run.stage, "step": step, **found})
        figures |= found
    model.train()
    return figures
