"""What a person sees while a command works, on stderr: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hornbook.errors import UserError
from hornbook.ranks import speaks
from hornbook.stages.voice import Silent, Voice

if TYPE_CHECKING:
    from hornbook.families import Model
    from hornbook.text.tokenizer import Tokenizer

T = TypeVar("T")
EVERY = 5.0  # seconds between two plain progress lines
FORMATS = {
    "loss": ("loss", "{:.3f}"),
    "bits_per_byte": ("bits/byte", "{:.3f}"),
    "held_out_bits_per_byte": ("held-out bits/byte", "{:.3f}"),
    "held_out_loss": ("held-out loss", "{:.3f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "documents": ("documents", "{:,.0f}"),
    "merges": ("merges", "{:,.0f}"),
}


def parse(kind: type[T], verb: str, arguments: Sequence[str], default: T | None = None) -> T:
    """The verb's settings from its arguments. `--help` is the parser's; its complaints become an error with a remedy."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            settings: Any = tyro.cli(kind, prog=f"hornbook {verb}", args=list(arguments), default=default)
    except SystemExit as left:
        if not left.code:
            raise
        raise _ours(left) or _misused(verb, said.getvalue(), arguments) from left
    return cast(T, settings)


def _ours(error: BaseException | None) -> UserError | None:
    """The settings' own refusal, of which the parser kept the words alone."""
    while error is not None and not isinstance(error, UserError):
        error = error.__context__
    return error


def _misused(verb: str, said: str, arguments: Sequence[str]) -> UserError:
    """The parser's complaint, which it draws as a box: its first paragraph, and the option that it thinks was meant."""
    words = re.sub(r"[╭╮╰╯│─]+", " ", re.split(r"─{4,} *│|Perhaps you meant", said.partition("\n")[2])[0]).split()
    meant = re.search(r"Perhaps you meant:\W+(--[\w.-]+)", said)
    fix = f"hornbook {verb} --help lists the options"
    for one, two in pairwise(arguments):
        if one.startswith("--") and two.lower() in ("true", "false") and f"Unrecognized options: {two}" in " ".join(words):
            place, dot, name = one[2:].rpartition(".")
            fix = f"a switch takes no value: {one}, or --{place}{dot}no-{name}"
    return UserError(
        "the command line cannot be read", where=f"hornbook {verb}", why=" ".join(words),
        fix=f"did you mean {meant.group(1)}? {fix}" if meant else fix,
    )  # fmt: skip


def opened(model: str) -> tuple[Model, Tokenizer]:
    """The model and tokenizer that a verb's MODEL names; what comes over the network is said on stderr."""
    from hornbook.checkpoint.pretrained import load

    return load(model, say=lambda line: print(line, file=sys.stderr, flush=True))


def program() -> str:
    """How the user can call hornbook again: as a module where it was called so, by its name where the shell finds it, else by the
    path that was used.
    """
    if sys.argv[0].endswith("__main__.py"):
        return "python -m hornbook"
    return "hornbook" if shutil.which("hornbook") else sys.argv[0]


def again(command: str) -> str:
    """`hornbook VERB ...` as the user can type it, to start as many processes as there are now."""
    words, here = command.removeprefix("hornbook"), os.environ.get("LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return program() + words
    one_node = here == os.environ.get("WORLD_SIZE")
    return f"torchrun --nproc-per-node {here} -m hornbook{words}" if one_node else "the same torchrun command"


def voice() -> Voice:
    if not speaks():
        return Silent()
    return Live() if sys.stderr.isatty() else Plain()


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def figures_line(figures: dict[str, float]) -> str:
    known = [(FORMATS[name], value) for name, value in figures.items() if name in FORMATS]
    return "  ".join(f"{label} {form.format(value)}" for (label, form), value in known)


class Plain:
    """Lines for a log file: each stage's begin and end, and its progress every few seconds."""

    def __init__(self) -> None:
        self.stage, self.began, self.shown, self.figures = "", 0.0, 0.0, dict[str, float]()

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, stage: str, doing: str) -> None:
        self.stage, self.began, self.shown, self.figures = stage, time.perf_counter(), time.perf_counter(), {}
        self.line(f"{stage}: {doing}")

    def progress(self, done: float, total: float, figures: dict[str, float]) -> None:
        self.figures |= figures
        now = time.perf_counter()
        if now - self.shown < EVERY or not done:
            return
        self.shown = now
        left = (now - self.began) * (total - done) / done
        self.line(f"  {self.stage} {done / total:4.0%}  {figures_line(self.figures)}  left {clock(left)}")

    def end(self, outcome: str) -> None:
        self.line(f"  {outcome} ({clock(time.perf_counter() - self.began)})")

    def say(self, text: str) -> None:
        self.line(f"  {text}")


class Live:
    """A bar with figures for the stage at work; finished stages stay as lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        figures = TextColumn("{task.fields[figures]}"), TextColumn("left"), TimeRemainingColumn()
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn(), *figures
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task: Any = None
        self.stage, self.began, self.figures = "", 0.0, dict[str, float]()

    def begin(self, stage: str, doing: str) -> None:
        self.stage, self.began, self.figures = stage, time.perf_counter(), {}
        self.console.print(f"[bold]{stage}[/bold]  {doing}")
        self.task = self.bar.add_task(stage, total=None, figures="")
        self.bar.start()

    def progress(self, done: float, total: float, figures: dict[str, float]) -> None:
        self.figures |= figures
        self.bar.update(self.task, completed=done, total=total, figures=figures_line(self.figures))

    def end(self, outcome: str) -> None:
        self.bar.stop()
        self.bar.remove_task(self.task)
        self.console.print(f"  [green]✓[/green] {outcome} [dim]({clock(time.perf_counter() - self.began)})[/dim]", markup=True)

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", markup=False)
