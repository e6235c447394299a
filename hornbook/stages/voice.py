"""How a stage speaks while it works; the command line prints it, a test may listen, `Silent` keeps quiet."""

from __future__ import annotations

from typing import Protocol


class Voice(Protocol):
    def begin(self, stage: str, doing: str) -> None:
        """A stage starts."""

    def progress(self, done: float, total: float, figures: dict[str, float]) -> None:
        """How far the current stage is, with figures worth showing."""

    def end(self, outcome: str) -> None:
        """The current stage is done, with what came of it."""

    def say(self, text: str) -> None:
        """Something the user should know."""


class Silent:
    def begin(self, stage: str, doing: str) -> None:
        return

    def progress(self, done: float, total: float, figures: dict[str, float]) -> None:
        return

    def end(self, outcome: str) -> None:
        return

    def say(self, text: str) -> None:
        return
