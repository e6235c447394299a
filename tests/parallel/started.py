"""Runs of one or more ranks in processes of their own, which a test may stop, hang or kill, and start again in the same folder.

Ranks are forked from the server that `pool` has, which has imported everything: a start takes no seconds.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hornbook.batch import Batch, Loss
from hornbook.checkpoint import saver
from hornbook.checkpoint.state import Keep, Snapshot, write_snapshot
from hornbook.data.batches import Batches
from hornbook.errors import Interrupted, UserError
from hornbook.files import append_line, read_lines
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.parallel import alive
from hornbook.parallel import team as module
from hornbook.parallel.sizes import Parallel
from hornbook.stages.runs import held_by_first
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.parallel.pool import server
from tests.reference.tiny import tiny_model, tiny_stream

STEPS = 24
SAVED, LEFT = 130, 131  # how a rank ends that saved and left, and one that left at once
LATE = {0, SAVED, LEFT, -signal.SIGTERM}  # for a signal that comes when the last state is there


class Started:
    """`settings`: steps; patience: of a rank for the others; listen: seconds for a sign of life; save_seconds;
    stalled: ranks whose fifth step does not end; frozen: ranks that stand still when they write the last state.
    """

    def __init__(self, folder: Path, world: int = 1, **settings: Any):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.world = folder, world
        usual = {"steps": STEPS, "patience": 60.0, "listen": 1.5, "save_seconds": 1.0, "stalled": (), "frozen": ()}
        self.processes = [
            server().Process(target=_rank, args=(rank, world, port, folder, usual | settings), daemon=True) for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def at(self, step: int) -> Started:
        """Waits until the run has logged that step, or ended."""
        until = time.monotonic() + 180
        while max((row["step"] for row in rows(self.folder)), default=0) < step and self.processes[0].is_alive():
            assert time.monotonic() < until, "the run does not get so far"
            time.sleep(0.002)
        return self

    def signal(self, number: int, *some: int) -> float:
        """To all ranks, or to some; when it was sent."""
        for rank in some or range(self.world):
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid or 0, number)
        return time.monotonic()

    def ended(self, patience: float = 180.0, of: tuple[int, ...] = ()) -> list[int | None]:
        """The exit codes of all, or of some, within so many seconds; whoever still runs then is ended, with None."""
        until, mine = time.monotonic() + patience, [self.processes[rank] for rank in of or range(self.world)]
        for process in mine:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():  # where it hangs
                os.kill(process.pid or 0, signal.SIGUSR1)
                time.sleep(0.2)
        codes = [process.exitcode for process in mine]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def said(self, rank: int) -> str:
        return (self.folder.parent / f"{self.folder.name}-{rank}").read_text()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_lines(folder / "metrics.jsonl") if "loss" in row]


def newest(folder: Path) -> int:
    return max((int(path.name[5:]) for path in (folder / "states").glob("step-*")), default=0)


def last_state(folder: Path) -> dict[str, bytes]:
    """Weights, moments and random numbers of the last step, bit for bit; which rank wrote what is chance."""
    found: dict[str, bytes] = {}
    for path in (folder / "states" / f"step-{newest(folder):08d}").glob("*.safetensors"):
        tensors = {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
        assert not found.keys() & tensors
        found |= tensors
    return found


def _rank(rank: int, world: int, port: int, folder: Path, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)
    if world > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()})
    module.PATIENCE, alive.LISTEN, alive.BEAT = settings["patience"], settings["listen"], settings["listen"] / 3.5
    try:
        team = module.join(Parallel(data=world), torch.device("cpu"))
        with held_by_first(folder):
            _train(rank, team, folder, settings)
    except Interrupted:
        sys.exit(SAVED)
    except KeyboardInterrupt:
        sys.exit(LEFT)
    except UserError as error:
        (folder.parent / f"{folder.name}-{rank}").write_text(error.render())
        sys.exit(2)


def _train(rank: int, team: module.Team, folder: Path, settings: dict[str, Any]) -> None:
    model, steps, seen = tiny_model(dtype=torch.float32), settings["steps"], 0
    team.spread(model)

    def objective(model: TransformerModel, batch: Batch) -> Loss:
        nonlocal seen
        seen += 1
        if seen == 5 and rank in settings["stalled"]:
            time.sleep(1000)
        return causal_lm(model, batch)

    def write(folder: Path, found: Snapshot, keep: Keep) -> None:
        if found.step == steps and rank in settings["frozen"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        write_snapshot(folder, found, keep)

    saver.write_snapshot = write
    run = Run(
        steps=steps, folder=folder / "states", save_seconds=settings["save_seconds"], log_every=1, name="one", team=team,
        log=lambda row: append_line(folder / "metrics.jsonl", row),
    )  # fmt: skip
    batches = Batches(tiny_stream(), 4, 5, rank=team.part, world=team.parts)
    fit(model, batches, objective, build_optimizer(model, "adamw", 0.01), warmup_decay(steps, 4), run)
