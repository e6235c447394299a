"""Byte-pair encoding as machine code, through Numba: `cut` texts, `merge` a piece, `encode` texts, `count` pieces, `learn` merges.

Compiled when it is imported: once per machine, some seconds long, and then read from the user's cache folder (NUMBA_CACHE_DIR names
another). Types are Numba's: a file of this package is not checked by mypy.
"""

import os
from pathlib import Path

import numba

_before = numba.config.CACHE_DIR
numba.config.CACHE_DIR = _before or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook" / "compiled")
try:
    from hornbook.text.compiled import count, cut, encode, learn, merge
finally:
    numba.config.CACHE_DIR = _before

__all__ = ["count", "cut", "encode", "learn", "merge"]
