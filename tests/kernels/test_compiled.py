"""Every kernel becomes a GPU's program: Triton's compiler needs no GPU for that, so what only runs there is seen here too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).resolve().parents[2]

# Records what the functions would launch on the CPU, and compiles that for a GPU: in a process of its own, that changes Triton.
SCRIPT = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hornbook.kernels import cross_entropy, flash_attention, rms_norm, rope

kinds = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64", int: "i32", float: "fp32"}
SHARED = {80: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}  # bytes a program may have; of 8.x the least, which 8.6 and 8.9 have
launched, dtype = [], getattr(torch, sys.argv[1])
widths, capabilities = ([int(part) for part in given.split(",")] for given in sys.argv[2:4])
triton.JITFunction.run = lambda kernel, *args, grid, warmup, **named: launched.append((kernel, args, named))

def given(*shape):
    return torch.randn(shape, dtype=dtype, requires_grad=True)

for width in widths:
    q, k, v = given(1, 9, 4, width), given(1, 9, 2, width), given(1, 9, 2, width)
    flash_attention.flash_attention(q, k, v, causal=True).sum().backward()
if "rest" in sys.argv:
    rms_norm.rms_norm(given(3, 4096), given(4096), 1e-6, True).sum().backward()
    rope.rotate(given(1, 9, 4, 64), (torch.ones(1, 9, 1, 32), torch.ones(1, 9, 1, 32))).sum().backward()
    cross_entropy.row_losses(torch.zeros(3, 500, dtype=dtype), torch.zeros(3, 1, dtype=torch.long), 0.1, True)
for kernel, args, named in launched:
    values = {**dict(zip(kernel.arg_names, args)), **{name: named.pop(name) for name in kernel.arg_names if name in named}}
    constants = {param.name: values[param.name] for param in kernel.params if param.is_constexpr}
    kind = {name: kinds[value.dtype if isinstance(value, torch.Tensor) else type(value)]
            for name, value in values.items() if name not in constants}
    signature = {name: kind.get(name, "constexpr") for name in kernel.arg_names}
    tensors = {(n,): [["tt.divisibility", 16]] for n, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    for capability in capabilities:
        found = triton.compile(ASTSource(kernel, signature, constants, tensors), GPUTarget("cuda", capability, 32), named)
        print(kernel.__name__, capability, constants, found.metadata.shared)
        assert len(found.asm["cubin"]) and found.metadata.shared <= SHARED[capability]
print("compiled", len(launched))
"""


def compiled(cache: Path, *given: str) -> int:
    here = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *given], capture_output=True, text=True, env=here, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "widths"), [("bfloat16", "16,64,128,256"), ("float32", "16,128")])
def test_every_width_compiles_and_fits_into_shared_memory(dtype: str, widths: str, tmp_path: Path) -> None:
    assert compiled(tmp_path, dtype, widths, "80,90", "rest") == 3 * len(widths.split(",")) + 5


@pytest.mark.slow
def test_each_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    assert compiled(tmp_path, "float16", "16", "90", "rest") == 3 + 5
