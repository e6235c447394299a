"""`hornbook quickstart`: the whole life of a language model in one command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hornbook.cli.console import clock, parse, program, voice
from hornbook.errors import UserError
from hornbook.stages.settings import Quickstart

MEMORY = "under 2 GB"


def main(arguments: Sequence[str]) -> None:
    settings = parse(Quickstart, "quickstart", arguments).completed()
    if not settings.minutes > 0:
        raise UserError(f"minutes must be above 0: {settings.minutes}", where="--minutes", fix="use --minutes 5")
    for name, least in (("steps", 1), ("depth", 1), ("vocab", 1), ("seed", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(
                f"{name} must be at least {least}: {value}", where=f"--{name}", fix="leave it out, and the plan decides"
            )
    announce(settings)
    from hornbook.stages.quickstart import command_of, quickstart  # torch comes in here

    record = quickstart(settings, voice(), command_of(settings))
    print(closing(settings, record))


def announce(settings: Quickstart) -> None:
    """What it will do, where it writes, how long and how much memory it takes: said before anything heavy is loaded."""
    how_long = f"about {settings.minutes:g} minutes" if settings.steps is None else f"{settings.steps} steps"
    print(
        f"hornbook quickstart: {settings.data} -> corpus -> tokenizer -> shards -> pretrain -> fine-tune -> evaluate -> model\n"
        f"  writes to {settings.out}   takes {how_long} and {MEMORY} of memory\n"
        f"  stop it whenever you like: the same command continues",
        file=sys.stderr,
        flush=True,
    )


def closing(settings: Quickstart, record: dict) -> str:  # type: ignore[type-arg]
    """The result in a few lines, and how to talk to the model."""
    from hornbook.stages.evaluate import summary

    megabytes = record["peak_memory_bytes"] / 1e6
    return (
        f"\nDone in {clock(record['total_seconds'])}, at most {megabytes:,.0f} MB of memory.\n"
        f"  {summary(record['evaluation'])}\n"
        f"  report   {settings.out / 'report.html'}\n"
        f"  model    {settings.out / 'model'}   (opens in transformers too)\n\n"
        f"Talk to it:\n  {program()} chat {settings.out}"
    )
