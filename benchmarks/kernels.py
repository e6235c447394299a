"""Each kernel beside torch's own operations on a CUDA device: milliseconds forward, and forward with backward, and errors.

    python benchmarks/kernels.py

Medians over interleaved rounds of ten calls each. An error is the largest difference from the same computed in a longer format
(float32 for bf16, float64 for float32), as a part of the largest value, over results and gradients. A kernel is worth its switch
where "times as fast" is above 1 against every peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hornbook.kernels import part
from hornbook.model import rope
from hornbook.model.attention import Scores, attend
from hornbook.model.head import LMHead
from hornbook.train.cross_entropy import cross_entropy

CALLS = 10
Function = Callable[..., Tensor]
Case = tuple[str, list[Tensor], dict[str, Function]]  # a shape in words, what has gradients, and who computes it, "kernel" first


def rms_norm(rows: int, dim: int, make: Callable[..., Tensor]) -> Case:
    return f"{rows} x {dim}", [make(rows, dim), make(dim)], {
        "kernel": lambda x, w: part("rms_norm").rms_norm(x, w, 1e-6),
        "F.rms_norm": lambda x, w: F.rms_norm(x, w.shape, w, 1e-6),
    }  # fmt: skip


def rotation(rows: int, length: int, heads: int, width: int, make: Callable[..., Tensor]) -> Case:
    x = make(rows, length, heads, width)
    angles = rope.Rope(width).angles(torch.arange(length, device=x.device)[None], x.dtype)
    return f"{rows} x {length} x {heads} x {width}", [x], {
        "kernel": lambda x: part("rope").rotate(x, angles),
        "model.rope": lambda x: rope.rotate(x, (angles[0].to(x.dtype), angles[1].to(x.dtype))),
    }  # fmt: skip


def linear_cross_entropy(rows: int, dim: int, vocab: int, make: Callable[..., Tensor]) -> Case:
    hidden, weight = make(rows, dim), make(vocab, dim) * dim**-0.5
    targets = torch.randint(vocab, (rows,), device=hidden.device)

    def chunked(hidden: Tensor, weight: Tensor, **kernel: Any) -> Tensor:
        with torch.device("meta"):
            head = LMHead(vocab=vocab).build(dim)
        del head.out.weight
        head.out.register_buffer("weight", weight)  # the very tensor whose gradient is asked for
        vars(head).update(kernel)
        return cross_entropy(head, hidden, targets)

    return f"{rows} x {dim} x {vocab}", [hidden, weight.detach().requires_grad_()], {
        "kernel": partial(chunked, row_losses=part("cross_entropy").row_losses),
        "hornbook's chunks": chunked,
        "F.linear, F.cross_entropy": lambda x, w: F.cross_entropy(F.linear(x, w), targets, reduction="sum"),
    }  # fmt: skip


def attention(rows: int, length: int, heads: int, groups: int, width: int, causal: bool, make: Callable[..., Tensor]) -> Case:
    given = [make(rows, length, each, width) for each in (heads, groups, groups)]
    return f"{rows} x {length} x {heads}/{groups} x {width}{', causal' * causal}", given, {
        "kernel": partial(part("flash_attention").flash_attention, causal=causal),
        "SDPA": lambda q, k, v: attend(q, k, v, Scores(causal=causal)),
    }  # fmt: skip


def made(dtype: torch.dtype, device: str) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(shape, device=device, dtype=dtype, requires_grad=True)


def cases(device: str) -> Iterator[tuple[str, str, Case]]:
    for dtype in (torch.bfloat16, torch.float32):
        make, name = made(dtype, device), str(dtype).removeprefix("torch.")
        yield "rms_norm", name, rms_norm(16384, 1024, make)
        yield "rms_norm", name, rms_norm(8192, 4096, make)
        yield "rope", name, rotation(4, 2048, 16, 128, make)
        yield "cross_entropy", name, linear_cross_entropy(4096, 1024, 50304, make)
        yield "cross_entropy", name, linear_cross_entropy(4096, 2048, 128256, make)
        yield "attention", name, attention(2, 2048, 16, 4, 64, True, make)
        yield "attention", name, attention(2, 2048, 16, 4, 128, True, make)
        yield "attention", name, attention(2, 2048, 16, 16, 64, False, make)


def results(function: Function, given: list[Tensor]) -> list[Tensor]:
    """What it gives, and the gradients of what it takes."""
    y = function(*given)
    return [y.detach(), *torch.autograd.grad(y, given, torch.ones_like(y))]


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """Medians in milliseconds and errors of each who computes."""
    _, given, functions = case
    wide = torch.float32 if given[0].dtype != torch.float32 else torch.float64
    truth = results(list(functions.values())[-1], [each.detach().to(wide).requires_grad_() for each in given])
    errors = {
        name: max(
            float((ours.to(wide) - right).abs().max() / right.abs().max())
            for ours, right in zip(results(function, given), truth, strict=True)
        )
        for name, function in functions.items()
    }
    del truth
    timed = {"forward": torch.no_grad()(lambda function: function(*given)), "both": lambda function: results(function, given)}
    found: dict[str, Any] = {name: {"error": error} for name, error in errors.items()}
    for what, call in timed.items():
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        names = list(functions)
        for number in range(rounds + 1):  # the first warms up
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name].append(duration(partial(call, functions[name]), given[0].is_cuda))
        for name in names:
            ratio = statistics.median(b / a for a, b in zip(seconds["kernel"][1:], seconds[name][1:], strict=True))
            found[name][what] = {"ms": 1000 * statistics.median(seconds[name][1:]), "kernel_times_as_fast": ratio}
    return found


def duration(call: Callable[[], object], cuda: bool) -> float:
    """Seconds of one call, the mean of several that wait for one another on the device alone."""
    wait = torch.cuda.synchronize if cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    wait()
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here: these kernels are programs for a GPU, and nothing was measured")
    torch.manual_seed(0)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "rounds": given.rounds,
        "cases": [],
    }
    print(f"{record['device']}, torch {record['torch']}: kernel's and peer's ms, and how many times as fast the kernel is")
    for kernel, dtype, case in cases("cuda"):
        found = measured(case, given.rounds)
        record["cases"].append({"kernel": kernel, "dtype": dtype, "shape": case[0], "found": found})
        ours = found["kernel"]
        print(f"\n{kernel}, {dtype}, {case[0]}: error {ours['error']:.1e}")
        for name, peer in list(found.items())[1:]:
            parts = [
                f"{what} {ours[what]['ms']:8.3f} to {peer[what]['ms']:8.3f} ms, {peer[what]['kernel_times_as_fast']:5.2f} times"
                for what in ("forward", "both")
            ]
            print(f"  {name:28} {'   '.join(parts)}   its error {peer['error']:.1e}")
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {given.out}")


if __name__ == "__main__":
    main()
