"""How a process that trains gets memory: kept from step to step, in pages of 2 MB.

A step asks for the same buffers as the step before it. glibc gives the large ones back to the system in between, which clears them
again, 4 kB at a time. What it is to do instead it reads from the environment as a process begins: so this one begins again.
`python -m benchmarks.training` shows what that gives.
"""

from __future__ import annotations

import os
import sys

TRAINING = ("quickstart", "pretrain", "sft", "speech")
TUNABLES = {
    "glibc.malloc.hugetlb": 1,  # ask the kernel for huge pages (glibc 2.35 and later)
    "glibc.malloc.mmap_max": 0,  # no buffer apart from the heap, however large
    "glibc.malloc.trim_threshold": 1 << 40,  # never give the end of the heap back
    "glibc.malloc.top_pad": 1 << 26,  # let it grow by 64 MB at a time
}


def tunables() -> str:
    """What stands in the environment's GLIBC_TUNABLES."""
    return ":".join(f"{name}={value}" for name, value in TUNABLES.items())


def keep_memory(arguments: list[str]) -> None:
    """Begin this process again with `TUNABLES` if it is to train, where its C library has them and the user has set none."""
    verb = next((word for word in arguments if word != "-v"), None)
    if verb not in TRAINING or "GLIBC_TUNABLES" in os.environ:
        return
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return
    os.environ["GLIBC_TUNABLES"] = tunables()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
