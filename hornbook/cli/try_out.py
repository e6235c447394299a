"""`hornbook try rates|optimizers|stability RECIPE.toml`: which rate, optimizer or remedy, seen in minutes on its own text."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hornbook.cli.console import parse, voice
from hornbook.config import from_toml
from hornbook.errors import UserError
from hornbook.files import write_json, write_text
from hornbook.stages.settings import Recipe

STEPS = {"rates": 100, "optimizers": 30}


@dataclass(frozen=True)
class TryOut:
    """Raise the rate until the loss does not fall any more (rates), compare SGD, Adam, AdamW and Muon (optimizers), or run the
    recipe as it is and with each remedy against blowing up (stability)."""

    what: Annotated[Literal["rates", "optimizers", "stability"], tyro.conf.Positional]
    recipe: Annotated[Path, tyro.conf.Positional]
    """A pretraining recipe, whose corpus and tokenizer are made, or kept, in its `out`."""
    steps: int | None = None
    """Of the sweep (100 unless given), of each trial of an optimizer (30), or of each run for stability (the recipe's)."""
    rows: int | None = None
    """Rows per micro-batch: for stability the recipe's, else a quarter of them, which is enough to see a rate fail."""
    low: float = 1e-5
    """The first rate of the sweep."""
    high: float = 10.0
    """The last rate of the sweep, which ends sooner where the loss is hopeless."""
    out: Path | None = None
    """The run's folder, where it is not the recipe's."""
    html: Path | None = None
    """The page; unless given, try-rates.html (-optimizers, -stability) in the run's folder. Stability adds a .png and a .json."""
    json: bool = False
    device: str = "auto"


def main(arguments: Sequence[str]) -> None:
    settings = parse(TryOut, "try", arguments)
    for name in ("steps", "rows"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise UserError(f"{name} must be at least 1: {value}", where=f"--{name}", fix="leave it out, or give a larger one")
    recipe = from_toml(Recipe, settings.recipe)
    usual = recipe.rows if settings.what == "stability" else max(1, recipe.rows // 4)
    rows, out = settings.rows or usual, str(settings.out or recipe.out)
    recipe = dataclasses.replace(recipe, rows=rows, out=out, device=settings.device)
    html = settings.html or Path(out) / f"try-{settings.what}.html"
    print(f"hornbook try {settings.what}: {recipe.reads} -> {html}", file=sys.stderr, flush=True)
    from hornbook.stages import try_out
    from hornbook.stages.try_out_page import NOTE, page_of, tables

    steps, speak = settings.steps or STEPS.get(settings.what, recipe.steps), voice()
    trials = try_out.trials(recipe, speak)
    record: dict[str, Any] = {"what": settings.what, "recipe": str(settings.recipe)}
    if settings.what == "stability":
        stability(record, trials, steps, html, speak, settings.json)
        return
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


def stability(record: dict[str, Any], trials: Any, steps: int, html: Path, speak: Any, as_json: bool) -> None:
    """Run, draw, write and print."""
    from hornbook.stages.pictures import draw
    from hornbook.stages.stability import try_stability
    from hornbook.stages.stability_page import HEADER, note, picture, table

    record |= try_stability(trials, steps, speak)
    write_json(html.with_suffix(".json"), record)
    for path in (html, html.with_suffix(".png")):
        draw(path, lambda: picture(record))
        print(path, file=sys.stderr)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return
    print_table(f"{record['recipe']}, as it is and with each remedy", HEADER, table(record))
    print(textwrap.fill(note(record), 100))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    wide = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"{title}\n")
    for cells in (header, *rows):
        print("  ".join([cells[0].ljust(wide[0]), *(cell.rjust(room) for cell, room in zip(cells[1:], wide[1:], strict=True))]))
    print()
