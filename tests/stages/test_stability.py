"""The comparison of remedies, tiny: what differs between its runs and what does not, and what a series of losses says."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.model.attention import AttentionLayer
from hornbook.stages import stability
from hornbook.stages.pictures import draw
from hornbook.stages.settings import Recipe
from hornbook.stages.stability import RISE, _run, figures, remedies, try_stability
from hornbook.stages.stability_page import HEADER, note, picture, table
from hornbook.stages.try_out import Trials
from hornbook.stages.voice import Silent
from hornbook.train import loop
from tests.reference.models import DECODERS, small_config
from tests.reference.tiny import LLAMA, tiny_stream

WILD = Recipe(
    out="", model=LLAMA, context=8, rows=4, optimizer="sgd", momentum=0.9, learning_rate=3.0, embedding_rate=3.0, init_std=0.5,
    clip=math.inf, warmup=0, decay="constant",
)  # fmt: skip


def trials(config: dict[str, Any] = LLAMA, **changes: Any) -> Trials:
    return Trials(replace(WILD, **changes), config, tiny_stream(), lambda step, model: {}, torch.device("cpu"))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability, "SEEDS", 2)
        return {"what": "stability", "recipe": "wild.toml", **try_stability(trials(), 12, Silent())}


def test_the_comparison_has_a_run_for_each_remedy(record: dict[str, Any], tmp_path: Path) -> None:
    json.dumps(record, allow_nan=False)
    found = {remedy["name"]: remedy["runs"] for remedy in record["remedies"]}
    assert list(found) == list(remedies(12)) and all(len(row) == len(HEADER) for row in table(record))
    assert all([run["seed"] for run in runs] == [0, 1] for runs in found.values())
    for plain, normed in zip(found["as it is"], found["QK-norm"], strict=True):
        assert plain["rose"] is not None and normed["logit"] < plain["logit"]
        assert normed["logits"][0]["logit"] <= 2 + 1e-5 < plain["logits"][0]["logit"]  # |q| |k| / sqrt(K), K = 4
    first = {name: [run["losses"][0]["loss"] for run in runs] for name, runs in found.items()}  # before any step was taken
    changed = {"QK-norm", "QK-norm and clipping", "attention softcap 50", "logit softcap 30"}
    assert all(losses == first["as it is"] for name, losses in first.items() if name not in changed)
    draw(tmp_path / "plot.html", lambda: picture(record))
    assert "QK-norm and clipping" in (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert "sgd" in note(record) and "clip inf" in note(record)


@pytest.mark.parametrize("family", DECODERS)
def test_a_remedy_changes_nothing_else(family: str) -> None:
    """In every family: the same drawn weights, norms for queries and keys where they are asked for, softcaps everywhere."""
    tried, given = remedies(10), trials(small_config(family))
    plain = dict(tried["as it is"].model(given).named_parameters())
    for name in ("QK-norm", "attention softcap 50", "logit softcap 30"):
        model = tried[name].model(given)
        found = dict(model.named_parameters())
        assert all(found[key].equal(plain[key]) for key in plain.keys() & found.keys())
        assert all(".q_norm" in key or ".k_norm" in key for key in plain.keys() ^ found.keys())
        layers = [module for module in model.modules() if isinstance(module, AttentionLayer)]
        before = [module for module in tried["as it is"].model(given).modules() if isinstance(module, AttentionLayer)]
        for layer, old in zip(layers, before, strict=True):
            assert (layer.spec.qk_norm is None) == (name != "QK-norm" and old.spec.qk_norm is None)
            assert layer.spec.softcap == (old.spec.softcap or (50.0 if name == "attention softcap 50" else None))
        assert model.head.spec.softcap == (20.0 if family == "gemma2" else 30.0 if name == "logit softcap 30" else None) or (
            family == "gemma3_text"
        )


def test_a_signal_in_the_step_in_which_the_guard_gives_up_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "odd"

    monkeypatch.setattr(loop, "PATIENCE", 1)
    monkeypatch.setattr(loop.Guard, "judge", lambda self, loss, norm: setattr(self, "in_a_row", 1) or press())
    with pytest.raises(KeyboardInterrupt):
        _run(trials(), remedies(2)["the guard alone"])


def test_what_a_series_of_losses_says() -> None:
    def rows(*losses: float) -> list[dict[str, Any]]:
        return [{"step": step, "loss": loss, "grad_norm": loss} for step, loss in enumerate(losses, 1)]

    calm = figures(rows(5, 4, 3.5, 3.6, 3), [{"step": 1, "attention_logit": [2.0, None]}], 5)
    assert (calm["final"], calm["rose"], calm["left_out"], calm["logit"], calm["gradient"]) == (3, None, 0, 2.0, 5)
    wild = figures(rows(5, 4, 4 + RISE, 4.1 + RISE, 9, 4.5), [], 6)
    assert (wild["final"], wild["worst"], wild["rose"], wild["logit"]) == (4.5, 9, 4, None)
    ended = figures([*rows(5, 4, 3), {"step": 4, "left_out": "the loss is nan"}], [{"step": 1, "attention_logit": [None]}], 9)
    assert (ended["final"], ended["rose"], ended["last_step"], ended["left_out"]) == (None, None, 4, 1)
    rows_of = table({"remedies": [{"name": "x", "runs": [calm, ended]}, {"name": "y", "runs": [wild, ended]}]})
    assert rows_of[0] == ["x", "3.00 ×4", "3.6", "–", "5", "2", "1"] and rows_of[1] == ["y", "4.50 ×4", "9", "4", "9", "–", "1"]
