"""Triton's kernels on the CPU, in Triton's interpreter, within a `with`; and how near to the truth each format comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

# Of the largest value: float32 sums in another order; a short format's last place, in results and in what is multiplied.
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@contextmanager
def kernels_on(device: str) -> Iterator[None]:
    """Within, the kernels run on that device: on "cpu" in the interpreter. Skips the test where it cannot be."""
    pytest.importorskip("triton", reason="triton is not installed")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with pytest.MonkeyPatch.context() as patch:
        _forget()
        if device == "cpu":
            _interpret(patch)
        yield
    _forget()


def _forget() -> None:
    """Kernels are compiled or interpreted as their decorators found it: what was imported before is imported anew."""
    for name in [name for name in sys.modules if name.startswith("hornbook.kernels.")]:
        del sys.modules[name]


def _interpret(patch: pytest.MonkeyPatch) -> None:
    """The variable alone would do in a process that has not imported Triton: a test cannot know that, so this one puts the
    interpreter behind Triton's own functions too, and takes it away again, for tests that compile."""
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    if os.environ.get("TRITON_INTERPRET") != "1":
        patch.setenv("TRITON_INTERPRET", "1")
        plain = {id(each): each for module in (tl, tl.standard) for each in vars(module).values()}
        swapped = {at: InterpretedFunction(each.fn) for at, each in plain.items() if isinstance(each, triton.JITFunction)}
        for module in (tl, tl.standard):
            for name, each in list(vars(module).items()):
                if id(each) in swapped:
                    patch.setattr(module, name, swapped[id(each)])
    dot = InterpreterBuilder.create_dot

    def widened(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        """NumPy has no bf16, and the interpreter multiplies its bits as if they were whole numbers."""
        a, b = (self.cast_impl(each, tl.float32) if each.dtype.scalar == tl.bfloat16 else each for each in (a, b))
        return dot(self, a, b, *rest)

    patch.setattr(InterpreterBuilder, "create_dot", widened)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    """Shapes agree, and `found` is within its format's tolerance of `wanted`, which was computed in float64."""
    assert wanted.dtype == torch.float64 and found.shape == wanted.shape
    if wanted.numel():
        error = float((found.detach().double() - wanted.detach()).abs().max()) / max(1.0, float(wanted.detach().abs().max()))
        assert error <= TOLERANCES[found.dtype], f"off by {error:.2e} of the largest value"
