"""States that are written beside the training: whole, in order, kept by rule, and no error of theirs is lost."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hornbook.checkpoint import saver as module
from hornbook.checkpoint import state
from hornbook.checkpoint.saver import Best, Saver, check_room, most_states
from hornbook.checkpoint.state import Keep, Snapshot, newest_state, restore, snapshot, state_bytes
from hornbook.errors import UserError
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit, ignore
from hornbook.train.objective import causal_lm
from tests.reference.tiny import Given, furthest, random_batch, tiny_model, weights


def trained() -> tuple[Any, Any]:
    model = tiny_model(dtype=torch.float32)
    optimizer = build_optimizer(model, "adamw", 0.01)
    fit(model, Given([random_batch(2, 6, 0)]), causal_lm, optimizer, lambda step: 1.0, Run(steps=1))
    return model, optimizer


def test_a_state_is_that_of_its_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights and moments move on before the thread begins to write."""
    model, optimizer = trained()
    before, gate, write = weights(model), threading.Event(), module.write_snapshot

    def late(*given: Any) -> None:
        gate.wait(10)
        write(*given)

    monkeypatch.setattr(module, "write_snapshot", late)
    with Saver(tmp_path) as saver:
        saver.save(snapshot(1, model, optimizer, {"place": 1}, {"name": "one"}), Keep())
        fit(model, Given([random_batch(2, 6, n) for n in range(3)]), causal_lm, optimizer, lambda step: 1.0, Run(steps=3))
        assert furthest(before, weights(model)) > 0 and newest_state(tmp_path, ignore) is None
        gate.set()
    other, other_optimizer = trained()
    found = newest_state(tmp_path, ignore)
    assert found is not None
    restore(found, other, other_optimizer)
    assert furthest(before, weights(other)) == 0


def test_behind_the_last_state_no_thread_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that still freed tensors while the process ended would abort it."""
    freed, gate = list[bool](), threading.Event()

    class Slow:
        def __del__(self) -> None:
            time.sleep(0.2)
            freed.append(True)

    monkeypatch.setattr(module, "write_snapshot", lambda *given: gate.wait(10))
    with Saver(tmp_path) as saver:
        saver.save(cast("Any", Slow()), Keep())
        gate.set()
    assert freed


def test_what_a_write_met_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise UserError("the disk is full", fix="free some space")

    monkeypatch.setattr(module, "write_snapshot", full)
    nothing = Snapshot(1, {}, {})
    with pytest.raises(UserError, match="disk is full"), Saver(tmp_path) as saver:
        saver.save(nothing, Keep())
    with pytest.raises(UserError, match="disk is full"), Saver(tmp_path) as saver:
        saver.save(nothing, Keep())
        saver.save(nothing, Keep())
        pytest.fail("the second call raises what the first write met")
    with pytest.raises(RuntimeError, match="first"), Saver(tmp_path) as saver:
        saver.save(nothing, Keep())
        raise RuntimeError("first")


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, ended = threading.Event(), threading.Event()

    def endless(*given: Any) -> None:
        gate.wait(30)
        ended.set()

    monkeypatch.setattr(module, "write_snapshot", endless)
    with pytest.raises(KeyboardInterrupt), Saver(tmp_path) as saver:
        saver.save(Snapshot(1, {}, {}), Keep())
        raise KeyboardInterrupt
    assert not ended.is_set()
    gate.set()
    assert ended.wait(10)


@pytest.mark.parametrize(
    ("keep", "steps", "stay"),
    [
        (Keep(), [], set()),
        (Keep(), [1, 2, 3, 4], {3, 4}),
        (Keep(these=(4, None)), [3, 4, 5, 8, 9, 10], {4, 9, 10}),
        (Keep(every=4), [3, 4, 5, 8, 9, 10], {4, 8, 9, 10}),
        (Keep(every=4, these=(5, 3)), [3, 4, 5, 8, 9, 10], {3, 4, 5, 8, 9, 10}),
        (Keep(these=(77,)), [3, 4, 5], {4, 5}),
    ],
)
def test_which_states_stay(keep: Keep, steps: list[int], stay: set[int]) -> None:
    assert keep.of(steps) == stay


def test_a_run_keeps_what_it_is_asked_to(tmp_path: Path) -> None:
    """The best of the looks is that of step 6, although the run goes on to 20."""
    model = tiny_model()
    run = Run(steps=20, folder=tmp_path, save_seconds=1e9, hook_every=2, keep_every=8, keep_best="held_out", save_every=5)
    batches = Given([random_batch(1, 4, seed) for seed in range(20)])
    look = [lambda step, model: {"held_out": abs(step - 6) + 1.0, "other": -step}]
    fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run, look)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step-*")) == [6, 8, 16, 20]


@pytest.mark.parametrize("settings", [{}, {"save_every": 5}, {"save_every": 5, "keep_best": "held_out", "keep_every": 8}])
def test_no_more_states_lie_on_the_disk_than_are_counted(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted each time when the next one is whole and none is removed yet."""
    model, seen = tiny_model(), list[int]()
    write = state.written_folder

    @contextmanager
    def counting(target: Path, about: dict[str, Any]) -> Iterator[Path]:
        with write(target, about) as place:
            yield place
        seen.append(len(list(tmp_path.glob("step-*"))))

    monkeypatch.setattr(state, "written_folder", counting)
    run = Run(steps=20, folder=tmp_path, save_seconds=-1, hook_every=2, **settings)
    batches = Given([random_batch(1, 4, seed) for seed in range(20)])
    look = [lambda step, model: {"held_out": abs(step - 6) + 1.0}]
    fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run, look)
    assert max(seen) == most_states(run.steps, run.save_every, run.keep_every, bool(run.keep_best))


def test_best_is_the_lowest_and_no_nan() -> None:
    best = Best()
    offered = [best.beaten_by(step, value) for step, value in enumerate([None, float("nan"), 3.0, 3.0, 2.0, 5.0])]
    assert offered == [False, False, True, False, True, False] and best.step == 4
    again = Best()
    again.load_state(best.state())
    assert not again.beaten_by(9, 2.5) and again.beaten_by(9, 1.5)


def test_a_full_disk_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dtype=torch.float32)
    whole = sum(p.numel() for p in model.parameters()) * 4
    assert state_bytes(model) == 3 * whole
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 * whole - 1))
    with pytest.raises(UserError, match="too full") as error:
        check_room(tmp_path / "not" / "there", model)
    assert f"{10 * whole:,} bytes" in str(error.value) and str(tmp_path / "not" / "there") in str(error.value)
    (tmp_path / "step-00000001").mkdir()
    check_room(tmp_path, model)
    optimizer, run = build_optimizer(model, "adamw", 0.01), Run(steps=9, folder=tmp_path / "other")
    with pytest.raises(UserError, match="too full"):
        fit(model, Given([]), causal_lm, optimizer, lambda step: 1.0, run)
