"""The training loop, once for every kind of training: batches and an objective in, a trained model and its state out.

The order of the file is the order of events. The mean is taken once: gradients of summed losses, divided by the global count of
targets, so k ragged micro-batches equal one batch. Resuming is the same path as starting: a state is read if there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from hornbook.batch import Batch, Loss
from hornbook.checkpoint.state import newest_state, restore, save_state
from hornbook.errors import Interrupted, UserError
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers
from hornbook.optim.schedule import Schedule
from hornbook.train.meter import LOG, Meter
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
    folder         where states are kept; None: nowhere
    save_seconds   at most this much work is lost to a kill
    log_every      steps per row; hook_every: steps per call of the hooks (0: only at the end)
    name           what a state must say it belongs to, or it is refused
    resume         the command that continues the run, for `Interrupted`
    """

    steps: int
    accumulate: int = 1
    clip: float = 1.0
    folder: Path | None = None
    save_seconds: float = 20.0
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
    resumed_at: int | None = None


def fit(
    model: TransformerModel, batches: BatchSource, objective: Objective, optimizer: Optimizers, schedule: Schedule, run: Run,
    hooks: Sequence[Hook] = (),
) -> TrainState:  # fmt: skip
    """Train until `run.steps`. Raises `Interrupted` after saving when a signal asked it to stop."""
    state, meter = _restored(model, batches, optimizer, run)
    saved = time.perf_counter()
    model.train()
    with Stop() as stop:
        while state.step < run.steps:
            loss, norm, text_bytes, tokens = _gradients(model, batches, objective, optimizer, run)
            rate = optimizer.set_rate(schedule(state.step))
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            meter.add(float(loss.total), int(loss.count), text_bytes, tokens)
            state.tokens, last = meter.tokens, state.step == run.steps
            if state.step % run.log_every == 0 or last or state.step == 1:
                run.log(meter.row(run.stage, state.step, rate, float(norm)))
            if hooks and (last or (run.hook_every and state.step % run.hook_every == 0)):
                _call(hooks, state.step, model, run)
            asked = stop.asked  # once: a signal that comes after this line is seen one step later, with a save
            if run.folder and (last or asked or time.perf_counter() - saved > run.save_seconds):
                save_state(run.folder, state.step, model, optimizer, batches.state(), {"name": run.name, "meter": meter.state()})
                saved = time.perf_counter()
            if asked and not last:
                raise Interrupted(run.resume)
    model.eval()
    return state


def _gradients(
    model: TransformerModel, batches: BatchSource, objective: Objective, optimizer: Optimizers, run: Run
) -> tuple[Loss, torch.Tensor, int, int]:
    """One step's gradients: the mean over all targets of all micro-batches, clipped. Returns sums, the norm, bytes and tokens."""
    total, count, text_bytes, tokens = torch.zeros(()), torch.zeros((), dtype=torch.long), 0, 0
    for _ in range(run.accumulate):
        batch = next(batches)
        loss = objective(model, batch)
        loss.total.backward()
        total, count = total.to(loss.total) + loss.total.detach(), count.to(loss.count) + loss.count
        text_bytes, tokens = text_bytes + batch.text_bytes, tokens + batch.tokens_bt.numel()
    gradients = [parameter.grad for parameter in optimizer.parameters() if parameter.grad is not None]
    torch._foreach_div_(gradients, count.clamp(min=1).to(gradients[0]))
    norm = torch.nn.utils.clip_grad_norm_(optimizer.parameters(), run.clip)
    if not torch.isfinite(norm):
        raise UserError(
            "the gradient is not finite", where=f"a step of {run.stage}", why=f"loss {float(total / count)}",
            fix="lower the learning rate; the last saved state is unharmed",
        )  # fmt: skip
    return Loss(total, count), norm, text_bytes, tokens


def _restored(model: TransformerModel, batches: BatchSource, optimizer: Optimizers, run: Run) -> tuple[TrainState, Meter]:
    found = newest_state(run.folder, run.say) if run.folder else None
    if found is None:
        return TrainState(), Meter()
    if found.run["name"] != run.name:
        raise UserError(
            "the saved state belongs to another run", where=str(run.folder), why="its plan, data or settings differ",
            fix="choose another --out, or delete that folder to begin anew",
        )  # fmt: skip
    restore(found, model, optimizer)
    batches.load_state(found.position)
    run.say(f"continuing {run.stage} at step {found.step} of {run.steps}")
    meter = Meter(found.run["meter"])
    return TrainState(found.step, meter.tokens, resumed_at=found.step), meter


def _call(hooks: Sequence[Hook], step: int, model: TransformerModel, run: Run) -> None:
    model.eval()
    for hook in hooks:
        run.log({"stage": run.stage, "step": step, **hook(step, model)})
    model.train()
