"""The rate finder and the comparison of optimizers: a trial is a run of the loop, and known curves have known answers."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hornbook.data.batches import Batches, StreamRows
from hornbook.errors import UserError
from hornbook.families import build
from hornbook.model import initialize
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.stages import try_out
from hornbook.stages.settings import Recipe
from hornbook.stages.try_out import RATES, Trials, suggestion, try_optimizers, try_rates
from hornbook.stages.try_out_page import tables
from hornbook.stages.voice import Silent
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import GPT2, LLAMA, furthest, tiny_stream, weights

RECIPE = Recipe(out="", model=LLAMA, context=8, rows=4, optimizer="adamw", clip=0.5, weight_decay=0.1, init_std=0.2)


def trials(config: dict[str, Any] = LLAMA, **changes: Any) -> Trials:
    def held_out(step: int, model: torch.nn.Module) -> dict[str, Any]:
        return {"held_out_bits_per_byte": float(next(model.parameters()).detach().double().norm())}

    return Trials(replace(RECIPE, **changes), config, tiny_stream(), held_out, torch.device("cpu"))


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trial_is_a_run_of_the_loop(kind: str, accumulate: int) -> None:
    factor = warmup_decay(9, 2)
    found, losses = trials(accumulate=accumulate).learn({"kind": kind, "learning_rate": 0.01}, [factor(step) for step in range(9)])
    model, logged = initialize(build(LLAMA), RECIPE.seed, RECIPE.init_std), list[dict[str, Any]]()
    optimizer = build_optimizer(model, kind, 0.01, weight_decay=RECIPE.weight_decay)
    run = Run(steps=9, accumulate=accumulate, clip=RECIPE.clip, log=logged.append, log_every=1)
    fit(model, Batches(tiny_stream(), RECIPE.rows, RECIPE.seed), causal_lm, optimizer, factor, run)
    assert losses == [row["loss"] for row in logged] and furthest(weights(found), weights(model)) == 0


def test_dropout_is_drawn_alike_in_each_trial() -> None:
    dropping = trials(GPT2 | {"resid_pdrop": 0.3})
    settings = {"kind": "adamw", "learning_rate": 0.01}
    first = dropping.learn(settings, [1.0] * 4)[1]
    torch.rand(3)
    assert dropping.learn(settings, [1.0] * 4)[1] == first != trials(GPT2).learn(settings, [1.0] * 4)[1]


def test_one_batch_is_learned_by_heart() -> None:
    settings = {"kind": "adamw", "learning_rate": 0.03}
    by_heart, others = (trials().learn(settings, [1.0] * 60, one_batch)[1] for one_batch in (True, False))
    assert by_heart[0] == others[0] and by_heart[-1] < 0.1 < 1 < others[-1]  # the text is random: only memory helps


def test_a_hopeless_trial_ends_at_once() -> None:
    ended = trials().learn({"kind": "sgd", "learning_rate": 1.0}, [1e-6, 1e-6, 1e4, 1.0, 1.0, 1.0], hopeless=1.25)[1]
    assert 3 < len(ended) < 6 and ended[-1] > 1.25 * ended[0]
    lost = trials().learn({"kind": "sgd", "learning_rate": 1.0}, [1e-6, math.inf, 1.0, 1.0])[1]
    assert len(lost) == 3 and lost[-1] == math.inf


def test_a_signal_ends_a_trial() -> None:
    """Nothing is saved, so it is not `Interrupted`, which says that something is."""
    told: list[int] = []

    def tell(step: int) -> None:
        told.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trials().learn({"kind": "adamw", "learning_rate": 0.01}, [1.0] * 9, tell=tell)
    assert told == [1, 2, 3]


def test_a_signal_in_the_step_that_ends_a_trial_is_heard() -> None:
    def tell(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trials().learn({"kind": "sgd", "learning_rate": 1.0}, [1e-6, math.inf, 1.0, 1.0], hopeless=1.25, tell=tell)


@pytest.mark.parametrize("least", [1e-4, 3e-3, 0.2])
@pytest.mark.parametrize("end", [[], [math.inf], [50.0, math.inf]])
def test_a_third_of_the_rate_where_the_loss_is_least(least: float, end: list[float]) -> None:
    """A valley whose floor is known, with a ripple from step to step that the averages do not follow."""
    rates = [1e-6 * 10 ** (i / 20) for i in range(141)]
    losses = [3 + 0.5 * math.log10(rate / least) ** 2 + 0.01 * (-1) ** i for i, rate in enumerate(rates)]
    found = suggestion([*rates, 20.0, 30.0], [*losses, *end])
    assert found["lowest"] == pytest.approx(least, rel=0.13)  # a step of the sweep
    assert found["suggested"] == pytest.approx(found["lowest"] / 3)


def test_a_sweep_that_tells_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match="no rate of the sweep(.|\n)*lower --low"):
        suggestion([1.0, 2.0], [4.0, math.inf])
    for low, high, steps in ((0.0, 1.0, 9), (1.0, 1.0, 9), (1e-5, 1.0, 4)):
        with pytest.raises(UserError, match="cannot be swept"):
            try_rates(trials(), steps, low, high, Silent())


def test_the_sweep_keeps_the_recipes_optimizer_and_proportion() -> None:
    """Against build_optimizer with the swept rate itself: embeddings at half the matrices' rate."""
    swept = trials(learning_rate=0.02, embedding_rate=0.01, beta2=0.9)
    found = try_rates(swept, 12, 1e-3, 1e-1, Silent())
    assert [row["rate"] for row in found["sweep"]] == pytest.approx([1e-3 * 100 ** (i / 11) for i in range(12)])
    settings = {"kind": "adamw", "learning_rate": 1.0, "embedding_rate": 0.5, "betas": (0.9, 0.9)}
    assert [row["loss"] for row in found["sweep"]] == swept.learn(settings, [row["rate"] for row in found["sweep"]])[1]


