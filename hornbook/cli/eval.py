"""`hornbook eval MODEL`: score a model on a task file, or on text that it has not seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hornbook.cli.console import opened, parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class Eval:
    """Score a model: exact match or choices on --task, bits per byte on --text."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run folder, or hf:OWNER/NAME."""
    task: Path | None = None
    """JSONL rows of question/answer, query/choices/gold, or context/continuation."""
    text: str | None = None
    """A file, folder or glob of text for bits per byte."""
    limit: int | None = None
    device: str = "auto"
    json: bool = False


def main(arguments: Sequence[str]) -> None:
    settings = parse(Eval, "eval", arguments)
    if (settings.task is None) == (settings.text is None):
        raise UserError("eval needs either --task or --text", fix="hornbook eval MODEL --task questions.jsonl")
    if settings.limit is not None and settings.limit < 1:
        raise UserError(f"limit must be at least 1: {settings.limit}", where="--limit", fix="leave it out to take everything")
    from hornbook.data.documents import Intake
    from hornbook.data.sources import open_corpus
    from hornbook.evals.task import bits_per_byte, run_task
    from hornbook.families import context_length, decoder
    from hornbook.ranks import choose_device

    device = choose_device(settings.device)
    print(f"device: {device}", file=sys.stderr)
    loaded, tokenizer = opened(settings.model)
    model = decoder(loaded, settings.model).to(device)
    if settings.task is not None:
        score = run_task(model, tokenizer, settings.task, settings.limit).record()
        low, high = score["interval"]
        line = f"{score['correct']} of {score['total']} right: {score['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"
        print(json.dumps(score, ensure_ascii=False) if settings.json else line)
        return
    texts = [document.text for document in open_corpus(str(settings.text), Intake()) if document.text][: settings.limit]
    found = bits_per_byte(model, tokenizer, texts, context_length(model) or 256)
    within = "no interval from one document" if found.interval is None else "95 % interval {:.4f} to {:.4f}".format(*found.interval)
    line = f"{found.value:.4f} bits per byte ({within}) on {found.documents} documents, {found.bytes:,} bytes"
    print(json.dumps(found.record()) if settings.json else line)
