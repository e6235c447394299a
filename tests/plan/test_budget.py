"""The plan follows from its inputs: right counts, the same again, and never less for more time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import astuple

import pytest
import torch

from hornbook.families import build
from hornbook.plan import budget
from hornbook.plan.budget import Size, model_config, parameters, settle

MINUTES = [0.05, 0.2, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 45, 60, 120, 300, 1000]


def machine(power: float, fall: float = 1.0) -> Callable[[int, int], float]:
    """Tokens per second that fall with a model's size, as a machine's do."""
    return lambda depth, vocab: power / parameters(depth, vocab) ** fall


def never_asked(depth: int, vocab: int) -> float:
    raise AssertionError("the speed was asked for")


def plan(minutes: float, power: float = 3e10, data: str = "town", fall: float = 1.0) -> Size:
    return settle(minutes, data, machine(power, fall), None, None, None)


def tokens(size: Size) -> int:
    return size.steps * size.rows * size.context


@pytest.mark.parametrize("vocab", [300, 1024, 2048])
def test_the_count_is_that_of_the_model_that_is_built(vocab: int) -> None:
    for depth in budget.DEPTHS:
        with torch.device("meta"):
            model = build(model_config(depth, depth * budget.DIM_PER_LAYER, vocab, 256))
        assert parameters(depth, vocab) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("data", ["town", "shakespeare", "some/folder"])
def test_the_same_inputs_give_the_same_plan(data: str) -> None:
    for minutes in (1, 5, 30):
        assert plan(minutes, data=data) == plan(minutes, data=data)


@pytest.mark.parametrize("data", ["town", "python"])
@pytest.mark.parametrize("power", [1e8, 3e9, 1e11])
def test_more_minutes_never_give_a_smaller_model_or_less_training(power: float, data: str) -> None:
    """Work is parameters times tokens: a deeper model reads fewer tokens in the same time, and learns more from each."""
    plans = [plan(minutes, power, data) for minutes in MINUTES]
    for less, more in itertools.pairwise(plans):
        assert less.depth <= more.depth and less.dim <= more.dim
        if less.depth == more.depth:
            assert tokens(less) <= tokens(more) and less.sft_steps <= more.sft_steps and less.corpus_bytes <= more.corpus_bytes
        step = parameters(more.depth, more.vocab) * more.rows * more.context  # whole steps are counted
        assert parameters(less.depth, less.vocab) * tokens(less) <= parameters(more.depth, more.vocab) * tokens(more) + step


def test_a_faster_machine_never_gets_a_smaller_model() -> None:
    depths = [plan(5, power).depth for power in (1e6, 1e8, 1e9, 1e10, 1e11, 1e12, 1e16)]
    assert depths == sorted(depths) and depths[0] == min(budget.DEPTHS) and depths[-1] == max(budget.DEPTHS)


def test_the_chosen_model_reads_enough_and_the_next_deeper_one_would_not() -> None:
    """Where speed falls exactly with size, the plan's rule can be checked by working it out for every depth."""
    for minutes in MINUTES:
        size = plan(minutes)
        seconds = minutes * 60 * budget.PRETRAIN_SHARE
        enough = [
            depth for depth in budget.DEPTHS
            if machine(3e10)(depth, size.vocab) * seconds >= budget.TOKENS_PER_PARAMETER * parameters(depth, size.vocab)
        ]  # fmt: skip
        assert size.depth == max(enough, default=min(budget.DEPTHS))


@pytest.mark.parametrize("fall", [0.3, 0.7, 1.0])
def test_the_plan_fits_its_minutes(fall: float) -> None:
    """Both trainings at the measured speed of the chosen model take less than the time, whatever the machine."""
    for minutes, power in itertools.product((1, 5, 60), (1e6, 1e8)):
        size = plan(minutes, power, fall=fall)
        rate = machine(power, fall)(size.depth, size.vocab)
        assert size.tokens_per_second == rate
        seconds = (size.steps + size.sft_steps) * size.rows * size.context / rate
        assert seconds <= 60 * minutes or size.steps == size.sft_steps == 1
        assert size.steps > size.sft_steps or size.steps == 1


def test_steps_ask_for_no_speed() -> None:
    for depth, steps in ((None, 1), (None, 50), (3, 50)):
        size = settle(5, "town", never_asked, depth, None, steps)
        assert size.steps == steps and size.sft_steps >= 1 and size.depth == (depth or budget.REFERENCE_DEPTH)
        others = [settle(minutes, "town", never_asked, depth, None, steps) for minutes in (1, 60)]
        assert all(astuple(other) == astuple(size) for other in others)  # the clock has no say


def test_what_the_user_names_is_kept() -> None:
    asked: list[tuple[int, int]] = []

    def speed(depth: int, vocab: int) -> float:
        asked.append((depth, vocab))
        return 10_000.0

    size = settle(5, "town", speed, 6, 777, None)
    assert (size.depth, size.vocab) == (6, 777) and asked == [(6, 777)]
    assert settle(5, "town", speed, None, 777, 10).vocab == 777


def test_a_plan_can_be_built_and_explains_itself() -> None:
    for minutes in (0.01, 5, 600):
        size = plan(minutes)
        assert size.steps >= 1 and size.sft_steps >= 1 and size.conversations > 0 and size.corpus_bytes > 0
        config = model_config(size.depth, size.dim, size.vocab, size.context)
        with torch.device("meta"):
            model = build(config)
        assert len(model.tower.blocks) == size.depth
        assert str(size.depth) in " ".join(size.rule) and str(size.steps) in " ".join(size.rule)
