"""Where this process computes: the device, chosen once and said aloud, and its place among the processes of a run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from hornbook.errors import UserError, near

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

PREPARING = timedelta(hours=24)  # for which ranks wait while the first one prepares a corpus
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
    local = int(os.environ.get("LOCAL_RANK", 0))  # torchrun's: each process of a machine computes on a GPU of its own
    if name == "cuda" and local >= torch.cuda.device_count():
        raise UserError(
            f"there is no GPU for rank {local} of this machine", where="--device", why=f"it has {torch.cuda.device_count()}",
            fix=f"start {torch.cuda.device_count()} processes on it: torchrun --nproc-per-node {torch.cuda.device_count()}",
        )  # fmt: skip
    return torch.device(name, local) if name == "cuda" and local else torch.device(name)


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


def speaks() -> bool:
    """True of the one process of a run that talks to the user: also before the processes have found each other."""
    return os.environ.get("RANK", "0") == "0"


def several() -> bool:
    """True where this process is one of several ranks."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if several() else 0


class Said(UserError):
    """What the first rank has told the user already."""


def from_first(action: Callable[[], Any], group: ProcessGroup | None = None) -> Any:
    """What `action` gives on the first rank, a JSON value, on every rank: a collective. A `UserError` there is one everywhere."""
    if not several():
        return action()
    told: dict[str, Any] = {}
    if rank() == 0:
        try:
            told = {"value": action()}
        except UserError as error:
            _tell(error.__dict__, group)
            raise
    told = _tell(told, group)
    if "value" not in told:
        raise Said(**told)
    return told["value"]


def _tell(said: dict[str, Any], group: ProcessGroup | None) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    text = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    size = torch.tensor([len(text)])
    dist.broadcast(size, 0, group)
    text = text if rank() == 0 else torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(text, 0, group)
    return dict(json.loads(bytes(text.tolist())))


def all_of_us(flag: bool) -> bool:
    """True where the flag is true on every rank: a collective."""
    if not several():
        return flag
    import torch
    import torch.distributed as dist

    lowered = torch.tensor([not flag], dtype=torch.uint8)
    dist.all_reduce(lowered, dist.ReduceOp.MAX)
    return not lowered.item()


@cache
def patient_group(use: Literal["waiting", "saving"]) -> ProcessGroup | None:
    """All ranks, for what may take long: what they wait for, or the saving that a thread does meanwhile.

    The two have a group each, for collectives of two threads must not meet. The first call of each is a collective.
    """
    if not several():
        return None
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=PREPARING)


def is_cut(value: Any) -> TypeGuard[DTensor]:
    """True of a tensor that is spread over ranks. Asks without importing what a single process never needs."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)
