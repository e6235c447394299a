"""Invariants of training runs and of what they write."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hornbook.batch import Batch, Loss
from hornbook.checkpoint.state import load_weights, newest_state
from hornbook.files import sha256, verified, write_text, written_folder
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from hornbook.verify.proof import Finding
from hornbook.verify.tiny import CPU, STEPS, VOCAB, precise, random_batch, tiny_model, train

SHARES = (1.0, 0.1, 0.0, 0.6)  # of the targets that count, in the micro-batches of a step
WAIT = 60.0  # seconds until a child must have saved something


class Listed:
    """Batches one after the other, as a check lists them, for runs that are not saved."""

    def __init__(self, batches: list[Batch]):
        self.batches = iter(batches)

    def __next__(self) -> Batch:
        return next(self.batches)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return


def accumulation(device: torch.device) -> Finding:
    """Several steps of AdamW on ragged micro-batches and on the batches that they make together."""
    device = precise(device)
    steps = [[random_batch(device, 2, 9, 10 * step + n, share) for n, share in enumerate(SHARES)] for step in range(4)]
    together = [Batch(torch.cat([b.tokens_bt for b in step]), torch.cat([b.targets_bt for b in step])) for step in steps]
    models = []
    for batches, accumulate in (([batch for step in steps for batch in step], len(SHARES)), (together, 1)):
        model = tiny_model(device, torch.float64)
        run = Run(steps=len(steps), accumulate=accumulate)
        fit(model, Listed(batches), causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
        models.append(model)
    return Finding(_furthest(*models), 1e-12, "weight difference")


def guarding(device: torch.device) -> Finding:
    """Runs whose every third batch gives no number, infinity or a steep slope, and the runs that never had these batches."""
    batches, different = [random_batch(device, 2, 9, seed) for seed in range(9)], 0.0
    for poison in (math.nan, math.inf, 1e30):

        def poisoned(model: TransformerModel, batch: Batch, poison: float = poison) -> Loss:
            loss = causal_lm(model, batch)
            return Loss(loss.total * poison, loss.count) if any(batch is odd for odd in batches[1::3]) else loss

        sound = [batch for n, batch in enumerate(batches) if n % 3 != 1]
        models = []
        for source, objective in ((batches, poisoned), (sound, causal_lm)):
            model = tiny_model(device)
            optimizer = build_optimizer(model, "adamw", 0.01)
            fit(model, Listed(source), objective, optimizer, lambda step: 1.0, Run(steps=len(source)))
            models.append(model)
        different = max(different, _furthest(*models))
    return Finding(different, 0, "weight difference")


def overfitting(device: torch.device) -> Finding:
    """A model that learns learns one batch by heart."""
    model, batch = tiny_model(device), random_batch(device, 4, 16, seed=0)
    fit(model, Listed([batch] * 60), causal_lm, build_optimizer(model, "muon", 0.01), lambda step: 1.0, Run(steps=60))
    with torch.no_grad():
        loss = causal_lm(model, batch)
    return Finding(float(loss.total / loss.count), 0.05, "nats per token")


def resuming(device: torch.device) -> Finding:
    """A run that stops and goes on, and the same run in one go."""
    with TemporaryDirectory() as place:
        whole, parts = Path(place, "whole"), Path(place, "parts")
        train(whole, device)
        train(parts, device, steps=STEPS // 3)
        train(parts, device)
        return Finding(_different_states(whole, parts), 0, "states differ")


def killing(device: torch.device) -> Finding:
    """A run in another process is killed with signal 9 while it trains and saves, and goes on here."""
    with TemporaryDirectory() as place:
        whole, parts = Path(place, "whole"), Path(place, "parts")
        _kill_a_run(parts, device)
        train(whole, device)
        train(parts, device)
        return Finding(_different_states(whole, parts), 0, "states differ")


def sharing(device: torch.device) -> Finding:
    """A run of two processes on the processor, which share out gradients and moments, and the same run of one, in float64."""
    with TemporaryDirectory() as place:
        whole, parts = Path(place, "whole"), Path(place, "parts")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*torchrun, "-m", "hornbook.verify.tiny", str(parts), "cpu", "1"]
        said = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found = newest_state(parts, lambda line: None)
        if said.returncode or found is None:
            raise RuntimeError(f"two processes did not train: {said.stderr.strip()[-400:]}")
        one, two = train(whole, CPU, dtype=torch.float64), tiny_model(CPU, torch.float64, seed=1)
        load_weights(found, two)
        return Finding(_furthest(one, two), 1e-10, "weight difference")


def _kill_a_run(folder: Path, device: torch.device) -> None:
    command = [sys.executable, "-m", "hornbook.verify.tiny", str(folder), str(device), str(torch.get_num_threads())]
    child, late = subprocess.Popen(command, stderr=subprocess.PIPE, text=True), time.perf_counter() + WAIT
    try:
        while not list(folder.glob("step-*")) and child.poll() is None and time.perf_counter() < late:
            time.sleep(0.001)
    finally:
        child.kill()
        _, complaint = child.communicate()
    if child.returncode != -signal.SIGKILL or not list(folder.glob("step-*")):
        raise RuntimeError(f"the run that was to be killed ended by itself, or never saved: {complaint.strip()[-200:]}")


def writing(device: torch.device) -> Finding:
    """Writers that break off halfway, by an error and by signal 9, leave the folder that was there."""
    code = (
        "import os, signal, sys; from pathlib import Path; from hornbook.files import write_text, written_folder\n"
        "with written_folder(Path(sys.argv[1])) as folder:\n"
        "    write_text(folder / 'text', 'new'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    changed = 0
    with TemporaryDirectory() as place:
        target = Path(place, "kept")
        with written_folder(target, {"content": "old"}) as folder:
            write_text(folder / "text", "old")
        for kill in (False, True):
            if kill:
                subprocess.run([sys.executable, "-c", code, str(target)], check=False)
            else:
                _break_off(target)
            changed += verified(target) != {"content": "old"} or (target / "text").read_text(encoding="utf-8") != "old"
    return Finding(changed, 0, "of 2 contents changed")


def _break_off(target: Path) -> None:
    try:
        with written_folder(target) as folder:
            write_text(folder / "text", "new")
            raise InterruptedError
    except InterruptedError:
        return


def first_loss(device: torch.device) -> Finding:
    """An untrained model holds every token for as likely as any other."""
    with torch.no_grad():
        loss = causal_lm(tiny_model(device), random_batch(device, 8, 32, seed=0))
    return Finding(abs(float(loss.total / loss.count) - math.log(VOCAB)), 0.3, "nats from ln(vocabulary)")


def _different_states(a: Path, b: Path) -> int:
    """1 where the weights, moments or random numbers of the last step differ in a single bit."""
    file = f"step-{STEPS:08d}/state.safetensors"
    return int(sha256(a / file) != sha256(b / file))


def _furthest(a: TransformerModel, b: TransformerModel) -> float:
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))
