"""`hornbook watch RUN`: a run's figures in the browser while it trains, and after."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hornbook.cli.console import parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class Watch:
    """Show a run's curves, speed, memory and samples in the browser, live; one that is training, finished, or yet to begin."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder that the run writes."""
    port: int = 8100
    """0: any that is free."""
    host: str = "127.0.0.1"
    """Elsewhere than on this machine the page needs the key that is printed."""
    json: bool = False
    """Print the newest figures once, and end."""


def main(arguments: Sequence[str]) -> None:
    settings = parse(Watch, "watch", arguments)
    from hornbook.stages.watch import LOOPBACK, Watched, application

    watched = Watched(settings.run)
    if settings.json:
        print(json.dumps(watched.newest()))
        return
    import uvicorn

    key = "" if settings.host in LOOPBACK else secrets.token_urlsafe(16)
    try:
        door = socket.create_server((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot serve at {settings.host}:{settings.port}", where="--host, --port", why=str(error),
            fix="use --port 0 for any port that is free, and the name or address of this machine",
        ) from error  # fmt: skip
    with door:
        print(f"http://{settings.host}:{door.getsockname()[1]}/{'?key=' + key if key else ''}", flush=True)
        server = uvicorn.Server(uvicorn.Config(application(watched, key), log_level="warning", server_header=False, lifespan="off"))
        try:
            server.run(sockets=[door])
        except KeyboardInterrupt:
            return
