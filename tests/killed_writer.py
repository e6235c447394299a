"""A writer that is killed at each of its file operations in turn: `python -m tests.killed_writer FOLDER KIND`.

Before each attempt FOLDER/N holds what was written before; the attempt, in a process of its own, kills itself with signal 9 at its
N-th operation. The last attempt is the one that lived to its end. KIND: folder or file.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hornbook.files import write_text, written_folder

OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir")


def write(place: Path, kind: str, content: str) -> None:
    if kind == "file":
        return write_text(place / "kept.txt", content * 1000)
    with written_folder(place / "kept", {"content": content}) as folder:
        (folder / "a.txt").write_text(content * 1000)
        (folder / "inner").mkdir()
        (folder / "inner" / "b.bin").write_bytes(content.encode() * 5000)


def attempt(place: Path, kind: str, die_at: int) -> int:
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = die_at

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in OPERATIONS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    write(place, kind, "new")
    os._exit(0)


if __name__ == "__main__":
    number, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        write(Path(sys.argv[1]) / str(number), sys.argv[2], "old")
        code = attempt(Path(sys.argv[1]) / str(number), sys.argv[2], number)
    sys.exit(code)
