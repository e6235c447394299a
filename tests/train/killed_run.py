"""Small runs in processes of their own, for tests that kill them: `python -m tests.train.killed_run FOLDER SECONDS [KILLS]`.

FOLDER/whole is left in peace. FOLDER/killed: trainers are forked and killed with signal 9, in turn at some file operation of a save
and some moment after a save, until one ends by itself or the seconds are over. FOLDER/interrupted: one trainer gets Ctrl-C, the
next goes on to the end. Prints JSON: how each trainer ended (0, or minus the signal, or 130 for one that saved and left) and the
newest state that it left. With KILLS, runs are killed until that many kills are counted, each in FOLDER/soak-N, and compared with
the whole one here: `{"kills": ..., "runs": ..., "different": ...}`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which the first step of an optimizer would import, in every trainer anew

from hornbook.data.batches import Batches
from hornbook.errors import Interrupted
from hornbook.files import append_line
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import tiny_model, tiny_stream

STEPS = 30


def train(folder: Path) -> None:
    """Every object is new: what the run knows of its past is in the folder."""
    model = tiny_model(dtype=torch.float32)
    run = Run(
        steps=STEPS, accumulate=2, folder=folder / "states", save_seconds=-1, log_every=4, name="one",
        log=lambda row: append_line(folder / "metrics.jsonl", row),
    )  # fmt: skip
    fit(model, Batches(tiny_stream(), 3, seed=5), causal_lm, build_optimizer(model, "muon", 0.01), warmup_decay(STEPS, 5), run)


def forked(folder: Path, die_at: int | None = None) -> int:
    """A trainer's process id. It kills itself at its `die_at`-th file operation."""
    process = os.fork()
    if process:
        return process
    left = die_at or -1

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        train(folder)
        os._exit(0)
    except Interrupted:
        os._exit(130)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def newest(folder: Path) -> str:
    return max((path.name for path in (folder / "states").glob("step-*")), default="")


def ended(folder: Path, process: int) -> tuple[int, str]:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), newest(folder)


def killed(folder: Path, seconds: float, seed: int = 7) -> list[tuple[int, str]]:
    dice, ends, end = random.Random(seed), list[tuple[int, str]](), time.perf_counter() + seconds
    while not ends or ends[-1][0] != 0:
        late = time.perf_counter() > end  # a slow disk: let it end
        die_at = None if late or len(ends) % 2 else dice.randrange(10, 120)
        before, process = newest(folder), forked(folder, die_at)
        if not late and die_at is None:
            while newest(folder) == before and time.perf_counter() < end:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.03))
            os.kill(process, signal.SIGKILL)
        ends.append(ended(folder, process))
    return ends


def interrupted(folder: Path) -> list[tuple[int, str]]:
    process = forked(folder)
    while newest(folder) < "step-00000005":
        time.sleep(0.002)
    os.kill(process, signal.SIGINT)
    return [ended(folder, process), ended(folder, forked(folder))]


def soak(place: Path, kills: int) -> dict[str, int]:
    last = f"states/step-{STEPS:08d}/state.safetensors"
    (place / "whole").mkdir()
    assert ended(place / "whole", forked(place / "whole"))[0] == 0
    expected, counted, runs, different = (place / "whole" / last).read_bytes(), 0, 0, 0
    while counted < kills:
        folder = place / f"soak-{runs}"
        folder.mkdir()
        ends = killed(folder, 60.0, seed=runs)
        assert [code for code, _ in ends] == [-signal.SIGKILL] * (len(ends) - 1) + [0], ends
        different += (folder / last).read_bytes() != expected
        counted, runs = counted + len(ends) - 1, runs + 1
    return {"kills": counted, "runs": runs, "different": different}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = Path(sys.argv[1])
    if len(sys.argv) > 3:
        print(json.dumps(soak(place, int(sys.argv[3]))))
        sys.exit()
    for name in ("whole", "killed", "interrupted"):
        (place / name).mkdir()
    whole = ended(place / "whole", forked(place / "whole"))
    ends = {"killed": killed(place / "killed", float(sys.argv[2])), "interrupted": interrupted(place / "interrupted")}
    print(json.dumps({"whole": [whole], **ends}))
