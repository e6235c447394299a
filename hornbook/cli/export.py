"""`hornbook export MODEL --out FOLDER`: a model as a folder that transformers opens without remote code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hornbook.cli.console import parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class Export:
    """Write a model and its tokenizer as a published folder."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder or a run folder."""
    out: Path


def main(arguments: Sequence[str]) -> None:
    settings = parse(Export, "export", arguments)
    from hornbook.checkpoint.pretrained import load, model_folder, save

    source = model_folder(Path(settings.model))
    if settings.out.exists() and not (settings.out.is_dir() and not any(settings.out.iterdir())):
        raise UserError("something stands at the output folder's place", where=str(settings.out), fix="choose another --out")
    model, tokenizer = load(source)
    card = source / "README.md"
    save(model, tokenizer, settings.out, card=card.read_text(encoding="utf-8") if card.exists() else "")
    print(settings.out)
