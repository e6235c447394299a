"""Training states: what is saved comes back, bit for bit, and only whole states count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hornbook.checkpoint.state import Keep, newest_state, restore, snapshot, write_snapshot
from hornbook.files import verified
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers, build_optimizer
from hornbook.optim.kinds import OPTIMIZERS
from tests.reference.tiny import FAMILIES, LLAMA, TIED, furthest, random_batch, tiny_model, weights

SILENT: list[str] = []
POSITION, RUN = {"sample": 7, "deep": {"a": [1, 2]}}, {"name": "one", "meter": {"nats": 0.1 + 0.2, "tokens": 5}}


def save_state(folder: Path, step: int, *parts: Any) -> None:
    write_snapshot(folder, snapshot(step, *parts), Keep())


def trained(config: dict[str, Any], kind: str, steps: int, seed: int = 0) -> tuple[TransformerModel, Optimizers]:
    model = tiny_model(config, seed, dtype=torch.float32)
    optimizer = build_optimizer(model, kind, 0.01, embedding_rate=0.02)
    go_on(model, optimizer, steps)
    return model, optimizer


def go_on(model: TransformerModel, optimizer: Optimizers, steps: int) -> None:
    for step in range(steps):
        batch = random_batch(2, 5, step)
        model(batch.tokens_bt).logsumexp(-1).sum().backward()
        optimizer.set_rate(1 / (step + 1))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_restored_state_goes_on_with_the_same_bits(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    model, optimizer = trained(config, kind, 3)
    torch.manual_seed(42)
    torch.rand(5)
    save_state(tmp_path, 3, model, optimizer, POSITION, RUN)
    drawn = torch.rand(4)
    go_on(model, optimizer, 3)

    other, others_optimizer = trained(config, kind, 1, seed=9)
    found = newest_state(tmp_path, SILENT.append)
    assert found is not None
    assert (found.step, found.position, found.run) == (3, POSITION, RUN)
    restore(found, other, others_optimizer)
    assert torch.equal(torch.rand(4), drawn), "random numbers go on as well"
    go_on(other, others_optimizer, 3)
    assert furthest(weights(model), weights(other)) == 0
    assert not SILENT


def test_ties_are_stored_once_and_hold_after_a_restore(tmp_path: Path) -> None:
    model, optimizer = trained(TIED, "adamw", 2)
    save_state(tmp_path, 2, model, optimizer, POSITION, RUN)
    with safe_open(tmp_path / "step-00000002" / "state.safetensors", "pt") as file:
        stored = {name.removeprefix("model/") for name in file.keys() if name.startswith("model/")}  # noqa: SIM118
    assert stored == {name for name, _ in model.named_parameters()}, "named_parameters names a shared tensor once"
    other, others_optimizer = trained(TIED, "adamw", 0, seed=3)
    found = newest_state(tmp_path, SILENT.append)
    assert found is not None
    restore(found, other, others_optimizer)
    assert other.head.out.weight is other.stem.tokens.weight
    assert torch.equal(other.head.out.weight, model.stem.tokens.weight)


def test_a_run_without_steps_can_be_saved(tmp_path: Path) -> None:
    """No moments yet: the optimizer starts as it would have."""
    model, optimizer = trained(LLAMA, "adamw", 0)
    save_state(tmp_path, 0, model, optimizer, POSITION, RUN)
    other, others_optimizer = trained(LLAMA, "adamw", 0, seed=4)
    found = newest_state(tmp_path, SILENT.append)
    assert found is not None
    restore(found, other, others_optimizer)
    go_on(model, optimizer, 2)
    go_on(other, others_optimizer, 2)
    assert furthest(weights(model), weights(other)) == 0


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = trained(LLAMA, "adamw", 1)
    for step in (1, 2, 9, 10, 100):
        save_state(tmp_path, step, model, optimizer, {"sample": step}, RUN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert [verified(path)["step"] for path in sorted(tmp_path.iterdir())] == [10, 100]
    found = newest_state(tmp_path, SILENT.append)
    assert found is not None and found.position == {"sample": 100}


def test_states_of_later_steps_are_forgotten(tmp_path: Path) -> None:
    """A run that goes on from step 10 has left step 100 out as damaged: it must not count as the newest."""
    model, optimizer = trained(LLAMA, "adamw", 1)
    for step in (10, 100, 11, 12):
        save_state(tmp_path, step, model, optimizer, {"sample": step}, RUN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000011", "step-00000012"]


def test_damage_is_said_and_left_out(tmp_path: Path) -> None:
    model, optimizer = trained(LLAMA, "adamw", 1)
    for step in (1, 2):
        save_state(tmp_path, step, model, optimizer, {"sample": step}, RUN)
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    said: list[str] = []
    found = newest_state(tmp_path, said.append)
    assert found is not None and found.step == 1
    assert len(said) == 1 and "step-00000002" in said[0] and "state.json" in said[0]
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    assert newest_state(tmp_path, said.append) is None
    assert newest_state(tmp_path / "nowhere", said.append) is None


def test_nothing_but_tensors_and_json_is_stored(tmp_path: Path) -> None:
    model, optimizer = trained(LLAMA, "muon", 1)
    save_state(tmp_path, 1, model, optimizer, POSITION, RUN)
    names = sorted(path.name for path in (tmp_path / "step-00000001").iterdir())
    assert names == ["manifest.json", "state.json", "state.safetensors"]
    record = json.loads((tmp_path / "step-00000001" / "state.json").read_text())
    assert record["position"] == POSITION and record["run"] == RUN
