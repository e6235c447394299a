"""A state that one kind of parallelism saved, loaded by another and saved again, has the same bits: every pair (R11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.checkpoint.state import Keep, newest_state, restore, snapshot, write_snapshot
from hornbook.optim.build import build_optimizer
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from tests.parallel.pool import ranks
from tests.parallel.test_products import EVEN
from tests.parallel.test_shard import trained
from tests.reference.tiny import tiny_model

WAYS = {
    "one process": Parallel(), "copies": Parallel(data=2), "FSDP2": Parallel(data=2, zero=3), "tensor": Parallel(tensor=2),
    "pipeline": Parallel(pipeline=2),
}  # fmt: skip
STEP = 2


def save(rank: int, sizes: Parallel, folder: Path) -> None:
    trained(Team(sizes), EVEN, "adamw", folder, STEP)


def pass_on(rank: int, sizes: Parallel, pairs: list[tuple[Path, Path]]) -> None:
    """Load each first folder's state into a model of another seed, and save it in the second."""
    for place, target in pairs:
        team, model = Team(sizes), tiny_model(EVEN, seed=5)
        team.spread(model)
        optimizer, found = build_optimizer(model, "adamw", 0.01), newest_state(place, print)
        assert found is not None
        restore(found, model, optimizer)
        write_snapshot(target, snapshot(STEP, model, optimizer, found.position, found.run), Keep())


def go(function: Any, sizes: Parallel, given: Any) -> None:
    if sizes.world == 1:
        function(0, sizes, given)
    else:
        ranks(sizes.world).run(function, sizes, given)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and moments, as one process reads them."""
    model = tiny_model(EVEN, seed=7)
    optimizer, found = build_optimizer(model, "adamw", 0.01), newest_state(folder, print)
    assert found is not None and found.step == STEP
    restore(found, model, optimizer)
    return snapshot(STEP, model, optimizer, {}, {}).tensors


NEXT = [*zip(WAYS, [*WAYS][1:] + [*WAYS][:1], strict=True)]  # each kind saves once and loads once
EVERY = [(one, other) for one in WAYS for other in WAYS]


@pytest.mark.parametrize("pairs", [NEXT, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["next", "every"])
def test_a_state_keeps_its_bits_from_kind_to_kind(pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    for way, sizes in WAYS.items():
        go(save, sizes, tmp_path / way)
    for way, sizes in WAYS.items():
        go(pass_on, sizes, [(tmp_path / one, tmp_path / f"{one}, {way}") for one, other in pairs if other == way])
    for one, other in pairs:
        before, after = stored(tmp_path / one), stored(tmp_path / f"{one}, {other}")
        tensors = {name for name in before if not name.startswith("rank/")}
        assert tensors == {name for name in after if not name.startswith("rank/")}
        assert len(tensors) > 3 * len(dict(tiny_model(EVEN).named_parameters()))
        assert all(torch.equal(before[name], after[name]) for name in tensors), (one, other)
    print(f"{len(pairs)} pairs, difference 0")
