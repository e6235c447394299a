"""A GGUF file as metadata and tensors: bytes of a stranger in; checked values and float32 tensors out.

The metadata is read by `text.gguf`, and the table of tensors behind it in the same guarded steps. Weights are dequantized by
ggml's own `gguf` package, which is an extra.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hornbook.errors import UserError
from hornbook.text.gguf import Metadata, Steps, opened, read_metadata

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
class Gguf(Metadata):
    """A GGUF file whose header, metadata and tensor table have been checked; the tensors are still in the file."""

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
    steps = opened(path)
    tensors, metadata = read_metadata(steps)
    stored: dict[str, Stored] = {}
    for n in range(tensors):
        name = steps.string(f"the name of tensor {n + 1} of {tensors}")
        if name in stored:
            steps.refuse(f"tensor {name!r} stands there twice")
        stored[name] = _entry(steps, f"tensor {name!r}")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        steps.refuse(f"general.alignment is {alignment!r}, which is no power of two from 8 on")
    start = min(-(-steps.at // alignment) * alignment, len(steps.data))
    _check_places(steps, stored, alignment, len(steps.data) - start)
    return Gguf(str(path), metadata, stored, np.frombuffer(steps.data, dtype=np.uint8)[start:])


def _entry(steps: Steps, what: str) -> Stored:
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


def _check_places(steps: Steps, stored: dict[str, Stored], alignment: int, room: int) -> None:
    for name, tensor in stored.items():
        if tensor.offset % alignment:
            steps.refuse(f"tensor {name!r} begins at {tensor.offset}, which is no multiple of {alignment}")
        if tensor.offset + tensor.size > room:
            steps.refuse(f"tensor {name!r} needs {tensor.size} bytes from {tensor.offset}, and the file holds {room}")
    for (one, before), (two, after) in pairwise(sorted(stored.items(), key=lambda item: item[1].offset)):
        if before.offset + before.size > after.offset:
            steps.refuse(f"tensors {one!r} and {two!r} overlap")
