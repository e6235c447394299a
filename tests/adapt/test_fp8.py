"""8-bit products: torch's against numbers rounded by arithmetic, their errors within what the formats say, and runs with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hornbook.adapt.fp8 import use_fp8
from hornbook.adapt.recompute import recompute
from hornbook.data.batches import Batches
from hornbook.model import TransformerModel
from hornbook.optim.build import build_optimizer
from hornbook.optim.masters import Masters
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.float8 import E4M3, E5M2
from tests.reference.models import CONFIGS
from tests.reference.tiny import LLAMA, VOCAB, random_batch, tiny_model, tiny_stream

WIDE = {**LLAMA, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8}


def products(spread: float, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """x, weight and gradient of one feed-forward matrix, and y, dx and dW as hornbook computes them."""
    generator = torch.Generator().manual_seed(0)
    x, w, g = (torch.randn(*size, generator=generator) * torch.exp(spread * torch.randn(*size, generator=generator))
               for size in ((48, 32), (64, 32), (48, 64)))  # fmt: skip
    model = tiny_model(WIDE, dtype=torch.float32)
    assert use_fp8(model) == (14, 14)
    up = model.tower.blocks[0].ffn.op.up
    with torch.no_grad():
        up.weight.copy_(w)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = up(x)
    assert y.dtype == dtype
    y.backward(g.to(dtype))
    return [x.detach(), w, g], [y.detach(), x.grad, up.weight.grad]


@pytest.mark.parametrize("spread", [0.0, 3.0], ids=["of one size", "of many sizes"])
def test_products_are_those_of_rounded_numbers(spread: float) -> None:
    (x, w, g), found = products(spread)
    x8, w8, g8 = E4M3.rounded(x), E4M3.rounded(w), E5M2.rounded(g)
    for ours, (a, b) in zip(found, ((x8, w8.T), (g8, w8), (g8.T, x8)), strict=True):
        summed = (a.abs() @ b.abs()) * 1e-6  # float32 sums of up to 64 numbers
        assert ((ours.double() - a @ b).abs() <= summed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_errors_are_what_the_formats_lose(dtype: torch.dtype) -> None:
    """An eighth of the sum of magnitudes at most for y, and less than a fifth for gradients, besides what is below the smallest."""
    (x, w, g), found = products(1.0, dtype)
    g = g.to(dtype)
    shorter = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    sides = ((x, E4M3, w.T, E4M3), (g, E5M2, w, E4M3), (g.T, E5M2, x, E4M3))
    for ours, (a, a_form, b, b_form) in zip(found, sides, strict=True):
        a_lost, b_lost, a_size, b_size = a_form.lost(a), b_form.lost(b), a.double().abs(), b.double().abs()
        bound = a_lost @ b_size + a_size @ b_lost + a_lost @ b_lost
        error = (ours.double() - a.double() @ b.double()).abs()
        assert (error <= bound + shorter * (a_size @ b_size + bound)).all()
        assert error.norm() > 1e-3 * (a.double() @ b.double()).norm()  # it did round


def test_zeros_and_what_is_no_number() -> None:
    model = tiny_model(WIDE, dtype=torch.float32)
    use_fp8(model)
    up = model.tower.blocks[0].ffn.op.up
    assert up(torch.zeros(16, 32)).equal(torch.zeros(16, 64))
    assert up(torch.full((16, 32), torch.inf)).isnan().all()  # which the guard sees


def trained(short: bool, kind: str = "none", masters: bool = False, steps: int = 50) -> tuple[TransformerModel, list[float]]:
    model, rows = tiny_model({**WIDE, "num_hidden_layers": 1}, dtype=torch.float32), list[float]()
    if short:
        use_fp8(model)
    recompute(model, kind)
    optimizer = build_optimizer(model, "adamw", 3e-3)
    run = Run(steps=steps, precision="fp8" if short else "fp32", log_every=1, log=lambda row: rows.append(row["loss"]))
    fit(
        model, Batches(tiny_stream(16), 4, 0), causal_lm, Masters(model, optimizer) if masters else optimizer, lambda step: 1.0, run
    )
    return model, rows


@pytest.mark.slow
def test_a_model_learns_as_in_float32() -> None:
    """Each loss of 50 steps within 8% of float32's, and their mean within 1%, while they fall by more than a fifth."""
    (_, plain), (_, short) = trained(False), trained(True)
    assert plain[-1] < 0.8 * plain[0] and short != plain
    torch.testing.assert_close(torch.tensor(short), torch.tensor(plain), rtol=0.08, atol=0)
    assert abs(sum(short) / sum(plain) - 1) < 0.01


def test_recomputing_gives_the_same_and_short_weights_learn() -> None:
    found = [trained(True, kind, steps=4)[1] for kind in ("none", "blocks", "selective")]
    assert found[0] == found[1] == found[2]
    torch.testing.assert_close(torch.tensor(trained(True, masters=True, steps=4)[1]), torch.tensor(found[0]), rtol=0.02, atol=0)


def test_what_does_not_fit_stays() -> None:
    assert use_fp8(tiny_model(LLAMA)) == (4, 14)  # q and o: its keys and values have 8 rows, its feed-forward 24
    mixture: dict[str, Any] = {"model_type": "mixtral", "vocab_size": VOCAB, **CONFIGS["mixtral"]}
    model = tiny_model(mixture, dtype=torch.float32)
    assert use_fp8(model) == (12, 12)  # of attention: the router and stacked experts are no such matrices
    model, batch = tiny_model(WIDE, dtype=torch.float32), random_batch(1, 15, 0)
    before, ids = causal_lm(model, batch).total, random_batch(2, 8, 1).tokens_bt
    without = model(ids)
    use_fp8(model)
    assert causal_lm(model, batch).total.equal(before)  # 15 tokens
    with torch.no_grad():
        assert model(ids).equal(without)
    assert not model(ids).equal(without)


def test_a_copy_computes_with_its_own_weights() -> None:
    model, ids = tiny_model(WIDE, dtype=torch.float32), random_batch(2, 8, 1).tokens_bt
    use_fp8(model)
    before, twin = model(ids), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert twin(ids).equal(before)
