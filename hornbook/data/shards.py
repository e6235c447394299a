"""Token shards: ids of many documents as one flat file that is read through memory mapping.

Two bytes per id where the vocabulary allows it, else four, little-endian. What the ids mean is named by the tokenizer's
fingerprint, which is kept in the folder's manifest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def id_type(vocab: int) -> np.dtype[np.generic]:
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def write_ids(path: Path, documents: Iterable[NDArray[np.uint32]], vocab: int) -> int:
    """Write the ids of all documents one after the other; returns how many there are."""
    kind, total = id_type(vocab), 0
    with path.open("wb") as file:
        for ids in documents:
            file.write(ids.astype(kind).tobytes())
            total += len(ids)
    return total


def read_ids(path: Path, vocab: int) -> NDArray[np.generic]:
    """The ids, mapped and not loaded."""
    if path.stat().st_size == 0:
        return np.empty(0, id_type(vocab))
    return np.memmap(path, dtype=id_type(vocab), mode="r")
