"""`recipes/torchrun.sbatch`: a shell accepts it, and torchrun knows every flag that it is given there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from torch.distributed.run import get_args_parser

FILE = Path(__file__).resolve().parents[2] / "recipes" / "torchrun.sbatch"


def test_a_shell_and_torchrun_accept_it() -> None:
    assert subprocess.run(["bash", "-n", str(FILE)]).returncode == 0
    text = FILE.read_text(encoding="utf-8").replace("\\\n", " ")
    words = re.search(r"torchrun +(.*) -m hornbook pretrain", text)
    assert words is not None
    told = re.findall(r"(--[a-z-]+)=", words[1])
    assert len(told) == 6 and set(told) <= set(get_args_parser()._option_string_actions)
