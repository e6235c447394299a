"""Byte-pair encoding as machine code, through Numba: `cut` texts, `merge` a piece, `encode` texts, `count` pieces, `learn` merges.

A part is compiled when it is imported, through `part`: once per machine, some seconds long, and then read from the user's cache
folder (NUMBA_CACHE_DIR names another). Types are Numba's: a file of this package is not checked by mypy.
"""

import hashlib
import importlib
import os
import threading
from pathlib import Path
from typing import Any

import numba

_sources = sorted(Path(__file__).parent.glob("*.py")) + [Path(__file__).parents[1] / "scan.py"]
_version = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:16]
_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook" / "compiled"
PAD = 16  # bytes behind the last document, so that eight may be read at once
_one_at_a_time = threading.Lock()


def part(name: str) -> Any:
    """A module of this package. Encoding needs no more than `encode`, learning `count` and `learn`: nobody waits for the others."""
    with _one_at_a_time:
        before = numba.config.CACHE_DIR
        # Numba looks for changes in the file of a function alone, and these use one another: what changed gets a folder of its own.
        numba.config.CACHE_DIR = os.path.join(before or _root, _version)
        try:
            return importlib.import_module(f"{__name__}.{name}")
        finally:
            numba.config.CACHE_DIR = before


def warm() -> None:
    """Compile every part, or read it from the cache."""
    for name in ("encode", "count", "learn"):
        part(name)
