"""Compiled blocks: the same training within rounding, the same names, and nothing else compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hornbook.adapt import compile as switch
from hornbook.adapt.compile import compile_blocks, compile_seconds
from hornbook.adapt.recompute import KINDS, recompute
from hornbook.data.batches import Batches
from hornbook.errors import UserError
from hornbook.generation.cache import DenseCache
from hornbook.model import Context, TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import GPT2, LLAMA, furthest, tiny_model, tiny_stream, weights


def trained(config: dict[str, Any], compiled: bool, kind: str = "none", folder: Path | None = None, steps: int = 6) -> Any:
    model = tiny_model(config)
    recompute(model, kind)
    if compiled:
        compile_blocks(model)
    rows: list[float] = []
    run = Run(steps=steps, folder=folder, log_every=1, log=lambda row: rows.append(row["loss"]), save_every=3)
    fit(model, Batches(tiny_stream(), 4, 0), causal_lm, build_optimizer(model, "adamw", 1e-3), lambda step: 1.0, run)
    return model, rows


@pytest.mark.slow  # compiling takes a minute
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_run_is_the_plain_one(config: dict[str, Any], kind: str) -> None:
    (plain, rows), (model, compiled_rows) = trained(config, False, kind), trained(config, True, kind)
    torch.testing.assert_close(torch.tensor(compiled_rows), torch.tensor(rows), rtol=0, atol=1e-6)
    assert list(model.state_dict()) == list(plain.state_dict()) and compile_seconds() > 0
    assert furthest(weights(model), weights(plain)) < 1e-4


@pytest.mark.slow
def test_a_compiled_run_continues_where_it_was_stopped(tmp_path: Path) -> None:
    whole, _ = trained(LLAMA, True)
    trained(LLAMA, True, folder=tmp_path, steps=3)
    continued, rows = trained(LLAMA, True, folder=tmp_path)
    assert len(rows) == 3 and furthest(weights(continued), weights(whole)) == 0


def test_what_does_not_train_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[TransformerModel] = []

    def stub(forward: Any, **_: Any) -> Any:
        return lambda x, ctx: (calls.append(ctx), forward(x, ctx))[1]

    monkeypatch.setattr(switch.torch, "compile", stub)
    model, ids = tiny_model(LLAMA), torch.tensor([[1, 2, 3]])
    names = list(model.state_dict())
    compile_blocks(model)
    with torch.no_grad():
        model(ids)
    model(ids, Context(cache=DenseCache(8)))
    assert not calls and names == list(model.state_dict())
    model(ids)
    assert len(calls) == len(model.tower.blocks)


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="compile needs a C\\+\\+ compiler"):
        compile_blocks(tiny_model(LLAMA))
