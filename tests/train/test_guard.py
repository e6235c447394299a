"""Steps that must not be learned from are left out without a trace, recorded, replayed, and in the end gone back from."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hornbook.batch import Batch, Loss
from hornbook.errors import Interrupted, UserError
from hornbook.files import verified
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.train.guard import LEAST, PATIENCE, ROLLBACKS, Guard
from hornbook.train.incident import MOST, read_incident
from hornbook.train.loop import Run, TrainState, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import Given, furthest, random_batch, tiny_model, weights

BATCHES = [random_batch(2, 6, seed) for seed in range(40)]


def number_of(batch: Batch) -> int:
    return batch.text_bytes - 100


def of_loss(factor: float) -> Callable[[TransformerModel, Loss], Loss]:
    return lambda model, loss: Loss(loss.total * factor, loss.count)


def of_slope(model: TransformerModel, loss: Loss) -> Loss:
    root = (0 * model.tower.blocks[0].attn.op.q.weight).abs().sqrt().sum()  # 0, with a slope that is not a number
    return Loss(loss.total + root, loss.count)


def of_gradient(model: TransformerModel, loss: Loss) -> Loss:
    """The same loss, with a gradient 10^30 times as large."""
    steep = loss.total * 1e30
    return Loss(steep - (steep - loss.total).detach(), loss.count)


POISONS = {
    "loss nan": of_loss(math.nan), "loss inf": of_loss(math.inf), "loss 1e30": of_loss(1e30), "gradient nan": of_slope,
    "gradient 1e30": of_gradient,
}  # fmt: skip


def poisoned(numbers: range | list[int], poison: Callable[[TransformerModel, Loss], Loss] = POISONS["loss nan"]) -> Any:
    def objective(model: TransformerModel, batch: Batch) -> Loss:
        loss = causal_lm(model, batch)
        return poison(model, loss) if number_of(batch) in numbers else loss

    return objective


def train(
    batches: list[Batch], objective: Any, folder: Path | None = None, steps: int | None = None, **settings: Any
) -> tuple[TransformerModel, TrainState, list[str], list[dict[str, Any]]]:  # fmt: skip
    said, rows, model = list[str](), list[dict[str, Any]](), tiny_model()
    given = {"save_seconds": 1e9, "log_every": 1, "name": "one", **settings}
    run = Run(steps=len(batches) if steps is None else steps, folder=folder, say=said.append, log=rows.append, **given)
    state = fit(model, Given(batches), objective, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
    return model, state, said, rows


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("at", [0, 3])
def test_a_step_that_is_left_out_leaves_every_bit(poison: Any, at: int) -> None:
    """The run is the one that never had the batch: weights and moments, for AdamW's later steps depend on them."""
    found, state, said, rows = train(BATCHES[:8], poisoned([at], poison))
    without, *_ = train([*BATCHES[:at], *BATCHES[at + 1 : 8]], causal_lm)
    assert furthest(weights(found), weights(without)) == 0
    assert (state.step, state.skipped) == (8, 1)
    assert [row["step"] for row in rows if "left_out" in row] == [at + 1] and f"step {at + 1} " in said[0]
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_micro_batches_are_left_out_together() -> None:
    found, state, _, _ = train(BATCHES[:8], poisoned([5]), steps=4, accumulate=2)
    without, *_ = train([*BATCHES[:4], *BATCHES[6:8]], causal_lm, steps=3, accumulate=2)
    assert furthest(weights(found), weights(without)) == 0 and state.skipped == 1


