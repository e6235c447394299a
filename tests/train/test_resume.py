"""A run that was stopped, killed or damaged ends with the bits of a run that was not."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.batch import Batch, Loss
from hornbook.checkpoint.state import newest_state
from hornbook.data.batches import Batches, Rows
from hornbook.data.packing import pack
from hornbook.errors import Interrupted, UserError
from hornbook.files import MANIFEST, read_lines
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.train.loop import Run, TrainState, fit, ignore
from hornbook.train.objective import causal_lm
from tests.reference.tiny import GPT2, LLAMA, TIED, VOCAB, tiny_model, tiny_stream
from tests.train import killed_run

STEPS = 12
LAST = f"step-{killed_run.STEPS:08d}"
# Figures of the clock and of the process.
NOT_OF_THE_RUN = ("seconds", "tokens_per_second", "seconds_left", "data_wait", "memory", "flops_per_second")


def packed() -> Rows:
    random = np.random.default_rng(1)
    documents = []
    for size in random.integers(2, 11, 30):
        documents.append((random.integers(0, VOCAB, size).tolist(), random.integers(0, 2, size).tolist()))
    return pack(documents, 10, 0, np.arange(VOCAB, dtype=np.int64))[0]


def train(
    folder: Path, rows: list[dict[str, Any]], config: dict[str, Any] = LLAMA, data: Callable[[], Rows] = tiny_stream,
    kind: str = "adamw", stop_after: int | None = None, said: list[str] | None = None, **settings: Any,
) -> tuple[TransformerModel, TrainState]:  # fmt: skip
    """A run whose every object is new; `stop_after` sends the process Ctrl-C at that step. Its objective draws random numbers."""

    def press(step: int, model: TransformerModel) -> dict[str, Any]:
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        return {}

    def noisy(model: TransformerModel, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        return Loss(loss.total * (1 + 0.1 * torch.rand(())), loss.count)

    model = tiny_model(config, dtype=torch.float32)
    # A process that continues has drawn other random numbers than the one that began.
    torch.manual_seed(0 if newest_state(folder, ignore) is None else 1)
    optimizer = build_optimizer(model, kind, 0.01, embedding_rate=0.02)
    given = {"save_seconds": 1e9, "log_every": 1, "name": "one", "hook_every": 1, **settings}
    run = Run(steps=STEPS, folder=folder, log=rows.append, say=(said if said is not None else []).append, **given)
    state = fit(model, Batches(data(), 3, seed=5), noisy, optimizer, warmup_decay(STEPS, 4, "cosine"), run, [press])
    return model, state


def last_rows(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The figures of each step, from its last row, without those of the clock."""
    figures = (row for row in rows if "loss" in row)
    return {row["step"]: {key: value for key, value in row.items() if key not in NOT_OF_THE_RUN} for row in figures}


def final_state(folder: Path) -> bytes:
    """Weights, moments and random numbers of the last step, as they are on disk."""
    return (folder / f"step-{STEPS:08d}" / "state.safetensors").read_bytes()


def assert_equal_runs(folder: Path, rows: list[dict[str, Any]], whole: Path, whole_rows: list[dict[str, Any]]) -> None:
    assert final_state(folder) == final_state(whole)
    assert last_rows(rows) == last_rows(whole_rows)


CASES: list[dict[str, Any]] = [
    {},
    {"kind": "muon", "config": TIED, "accumulate": 2},
    {"kind": "muon", "config": GPT2, "data": packed, "log_every": 5},
    {"data": packed, "accumulate": 3, "log_every": 4},
]


