"""`hornbook generate MODEL --prompt TEXT`: continue a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from hornbook.cli.console import opened, parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class Generate:
    """Continue a text with a model."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run folder, or hf:OWNER/NAME."""
    prompt: str = ""
    max_tokens: int = 100
    temperature: float | None = None
    """0 takes the likeliest token each time. Left out: 1 where --top-k, --top-p or -n ask for draws, else 0."""
    top_k: int | None = None
    top_p: float | None = None
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """How many texts, each with its own draws."""
    seed: int = 0
    device: str = "auto"
    json: bool = False


def main(arguments: Sequence[str]) -> None:
    settings = parse(Generate, "generate", arguments)
    from hornbook.generation.decode import generate
    from hornbook.generation.sampling import Sampling
    from hornbook.ranks import choose_device

    if settings.n < 1:
        raise UserError(f"n must be at least 1: {settings.n}", where="--n", fix="leave it out for one text")
    if settings.temperature is None:
        draws = settings.n > 1 or settings.top_k is not None or settings.top_p is not None
        settings = replace(settings, temperature=1.0 if draws else 0.0)
    device, sampling = choose_device(settings.device), checked(Sampling, settings)
    print(f"device: {device}", file=sys.stderr)
    model, tokenizer = opened(settings.model)
    found = generate(model.to(device), tokenizer, [settings.prompt] * settings.n, sampling)
    for completion in found:
        if settings.json:
            row = {"prompt": settings.prompt, **vars(completion)}
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(settings.prompt + completion.text)


def checked(kind: type, settings: object):  # type: ignore[no-untyped-def]
    """`Sampling` from a verb's settings; a value out of range names its flag."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "seed")
    try:
        return kind(**{name: getattr(settings, name) for name in names})
    except ValueError as error:
        flag = "--" + str(error).partition(" ")[0].replace("_", "-")
        raise UserError(
            "a sampling setting cannot be used", where=flag, why=str(error), fix="change it, or leave it out"
        ) from error
