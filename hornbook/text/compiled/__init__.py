"""Byte-pair encoding as machine code, through Numba: `cut` texts, `merge` a piece, `encode` texts, `count` pieces, `learn` merges.

Compiled when it is imported: once per machine, some seconds long, and then read from the user's cache folder (NUMBA_CACHE_DIR names
another). Types are Numba's: a file of this package is not checked by mypy.
"""

import hashlib
import os
from pathlib import Path

import numba

_sources = sorted(Path(__file__).parent.glob("*.py")) + [Path(__file__).parents[1] / "scan.py"]
_version = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:16]
_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook" / "compiled"
_before = numba.config.CACHE_DIR
# Numba looks for changes in the file of a function alone, and these files use one another: what changed gets a folder of its own.
numba.config.CACHE_DIR = os.path.join(_before or _root, _version)
try:
    from hornbook.text.compiled import count, cut, encode, learn, merge
finally:
    numba.config.CACHE_DIR = _before

__all__ = ["count", "cut", "encode", "learn", "merge"]
