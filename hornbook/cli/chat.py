"""`hornbook chat MODEL`: talk to a model, turn by turn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from hornbook.cli.console import opened, parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class Chat:
    """Talk to a model. An empty line begins a new conversation, Ctrl-D leaves."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run folder, or hf:OWNER/NAME."""
    ask: str | None = None
    """Ask this one thing, print the answer and leave."""
    max_tokens: int = 200
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    device: str = "auto"


def main(arguments: Sequence[str]) -> None:
    settings = parse(Chat, "chat", arguments)
    from hornbook.cli.generate import checked
    from hornbook.families import decoder
    from hornbook.generation.decode import stream
    from hornbook.generation.sampling import Sampling
    from hornbook.ranks import choose_device

    device, sampling = choose_device(settings.device), checked(Sampling, settings)
    loaded, tokenizer = opened(settings.model)
    model = decoder(loaded, settings.model).to(device)
    print(f"device: {device}", file=sys.stderr)
    messages: list[dict[str, str]] = []

    def answer(text: str) -> None:
        messages.append({"role": "user", "content": text})
        said = ""
        for piece in stream(model, tokenizer, tokenizer.render(messages, prompt=True)[0], sampling):
            said += piece
            print(piece, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": said})

    if settings.ask is not None:
        answer(settings.ask)
        return
    if sys.stdin.isatty():
        print("An empty line begins anew, Ctrl-D leaves.", file=sys.stderr)
    while (line := _line()) is not None:
        if not line.strip():
            messages.clear()
            continue
        try:
            answer(line)
        except UserError as error:  # most likely the conversation outgrew the model's context
            print(error.render(), file=sys.stderr)
            messages.clear()


def _line() -> str | None:
    """The next line of the user; None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
