"""What a process is really made to send: every collective and message within a block, at the lowest level that Python sees."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._distributed_c10d import ProcessGroup
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = 8  # numbers: sums of losses and counts, norms, flags, and how many rows go to which expert


class Wire(TorchDispatchMode):
    """sent: bytes from this rank, where a collective runs in a ring. Tensors of at most `SMALL` numbers are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.sent += sent(func.__name__.removesuffix(".default"), args)
        return func(*args, **(kwargs or {}))


def sent(name: str, args: Any) -> float:
    tensor: torch.Tensor = next(each for each in (*args, *(args[0] if isinstance(args[0], list) else ())) if torch.is_tensor(each))
    size, n = tensor.numel() * tensor.element_size(), 0
    if name in ("wait_tensor", "_wrap_tensor_autograd", "recv_") or tensor.numel() <= SMALL:
        return 0.0
    if name == "send":
        return float(size)
    if name == "alltoall_base_":  # (result, given, group, rows from each, rows to each)
        given, to, me = args[1], args[4], ProcessGroup.unbox(args[2]).rank()
        return float((sum(to) - to[me]) * given.element_size() * given.shape[1])
    if name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"):
        n = _resolve_process_group(args[-1]).size()
    else:
        n = ProcessGroup.unbox(args[1 if name == "allreduce_" else 2]).size()
    share = {  # of the first tensor: for two of them it is this rank's part alone
        "allreduce_": 2 * (n - 1) / n, "all_reduce": 2 * (n - 1) / n,
        "_allgather_base_": (n - 1) / n, "all_gather_into_tensor": n - 1,
        "_reduce_scatter_base_": n - 1, "reduce_scatter_tensor": (n - 1) / n,
    }  # fmt: skip
    return size * share[name]
