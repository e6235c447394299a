"""The five exceptions, each one because a caller acts differently on it.

`UserError` ends a command with exit code 2 and one screen of text that closes with a `Fix:` line. `DamagedError` is stored
data that does not verify: the reader falls back to the last good copy. `BusyError` is a folder that another process holds.
`Lost` is a rank that the others wait for in vain, which each says at once, for the first one may be lost. `Interrupted` is a run
that stopped on purpose after it had saved.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What went wrong with something the user gave, where, why, and what to do about it."""

    def __init__(self, what: str, *, fix: str, where: str | None = None, why: str | None = None):
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(self.render())

    def render(self) -> str:
        lines = [f"Error: {self.what}"]
        if self.where:
            lines.append(f"Where: {self.where}")
        if self.why:
            lines.append(f"Why:   {self.why}")
        return "\n".join([*lines, f"Fix:   {self.fix}"])


class DamagedError(UserError):
    """Stored data that does not verify: a cut file, a flipped bit, a missing manifest."""


class BusyError(UserError):
    """A folder that a living process is writing."""


class Lost(UserError):
    """A process of a run that the others waited for in vain."""


class Interrupted(Exception):
    """A run that was asked to stop, saved its state, and can be continued by the command it carries."""

    def __init__(self, resume: str):
        self.resume = resume
        super().__init__(f"stopped and saved; continue with: {resume}")


def near(word: str, choices: Iterable[str]) -> str:
    """The part of a `Fix:` line that offers the nearest known name: `did you mean 'dim'?` or the list of them."""
    known = sorted(choices)
    found = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {found[0]!r}?" if found else f"known: {', '.join(known)}"
