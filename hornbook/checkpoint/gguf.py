"""A GGUF file as metadata and tensors: bytes of a stranger in; checked values and float32 tensors out.

One idea: every read is a step forward that first asks whether the file has those bytes, so no count or length in the file can
make us allocate more than the file holds. The layout is the specification that ggml publishes (docs/gguf.md); weights are
dequantized by its own `gguf` package, which is an extra.
"""

from __future__ import annotations

import importlib
import math
import mmap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from hornbook.errors import DamagedError, UserError

SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
# ggml's number of a tensor type: its name, the weights of a block, the bytes of a block.
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2),
}  # fmt: skip
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its shape in rows first order, its type's number, and its bytes from the data's beginning."""

    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


@dataclass(frozen=True)
class Gguf:
    """A GGUF file whose header, metadata and tensor table have been checked; the tensors are still in the file."""

    where: str
    metadata: dict[str, Any]
    stored: dict[str, Stored]
    data: np.ndarray[Any, np.dtype[np.uint8]]

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32, whatever its stored type."""
        found = self.stored[name]
        kind, weights, size = TYPES[found.kind]
        quants = gguf_package("quants")
        rows = self.data[found.offset : found.offset + found.size]
        rows = rows.reshape(*found.shape[:-1], found.shape[-1] // weights * size)
        with np.errstate(over="ignore", invalid="ignore"):  # a scale may be infinite in the file
            return torch.from_numpy(np.array(quants.dequantize(rows, quants.GGMLQuantizationType[kind]), dtype=np.float32))


def gguf_package(module: str) -> Any:
    """A module of the `gguf` package, or a `UserError` that says how to get it."""
    try:
        return importlib.import_module(f"gguf.{module}")
    except ImportError as error:
        raise UserError("GGUF needs the gguf package", why=str(error), fix="pip install 'hornbook[gguf]'") from error


def read_gguf(path: Path) -> Gguf:
    """Open and check a GGUF file of version 2 or 3. A damaged or foreign file is an error that names the key or tensor."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    except OSError as error:
        raise UserError("the file cannot be read", where=str(path), why=str(error), fix="name a .gguf file") from error
    steps = _Steps(data, str(path))
    tensors, keys = _header(steps)
    metadata: dict[str, Any] = {}
    for n in range(keys):
        key = steps.string(f"the name of key {n + 1} of {keys}")
        if key in metadata:
            steps.refuse(f"key {key!r} stands there twice")
        metadata[key] = _value(steps, f"key {key!r}")
    stored: dict[str, Stored] = {}
    for n in range(tensors):
        name = steps.string(f"the name of tensor {n + 1} of {tensors}")
        if name in stored:
            steps.refuse(f"tensor {name!r} stands there twice")
        stored[name] = _entry(steps, f"tensor {name!r}")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        steps.refuse(f"general.alignment is {alignment!r}, which is no power of two from 8 on")
    start = min(-(-steps.at // alignment) * alignment, len(data))
    _check_places(steps, stored, alignment, len(data) - start)
    return Gguf(str(path), metadata, stored, np.frombuffer(data, dtype=np.uint8)[start:])


class _Steps:
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


def _header(steps: _Steps) -> tuple[int, int]:
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


def _value(steps: _Steps, what: str) -> Any:
    kind = steps.number(4, what)
    if kind == STRING:
        return steps.string(what)
    if kind != ARRAY:
        return _scalars(steps, kind, 1, what)[0].item()
    kind, count = steps.number(4, what), steps.number(8, what)
    if kind == STRING:
        return [steps.string(what) for _ in range(count)]
    return _scalars(steps, kind, count, what)


def _scalars(steps: _Steps, kind: int, count: int, what: str) -> np.ndarray[Any, Any]:
    if kind not in SCALARS:
        steps.refuse(f"{what} has a value of type {kind}, which is not known")
    dtype = np.dtype(SCALARS[kind])
    return np.frombuffer(steps.take(count * dtype.itemsize, what), dtype)


def _entry(steps: _Steps, what: str) -> Stored:
    """A row of the tensor table. ggml counts the fastest axis first, torch last."""
    axes = steps.number(4, what)
    if not 1 <= axes <= MOST_DIMENSIONS:
        steps.refuse(f"{what} has {axes} dimensions, and there are 1 to {MOST_DIMENSIONS}")
    shape = tuple(steps.number(8, what) for _ in range(axes))[::-1]
    kind, offset = steps.number(4, what), steps.number(8, what)
    if kind not in TYPES:
        known = ", ".join(name for name, _, _ in TYPES.values())
        raise UserError(
            f"{what} has the type {kind}, which is not known", where=steps.where, why=f"known: {known}",
            fix="choose a file of one of these types, such as Q8_0 or Q4_K_M",
        )  # fmt: skip
    name, weights, size = TYPES[kind]
    if 0 in shape or shape[-1] % weights:
        steps.refuse(f"{what} has the shape {list(shape)}, and rows of {name} are a multiple of {weights}")
    return Stored(shape, kind, offset, math.prod(shape) // weights * size)


def _check_places(steps: _Steps, stored: dict[str, Stored], alignment: int, room: int) -> None:
    for name, tensor in stored.items():
        if tensor.offset % alignment:
            steps.refuse(f"tensor {name!r} begins at {tensor.offset}, which is no multiple of {alignment}")
        if tensor.offset + tensor.size > room:
            steps.refuse(f"tensor {name!r} needs {tensor.size} bytes from {tensor.offset}, and the file holds {room}")
    for (one, before), (two, after) in pairwise(sorted(stored.items(), key=lambda item: item[1].offset)):
        if before.offset + before.size > after.offset:
            steps.refuse(f"tensors {one!r} and {two!r} overlap")
