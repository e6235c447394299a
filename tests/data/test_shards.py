"""Token shards: the bytes on disk against Python's own packing, and back."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from hornbook.data.shards import id_type, read_ids, write_ids

# vocabulary, struct's code for one id, ids at the ends of its range
CASES = [(300, "H", [0, 299]), (1 << 16, "H", [0, 255, 256, 65535]), ((1 << 16) + 1, "I", [0, 65536]), (1 << 20, "I", [1048575])]


@pytest.mark.parametrize(("vocab", "code", "edges"), CASES)
def test_the_file_is_the_ids_one_after_the_other(tmp_path: Path, vocab: int, code: str, edges: list[int]) -> None:
    random = np.random.default_rng(0)
    documents = [edges, [], *(random.integers(0, vocab, size).tolist() for size in (1, 7, 100)), [edges[-1]]]
    flat = [token for document in documents for token in document]
    written = write_ids(tmp_path / "ids.bin", (np.array(document, np.uint32) for document in documents), vocab)
    assert written == len(flat)
    assert (tmp_path / "ids.bin").read_bytes() == struct.pack(f"<{len(flat)}{code}", *flat)
    ids = read_ids(tmp_path / "ids.bin", vocab)
    assert ids.tolist() == flat
    assert isinstance(ids, np.memmap), "mapped and not loaded"


@pytest.mark.parametrize("documents", [[], [np.empty(0, np.uint32)]])
def test_no_ids_are_an_empty_array(tmp_path: Path, documents: list[np.ndarray]) -> None:
    assert write_ids(tmp_path / "ids.bin", documents, 300) == 0
    ids = read_ids(tmp_path / "ids.bin", 300)
    assert len(ids) == 0 and ids.dtype == id_type(300)
