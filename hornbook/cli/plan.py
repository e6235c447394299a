"""`hornbook plan MODEL_OR_CONFIG`: what a model takes, before anything is loaded or trained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hornbook.cli.console import parse
from hornbook.parallel.sizes import Parallel
from hornbook.plan.memory import MIXED, PLAIN

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True)
class Plan:
    """Count a model's parameters by use, the bytes of its weights, of its training and of its cache; nothing is loaded."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run folder, a config.json, or a size such as 7B, 7e9, 124M or 1.5T."""
    json: bool = False
    parallel: Parallel = field(default_factory=Parallel)
    """How a run is spread over processes: then also what each of them holds and sends, for so many rows and micro-batches."""
    rows: int = 16
    """Rows of a micro-batch, of all processes together."""
    context: int = 256
    """Tokens of a row."""
    accumulate: int = 1
    """Micro-batches per step."""


def main(arguments: Sequence[str]) -> None:
    settings = parse(Plan, "plan", arguments)
    from hornbook.stages.plan import planned

    record = planned(settings.model, settings.parallel, settings.rows, settings.context, settings.accumulate)
    if settings.json:
        print(json.dumps(record, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts(record):
        console.print(part, markup=False)


def parts(record: dict[str, Any]) -> Iterator[RenderableType]:
    """The record as tables and sentences, in the order of reading."""
    found, training = record["parameters"], record["training"]
    mixed, plain = training[MIXED], training[PLAIN]
    yield f"{record['asked']}: {found['total']:,} parameters{' (' + record['model_type'] + ')' if 'model_type' in record else ''}\n"
    if "groups" in found:
        rows = {name: many for name, many in found["groups"].items() if many} | {"total": found["total"]}
        rows |= {"active_per_token": found["active"]} if found["active"] != found["total"] else {}
        yield _table("Parameters", ("count", "share"), ((k, f"{v:,}", f"{v / found['total']:.2%}") for k, v in rows.items()))
        if found["tied"]:
            yield f"Tied: {found['tied']:,} weights serve in two places, as embedding and head do, and are counted once."
        yield ""
    weights = ((name, *_three(size)) for name, size in record["weights"].items())
    yield _table("Weights", ("bytes each", "GB (10^9)", "GiB (2^30)"), weights)
    yield "Scales of fp8, int8 and int4 weights are not counted.\n"
    items = ((name, *_three(size), *(_three(plain[name]) if name in plain else ("", "", ""))) for name, size in mixed.items())
    yield _table("Training with AdamW: bytes per parameter, and their sum", ("mixed", "GB", "GiB", "fp32", "GB", "GiB"), items)
    times = [recipe["total"]["bytes_each"] / recipe["weights"]["bytes_each"] for recipe in (plain, mixed)]
    yield (
        f'The rule of thumb "training is 4 times the weights": it is {times[0]:g} times fp32 weights in plain fp32, and '
        f"{times[1]:g} times bf16 weights in mixed precision. Activations are not in it: they grow with the batch and its context."
    )
    if "processes" in record:
        yield from _processes(record["processes"])
    if "cache_bf16" in record:
        yield _cache(record["cache_bf16"])
    if "vocabulary" in record:
        yield f"\nVocabulary: {record['vocabulary']['explained']}"


def _processes(found: dict[str, Any]) -> Iterator[RenderableType]:
    """Where the stages of a pipeline differ, each row is that of the stage that has the most."""
    rows = []
    for kind, words in (("memory", ""), ("sent_per_step", "sent per step: ")):
        for name in found["stages"][0][kind]:
            most = max(stage[kind][name] for stage in found["stages"])
            rows.append((words + name, f"{most / 1e9:,.4g}", f"{most / 2**30:,.4g}"))
    yield ""
    yield _table(f"One of {found['world']} processes", ("GB", "GiB"), rows)
    yield (
        f"Plain fp32 with AdamW, {found['rows']} rows of {found['context']} tokens, of all processes together, "
        f"{found['accumulate']} times a step. What it sends it gets as well. "
        "Activations are not in its memory, nor the one or two blocks that ZeRO 3 gathers at a time."
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column names the rows; the others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table("", title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in rows:
        table.add_row(name.replace("_", " "), *cells)
    return table


def _three(size: dict[str, Any]) -> tuple[str, str, str]:
    return f"{size['bytes_each']:g}", f"{size['GB']:,.4g}", f"{size['GiB']:,.4g}"


def _cache(cache: dict[str, Any]) -> str:
    begin = f"\nCache: {cache['values_per_token']:,} keys and values per token, {cache['per_token']['bytes']:,} bytes in bf16"
    if "context" not in cache:
        return f"{begin}."
    _, gb, gib = _three(cache["per_context"])
    return f"{begin}; {gb} GB ({gib} GiB) for {cache['context']:,} tokens, the model's longest context."
