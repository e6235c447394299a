"""Where this process computes: the device, chosen once and said aloud."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hornbook.errors import UserError, near

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cuda", "mps", "cpu")


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cuda`, `mps` or `cpu`; one that is not there is a `UserError`, never a silent fall-back."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if name not in present:
        raise UserError(f"device must be one of {', '.join(DEVICES)}: {name!r}", where="--device", fix=near(name, DEVICES))
    if not present[name]:
        there = ", ".join(kind for kind, found in present.items() if found)
        raise UserError(
            f"device {name!r} is not there", where="--device", why=f"this machine has: {there}", fix="use --device auto"
        )
    return torch.device(name)


def identity(device: torch.device) -> dict[str, Any]:
    """What equal weights depend on, beside the plan: versions, processor kind, thread count, device."""
    import torch

    return {
        "python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform(terse=True),
        "processor": processor(), "threads": torch.get_num_threads(), "device": str(device),
    }  # fmt: skip


def processor() -> str:
    """The processor's own name and the widest instructions that torch uses on it."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores)"
