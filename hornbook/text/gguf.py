"""The first part of a GGUF file: bytes of a stranger in, its metadata as checked values out.

One idea: every read is a step forward that first asks whether the file has those bytes, so no count or length in the file can
make us allocate more than the file holds. The layout is the specification that ggml publishes (docs/gguf.md).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hornbook.errors import DamagedError, UserError

SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Metadata:
    """The keys of a GGUF file and their values: numbers, strings, arrays, lists of strings."""

    where: str
    metadata: dict[str, Any]

    def key(self, key: str, kind: type[Any]) -> Any:
        """A value of the type; a float in the few digits that float32 needs, so that 1e-5 stays 1e-5."""
        if key not in self.metadata:
            raise self.odd(key, "it is not there")
        value = self.metadata[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.odd(key, f"it is no {kind.__name__}")
        return float(str(np.float32(value))) if kind is float else value

    def flag(self, key: str, usual: bool) -> bool:
        """A switch, as it usually is where the file does not say."""
        value = self.metadata.get(key, usual)
        if not isinstance(value, int):
            raise self.odd(key, "it is neither true nor false")
        return bool(value)

    def odd(self, key: str, why: str) -> UserError:
        fix = "choose another file, or convert the model again"
        return UserError(f"{key!r} cannot be used", where=self.where, why=why[:500], fix=fix)


class Steps:
    """A place in the file that only moves forward, and only over bytes that are there."""

    def __init__(self, data: bytes | mmap.mmap, where: str):
        self.data, self.where, self.at = data, where, 0

    def refuse(self, why: str) -> NoReturn:
        raise DamagedError("the GGUF file cannot be read", where=self.where, why=why, fix="download or export the model again")

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            self.refuse(f"it ends inside {what}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def string(self, what: str) -> str:
        raw = self.take(self.number(8, what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"{what} is not UTF-8: {error.reason}")


def opened(path: Path) -> Steps:
    """A GGUF file at its first byte."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except OSError as error:
        raise UserError("the file cannot be read", where=str(path), why=str(error), fix="name a .gguf file") from error
    return Steps(data, str(path))


def read_metadata(steps: Steps) -> tuple[int, dict[str, Any]]:
    """The number of tensors, and the metadata; after it the steps stand at the tensor table."""
    tensors, keys = _header(steps)
    metadata: dict[str, Any] = {}
    for n in range(keys):
        key = steps.string(f"the name of key {n + 1} of {keys}")
        if key in metadata:
            steps.refuse(f"key {key[:100]!r} stands there twice")
        metadata[key] = _value(steps, f"key {key[:100]!r}")
    return tensors, metadata


def _header(steps: Steps) -> tuple[int, int]:
    """The number of tensors and of keys."""
    if steps.take(4, "its first four bytes") != b"GGUF":
        raise UserError(
            "this is not a GGUF file", where=steps.where, why="it does not begin with GGUF", fix="name a file that ends in .gguf"
        )
    version = steps.number(4, "its version")
    if version and not version & 0xFFFF:
        raise UserError(
            "the GGUF file is big-endian", where=steps.where, why="hornbook reads little-endian files",
            fix="convert it with gguf-convert-endian, which comes with the gguf package",
        )  # fmt: skip
    if version not in (2, 3):
        raise UserError(
            f"GGUF version {version} is not known", where=steps.where, why="versions 2 and 3 are", fix="convert the model again"
        )
    return steps.number(8, "the number of tensors"), steps.number(8, "the number of keys")


def _value(steps: Steps, what: str) -> Any:
    kind = steps.number(4, what)
    if kind == STRING:
        return steps.string(what)
    if kind != ARRAY:
        return _scalars(steps, kind, 1, what)[0].item()
    kind, count = steps.number(4, what), steps.number(8, what)
    if kind == STRING:
        return [steps.string(what) for _ in range(count)]
    return _scalars(steps, kind, count, what)


def _scalars(steps: Steps, kind: int, count: int, what: str) -> np.ndarray[Any, Any]:
    if kind not in SCALARS:
        steps.refuse(f"{what} has a value of type {kind}, which is not known")
    dtype = np.dtype(SCALARS[kind])
    return np.frombuffer(steps.take(count * dtype.itemsize, what), dtype)
