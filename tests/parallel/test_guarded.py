"""A loss or a gradient that is no number, on one rank alone: no rank learns from the step, and all go on alike (R13)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from hornbook.batch import Batch, Loss
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from hornbook.train.incident import read_incident
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.parallel.pool import ranks
from tests.parallel.test_shard import CLOSE, part_of, whole_batches
from tests.reference.tiny import TIED, Given, furthest, tiny_model, weights

BATCHES, ODD, STEPS = whole_batches(6), (1, 2, 7), 12


def rank_trains(rank: int, sizes: Parallel, poison: float, guilty: int, folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    team, model = Team(sizes), tiny_model(TIED)
    team.spread(model)
    parts = [part_of(batch, team.part, team.parts) for batch in BATCHES]

    def objective(model: TransformerModel, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        odd = rank == guilty and any(batch is parts[number] for number in ODD)
        return Loss(loss.total * poison, loss.count) if odd else loss

    run = Run(steps=STEPS, folder=folder, save_seconds=1e9, team=team)
    state = fit(model, Given(parts), objective, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
    return {name: each.full_tensor().detach() for name, each in model.named_parameters()}, state.skipped


@pytest.mark.parametrize(("poison", "zero"), [(math.nan, 0), (math.nan, 3), (math.inf, 0), (1e30, 3)])
def test_one_rank_odd_step_leaves_no_trace_on_any(poison: float, zero: int, tmp_path: Path) -> None:
    expected = tiny_model(TIED)
    sound = [batch for number, batch in enumerate(BATCHES) if number not in ODD]
    optimizer = build_optimizer(expected, "adamw", 0.01)
    fit(expected, Given(sound), causal_lm, optimizer, lambda step: 1.0, Run(steps=STEPS - len(ODD)))
    told = ranks(2).run(rank_trains, Parallel(data=2, zero=zero), poison, 1, tmp_path)  # type: ignore[arg-type]
    for found, skipped in told:
        assert furthest(found, weights(expected)) < 1e-10 and skipped == len(ODD)
    assert furthest(told[0][0], told[1][0]) == 0
    record, tensors, batches = read_incident(tmp_path / "incidents" / f"step-{ODD[0] + 1:08d}")
    assert record["odd"] and {f"model/{name}" for name in weights(expected)} <= tensors.keys()
    together = torch.cat([batch.tokens_bt for batch in batches])
    assert torch.equal(together, BATCHES[ODD[0]].tokens_bt), "the batch of all ranks"


def stage_trains(rank: int, sizes: Parallel, folder: Path) -> int:
    team, model = Team(sizes), tiny_model(TIED)
    team.spread(model)

    def steep(model: TransformerModel, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        return Loss(loss.total * 1e30, loss.count) if batch.text_bytes == BATCHES[1].text_bytes else loss

    run = Run(steps=2, accumulate=2, folder=folder, save_seconds=1e9, team=team, describe=lambda batch: [str(batch.text_bytes)])
    batches = Given([*BATCHES[2:5], BATCHES[1]])
    return fit(model, batches, steep, build_optimizer(model, "sgd", 0.01), lambda step: 1.0, run).skipped


def test_an_incident_of_a_pipeline_is_one_process(tmp_path: Path) -> None:
    """The first rank has the whole model's weights and gradients, and looks into all layers."""
    assert stage_trains(0, Parallel(), tmp_path / "alone") == 1
    assert ranks(2).run(stage_trains, Parallel(pipeline=2), tmp_path / "stages") == [1, 1]
    one, two = (read_incident(tmp_path / name / "incidents" / "step-00000002") for name in ("alone", "stages"))
    for name, figures in one[0]["parameters"].items():
        assert two[0]["parameters"].pop(name) == pytest.approx(figures, rel=1e-9), name
    for kind in ("hidden", "attention_logits"):
        assert two[0].pop(kind) == pytest.approx(one[0].pop(kind), rel=1e-9)
    assert not two[0]["parameters"] and two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-9)
    for same in ("text", "position", "step", "targets"):
        assert two[0][same] == one[0][same]
    assert two[1].keys() == one[1].keys()
    assert all(float((two[1][name] - value).abs().max()) < CLOSE for name, value in one[1].items() if value.is_floating_point())
