"""A record of `stages/try_out.py` -> tables for a terminal and one self-contained page. Nothing here measures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hornbook import page
from hornbook.page import Html, figure

Record = Mapping[str, Any]
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
SHOWN = 12  # lines of a sweep's table
NOTE = (
    "* The best of the rates that were tried is the first or the last of them: a better one may lie beyond.\n"
    "Adam and AdamW differ in how they decay, so without decay they are one."
)
TASKS = {"one_batch": "One batch, learned by heart", "short_run": "A short run on new text"}


def tables(record: Record) -> Iterator[Table]:
    """(title, header, rows) of each table, every cell a string."""
    if record["what"] == "rates":
        rows = record["smooth"]
        chosen = rows[:: max(1, math.ceil(len(rows) / SHOWN))]
        cells = [(f"{row['rate']:.1e}", f"{row['loss']:.3f}") for row in chosen]
        title = (
            f"{record['optimizer']}: the loss is least at {record['lowest']:.2g}; suggested rate {record['suggested']:.2g} "
            f"(the recipe says {record['recipe_rate']:g})"
        )
        yield title, ("rate", "loss, averaged"), cells
        return
    for task, title in TASKS.items():
        found = record[task]
        header = ["optimizer", "rates tried: loss", "", "", "best rate", "loss"]
        header += ["held-out bits/byte"] if task == "short_run" else []
        yield (
            f"{title}: {record['steps']} steps of {record['rows']} x {record['context']} tokens, decay {record['weight_decay']:g}",
            header,
            [_row(kind, best, task) for kind, best in found.items()],
        )


def _row(kind: str, best: Record, task: str) -> list[str]:
    tried = [f"{row['rate']:g}: {'diverged' if row['loss'] is None else format(row['loss'], '.3f')}" for row in best["tried"]]
    row = [kind, *tried, f"{best['rate']:g}{'*' if best['at_an_end'] else ''}", figure(best["loss"])]
    return [*row, figure(best.get("held_out_bits_per_byte"))] if task == "short_run" else row


def page_of(record: Record) -> str:
    """The page of either verb: its charts, then its tables."""
    shown = [page.section(title, page.table(header, cells)) for title, header, cells in tables(record)]
    if record["what"] == "rates":
        return page.page(f"Learning rates of {record['recipe']}", [_sweep(record), *shown], f"optimizer {record['optimizer']}")
    charts = page.section(
        "Loss by step, each at its own best rate", page.row(*(_curves(record[task], TASKS[task]) for task in TASKS))
    )
    return page.page(
        f"Optimizers on {record['recipe']}",
        [charts, *shown, *map(page.paragraph, NOTE.splitlines())],
        f"{record['seconds']:.0f} seconds",
    )


def _sweep(record: Record) -> Html:
    every = [(row["rate"], row["loss"]) for row in record["sweep"]]
    smooth = [(row["rate"], row["loss"]) for row in record["smooth"]]
    low, high = (edge(loss for _, loss in smooth) for edge in (min, max))
    marked = {"each step": every, "averaged": smooth, "suggested": [(record["suggested"], low), (record["suggested"], high)]}
    note = "The rate rises at every step. Where the averaged loss is least the rate is too large; a third of it is suggested."
    chart = page.lines(marked, "learning rate", "Loss, nats per token", width=960, log_x=True)
    return page.section("Loss by rate", chart, note=note)


def _curves(found: Mapping[str, Record], title: str) -> Html:
    curves = {kind: [(float(step), loss) for step, loss in enumerate(best["losses"], 1)] for kind, best in found.items()}
    return page.lines(curves, "step", f"{title}: loss", log_y=True)
