"""A record of `stages/stability.py` -> its table, and one picture of all runs, each against the recipe as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from hornbook.stages.pictures import COLORS, QUIET, WIDTH, Picture

Record = Mapping[str, Any]
HEADER = ("remedy", "final losses", "worst loss", "rose at step", "largest gradient", "largest logit", "left out")
COLUMNS = 4
TOP = 10.0  # times the first loss: higher ones are drawn there, so that the others can be told apart


def table(record: Record) -> list[list[str]]:
    """A row per remedy: a final loss per seed, or the step at which the run ended; the worst of the other figures."""
    rows = []
    for remedy in record["remedies"]:
        runs = remedy["runs"]
        known = {name: [run[name] for run in runs if run[name] is not None] for name in ("worst", "rose", "gradient", "logit")}
        finals = [f"{run['final']:.2f}" if run["final"] is not None else f"×{run['last_step']}" for run in runs]
        figures = [f"{max(known[name]):.3g}" if known[name] else "–" for name in ("worst", "gradient", "logit")]
        rose = str(min(known["rose"])) if known["rose"] else "–"
        rows.append([remedy["name"], " ".join(finals), figures[0], rose, *figures[1:], str(sum(run["left_out"] for run in runs))])
    return rows


def note(record: Record) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["settings"].items())
    seeds = ", ".join(str(run["seed"]) for run in record["remedies"][0]["runs"])
    return (
        f"{record['steps']} steps; {settings}. Final losses: the mean of the last tenth of the steps, from seeds {seeds}; ×: a run "
        "ended there. Of all seeds: the loss that stood the highest above the best before it, the first step that stood "
        f"{record['rise']:g} nat above it, the largest gradient norm, the largest logit of attention (before any softcap), and the "
        "steps that were not finite, which end a run, or that the guard found odd."
    )


def picture(record: Record) -> Picture:
    """Losses above, attention logits below; gray: the recipe as it is."""
    plain, *others = record["remedies"]
    rows, top = math.ceil(len(others) / COLUMNS), TOP * plain["runs"][0]["losses"][0]["loss"]
    drawn = Figure(figsize=(WIDTH, 2.5 * 2 * rows), layout="constrained")
    for half, (key, value, said) in enumerate((("losses", "loss", "loss, nats"), ("logits", "logit", "largest logit"))):
        first: Axes | None = None
        for place, remedy in enumerate(others):
            panel = drawn.add_subplot(2 * rows, COLUMNS, half * rows * COLUMNS + place + 1, sharex=first, sharey=first)
            first = first or panel
            for shown, color, width in ((plain, QUIET, 1.0), (remedy, COLORS[half], 1.6)):
                for run in shown["runs"]:
                    points = [(point["step"], min(point[value], math.inf if half else top)) for point in run[key]]
                    panel.plot(*zip(*points, strict=True), color=color, linewidth=width)
                    if run["final"] is None:
                        panel.plot(*points[-1], "x", color=color, markersize=7, markeredgewidth=2)
            panel.set(yscale="log", ylabel=said if place % COLUMNS == 0 else "")
            if not half:
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_major_formatter("{x:g}")
                panel.minorticks_off()
            panel.set_title(remedy["name"], fontsize=12)
            panel.set_xlabel("step" if place >= len(others) - COLUMNS else "")
            panel.grid(True)
    legend = f"Color: the remedy that the title names; gray: the recipe as it is; ×: a run ended. Losses are cut at {top:.0f}. "
    return Picture(f"What holds {record['recipe']}", legend + note(record), drawn, (HEADER, table(record)))