@pytest.mark.parametrize("settings", CASES, ids=["adamw", "muon-tied-accumulated", "muon-gpt2-packed", "adamw-packed-accumulated"])
@pytest.mark.parametrize("stop_after", [1, 7])
def test_a_stopped_run_ends_like_a_whole_one(tmp_path: Path, settings: dict[str, Any], stop_after: int) -> None:
    whole_rows, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    whole, _ = train(tmp_path / "whole", whole_rows, **settings)
    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "parts", rows, stop_after=stop_after, resume="hornbook pretrain it.toml", **settings)
    assert "hornbook pretrain it.toml" in str(stopped.value)
    parts, state = train(tmp_path / "parts", rows, **settings)
    assert (state.resumed_at, state.step) == (stop_after, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert_equal_runs(tmp_path / "parts", rows, tmp_path / "whole", whole_rows)


def test_many_stops_are_like_none(tmp_path: Path) -> None:
    whole_rows, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    train(tmp_path / "whole", whole_rows, log_every=5)
    for step in range(1, STEPS):
        with pytest.raises(Interrupted):
            train(tmp_path / "parts", rows, stop_after=step, log_every=5)
    train(tmp_path / "parts", rows, log_every=5)
    assert_equal_runs(tmp_path / "parts", rows, tmp_path / "whole", whole_rows)


def flipped(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "bit of a weight": lambda state: flipped(state / "state.safetensors", 0.9),
    "bit of the header": lambda state: flipped(state / "state.safetensors", 0.01),
    "bit of the position": lambda state: flipped(state / "state.json", 0.1),
    "bit of the manifest": lambda state: flipped(state / MANIFEST, 0.2),
    "cut file": lambda state: os.truncate(state / "state.safetensors", 1000),
    "lost file": lambda state: (state / "state.json").unlink(),
    "lost manifest": lambda state: (state / MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_falls_back_to_the_one_before(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    whole_rows, rows, said = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    train(tmp_path / "whole", whole_rows)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", rows, stop_after=7, save_seconds=-1)
    damage(tmp_path / "parts" / "step-00000007")
    _, state = train(tmp_path / "parts", rows, said=said)
    assert state.resumed_at == 6
    assert any("step-00000007" in line and "damaged" in line for line in said), said
    assert_equal_runs(tmp_path / "parts", rows, tmp_path / "whole", whole_rows)


def test_a_run_whose_every_state_is_damaged_begins_anew_and_saves_again(tmp_path: Path) -> None:
    whole_rows, rows, said = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    train(tmp_path / "whole", whole_rows)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", rows, stop_after=7, save_seconds=-1)
    for state in (tmp_path / "parts").glob("step-*"):
        flipped(state / "state.safetensors", 0.5)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", rows, stop_after=3, save_seconds=-1, said=said)
    assert sum("damaged" in line for line in said) == 2
    _, resumed = train(tmp_path / "parts", rows, said=said)
    assert resumed.resumed_at == 3, "the damaged states of later steps have not pushed out the sound ones"
    assert_equal_runs(tmp_path / "parts", rows, tmp_path / "whole", whole_rows)


@pytest.mark.parametrize("config", [LLAMA, {**LLAMA, "hidden_size": 32}, GPT2], ids=["same shape", "other size", "other family"])
def test_a_state_of_another_run_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    train(tmp_path, [], name="one")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="another run") as error:
        train(tmp_path, [], config=config, name="another")
    assert str(tmp_path) in str(error.value) and error.value.fix
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[tuple[int, str]]]]:
    """The folders that `killed_run` left, and how each of its trainers ended."""
    folder, root = tmp_path_factory.mktemp("processes"), Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.train.killed_run", str(folder), "3"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder, {name: [(code, state) for code, state in ends] for name, ends in json.loads(ran.stdout).items()}


def assert_like_the_whole_one(folder: Path, name: str) -> None:
    last = f"states/{LAST}/state.safetensors"
    assert (folder / name / last).read_bytes() == (folder / "whole" / last).read_bytes()
    rows, whole_rows = (read_lines(folder / run / "metrics.jsonl") for run in (name, "whole"))
    assert last_rows(rows) == last_rows(whole_rows)
    assert len(last_rows(rows)) > killed_run.STEPS // 5


def test_a_run_killed_again_and_again_ends_like_a_whole_one(processes: tuple[Path, dict[str, list[tuple[int, str]]]]) -> None:
    """Signal 9 while steps, logs and saves go on."""
    folder, ends = processes
    codes = [code for code, _ in ends["killed"]]
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 4
    assert all(before[1] <= after[1] for before, after in itertools.pairwise(ends["killed"])), "no kill loses a state"
    assert_like_the_whole_one(folder, "killed")
    left = sorted(path.name for path in (folder / "killed" / "states").iterdir())
    assert left == [f"step-{killed_run.STEPS - 1:08d}", LAST], "nothing is left of the saves that were cut short"


@pytest.mark.soak
def test_two_hundred_kills_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.killed_run", str(tmp_path), "0", "200"]
    ran = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    print(found)
    assert found["kills"] >= 200 and found["different"] == 0


def test_an_interrupted_run_saves_and_is_continued(processes: tuple[Path, dict[str, list[tuple[int, str]]]]) -> None:
    folder, ends = processes
    (code, state), last = ends["interrupted"]
    assert code == 130
    assert "step-00000005" <= state < LAST
    assert last == (0, LAST)
    assert_like_the_whole_one(folder, "interrupted")
