"""Copies on 2 and 4 ranks that share out nothing, moments, gradients or weights, against one process: same weights, norms, rows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.adapt.compile import compile_blocks
from hornbook.batch import IGNORE, Batch
from hornbook.checkpoint.state import load_weights, newest_state
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.optim.shards import plain, whole
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.parallel.pool import ranks
from tests.reference.tiny import GPT2, TIED, Given, furthest, random_batch, tiny_model, weights

CLOSE = 1e-10
STEPS, ACCUMULATE = 20, 2
COPIES = [Parallel(data=2), *(Parallel(data=2, zero=zero) for zero in (1, 2, 3)), Parallel(data=4), Parallel(data=4, zero=3)]


def whole_batches(steps: int = STEPS) -> list[Batch]:
    """Four rows each, of ragged lengths: the copies' parts have unlike numbers of targets, some of them none."""
    batches = [random_batch(4, 6 + 2 * (number % 3), number, (1.0, 0.3, 0.05)[number % 3]) for number in range(steps * ACCUMULATE)]
    batches[3] = replace(batches[3], targets_bt=batches[3].targets_bt.clone().index_fill_(0, torch.tensor([0, 1]), IGNORE))
    return batches


def part_of(batch: Batch, part: int, parts: int) -> Batch:
    rows = len(batch.tokens_bt) // parts
    mine = slice(part * rows, (part + 1) * rows)
    given: dict[str, Any] = {name: value[mine] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    share, rest = divmod(batch.text_bytes, parts)
    return Batch(**given, text_bytes=share + rest * (part == 0))


def trained(
    team: Team, config: dict[str, Any], kind: str = "adamw", folder: Path | None = None, steps: int = STEPS, name: str = "one",
    compiled: bool = False,
) -> tuple[Any, list[dict[str, Any]]]:  # fmt: skip
    """Weights and rows of a run on these processes. It goes on from what `folder` holds."""
    model, rows = tiny_model(config), list[dict[str, Any]]()
    if compiled:
        compile_blocks(model, "aot_eager")
    team.spread(model)
    batches = Given([part_of(batch, team.part, team.parts) for batch in whole_batches()])
    optimizer = build_optimizer(model, kind, 0.01, embedding_rate=0.02)
    told = {"log_every": 1, "log": rows.append, "folder": folder, "save_seconds": 1e9, "name": name}
    run = Run(steps=steps, accumulate=ACCUMULATE, clip=0.5, team=team, **told)
    fit(model, batches, causal_lm, optimizer, warmup_decay(STEPS, 4), run)
    return model, rows


def gathered(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(plain(value.detach()), value) for name, value in model.named_parameters()}


def rank_trains(rank: int, sizes: Parallel, cases: list[tuple[dict[str, Any], str]]) -> list[Any]:
    found = []
    for config, kind in cases:
        model, rows = trained(Team(sizes), config, kind)
        found.append((gathered(model), rows))
    return found


@pytest.mark.parametrize(
    "sizes",
    [sizes if sizes.data == 2 and sizes.zero in (0, 2, 3) else pytest.param(sizes, marks=pytest.mark.slow) for sizes in COPIES],
    ids=lambda sizes: f"{sizes.data}-zero{sizes.zero}",
)
def test_copies_learn_what_one_process_learns(sizes: Parallel) -> None:
    cases = [(TIED, "adamw"), (GPT2, "muon")]
    told = ranks(sizes.world).run(rank_trains, sizes, cases)
    for number, (config, kind) in enumerate(cases):
        model, rows = trained(Team(), config, kind)
        for rank in range(sizes.world):
            others, theirs = told[rank][number]
            assert furthest(others, weights(model)) < CLOSE
            assert not theirs or rank == 0, "the first rank alone speaks"
        for ours, theirs in zip(rows, told[0][number][1], strict=True):
            for key in ("step", "tokens"):
                assert ours[key] == theirs[key]
            for key in ("loss", "bits_per_byte", "grad_norm"):
                assert abs(ours[key] - theirs[key]) < CLOSE


def rank_compiles(rank: int, sizes: Parallel) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], int]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, rows = trained(Team(sizes), GPT2, compiled=True)
    return gathered(model), rows, int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_compiled_copies_learn_what_one_process_learns(zero: int) -> None:
    """Blocks are compiled by torch's tracer and its split into forward and backward; the code of inductor is not made here."""
    model, rows = trained(Team(), GPT2)
    for others, theirs, graphs in ranks(2).run(rank_compiles, Parallel(data=2, zero=zero)):
        assert graphs >= 3  # one for each length of the rows
        assert furthest(others, weights(model)) < CLOSE
        assert [row["loss"] for row in theirs] == pytest.approx([row["loss"] for row in rows][: len(theirs)], abs=CLOSE)


def rank_saves(rank: int, sizes: Parallel, kind: str, folder: Path, steps: int) -> dict[str, torch.Tensor]:
    return gathered(trained(Team(sizes), TIED, kind, folder, steps)[0])


def go(sizes: Parallel, kind: str, folder: Path, steps: int) -> dict[str, torch.Tensor]:
    if sizes.world == 1:
        return weights(trained(Team(), TIED, kind, folder, steps)[0])
    return ranks(sizes.world).run(rank_saves, sizes, kind, folder, steps)[0]


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("adamw", "sgd")), "muon"])
def test_a_run_goes_on_with_any_number_of_copies(tmp_path: Path, kind: str) -> None:
    """Ten steps so, the others so: every pair of one process, copies on 2 ranks, ZeRO 3 on 2, ZeRO 1 on 4 (the default: of two)."""
    ways = [Parallel(), Parallel(data=2), Parallel(data=2, zero=3), Parallel(data=4, zero=1)]
    if kind != "adamw":
        ways = [Parallel(), Parallel(data=2, zero=3)]
    wanted = weights(trained(Team(), TIED, kind)[0])
    for number, first in enumerate(ways):
        begun = tmp_path / str(number)
        halfway = go(first, kind, begun, 10)
        found = newest_state(begun, print)
        assert found is not None and found.step == 10
        alone = tiny_model(TIED, seed=5)
        load_weights(found, alone)
        assert furthest(weights(alone), halfway) == 0, "what is stored are the very weights"
        for second in ways:
            folder = shutil.copytree(begun, tmp_path / f"{number}-{ways.index(second)}")
            assert furthest(go(second, kind, folder, STEPS), wanted) < CLOSE
