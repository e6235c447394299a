"""`hornbook bench device`: what this machine's arithmetic and memory can do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hornbook.cli.console import parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class BenchDevice:
    """Measure products in each format and the memory's speed: some seconds."""

    device: str = "auto"
    json: bool = False


def main(arguments: Sequence[str]) -> None:
    if not {"device", "-h", "--help"}.intersection(arguments[:1]):
        raise UserError("bench measures one thing so far", where="bench", fix="hornbook bench device")
    settings = parse(BenchDevice, "bench device", [word for word in arguments if word != "device"])
    from hornbook.ranks import choose_device
    from hornbook.stages.bench import device_limits, keep_limits

    device = choose_device(settings.device)
    print(f"device: {device}; measuring for a few seconds", file=sys.stderr)
    found = device_limits(device)
    keep_limits(device, found)
    if settings.json:
        print(json.dumps(found))
        return
    print(f"memory  {found['bytes_per_second'] / 1e9:10.1f} GB/s, read and written")
    for name, peak in found["flops_per_second"].items():
        knee = found["knee_flops_per_byte"][name]
        print(f"{name:6}  {peak / 1e9:10.0f} GFLOP/s; under {knee:.0f} FLOP per byte, memory is what work waits for")
    print(f"products of {found['matrix_side']} x {found['matrix_side']}, {found['threads']} threads")
