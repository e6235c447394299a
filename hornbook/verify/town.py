"""The corpus of a seed is the same bytes anywhere. Run as `python -m hornbook.verify.town`, this prints their digests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from hornbook.data.town import LANGUAGES, Town
from hornbook.verify.proof import Finding

if TYPE_CHECKING:
    import torch

BYTES = 40_000


def town(device: torch.device) -> Finding:
    """The digests here, again, and in another process whose hashes are seeded otherwise."""
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "hornbook.verify.town"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"the other process failed: {ran.stderr.strip()[-200:]}")
    here = digests()
    different = sum(a != b for other in (digests(), ran.stdout.split()) for a, b in zip(here, other, strict=True))
    return Finding(different, 0, f"of {2 * len(here)} corpora differ")


def digests() -> list[str]:
    """One per language."""
    corpora = ("\0".join(document.text for document in Town(0, language).documents(BYTES)) for language in LANGUAGES)
    return [hashlib.sha256(corpus.encode()).hexdigest() for corpus in corpora]


if __name__ == "__main__":
    print("\n".join(digests()))