def test_each_optimizer_has_the_best_of_its_rates() -> None:
    asked = trials()
    found = try_optimizers(asked, 4, Silent())
    for task in ("one_batch", "short_run"):
        assert list(found[task]) == list(RATES)
        for kind, best in found[task].items():
            factor = warmup_decay(4, 1, "constant" if task == "one_batch" else "linear")
            for row in best["tried"]:
                losses = asked.learn(
                    {"kind": kind, "learning_rate": row["rate"]}, [factor(step) for step in range(4)], task == "one_batch"
                )[1]
                assert row["loss"] == losses[-1]
            assert best["loss"] == min(row["loss"] for row in best["tried"]) and best["at_an_end"] == (
                best["rate"] != RATES[kind][1]
            )
    assert all(best["held_out_bits_per_byte"] > 0 for best in found["short_run"].values())


def test_a_kind_whose_every_rate_diverges_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the record is JSON still, which has no word for infinity."""
    monkeypatch.setattr(try_out, "RATES", {"sgd": (1e30, 1e35), "adamw": (0.01,)})
    found = try_optimizers(trials(clip=1e9), 6, Silent())
    assert [row["loss"] for row in found["short_run"]["sgd"]["tried"]] == [None, None]
    json.dumps(found, allow_nan=False)
    (_, _, one_batch), (_, _, short_run) = tables({"what": "optimizers", "recipe": "x", **found})
    assert one_batch[0][1:3] == short_run[0][1:3] == ["1e+30: diverged", "1e+35: diverged"] and short_run[0][-1] == "–"
    assert "–" not in short_run[1]


@pytest.mark.parametrize(("high", "said"), [(1e-2, 1), (10.0, 0)])
def test_a_sweep_that_ends_too_soon_says_so(high: float, said: int) -> None:
    """On a text that repeats itself, which every step learns from."""

    class Heard(Silent):
        def say(self, text: str) -> None:
            heard.append(text)

    heard: list[str] = []
    repeated = StreamRows(np.tile(np.arange(5), 80), RECIPE.context, np.ones(61, np.int64))
    try_rates(replace(trials(clip=100.0), rows=repeated), 30, 1e-3, high, Heard())
    assert [text for text in heard if "larger --high" in text] == heard and len(heard) == said
