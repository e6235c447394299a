"""`hornbook try rates|optimizers RECIPE.toml`: which rate, which optimizer, seen in minutes on the recipe's own text."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hornbook.cli.console import parse, voice
from hornbook.config import from_toml
from hornbook.errors import UserError
from hornbook.files import write_text
from hornbook.stages.settings import Recipe

STEPS = {"rates": 100, "optimizers": 30}


@dataclass(frozen=True)
class TryOut:
    """Raise the rate until the loss does not fall any more (rates), or compare SGD, Adam, AdamW and Muon (optimizers)."""

    what: Annotated[Literal["rates", "optimizers"], tyro.conf.Positional]
    recipe: Annotated[Path, tyro.conf.Positional]
    """A pretraining recipe, whose corpus and tokenizer are made, or kept, in its `out`."""
    steps: int | None = None
    """Of the sweep (100 unless given), or of each trial of an optimizer (30)."""
    rows: int | None = None
    """Rows per micro-batch: a quarter of the recipe's unless given, which is enough to see a rate fail."""
    low: float = 1e-5
    """The first rate of the sweep."""
    high: float = 10.0
    """The last rate of the sweep, which ends sooner where the loss is hopeless."""
    out: Path | None = None
    """The run's folder, where it is not the recipe's."""
    html: Path | None = None
    """The page; unless given, try-rates.html or try-optimizers.html in the run's folder."""
    json: bool = False
    device: str = "auto"


def main(arguments: Sequence[str]) -> None:
    settings = parse(TryOut, "try", arguments)
    for name in ("steps", "rows"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise UserError(f"{name} must be at least 1: {value}", where=f"--{name}", fix="leave it out, or give a larger one")
    recipe = from_toml(Recipe, settings.recipe)
    rows, out = settings.rows or max(1, recipe.rows // 4), str(settings.out or recipe.out)
    recipe = dataclasses.replace(recipe, rows=rows, out=out, device=settings.device)
    html = settings.html or Path(out) / f"try-{settings.what}.html"
    print(f"hornbook try {settings.what}: {recipe.data} -> {html}", file=sys.stderr, flush=True)
    from hornbook.stages import try_out
    from hornbook.stages.try_out_page import NOTE, page_of, tables

    steps, speak = settings.steps or STEPS[settings.what], voice()
    trials = try_out.trials(recipe, speak)
    record: dict[str, Any] = {"what": settings.what, "recipe": str(settings.recipe)}
    if settings.what == "rates":
        record |= try_out.try_rates(trials, steps, settings.low, settings.high, speak)
    else:
        record |= try_out.try_optimizers(trials, steps, speak)
    write_text(html, page_of(record))
    print(html, file=sys.stderr)
    if settings.json:
        print(json.dumps(record, ensure_ascii=False))
        return
    for title, header, cells in tables(record):
        print_table(title, header, cells)
    if settings.what == "optimizers":
        print(NOTE)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    wide = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"{title}\n")
    for cells in (header, *rows):
        print("  ".join([cells[0].ljust(wide[0]), *(cell.rjust(room) for cell, room in zip(cells[1:], wide[1:], strict=True))]))
    print()
