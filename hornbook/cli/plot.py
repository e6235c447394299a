"""`hornbook plot PICTURE --out FILE`: one picture, as .svg, .png or a .html page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hornbook.cli.console import opened, parse
from hornbook.errors import UserError, near


@dataclass(frozen=True)
class Plot:
    """Draw activations, mask, rope or dtypes, or the attention of a model on a text."""

    picture: Annotated[str, tyro.conf.Positional]
    """activations, mask, rope, dtypes or attention."""
    out: Path | None = None
    """A .svg, .png or .html file; by default the picture's name with .svg."""
    model: str | None = None
    """For attention: a model folder or a run folder."""
    text: str | None = None
    """For attention: what the model reads."""
    layers: tuple[int, ...] = ()
    """For attention: which layers, counted from 0; by default the first, the middle and the last."""
    device: str = "auto"


def main(arguments: Sequence[str]) -> None:
    settings = parse(Plot, "plot", arguments)
    from hornbook.stages.pictures import PICTURES, Picture, attention, draw

    def of_model() -> Picture:
        from hornbook.families import decoder
        from hornbook.ranks import choose_device

        if not settings.model or not settings.text:
            raise UserError(
                "attention needs a model and a text", fix="hornbook plot attention --model runs/quickstart --text 'A story'"
            )
        device = choose_device(settings.device)
        print(f"device: {device}", file=sys.stderr)
        model, tokenizer = opened(settings.model)
        return attention(decoder(model, settings.model).to(device), tokenizer, settings.text, settings.layers)

    known = {**PICTURES, "attention": of_model}
    if settings.picture not in known:
        raise UserError(f"no such picture: {settings.picture!r}", where="hornbook plot", fix=near(settings.picture, known))
    given = [name for name in ("model", "text", "layers") if getattr(settings, name)]
    if given and settings.picture in PICTURES:
        raise UserError(f"{settings.picture} is drawn without a model", where=f"--{given[0]}", fix=f"leave out --{given[0]}")
    out = settings.out or Path(f"{settings.picture}.svg")
    draw(out, known[settings.picture])
    print(out)
