"""The rows that a run has written so far -> the page of `hornbook watch`: the newest figures, curves, samples, left-out steps.

As in a report, nothing here measures or guesses, and a part without rows has no section.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hornbook import page
from hornbook.evals.rows import Record, curves, left_out, samples, samples_of, stage_name, stages
from hornbook.page import POLICY, Bar, Html, byte_size, duration, element, exact, figure, join, percent

SCRIPT = "watch.js"
LIVE_POLICY = f"{POLICY}; script-src 'self'; connect-src 'self'"
SAYS = {
    "waiting": "No row has been written yet. This page shows the first one when it comes.",
    "training": "A process is at work on this run.", "finished": "The stage that wrote last has taken its last step.",
    "stopped": "No process is at work on this run, and its last step was not taken.",
}  # fmt: skip


def newest(metrics: Sequence[Record], working: bool) -> dict[str, Any]:
    """The newest of each figure of the stage that wrote last, the run's state, and how many steps were left out in all."""
    stage = metrics[-1]["stage"] if metrics else None
    mine = [{key: row[key] for key in row if key not in ("samples", "left_out")} for row in metrics if row["stage"] == stage]
    figures = {key: value for row in mine for key, value in row.items()}
    done = bool(metrics) and figures.get("steps") == figures["step"]
    state = "training" if working and metrics else "finished" if done else "stopped" if metrics else "waiting"
    return {"state": state, **figures, "steps_left_out": sum("left_out" in row for row in metrics)}


def live_page(name: str, metrics: Sequence[Record], working: bool, written: float | None) -> str:
    """The whole page. `written`: when the last row was, in seconds since 1970."""
    found = newest(metrics, working)
    state = found["state"]
    said = page.notices([(state in ("training", "finished"), SAYS[state])]) if state != "waiting" else page.paragraph(SAYS[state])
    spoken = [samples(samples_of(metrics[::-1]), None), left_out(metrics)]
    sections = [
        page.section("Now", page.facts(_tiles(found, written), tiles=True) if metrics else "", _progress(metrics), said),
        *(curves(stage, metrics) for stage in reversed(stages(metrics))), *spoken,
    ]  # fmt: skip
    whole = page.page(name, sections, join(state, element("span", id="connection")), LIVE_POLICY)
    return whole.replace("</head>", f'<script src="{SCRIPT}" defer="defer"></script></head>', 1)


def _tiles(found: Record, written: float | None) -> list[tuple[object, ...]]:
    """The figures that are there, with what belongs to each below it."""

    def tile(label: str, key: str, show: Any, *notes: str | Html) -> list[tuple[object, ...]]:
        below = join(*notes)
        return [(label, exact(found[key], show(found[key])), below)] if found.get(key) is not None else []

    def beside(key: str, words: str, show: Any = figure) -> str:
        return words.format(show(found[key])) if found.get(key) is not None else ""

    age = element("span", "", data_since=f"{written:.0f}") if written else ""
    left = beside("seconds_left", "{} left", duration) if found["state"] == "training" else ""
    return [
        *tile(stage_name(found["stage"]), "step", "step {:,}".format, beside("steps", "of {}; "), "last row ", age),
        *tile("Time", "seconds", duration, left),
        *tile("Loss", "loss", figure, beside("held_out_loss", "held out {}; "), "nats per token"),
        *tile("Bits per byte", "bits_per_byte", figure, beside("held_out_bits_per_byte", "held out {}")),
        *tile("Tokens per second", "tokens_per_second", figure, beside("tokens", "{} tokens so far")),
        *tile("Use of the device (MFU)", "mfu", percent, beside("flops_per_second", "{} FLOP/s", si)),
        *tile("Peak memory", "memory", byte_size),
        *tile("Waiting for data", "data_wait", percent, "of the time"),
        *tile("Learning rate", "learning_rate", figure),
        *tile("Gradient norm", "grad_norm", figure, "before it is clipped"),
        *tile("Steps left out", "steps_left_out", str, "as too odd to learn from"),
    ]  # fmt: skip


def si(value: float) -> str:
    """A large number with its unit's prefix: `34.1 G`."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} P"


def _progress(metrics: Sequence[Record]) -> Html:
    """One bar per stage, of its steps."""
    shares = {row["stage"]: row["step"] / row["steps"] for row in metrics if row.get("steps")}
    return page.bars([Bar(stage_name(stage), share, exact(share, percent(share))) for stage, share in shares.items()], full=1.0)
