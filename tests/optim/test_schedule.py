"""Schedules against torch's and transformers' own schedulers, and tables written by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import transformers
from torch.optim import lr_scheduler

from hornbook.optim.schedule import DECAYS, FALLS, batch_ramp, warmup_decay

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
    ("wsd", 10, 2, None, 0.0): "1/2 1 1 1 1 1 1 1 1 1/2",
    ("wsd", 6, 0, 4, 0.0): "1 1 1 3/4 2/4 1/4",
    ("wsd_sqrt", 6, 0, 4, 0.0): "1 1 1 1/2 0.2928932188134524 0.1339745962155614",  # 1 - sqrt(1/2), 1 - sqrt(3/4)
    ("wsd_sqrt", 20, 1, None, 0.5): " ".join(["1"] * 17 + ["3/4", "0.6464466094067263", "0.5669872981077807"]),
    ("inverse_sqrt", 9, 1, None, 0.0): "1 0.7071067811865476 0.5773502691896258 1/2 0.4472135954999579 0.4082482904638631 "
    "0.3779644730092272 0.35355339059327373 1/3",
    ("inverse_sqrt", 4, 0, None, 0.6): "1 0.7071067811865476 6/10 6/10",
}


@pytest.mark.parametrize(("settings", "row"), TABLES.items(), ids=["-".join(map(str, settings)) for settings in TABLES])
def test_tables_by_hand(settings: tuple[str, int, int, int | None, float], row: str) -> None:
    decay, steps, warmup, decay_steps, floor = settings
    factor = warmup_decay(steps, warmup, decay, decay_steps, floor)
    assert [factor(step) for step in range(steps)] == pytest.approx([float(Fraction(value)) for value in row.split()], abs=1e-15)


@pytest.mark.parametrize(("steps", "warmup", "floor"), [(50, 10, 0.0), (37, 5, 0.1), (20, 2, 0.5)])
@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_equal_to_torch(decay: str, steps: int, warmup: int, floor: float) -> None:
    fall = steps - warmup
    falls: dict[str, Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]] = {
        "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, floor, fall),
        "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, fall, floor),
        "constant": lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0),
    }
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rise = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    rates = followed(optimizer, lr_scheduler.SequentialLR(optimizer, [rise, falls[decay](optimizer)], [warmup]), steps)
    factor = warmup_decay(steps, warmup, decay, floor=floor)
    assert [factor(step) for step in range(steps)] == pytest.approx(rates, abs=1e-12)


def followed(optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """The rate of each step under one of their schedulers."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word on its own use of itself
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


@pytest.mark.parametrize(("steps", "warmup", "fall", "floor"), [(50, 10, 10, 0.0), (37, 5, 20, 0.1), (20, 1, 19, 0.5)])
@pytest.mark.parametrize(
    ("decay", "theirs"), [("wsd", "linear"), ("wsd_sqrt", "1-sqrt"), ("cosine", "cosine"), ("inverse_sqrt", "")]
)
def test_equal_to_transformers(decay: str, theirs: str, steps: int, warmup: int, fall: int, floor: float) -> None:
    """Theirs of wsd agrees once it is warm; it rises from the floor. Theirs of inverse_sqrt begins at zero: one step earlier."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if decay == "inverse_sqrt":
        rates = followed(optimizer, transformers.get_inverse_sqrt_schedule(optimizer, warmup, warmup), steps + 1)[1:]
        factor, begin = warmup_decay(steps, warmup, decay), 0
    else:
        lengths = {"num_stable_steps": steps - warmup - fall, "decay_type": theirs, "min_lr_ratio": floor}
        rates = followed(optimizer, transformers.get_wsd_schedule(optimizer, warmup, fall, **lengths), steps)
        factor, begin = warmup_decay(steps, warmup, decay, fall, floor), warmup
    assert [factor(step) for step in range(begin, steps)] == pytest.approx(rates[begin:], abs=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_bounds_hold_everywhere(decay: str) -> None:
    factor = warmup_decay(30, 7, decay, decay_steps=11 if decay in FALLS else None, floor=0.25)
    rates = [factor(step) for step in range(200)]
    assert max(rates) == 1
    assert rates[:7] == sorted(rates[:7]) and rates[7:] == sorted(rates[7:], reverse=True)
    assert set(rates[30:]) == {0.25} if decay in FALLS else rates[199] == (1.0 if decay == "constant" else 0.25)


@pytest.mark.parametrize("decay", ["wsd", "wsd_sqrt"])
def test_a_longer_wsd_run_shares_all_but_the_fall(decay: str) -> None:
    short, long = warmup_decay(100, 10, decay), warmup_decay(400, 10, decay)
    same = [step for step in range(100) if short(step) == long(step)]
    assert same == list(range(81))  # the first step of the fall is still at the peak


def test_decay_steps_are_for_what_falls() -> None:
    for decay in ("constant", "inverse_sqrt"):
        with pytest.raises(ValueError, match=f"decay_steps is for linear, .*, not for '{decay}'"):
            warmup_decay(10, 1, decay, 3)
    with pytest.raises(ValueError, match="decay_steps must be at least 1: 0"):
        warmup_decay(10, 1, "wsd", 0)


def test_an_unknown_decay_offers_the_near_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        warmup_decay(10, 1, "cosin")


@pytest.mark.parametrize(("first", "full", "over"), [(1, 16, 500), (4, 32, 1000), (2, 5, 9), (3, 3, 50), (1, 8, 0), (1, 100, 10)])
def test_a_batch_ramp_is_linear_in_the_data_used(first: int, full: int, over: int) -> None:
    """Against the sentence: each step's size is that of the line from `first` to `full` over `over`, where the data stands."""
    ramp, used = batch_ramp(first, full, over), 0
    for step in range(600):
        line = Fraction(full) if used >= over else first + Fraction(full - first) * Fraction(used, over)
        assert ramp(step) <= line < ramp(step) + 1
        used += ramp(step)
    assert ramp(599) == ramp(10**6) == full


def test_a_batch_ramp_grows_geometrically_in_steps() -> None:
    """dn/dstep = first + n (full - first) / over: the sizes' logarithms lie on a line, but for the rounding to whole batches."""
    ramp, slope = batch_ramp(100, 1000, 100_000), 900 / 100_000
    for step in range(0, 200, 20):
        assert ramp(step) == pytest.approx(100 * math.exp(slope * step), rel=0.02)


def test_a_batch_ramp_that_falls_is_refused() -> None:
    for wrong in ((0, 4, 10), (5, 4, 10), (1, 4, -1)):
        with pytest.raises(ValueError, match="1 <= first <= full"):
            batch_ramp(*wrong)
