"""What this machine can do: matrix products in each format, and bytes to and from memory. Their ratio is the roofline's knee.

Work that does fewer operations per byte than the knee waits for memory, other work for arithmetic (Williams, Waterman and Patterson
2009, "Roofline"). The best of several runs counts: what disturbs a run only makes it slower.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hornbook.errors import UserError
from hornbook.files import write_json
from hornbook.ranks import processor

SECONDS, LEAST = 0.5, 3  # of each measurement, and the runs that it has at least
LONG = 100  # steps: a run that is worth a second of measuring
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


def matmul_peak(device: torch.device, name: str, measure: bool) -> float:
    """FLOP/s of the best products in a format, for the share of them that a run reaches; 0 where that is not known.

    The best that was ever measured on this machine, from the user's cache, by processor, threads, torch and format. With
    `measure` it is measured again, in less than a second (half of `device_limits`' side, at least one run), since a machine that
    was busy then measured too little. A run of a few steps does not wait for a figure that says little about it. fp8 counts as
    bf16, in which all of a model but the products of its blocks is computed.
    """
    name = "bf16" if name == "fp8" else name
    machine, peak = _machine(device, name), 0.0
    if measure:
        peak = _peak(device, SIDE[device.type] // 2, FORMATS[name], 1)
        with suppress(UserError):  # a cache that cannot be written: this run has its figure all the same
            _keep_peaks({machine: peak})
    return max(peak, _known_peaks().get(machine, 0.0))


def _machine(device: torch.device, name: str) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()}, {torch.get_num_threads()} threads"
    return ", ".join((device.type, kind, torch.__version__, torch.get_float32_matmul_precision(), name))


def _peaks() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook" / "peaks.json"


def _known_peaks() -> dict[str, float]:
    try:
        return {str(name): float(peak) for name, peak in json.loads(_peaks().read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or none that can be read: measured again
        return {}


def keep_limits(device: torch.device, limits: dict[str, Any]) -> None:
    """Keep what `device_limits` found for the runs to come."""
    _keep_peaks({_machine(device, name): limits["flops_per_second"][name] for name in FORMATS})


def _keep_peaks(found: dict[str, float]) -> None:
    """The best counts here too: what disturbs a measurement only makes it lower."""
    known = _known_peaks()
    write_json(_peaks(), known | {name: max(peak, known.get(name, 0.0)) for name, peak in found.items()})


def _peak(device: torch.device, side: int, kind: torch.dtype, least: int = LEAST) -> float:
    numbers = torch.Generator(device).manual_seed(0)  # its own: a run's random numbers are the same, measured or not
    a, b = (torch.randn(side, side, device=device, generator=numbers).to(kind) for _ in range(2))
    return 2 * side**3 / _fastest(device, lambda: a @ b, least)


def _fastest(device: torch.device, work: Callable[[], Any], least: int = LEAST) -> float:
    """Seconds of the fastest run."""
    work()
    _wait(device)
    times, start = list[float](), time.perf_counter()
    while len(times) < least or time.perf_counter() - start < SECONDS:
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
