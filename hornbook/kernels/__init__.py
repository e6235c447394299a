"""Kernels written by hand in Triton, to be read beside what they compute, and to be switched on by `adapt.kernels.use_kernels`.

A kernel is one small program that runs many times at once, each time on a tile of the numbers: it loads the tile from the GPU's
memory once, does all that is to be done with it in registers, and stores the result once. What a chain of torch's operations loses
is the way to memory and back between them, and that is what each file here saves; its docstring has the formula and the tiling.

Triton is imported with the files of this package and with nothing else of hornbook: `part` is the door.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from hornbook.errors import UserError

FORMATS = (torch.float32, torch.bfloat16, torch.float16)  # all of them computed with in float32


def part(name: str) -> Any:
    """The module `name` of this package. Without Triton a `UserError`."""
    if importlib.util.find_spec("triton") is None:
        raise UserError(
            f"the kernel {name} needs triton", why="it is not installed", fix='pip install "hornbook[kernels]" (Linux), or use none'
        )
    return importlib.import_module(f"{__name__}.{name}")


def check(*tensors: Tensor) -> None:
    """Raise `ValueError` for a format that the kernels would silently shorten, and for a device that Triton does not launch on."""
    for tensor in tensors:
        if tensor.dtype not in FORMATS:
            raise ValueError(f"a kernel takes {', '.join(str(each) for each in FORMATS)}: {tensor.dtype}")
        if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
            raise ValueError(f"a kernel runs on the current device, cuda:{torch.cuda.current_device()}: {tensor.device}")
