"""The figures of a row that are not the loss: what the objective adds, waiting, operations, memory, what is left."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from hornbook.batch import Batch, Loss
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.plan.flops import flops
from hornbook.train.loop import Run, fit
from hornbook.train.meter import peak_memory
from hornbook.train.objective import causal, causal_lm
from tests.reference.tiny import Given, random_batch, tiny_model


def rows_of(batches: list[Batch], objective: Any = causal_lm, **settings: Any) -> list[dict[str, Any]]:
    model, rows = tiny_model(dtype=torch.float32), list[dict[str, Any]]()
    run = Run(log=rows.append, **settings)
    fit(model, Given(batches), objective, build_optimizer(model, "adamw", 0.0), lambda step: 1.0, run)
    return rows


def test_an_objectives_figures_are_means_over_the_targets_of_all_micro_batches_and_steps() -> None:
    batches = [random_batch(2, 6, seed, share) for seed, share in enumerate((1.0, 0.3, 0.8, 0.1))]
    rows = rows_of(batches, causal(1e-2), steps=2, accumulate=2, log_every=2)
    model = tiny_model(dtype=torch.float32)  # the rate was 0: still the same
    losses = [causal(1e-2)(model, batch) for batch in batches]
    first = sum(float(loss.metrics["z_loss"]) for loss in losses[:2]) / sum(int(loss.count) for loss in losses[:2])
    second = sum(float(loss.metrics["z_loss"]) for loss in losses[2:]) / sum(int(loss.count) for loss in losses[2:])
    assert [row["z_loss"] for row in rows] == pytest.approx([first, second], rel=1e-5) and first != pytest.approx(second, rel=1e-3)


def test_a_figure_cannot_take_the_place_of_the_loss() -> None:
    def boastful(model: TransformerModel, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        return Loss(loss.total, loss.count, {"loss": torch.zeros(())})

    assert rows_of([random_batch(2, 6, 0)], boastful, steps=1)[0]["loss"] > 1


class Slow(Given):
    def __next__(self) -> Batch:
        time.sleep(0.2)
        return super().__next__()


def test_the_share_of_waiting_is_that_of_the_wall() -> None:
    batches = [random_batch(2, 6, seed) for seed in range(4)]
    model, rows = tiny_model(dtype=torch.float32), list[dict[str, Any]]()
    began = time.perf_counter()
    run = Run(steps=2, accumulate=2, log_every=1, log=rows.append)
    fit(model, Slow(batches), causal_lm, build_optimizer(model, "adamw", 0.0), lambda step: 1.0, run)
    passed = time.perf_counter() - began
    assert all(0 < row["data_wait"] <= 1 for row in rows)
    assert 0.8 <= sum(row["data_wait"] for row in rows) / 2 * rows[-1]["seconds"] <= passed + 0.4
    assert rows_of(batches, steps=2)[0]["data_wait"] < 0.2


def test_operations_are_those_of_every_token_and_target_and_mfu_their_share_of_the_peak() -> None:
    batches = [random_batch(2, 6, seed, 0.5) for seed in range(3)]
    row = rows_of(batches, steps=1, accumulate=3, peak=1e9)[0]
    known, targets = flops(tiny_model()), sum(int((batch.targets_bt >= 0).sum()) for batch in batches)
    assert known is not None
    assert row["flops_per_second"] / row["tokens_per_second"] == pytest.approx(known.training(36, 6, targets) / 36)
    assert row["mfu"] == row["flops_per_second"] / 1e9
    assert "mfu" not in rows_of(batches, steps=1)[0]  # no peak is known


def test_what_is_left_goes_on_at_the_pace_so_far_and_ends_at_nothing() -> None:
    rows = rows_of([random_batch(2, 6, seed) for seed in range(8)], steps=8, log_every=2)
    assert [(row["step"], row["steps"]) for row in rows] == [(step, 8) for step in (1, 2, 4, 6, 8)]
    for row in rows:
        assert row["seconds_left"] == pytest.approx(row["seconds"] * (8 - row["step"]) / row["step"])
    assert rows[-1]["seconds_left"] == 0


def test_memory_is_what_the_process_held_at_most() -> None:
    code = "import torch; before = peak_memory(); much = torch.ones(50_000_000); print(before, peak_memory())"  # 200 MB
    code = f"from hornbook.train.meter import peak_memory; {code}"  # in a process of its own: this one may have held more before
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    before, after = map(int, done.stdout.split())
    assert 10e6 < before < after - 150e6 and after < 100e9
    assert peak_memory() <= rows_of([random_batch(2, 6, 0)], steps=1)[0]["memory"] <= peak_memory()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_a_gpu_is_torchs() -> None:
    held = torch.ones(1_000_000, device="cuda")
    assert peak_memory("cuda") >= held.nbytes