def test_an_incident_holds_what_the_step_met(tmp_path: Path) -> None:
    train(BATCHES[:6], poisoned([3]), tmp_path, describe=lambda batch: [f"text {number_of(batch)}"])
    before, *_ = train(BATCHES[:3], causal_lm)
    record, tensors, batches = read_incident(tmp_path / "incidents" / "step-00000004")
    assert record["loss"] == "nan" and record["gradient_norm"] == "nan" and record["text"] == [["text 3"]]
    assert record["position"] == {"place": 3}
    assert torch.equal(batches[0].tokens_bt, BATCHES[3].tokens_bt) and torch.equal(batches[0].targets_bt, BATCHES[3].targets_bt)
    assert all(torch.equal(tensors[f"model/{name}"], value) for name, value in weights(before).items())
    assert set(record["parameters"]) == set(weights(before)) and record["parameters"]["head.out.weight"]["gradient"] == "nan"
    json.loads((tmp_path / "incidents/step-00000004/incident.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_attention_logits_of_an_incident_are_the_largest_that_a_query_sees(tmp_path: Path) -> None:
    """Against the products written out, for the first layer, whose input is the embedding."""
    train(BATCHES[:2], poisoned([0]), tmp_path)
    record, _, (batch,) = read_incident(tmp_path / "incidents" / "step-00000001")
    model = tiny_model()
    layer, ctx = model.tower.blocks[0].attn, None
    seen: list[Any] = []
    handle = layer.op.register_forward_hook(lambda module, given, out: seen.append(given))
    model(batch.tokens_bt)
    handle.remove()
    (x, ctx) = seen[0]
    q, k = (each.detach() for each in layer.op.looks(x, ctx)[:2])
    largest = max(
        float(q[b, t, h] @ k[b, s, h // 2]) / math.sqrt(q.shape[-1])
        for b in range(2) for h in range(q.shape[2]) for t in range(6) for s in range(t + 1)
    )  # fmt: skip
    assert record["attention_logits"]["tower.blocks.0.attn.op"] == pytest.approx(largest, abs=1e-12)


def test_an_incident_holds_the_largest_figures_of_all_micro_batches(tmp_path: Path) -> None:
    for name, order in (("one", (2, 3, 4, 5)), ("other", (3, 2, 4, 5))):
        train([BATCHES[n] for n in order], poisoned([3]), tmp_path / name, 2, accumulate=2)
    first, second = (read_incident(tmp_path / name / "incidents" / "step-00000001")[0] for name in ("one", "other"))
    assert first["attention_logits"] == second["attention_logits"] and first["hidden"] == second["hidden"]


def test_a_step_that_is_odd_again_behind_a_rollback_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Batches 9, 10, 11 are left out as steps 10, 11, 12; batch 13 is step 10 again."""
    train(BATCHES, poisoned([9, 10, 11, 13]), tmp_path, 20, save_every=4)
    found = {path.name: read_incident(path)[0]["position"] for path in (tmp_path / "incidents").iterdir()}
    assert found["step-00000010"] == {"place": 9} and found["step-00000010-2"] == {"place": 13}


def test_few_incidents_are_kept(tmp_path: Path) -> None:
    odd = [2 * n for n in range(MOST + 3)]
    _, state, _, _ = train(BATCHES[: 2 * len(odd)], poisoned(odd), tmp_path)
    assert state.skipped == len(odd) and len(list((tmp_path / "incidents").iterdir())) == MOST


def after_rollback(first: int, after: int) -> list[Batch]:
    return [*BATCHES[:first], *BATCHES[after:]]


@pytest.mark.parametrize("kill_every_step", [False, True])
def test_several_odd_steps_go_back_to_a_sound_state_and_on_with_other_data(tmp_path: Path, kill_every_step: bool) -> None:
    """Batches 9, 10, 11 are odd: back to step 8, on with batch 12; the same for a run that is stopped after each step."""
    objective = poisoned(range(9, 9 + PATIENCE))

    def stopping(model: TransformerModel, batch: Batch) -> Loss:
        if not pressed:  # an incident looks at its batch once more
            pressed.append(number_of(batch))
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch)

    ends, pressed = 0, list[int]()
    while True:
        pressed.clear()
        try:
            found, state, said, _ = train(BATCHES, stopping if kill_every_step else objective, tmp_path, 20, save_every=4)
            break
        except Interrupted:
            ends += 1
    assert ends == (24 if kill_every_step else 0)  # 12 steps to the rollback, then 12 from step 8
    expected, *_ = train(after_rollback(8, 9 + PATIENCE), causal_lm, steps=20)
    assert furthest(weights(found), weights(expected)) == 0 and state.step == 20 and state.skipped == PATIENCE
    assert kill_every_step or any("goes back to step 8" in line for line in said)


def test_a_state_between_odd_steps_is_none_to_go_back_to(tmp_path: Path) -> None:
    """Batches 10, 11, 12 are odd and step 12 is saved between them, with the weights that may be to blame: back to step 8."""
    found, state, said, _ = train(BATCHES, poisoned(range(10, 13)), tmp_path, 20, save_every=4, save_seconds=-1)
    expected, *_ = train(after_rollback(8, 13), causal_lm, steps=20)
    assert furthest(weights(found), weights(expected)) == 0 and any("goes back to step 8" in line for line in said)


def test_odd_steps_that_do_not_end_stop_the_run_at_a_sound_state(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in a row cannot be learned from") as error:
        train(BATCHES, poisoned(range(9, 40), of_slope), tmp_path, 30, save_every=4, save_seconds=-1)
    assert f"{ROLLBACKS} rollbacks" in str(error.value) and error.value.fix
    states = sorted(tmp_path.glob("step-*"))
    assert states
    for state in states:
        verified(state)
        assert all(bool(torch.isfinite(value).all()) for value in load_file(state / "state.safetensors").values())


def test_a_run_that_comes_back_to_the_same_place_again_and_again_ends(tmp_path: Path) -> None:
    """From the tenth step on nothing is learned for long: a sound step after a rollback is no way out."""
    odd = [number for number in range(40) if number >= 10 and number % 5]  # one sound batch between four odd ones
    with pytest.raises(UserError, match=f"after {ROLLBACKS} rollbacks"):
        train(BATCHES, poisoned(odd), tmp_path, 30, save_every=8)


def test_a_run_without_states_stops_at_once() -> None:
    with pytest.raises(UserError, match="in a row") as error:
        train(BATCHES, poisoned(range(5, 40)))
    assert "no state to go back to" in str(error.value)


def judged(losses: list[float], norms: list[float], sigmas: float = 6.0) -> list[int]:
    guard = Guard(sigmas)
    return [n for n, (loss, norm) in enumerate(zip(losses, norms, strict=True)) if guard.judge(loss, norm)]


def curve(steps: int, seed: int) -> tuple[list[float], list[float]]:
    """A falling loss with noise that grows rarer and heavier than a normal's, and norms over a wide range."""
    dice = np.random.default_rng(seed)
    losses = 2 + 6 * np.exp(-np.arange(steps) / 300) + 0.05 * dice.standard_t(8, steps)
    return losses.tolist(), np.exp(0.3 * dice.standard_normal(steps)).tolist()


def test_ordinary_runs_lose_next_to_nothing() -> None:
    assert sum(len(judged(*curve(2000, seed))) for seed in range(20)) <= 20  # of 40,000: t noise has a few steps beyond 6 sigma


def test_a_rarer_kind_of_text_is_no_outlier() -> None:
    """Every tenth batch is of another kind with twice the loss: after the first few it is learned from."""
    losses, norms = curve(2000, 0)
    mixed = [loss * (2 if n % 10 == 7 else 1) for n, loss in enumerate(losses)]
    assert not [n for n in judged(mixed, norms) if n > 200]


@pytest.mark.parametrize(("loss", "norm"), [(6.0, 1.0), (2.0, 30.0), (math.inf, 1.0), (2.0, math.nan)])
def test_a_spike_stands_out(loss: float, norm: float) -> None:
    losses, norms = curve(2000, 1)
    losses[1500], norms[1500] = loss, norm
    assert 1500 in judged(losses, norms)


def test_a_spike_is_learned_from_where_outliers_are_not_looked_for() -> None:
    losses, norms = curve(200, 1)
    losses[150] = 50.0
    assert judged(losses, norms, sigmas=0) == []


def test_a_level_that_stays_is_no_outlier_for_long() -> None:
    losses, norms = curve(400, 2)
    losses = [loss + 5 * (n >= 200) for n, loss in enumerate(losses)]
    assert max(judged(losses, norms)) < 200 + LEAST
