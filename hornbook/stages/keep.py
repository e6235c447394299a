"""A finished stage is kept: its folder verifies and names the very inputs that it was made from."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hornbook.errors import DamagedError, UserError
from hornbook.files import MANIFEST, append_line, digest, held, read_lines, verified

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
INPUTS = "inputs.json"  # beside the states of a training stage: what they are trained from
DIGEST = re.compile("[0-9a-f]{64}")
OURS = (".lock", "plan.json")  # what tells a run's folder from any other


@contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Hold `out` as the folder of a run. One with other people's files in it is refused, so that nothing of theirs is replaced."""
    strangers = [] if not out.is_dir() or any((out / mark).exists() for mark in OURS) else sorted(out.iterdir())
    if strangers:
        raise UserError(
            "the output folder holds something else", where=str(out), why=f"it has {strangers[0].name!r}, which no run wrote",
            fix="choose another --out",
        )  # fmt: skip
    with held(out):
        yield


def kept(folder: Path, inputs: dict[str, Any], usual: dict[str, Any] | None = None) -> bool:
    """True where `folder` was finished from `inputs`, False where it has to be made.

    A folder made from other inputs is an error; so is one that hornbook did not write. An input that the folder does not name
    was what `usual` says.
    """
    if not (folder / MANIFEST).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(
                "a folder that hornbook did not write is in the way", where=str(folder), why=f"it has no {MANIFEST}",
                fix="move it away, or choose another --out",
            )  # fmt: skip
        return False
    try:
        about = verified(folder)
    except DamagedError:
        return False
    _refuse_others(about.get("inputs", {}), inputs, usual or {}, folder)
    return True


def begun(run: Path, stage: str, inputs: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any] | None:
    """The inputs that a stage's states were trained from, None where there is no state; an error where `inputs` are others."""
    folder = states(run, stage)
    if not (folder / INPUTS).exists() or not any(folder.glob("step-*")):
        return None
    theirs: dict[str, Any] = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
    _refuse_others({key: theirs[key] for key in inputs if key in theirs}, inputs, usual, folder)
    return theirs


def _refuse_others(theirs: dict[str, Any], ours: dict[str, Any], usual: dict[str, Any], folder: Path) -> None:
    if found := list(_changes(theirs, ours, usual)):
        raise UserError(
            "the output folder belongs to another run", where=str(folder), why=", ".join(found[:3]),
            fix="choose another folder, or delete this one",
        )  # fmt: skip


def _changes(theirs: dict[str, Any], ours: dict[str, Any], usual: dict[str, Any], table: str = "") -> Iterator[str]:
    for key in {**ours, **theirs}:
        was, now = theirs.get(key, usual.get(key)), ours.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, {}, f"{table}{key}.")
        elif was != now and all(isinstance(value, str) and DIGEST.fullmatch(value) for value in (was, now)):
            yield f"{table}{key} changed"
        elif was != now:
            yield f"{table}{key} was {was!r} and is now {now!r}"


def states(run: Path, stage: str) -> Path:
    """Where a training stage of a run keeps its states."""
    return run / "checkpoints" / stage


def sources(folder: Path) -> list[Path]:
    """A finished folder itself, or of a mixture's the finished ones in it, one per source."""
    if (folder / MANIFEST).exists():
        return [folder]
    return sorted((place for place in folder.iterdir() if place.name.isdecimal()), key=lambda place: int(place.name))


def lineage(folder: Path) -> str:
    """One hash for all files of a finished folder, or of the folders of a mixture."""
    if not (folder / MANIFEST).exists():
        return digest([lineage(place) for place in sources(folder)])
    return digest(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"])


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row of `METRICS` is of: of two rows with one place, the later one counts."""
    return row["stage"], row["step"], "samples" in row, "loss" in row


@contextmanager
def timed(run: Path, stage: str) -> Iterator[None]:
    """Add the stage's wall time to the run's record, also where it is cut short, so that a resumed run counts all its parts."""
    start = time.perf_counter()
    try:
        yield
    finally:
        if run.is_dir():
            append_line(run / TIMINGS, {"stage": stage, "seconds": time.perf_counter() - start})


def timings(run: Path) -> dict[str, float]:
    """Seconds per stage, in the order in which the stages first ran."""
    seconds: dict[str, float] = {}
    for row in read_lines(run / TIMINGS):
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + row["seconds"]
    return seconds
