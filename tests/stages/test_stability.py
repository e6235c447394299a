"""The comparison of remedies, tiny: what differs between its runs and what does not, and what a series of losses says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.model.attention import AttentionLayer
from hornbook.stages.pictures import draw
from hornbook.stages.settings import Recipe
from hornbook.stages.stability import RISE, figures, remedies, try_stability
from hornbook.stages.stability_page import HEADER, note, picture, table
from hornbook.stages.try_out import Trials
from hornbook.stages.voice import Silent
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
    return {"what": "stability", "recipe": "wild.toml", **try_stability(trials(), 40, Silent())}


def test_the_comparison_has_a_run_for_each_remedy(record: dict[str, Any], tmp_path: Path) -> None:
    json.dumps(record, allow_nan=False)
    runs = {run["name"]: run for run in record["runs"]}
    assert list(runs) == list(remedies(40)) and all(len(row) == len(HEADER) for row in table(record))
    assert runs["as it is"]["diverged"] is not None
    assert runs["QK-norm"]["logit"] <= 4 * math.sqrt(2) < runs["as it is"]["logit"]  # |q| = |k| = sqrt(K) at first
    assert [run["left_out"] > 0 for name, run in runs.items() if run["last_step"] == 40 and name != "the guard alone"] == [
        False
    ] * (sum(run["last_step"] == 40 for name, run in runs.items() if name != "the guard alone"))
    for name in ("z-loss 1e-4", "QK-norm", "clipping at 1", "attention softcap 50"):  # all see the same first batch
        assert runs[name]["losses"][0]["step"] == 1
    assert runs["as it is"]["losses"][0] == runs["clipping at 1"]["losses"][0] == runs["the guard alone"]["losses"][0]
    for kind in ("png", "html"):
        draw(tmp_path / f"plot.{kind}", lambda: picture(record))
        assert (tmp_path / f"plot.{kind}").stat().st_size > 10_000
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
        if name == "QK-norm":
            assert all(layer.q_norm.weight.shape == (layer.spec.head_dim,) for layer in layers)
        assert {layer.spec.softcap for layer in layers} == {50.0} or name != "attention softcap 50"
        assert model.head.spec.softcap == 30.0 or name != "logit softcap 30"


def test_what_a_series_of_losses_says() -> None:
    def rows(*losses: float) -> list[dict[str, Any]]:
        return [{"step": step, "loss": loss, "grad_norm": loss} for step, loss in enumerate(losses, 1)]

    calm = figures(rows(5, 4, 3.5, 3.6, 3), [{"step": 1, "attention_logit": [2.0, None]}], 5)
    assert (calm["final"], calm["diverged"], calm["left_out"], calm["logit"], calm["gradient"]) == (3, None, 0, 2.0, 5)
    wild = figures(rows(5, 4, 4 + RISE, 4.1 + RISE, 9, 4.5), [], 6)
    assert (wild["final"], wild["worst"], wild["diverged"], wild["logit"]) == (4.5, 9, 4, None)
    ended = figures([*rows(5, 4, 3), {"step": 4, "left_out": "the loss is nan"}], [{"step": 1, "attention_logit": [None]}], 9)
    assert (ended["final"], ended["diverged"], ended["last_step"], ended["left_out"]) == (None, 4, 4, 1)
    assert table({"runs": [{"name": "x", **ended}]})[0][1:] == ["ended at step 4", "3", "4", "5", "–", "1"]
