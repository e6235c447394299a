"""A record of `stages/stability.py` -> its table, and one picture of all runs, each against the recipe as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hornbook.page import figure
from hornbook.stages.pictures import COLORS, QUIET, WIDTH, Picture

Record = Mapping[str, Any]
HEADER = ("run", "final loss", "worst loss", "diverged at step", "largest gradient", "largest logit", "left out")
COLUMNS = 4


def table(record: Record) -> list[list[str]]:
    """A row per run; a run that did not get to its last step has no final loss."""
    return [
        [
            run["name"], figure(run["final"]) if run["final"] is not None else f"ended at step {run['last_step']}",
            figure(run["worst"]), "–" if run["diverged"] is None else str(run["diverged"]),
            *(_short(run[name]) for name in ("gradient", "logit")), str(run["left_out"]),
        ]
        for run in record["runs"]
    ]  # fmt: skip


def note(record: Record) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["settings"].items())
    return (
        f"{record['steps']} steps; {settings}. Final: the mean of the last tenth of the steps. Worst: the loss that stood the "
        f"highest above the best before it. Diverged: the first step more than {record['rise']:g} nat above the best before it, or "
        "not finite. Logit: of attention, before any softcap."
    )


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def picture(record: Record) -> Picture:
    """Losses above, attention logits below; gray: the recipe as it is."""
    plain, *others = record["runs"]
    rows = math.ceil(len(others) / COLUMNS)
    drawn = Figure(figsize=(WIDTH, 2.5 * 2 * rows), layout="constrained")
    for half, (key, value, said) in enumerate((("losses", "loss", "loss, nats"), ("logits", "logit", "largest logit"))):
        first: Axes | None = None
        for place, run in enumerate(others):
            panel = drawn.add_subplot(2 * rows, COLUMNS, half * rows * COLUMNS + place + 1, sharex=first, sharey=first)
            first = first or panel
            for shown, style in ((plain, {"color": QUIET, "linewidth": 1.2}), (run, {"color": COLORS[half], "linewidth": 1.6})):
                _line(panel, shown[key], value, record["steps"], style)
            panel.set_yscale("log")
            panel.set_title(run["name"], fontsize=12)
            panel.grid(True)
            if place % COLUMNS == 0:
                panel.set_ylabel(said)
            if place >= len(others) - COLUMNS:
                panel.set_xlabel("step")
    legend = "Color: the run that the title names. Gray: the recipe as it is; × where a run ended, since a step was not finite. "
    return Picture(f"What holds {record['recipe']}", legend + note(record), drawn, (HEADER, table(record)))


def _line(panel: Axes, points: Sequence[Record], value: str, steps: int, style: dict[str, Any]) -> None:
    x, y = [point["step"] for point in points], [point[value] for point in points]
    panel.plot(x, y, **style)
    if x and x[-1] < 0.97 * steps:
        panel.plot(x[-1:], y[-1:], "x", color=style["color"], markersize=8, markeredgewidth=2)
