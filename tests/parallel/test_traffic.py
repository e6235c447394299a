"""What a step really holds and sends on 2 and 4 ranks, counted at the collectives, is what `hornbook plan` computes beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hornbook.families import build
from hornbook.model import shapes_only
from hornbook.optim.build import build_optimizer
from hornbook.optim.shards import plain
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from hornbook.plan import traffic
from hornbook.stages.processes import EACH, processes
from hornbook.train.loop import gradients
from hornbook.train.objective import causal_lm
from hornbook.train.precision import Precision
from tests.parallel.pool import ranks
from tests.parallel.test_products import EVEN, MIXTURE, name_of
from tests.parallel.test_shard import part_of
from tests.parallel.wire import Wire
from tests.reference.tiny import random_batch, tiny_model

ROWS, LENGTH, FLOAT64 = 8, 8, 8
MICRO_BATCHES = 1, 3
COPIES = [Parallel(data=n, zero=zero) for n in (2, 4) for zero in (0, 1, 2, 3)]
OTHERS = [
    Parallel(tensor=2), Parallel(tensor=2, sequence=True), Parallel(pipeline=2), Parallel(pipeline=4),
    Parallel(pipeline=2, schedule="gpipe"), Parallel(expert=2), Parallel(expert=2, zero=3), Parallel(expert=4),
    Parallel(tensor=2, data=2, zero=3),
]  # fmt: skip
PAIRS = [
    Parallel(tensor=2, pipeline=2), Parallel(tensor=2, pipeline=2, sequence=True),
    *(replace(sizes, data=2, zero=zero) for sizes in (Parallel(pipeline=2), Parallel(expert=2)) for zero in (0, 1, 2, 3)),
    Parallel(pipeline=2, expert=2),
]  # fmt: skip


def config_for(sizes: Parallel) -> dict[str, Any]:
    """Sizes that 4 divides. Each token goes to all experts, so that routing is even."""
    if sizes.expert > 1:
        return {**MIXTURE, "num_local_experts": 4, "num_experts_per_tok": 4}
    return {**EVEN, "num_hidden_layers": max(2, sizes.pipeline)}


def rank_counts(rank: int, sizes: Parallel) -> list[dict[str, int]]:
    model, team, found = tiny_model(config_for(sizes)), Team(sizes), list[dict[str, int]]()
    team.spread(model)
    optimizer = build_optimizer(model, "adamw", 0.01)
    for micro_batches in MICRO_BATCHES:
        batches = [part_of(random_batch(ROWS, LENGTH, number), team.part, team.parts) for number in range(micro_batches)]
        with Wire() as wire:
            step = gradients(model, batches, causal_lm, Precision("fp32", "cpu"), {}, team)
            held = sum(plain(weight.grad).numel() for weight in model.parameters() if weight.grad is not None)
            optimizer.step(1.0, step.norm_tensor)
        optimizer.zero_grad()
        found.append({"sent": round(wire.sent), "own": sum(plain(each).numel() for each in model.parameters()), "gradients": held})
    return found


def planned(sizes: Parallel, micro_batches: int) -> list[dict[str, Any]]:
    def shape() -> Any:
        with shapes_only():
            return build(config_for(sizes))

    return list(processes(shape, 0, sizes, ROWS, LENGTH, micro_batches)["stages"])


@pytest.mark.parametrize("sizes", [*COPIES, *OTHERS, *(pytest.param(pair, marks=pytest.mark.slow) for pair in PAIRS)], ids=name_of)
def test_bytes_on_the_wire_equal_the_formula(sizes: Parallel) -> None:
    told = ranks(sizes.world).run(rank_counts, sizes)
    for number, micro_batches in enumerate(MICRO_BATCHES):
        stages = planned(sizes, micro_batches)
        for rank in range(sizes.world):
            found, stage = told[rank][number], stages[rank * sizes.pipeline // sizes.world]
            assert found["sent"] * EACH == stage["sent_per_step"]["total"] * FLOAT64
            assert found["own"] * EACH == stage["memory"]["second_moment"]
            if sizes.zero != 1:  # which holds whole gradients until the last micro-batch, and its own part behind it
                assert found["gradients"] * EACH == stage["memory"]["gradients"]


def test_a_ring_stays_under_two_weights_and_a_server_does_not() -> None:
    for n in (2, 8, 64):
        assert traffic.all_reduce(1.0, n) < 2 == traffic.parameter_server(1.0, n)[1]
        assert traffic.parameter_server(1.0, n)[0] == 2 * n


def test_more_micro_batches_cost_nothing_but_in_zero_2_and_3() -> None:
    for sizes in [Parallel(data=2, zero=zero, pipeline=stages) for zero in (0, 1, 2, 3) for stages in (1, 2)]:
        one, three = (planned(sizes, k)[0]["sent_per_step"]["data"] for k in (1, 3))
        assert (three > one) == (sizes.zero >= 2)
