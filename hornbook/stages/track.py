"""Rows of `metrics.jsonl` -> TensorBoard, Trackio or Weights & Biases beside it, for a recipe that says `track`.

The one idea: `metrics.jsonl` says what is tracked already. A run that continues adds to what it tracked before, and a row that the
file held when it continued is not tracked a second time, nor is one of a step that a rollback takes again. Nothing leaves the
machine that the user did not send out: TensorBoard's files lie in the run's folder, Trackio's where TRACKIO_DIR says or in the
user's cache, and Weights & Biases is offline for a user who is not logged in there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from hornbook.errors import UserError
from hornbook.files import digest, read_lines
from hornbook.stages.keep import METRICS, place

INSTALL = {"tensorboard": "pip install 'hornbook[track]'", "trackio": "pip install 'hornbook[track]'", "wandb": "pip install wandb"}
Row = dict[str, Any]


def check_tracker(kind: str) -> None:
    """Refuse a tracker whose package is not there."""
    if kind and importlib.util.find_spec(kind) is None:
        why = f'the recipe says track = "{kind}"'
        raise UserError(f"the package {kind} is not there", where="track", why=why, fix=INSTALL[kind])


@contextmanager
def tracking(kind: str, run: Path, stage: str, config: Row) -> Iterator[Callable[[Row], None]]:
    """What to call with each row that is written; its run is named after the folder `run`, and ends with the context."""
    check_tracker(kind)
    begun = {place(row) for row in read_lines(run / METRICS)}
    with _TRACKERS[kind](run.resolve(), stage, config) as send:

        def track(row: Row) -> None:
            if place(row) not in begun:
                begun.add(place(row))
                send(int(row["step"]), _figures(row), _texts(row))

        yield track


def _figures(row: Row) -> dict[str, float]:
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "step"}


def _texts(row: Row) -> dict[str, str]:
    """Samples and the reason for a step left out, which are words."""
    samples = "\n\n".join(f"{sample['prompt']}{sample['text']}" for sample in row.get("samples") or ())
    return {key: text for key, text in (("samples", samples), ("left_out", row.get("left_out"))) if text}


Send = Callable[[int, dict[str, float], dict[str, str]], None]


@contextmanager
def _nowhere(run: Path, stage: str, config: Row) -> Iterator[Send]:
    yield lambda step, figures, texts: None


@contextmanager
def _tensorboard(run: Path, stage: str, config: Row) -> Iterator[Send]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard" / stage)) as writer:

        def send(step: int, figures: dict[str, float], texts: dict[str, str]) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)
            for name, text in texts.items():
                writer.add_text(name, "\n".join("    " + line for line in text.splitlines()), step)  # Markdown's code: as it is
            writer.flush()

        yield send


@contextmanager
def _trackio(run: Path, stage: str, config: Row) -> Iterator[Send]:
    import trackio

    with redirect_stdout(sys.stderr):  # results alone go to stdout
        alone: dict[str, Any] = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        tracked = trackio.init(project=run.name, name=f"{stage}-{_own(run)}", config=config, resume="allow", **alone)
    try:
        yield lambda step, figures, texts: tracked.log({**figures, **texts}, step=step)
    finally:
        with redirect_stdout(sys.stderr):
            trackio.finish()


@contextmanager
def _wandb(run: Path, stage: str, config: Row) -> Iterator[Send]:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # the package reports its own errors home, offline too
    import wandb

    mode = None if os.environ.get("WANDB_MODE") or wandb.api.api_key else "offline"
    tracked = wandb.init(
        project=run.name, name=stage, id=f"{stage}-{_own(run)}", config=config, resume="allow", dir=str(run), mode=mode
    )  # fmt: skip
    try:
        yield lambda step, figures, texts: tracked.log({**figures, **texts}, step=step)
    finally:
        tracked.finish()


def _own(run: Path) -> str:
    """What tells this folder from another of the same name."""
    return digest(str(run))[:8]


_TRACKERS = {"": _nowhere, "tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
