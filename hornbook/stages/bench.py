"""What this machine can do: matrix products in each format, and bytes to and from memory. Their ratio is the roofline's knee.

Work that does fewer operations per byte than the knee waits for memory, other work for arithmetic (Williams, Waterman and Patterson
2009, "Roofline"). The best of several runs counts: what disturbs a run only makes it slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

SECONDS, LEAST = 0.5, 3  # of each measurement, and the runs that it has at least
SIDE = {"cpu": 2048, "mps": 4096, "cuda": 8192}
BYTES = {"cpu": 1 << 28, "mps": 1 << 28, "cuda": 1 << 31}
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_limits(device: torch.device) -> dict[str, Any]:
    """Peak FLOP/s of products by format (`tf32` too on a GPU), bytes/s of a copy, both ways counted, and knees in FLOP per byte."""
    side, limits = SIDE[device.type], dict[str, Any]()
    peaks = {name: _peak(device, side, kind) for name, kind in FORMATS.items()}
    if device.type == "cuda":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            peaks["tf32"] = _peak(device, side, torch.float32)
        finally:
            torch.set_float32_matmul_precision(before)
    source = torch.ones(BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    limits["bytes_per_second"] = bandwidth = 2 * source.nbytes / _fastest(device, lambda: target.copy_(source))
    limits["flops_per_second"] = peaks
    limits["knee_flops_per_byte"] = {name: peak / bandwidth for name, peak in peaks.items()}
    return {"device": str(device), "threads": torch.get_num_threads(), "matrix_side": side, **limits}


def _peak(device: torch.device, side: int, kind: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / _fastest(device, lambda: a @ b)


def _fastest(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of the fastest run."""
    work()
    _wait(device)
    times, start = list[float](), time.perf_counter()
    while len(times) < LEAST or time.perf_counter() - start < SECONDS:
        begun = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
