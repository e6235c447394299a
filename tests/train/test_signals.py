"""A signal is a wish; the second one is an order; afterwards everything is as it was."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from hornbook.batch import Batch, Loss
from hornbook.checkpoint import saver
from hornbook.checkpoint.state import newest_state
from hornbook.errors import Interrupted
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit, ignore
from hornbook.train.objective import causal_lm
from hornbook.train.signals import Stop
from tests.reference.tiny import Given, random_batch, tiny_model


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_leaves(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Stop() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        os.kill(os.getpid(), number)


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), Stop():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_taken() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Stop() as stop:
            inside.append((signal.getsignal(signal.SIGINT), stop.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(before, False)]


def press(*_: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGINT)
    return {}


def pressed(model: TransformerModel, batch: Batch) -> Loss:
    press()
    return causal_lm(model, batch)


@pytest.mark.parametrize("moment", ["step", "hook"])
def test_a_wish_in_the_last_step_is_heard(moment: str, tmp_path: Path) -> None:
    """Of runs in a row the next one does not begin; with a folder the state of the last step is there."""

    def train(run: Run) -> None:
        model, objective = tiny_model(), pressed if moment == "step" else causal_lm
        optimizer = build_optimizer(model, "adamw", 0.01)
        fit(model, batches, objective, optimizer, lambda step: 1.0, run, [press] if moment == "hook" else [])

    batches = Given([random_batch(2, 6, number) for number in range(4)])
    with pytest.raises(KeyboardInterrupt):
        for _ in range(3):
            train(Run(steps=1))
    assert batches.place == 1
    with pytest.raises(Interrupted, match="this again"):
        train(Run(steps=1, folder=tmp_path, resume="this again"))
    found = newest_state(tmp_path, ignore)
    assert found is not None and found.step == 1
    train(Run(steps=1, folder=tmp_path))  # there is nothing left to do


def test_a_wish_while_the_last_state_is_written_is_heard_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = saver.write_snapshot

    def late(*given: Any) -> None:
        press()
        write(*given)

    monkeypatch.setattr(saver, "write_snapshot", late)
    model, batches = tiny_model(), Given([random_batch(2, 6, 0)])
    run = Run(steps=1, folder=tmp_path, save_seconds=1e9)
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
    found = newest_state(tmp_path, ignore)
    assert found is not None and found.step == 1
