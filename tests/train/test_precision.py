"""Short formats: fp16's scale against torch's own scaler, to the bit; bf16 near float32; state and choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hornbook.batch import IGNORE, Batch
from hornbook.errors import UserError
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers, build_optimizer
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from hornbook.train.precision import CLEAN_STEPS, FIRST_SCALE, Precision, allow_tf32, choose_precision, said
from tests.reference.tiny import Given, furthest, random_batch, tiny_model, weights

BATCHES = [random_batch(2, 6, seed, 0.7) for seed in range(12)]


def with_scaler(batches: list[Batch]) -> tuple[TransformerModel, list[int]]:
    """The same training with torch's GradScaler, and the steps that it left out."""
    model, skipped = tiny_model(dtype=torch.float32), list[int]()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    for number, batch in enumerate(batches):
        with torch.autocast("cpu", torch.float16):
            loss = causal_lm(model, batch)
        scaler.scale(loss.total).backward()
        scaler.unscale_(optimizer)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= loss.count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = weights(model)
        scaler.step(optimizer)
        if furthest(before, weights(model)) == 0:
            skipped.append(number)
        scaler.update()
        optimizer.zero_grad()
    return model, skipped


def test_fp16_leaves_out_exactly_the_steps_that_overflow() -> None:
    expected, skipped = with_scaler(BATCHES)
    assert skipped and len(skipped) < len(BATCHES)
    model, rows = tiny_model(dtype=torch.float32), list[dict[str, Any]]()
    plain = Optimizers([torch.optim.SGD(model.parameters(), lr=0.1)])
    state = fit(
        model, Given(BATCHES), causal_lm, plain, lambda step: 1.0,
        Run(steps=len(BATCHES), precision="fp16", log_every=1, log=rows.append),
    )  # fmt: skip
    assert furthest(weights(model), weights(expected)) == 0
    left_out = {row["step"]: row["left_out"] for row in rows if "left_out" in row}
    assert [step - 1 for step in left_out] == skipped and f"loss scale of {FIRST_SCALE:g}" in left_out[1]
    assert [row["step"] - 1 for row in rows if "loss" in row] == [n for n in range(len(BATCHES)) if n not in skipped]
    assert state.skipped == 0  # nothing was odd: the scale was too large


def test_a_run_that_learns_from_nothing_is_refused_also_when_it_comes_again(tmp_path: Path) -> None:
    for _ in range(2):
        model = tiny_model(dtype=torch.float32)
        optimizer, run = build_optimizer(model, "adamw", 0.01), Run(steps=2, precision="fp16", folder=tmp_path)
        with pytest.raises(UserError, match="none of 2 steps") as error:
            fit(model, Given(BATCHES), causal_lm, optimizer, lambda step: 1.0, run)
        assert "precision" in (error.value.fix or "")


def test_the_scale_falls_and_rises_like_torchs() -> None:
    ours, theirs = Precision("fp16"), torch.amp.GradScaler("cpu")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(2 * CLEAN_STEPS + 50):
        finite = step % 1700 not in (3, 4, 5)
        theirs.scale(weight.sum()).backward()
        assert weight.grad is not None
        weight.grad = weight.grad if finite else weight.grad * torch.inf
        theirs.step(optimizer)
        theirs.update()
        weight.grad = None
        assert ours.overflowed(finite) is not finite
        assert ours.scale == theirs.get_scale()
    assert ours.scale < FIRST_SCALE


def test_gradients_that_stay_infinite_are_the_guards_matter() -> None:
    precision = Precision("fp16", scale=4.0)
    assert [precision.overflowed(False) for _ in range(4)] == [True, True, False, False] and precision.scale == 1


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_in_any_format_ends_like_a_whole_one(tmp_path: Path, name: str) -> None:
    found = []
    for stops in ([12], [7, 9, 12]):  # fp16 leaves the first few out
        for stop in stops:
            model = tiny_model(dtype=torch.float32)
            run = Run(steps=stop, folder=tmp_path / str(len(stops)), precision=name, name="one")
            fit(model, Given(BATCHES), causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
        found.append(weights(model))
    assert furthest(*found) == 0
    assert all(value.dtype == torch.float32 for value in found[0].values())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_short_format_is_near_and_not_the_same(name: str) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"fp32": [], name: []}
    for kind, log in rows.items():
        model = tiny_model(dtype=torch.float32)
        run = Run(steps=12, precision=kind, log_every=12, log=log.append)
        fit(model, Given(BATCHES), causal_lm, build_optimizer(model, "adamw", 0.001), lambda step: 1.0, run)
    long, short = (log[-1]["loss"] for log in rows.values())
    assert long != short and short == pytest.approx(long, rel=0.02)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_under_autocast_is_the_whole_one(kind: torch.dtype) -> None:
    model, batch = tiny_model(dtype=torch.float32), random_batch(3, 20, 5, 0.8)
    with torch.autocast("cpu", kind):
        chunked = causal_lm(model, batch).total
        logits = model(batch.tokens_bt)
        whole = F.cross_entropy(logits.float().flatten(0, 1), batch.targets_bt.flatten(), ignore_index=IGNORE, reduction="sum")
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(total, parameters) for total in (chunked, whole))
    torch.testing.assert_close(chunked, whole, rtol=1e-3, atol=0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.03 * float(b.abs().max()))


def test_the_choice_is_refused_by_name() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32" and choose_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(UserError, match="bf17") as error:
        choose_precision("bf17", torch.device("cpu"))
    assert "bf16" in str(error.value)
    with pytest.raises(UserError, match="precision fp8 is not there(?s:.)*cpu computes without it(?s:.)*Fix: "):
        choose_precision("fp8", torch.device("cpu"))
    with pytest.raises(ValueError, match="fp4"):
        Precision("fp4")


@pytest.mark.parametrize("there", [True, False])
def test_bf16_in_hardware_is_offered_and_not_taken(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    cpu = torch.device("cpu")
    assert said("auto", cpu).partition(" ")[0] == choose_precision("auto", cpu) == "fp32"
    assert ('precision = "bf16"' in said("auto", cpu)) == there
    assert [said(name, cpu) for name in ("fp32", "bf16")] == ["fp32", "bf16"] and said("auto", torch.device("mps")) == "fp32"


def test_tf32_is_refused_where_it_is_not_and_nothing_changes() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(UserError, match="tf32 is not there") as error:
        allow_tf32(True, torch.device("cpu"))
    assert error.value.where == "tf32" and "false" in error.value.fix
    allow_tf32(False, torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == before
