"""A step that training left out is taken again, to the bit, and its odd row is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.batch import Batch, Loss
from hornbook.cli.replay import shown
from hornbook.errors import UserError
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.stages.replay import replay
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import GPT2, Given, random_batch, tiny_model

LAST = 300
LEARNED, ODD = random_batch(3, 12, 1), random_batch(3, 12, 99)


def odd_run(folder: Path, objective: Any = causal_lm, **settings: Any) -> dict[str, Any]:
    """A batch that is known by heart, again and again, and then one whose second row is strange; the row of that step."""
    mixed = Batch(LEARNED.tokens_bt.clone(), LEARNED.targets_bt.clone())
    mixed.tokens_bt[1], mixed.targets_bt[1] = ODD.tokens_bt[1], ODD.targets_bt[1]
    model, rows = tiny_model({**GPT2, "resid_pdrop": 0.1}, dtype=torch.float32), list[dict[str, Any]]()

    def describe(batch: Batch) -> list[str]:
        return [str(row) for row in batch.tokens_bt.tolist()]

    torch.manual_seed(0)  # dropout's
    run = Run(steps=LAST + 1, folder=folder, save_seconds=1e9, log=rows.append, describe=describe, **settings)
    source = Given([*[LEARNED] * (LAST - 1), mixed, LEARNED])
    state = fit(model, source, objective, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
    assert state.skipped == 1
    return next(row for row in rows if "left_out" in row)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_step_has_the_same_bits_again(tmp_path: Path, precision: str) -> None:
    """Dropout is in it: the random numbers are those of the step."""
    row = odd_run(tmp_path, precision=precision)
    assert row["step"] == LAST and "sigma above the usual" in row["left_out"]
    record = replay(tmp_path / "incidents" / f"step-{LAST:08d}", torch.device("cpu"))
    assert record["again"] == {"loss": record["loss"], "gradient_norm": record["gradient_norm"]}
    assert (record["rows"][0]["row"], record["rows"][0]["text"]) == (1, str(ODD.tokens_bt[1].tolist()))
    assert record["rows"][0]["loss"] > 3 * record["rows"][1]["loss"]
    screen = shown(record)
    assert f"step {LAST}" in screen and record["odd"] in screen and "batch 0 row 1" in screen


def test_what_cannot_be_taken_again_is_said(tmp_path: Path) -> None:
    def unknown(model: TransformerModel, batch: Batch) -> Loss:
        return causal_lm(model, batch)

    odd_run(tmp_path, unknown)
    with pytest.raises(UserError, match="unknown"):
        replay(tmp_path / "incidents" / f"step-{LAST:08d}", torch.device("cpu"))
    with pytest.raises(UserError, match="no incident"):
        replay(tmp_path, torch.device("cpu"))
