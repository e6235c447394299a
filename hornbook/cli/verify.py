"""`hornbook verify`: prove the invariants on this machine; exit code 0 if all hold, else 1."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hornbook.cli.console import parse

if TYPE_CHECKING:
    import torch

    from hornbook.verify.proof import Check, Proof


@dataclass(frozen=True)
class Verify:
    """Prove on this machine what hornbook promises: each line is an invariant, its figure and its bound."""

    device: str = "auto"
    json: bool = False


def main(arguments: Sequence[str]) -> int:
    settings = parse(Verify, "verify", arguments)
    from hornbook.ranks import choose_device
    from hornbook.verify.checks import CHECKS

    return report(CHECKS, choose_device(settings.device), settings.json)


def report(checks: Sequence[Check], device: torch.device, as_json: bool) -> int:
    """Print each proof as it comes, then how many hold; the exit code."""
    from hornbook.verify.proof import proofs

    print(f"device: {device}", file=sys.stderr)
    print(f"verify: {len(checks)} invariants, about half a minute, in a temporary folder", file=sys.stderr)
    done: list[Proof] = []
    for proof in proofs(checks, device):
        done.append(proof)
        print(line(proof), file=sys.stderr if as_json else sys.stdout, flush=True)
    failed = sum(not proof.holds for proof in done)
    if as_json:
        record = {"device": str(device), "passed": len(done) - failed, "failed": failed, "proofs": [p.record() for p in done]}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(f"{len(done) - failed} passed, {failed} failed")
    return 1 if failed else 0


def line(proof: Proof) -> str:
    found = proof.finding
    figures = f"{found.figure:.2g} {found.unit}, at most {found.bound:g}" if found else proof.error
    return f"{proof.check.name:23} {proof.check.measures:40} {figures:48} {'ok' if proof.holds else 'FAILED'}"
