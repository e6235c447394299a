"""`hornbook plan MODEL_OR_CONFIG`: what a model takes, before anything is loaded or trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hornbook.cli.console import parse
from hornbook.plan.memory import MIXED, PLAIN

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Size = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Count a model's parameters by use, the bytes of its weights, of its training and of its cache; nothing is loaded."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run folder, a config.json, or a size such as 7B, 7e9, 124M or 1.5T."""
    json: bool = False


def main(arguments: Sequence[str]) -> None:
    settings = parse(Plan, "plan", arguments)
    from hornbook.stages.plan import planned

    record = planned(settings.model)
    if settings.json:
        print(json.dumps(record, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts(record):
        console.print(part, markup=False)


def parts(record: dict[str, Any]) -> Iterator[RenderableType]:
    """The record as tables and sentences, in the order of reading."""
    found = record["parameters"]
    yield f"{record['asked']}: {found['total']:,} parameters{' (' + record['model_type'] + ')' if 'model_type' in record else ''}\n"
    if "groups" in found:
        yield _groups(found)
        if found["tied"]:
            yield f"The head is tied to the embedding: {found['tied']:,} weights serve both and are counted once, there."
        yield ""
    yield _weights(record["weights"])
    yield "Scales of fp8, int8 and int4 weights are not counted.\n"
    yield _training(record["training"])
    yield _rule(record["training"])
    if "cache_bf16" in record:
        yield _cache(record["cache_bf16"])
    if "vocabulary" in record:
        yield f"\nVocabulary: {record['vocabulary']['explained']}"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _groups(found: dict[str, Any]) -> Table:
    table, total = _table("Parameters", "", "count", "share"), found["total"]
    rows = {name: many for name, many in found["groups"].items() if many} | {"total": total}
    if found["active"] != total:
        rows["active_per_token"] = found["active"]
    for name, many in rows.items():
        table.add_row(name.replace("_", " "), f"{many:,}", f"{many / total:.2%}")
    return table


def _weights(weights: dict[str, Size]) -> Table:
    table = _table("Weights", "", "bytes each", "GB (10^9)", "GiB (2^30)")
    for name, size in weights.items():
        table.add_row(name, *_three(size))
    return table


def _training(training: dict[str, dict[str, Size]]) -> Table:
    columns = [name for recipe in ("mixed", "fp32") for name in (recipe, "GB", "GiB")]
    table = _table("Training with AdamW: bytes per parameter, and their sum", "", *columns)
    for item in training[MIXED]:
        cells = [_three(items[item]) if item in items else ("", "", "") for items in (training[MIXED], training[PLAIN])]
        table.add_row(item.replace("_", " "), *cells[0], *cells[1])
    return table


def _three(size: Size) -> tuple[str, str, str]:
    return f"{size['bytes_each']:g}", f"{size['GB']:,.4g}", f"{size['GiB']:,.4g}"


def _rule(training: dict[str, dict[str, Size]]) -> str:
    mixed, plain = (training[name]["total"]["bytes_each"] / training[name]["weights"]["bytes_each"] for name in (MIXED, PLAIN))
    return (
        f'The rule of thumb "training is 4 times the weights": it is {plain:g} times fp32 weights in plain fp32, and {mixed:g} '
        "times bf16 weights in mixed precision. Activations are not in it: they grow with the batch and its context.\n"
    )


def _cache(cache: dict[str, Any]) -> str:
    begin = f"Cache: {cache['values_per_token']:,} keys and values per token, {cache['per_token']['bytes']:,} bytes in bf16"
    if "context" not in cache:
        return f"{begin}."
    _, gb, gib = _three(cache["per_context"])
    return f"{begin}; {gb} GB ({gib} GiB) for {cache['context']:,} tokens, the model's longest context."
