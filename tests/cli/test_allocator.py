"""A process that trains keeps its memory: asked for again, a large buffer costs no page faults. Others are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from hornbook.cli.allocator import keep_memory
keep_memory(sys.argv[1:])
import resource
import numpy as np
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(12_500_000)  # 100 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sys.argv[1:], faults[-1])
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="not glibc")
@pytest.mark.parametrize(
    ("arguments", "own", "kept"),
    [
        ("pretrain --seed 1", None, True),
        ("-v pretrain", None, True),
        ("chat", None, False),
        ("pretrain", "", False),
        ("-v", None, False),
    ],
)
def test_a_buffer_of_a_training_process_is_not_made_again(arguments: str, own: str | None, kept: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {} if own is None else {"GLIBC_TUNABLES": own}
    words = [sys.executable, "-c", CODE, *arguments.split()]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True, timeout=60)
    said, faults = done.stdout.rsplit(maxsplit=1)
    assert said == str(arguments.split())
    assert (int(faults) < 100) == kept
