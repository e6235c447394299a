"""Schedules against torch's own schedulers, and tables written by hand."""

from __future__ import annotations

import warnings
from fractions import Fraction

import pytest
import torch
from torch.optim import lr_scheduler

from hornbook.optim.schedule import DECAYS, warmup_decay

TABLES = {
    ("linear", 8, 2, None, 0.0): "1/2 1 1 5/6 4/6 3/6 2/6 1/6",
    ("linear", 8, 0, None, 0.0): "1 7/8 6/8 5/8 4/8 3/8 2/8 1/8",
    ("linear", 8, 2, 3, 0.0): "1/2 1 1 1 1 1 2/3 1/3",
    ("linear", 8, 2, 3, 0.1): "1/2 1 1 1 1 1 7/10 4/10",
    ("linear", 4, 4, None, 0.0): "1/4 2/4 3/4 1",
    ("linear", 4, 9, None, 0.0): "1/9 2/9 3/9 4/9",
    ("linear", 1, 0, None, 0.0): "1",
    ("constant", 6, 3, None, 0.0): "1/3 2/3 1 1 1 1",
    ("cosine", 4, 0, None, 0.0): "1 0.8535533905932737 1/2 0.14644660940672627",  # (2 + sqrt 2) / 4 and (2 - sqrt 2) / 4
    ("cosine", 6, 1, 2, 0.2): "1 1 1 1 1 6/10",
}


@pytest.mark.parametrize(("settings", "row"), TABLES.items(), ids=["-".join(map(str, settings)) for settings in TABLES])
def test_tables_by_hand(settings: tuple[str, int, int, int | None, float], row: str) -> None:
    decay, steps, warmup, decay_steps, floor = settings
    factor = warmup_decay(steps, warmup, decay, decay_steps, floor)
    assert [factor(step) for step in range(steps)] == pytest.approx([float(Fraction(value)) for value in row.split()], abs=1e-15)


@pytest.mark.parametrize(("steps", "warmup", "floor"), [(50, 10, 0.0), (37, 5, 0.1), (20, 2, 0.5)])
@pytest.mark.parametrize("decay", DECAYS)
def test_equal_to_torch(decay: str, steps: int, warmup: int, floor: float) -> None:
    fall = steps - warmup
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    falls = {
        "linear": lambda: lr_scheduler.LinearLR(optimizer, 1.0, floor, fall),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, fall, floor),
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0),
    }
    scheduler, rates = lr_scheduler.SequentialLR(optimizer, [rise, falls[decay]()], [warmup]), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word on its own use of itself
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    factor = warmup_decay(steps, warmup, decay, floor=floor)
    assert [factor(step) for step in range(steps)] == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_bounds_hold_everywhere(decay: str) -> None:
    factor = warmup_decay(30, 7, decay, decay_steps=11, floor=0.25)
    rates = [factor(step) for step in range(40)]
    assert max(rates) == 1
    assert rates[:7] == sorted(rates[:7]) and rates[7:] == sorted(rates[7:], reverse=True)
    assert rates[30:] == [0.25 if decay != "constant" else 1.0] * 10, "after the end it stays at the floor"


def test_an_unknown_decay_offers_the_near_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        warmup_decay(10, 1, "cosin")
