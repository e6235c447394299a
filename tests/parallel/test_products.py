"""Every kind of parallelism, and every pair of kinds, on 2 and 4 ranks: the weights of one process after 20 steps of AdamW.

Muon, which needs whole matrices, for each kind alone and for one pair. The slow ones: the other pairs, and pairs in other settings.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.checkpoint.state import load_weights, newest_state
from hornbook.parallel.sizes import Parallel
from hornbook.parallel.team import Team
from tests.parallel.pool import ranks
from tests.parallel.test_shard import CLOSE, STEPS, trained
from tests.reference.tiny import TIED, furthest, tiny_model, weights

EVEN = {**TIED, "vocab_size": 64}
MIXTURE = {
    **EVEN, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None,
    "router_aux_loss_coef": 0.0, "tie_word_embeddings": False,
}  # fmt: skip
SINGLE = [Parallel(tensor=2), Parallel(pipeline=2), Parallel(expert=2)]
PAIRS = [
    Parallel(data=2, tensor=2, zero=3), Parallel(data=2, pipeline=2), Parallel(pipeline=2, expert=2),
]  # fmt: skip
SETTINGS = [
    Parallel(data=2, expert=2), Parallel(pipeline=2, tensor=2), Parallel(tensor=2, expert=2),
    Parallel(expert=2, zero=3), Parallel(data=2, tensor=2), Parallel(data=2, tensor=2, sequence=True),
    Parallel(data=2, pipeline=2, zero=3), Parallel(data=2, expert=2, zero=3),
    Parallel(tensor=2, sequence=True), Parallel(pipeline=2, schedule="gpipe"), Parallel(expert=2, zero=1),
    *(Parallel(data=2, tensor=2, zero=zero) for zero in (1, 2)), *(Parallel(data=2, pipeline=2, zero=zero) for zero in (1, 2)),
    *(Parallel(data=2, expert=2, zero=zero) for zero in (1, 2)),
    *(Parallel(data=2, tensor=2, sequence=True, zero=zero) for zero in (1, 2, 3)),
    Parallel(pipeline=2, tensor=2, sequence=True), Parallel(tensor=2, sequence=True, expert=2),
    Parallel(tensor=2, expert=2, zero=3), Parallel(pipeline=2, expert=2, zero=3),
]  # fmt: skip
SLOW = [
    *(pytest.param(sizes, "adamw", marks=pytest.mark.slow) for sizes in SETTINGS),
    pytest.param(PAIRS[0], "muon", marks=pytest.mark.slow),
]  # fmt: skip


def name_of(sizes: Parallel) -> str:
    return "-".join(f"{key}{value}" for key, value in vars(sizes).items() if value != getattr(Parallel(), key))


def config_for(sizes: Parallel) -> dict[str, Any]:
    return MIXTURE if sizes.expert > 1 else EVEN


def rank_trains(rank: int, sizes: Parallel, kind: str, folder: Path, steps: int) -> list[dict[str, Any]]:
    return trained(Team(sizes), config_for(sizes), kind, folder, steps)[1]


@cache
def one_process(mixture: bool, kind: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    model, rows = trained(Team(), MIXTURE if mixture else EVEN, kind)
    return weights(model), rows


def stored(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of the newest state, read by one process."""
    found, model = newest_state(folder, print), tiny_model(config, seed=5)
    assert found is not None and found.step == STEPS
    load_weights(found, model)
    return weights(model)


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [*((sizes, "adamw") for sizes in SINGLE + PAIRS), *((sizes, "muon") for sizes in SINGLE), *SLOW],
    ids=lambda value: name_of(value) if isinstance(value, Parallel) else value,
)
def test_the_weights_and_rows_are_one_process(sizes: Parallel, kind: str, tmp_path: Path) -> None:
    wanted, rows = one_process(sizes.expert > 1, kind)
    told = ranks(sizes.world).run(rank_trains, sizes, kind, tmp_path, STEPS)
    assert furthest(stored(tmp_path, config_for(sizes)), wanted) < CLOSE
    for ours, theirs in zip(rows, told[0], strict=True):
        for key in ("step", "tokens", "loss", "bits_per_byte", "grad_norm"):
            assert abs(ours[key] - theirs[key]) < CLOSE, key
