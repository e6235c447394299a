"""Logits processors against transformers' warpers, the drawing against its distribution, and the settings' rules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from hornbook.generation.sampling import Sampling, choose, keep_top_k, keep_top_p

VOCAB = 40


def logits(seed: int, rows: int = 16, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def with_ties(seed: int) -> torch.Tensor:
    """Few different values, so that the border often falls between equals."""
    return logits(seed).round()


@pytest.mark.parametrize("top_k", [1, 2, 7, VOCAB - 1, VOCAB, VOCAB + 5])
def test_top_k_equals_transformers(top_k: int) -> None:
    for scores in (logits(0), with_ties(1), torch.zeros(2, VOCAB)):
        assert torch.equal(keep_top_k(scores, top_k), TopKLogitsWarper(top_k)(None, scores))


@pytest.mark.parametrize("top_p", [1e-6, 0.05, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_top_p_equals_transformers(top_p: float) -> None:
    for seed, spread in enumerate((0.1, 2.0, 10.0)):
        scores = logits(seed, spread=spread)
        assert torch.equal(keep_top_p(scores, top_p), TopPLogitsWarper(top_p)(None, scores))


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.9])
def test_top_p_keeps_as_many_of_equals_as_transformers(top_p: float) -> None:
    """Which of several equal ids fall out is nobody's promise; how many, and with which values, is."""
    for scores in (with_ties(0), with_ties(1), torch.zeros(2, VOCAB)):
        ours, theirs = keep_top_p(scores, top_p), TopPLogitsWarper(top_p)(None, scores)
        assert torch.equal(ours.sort().values, theirs.sort().values)


def test_top_p_of_one_keeps_what_has_any_chance() -> None:
    scores = logits(3)
    assert torch.equal(keep_top_p(scores, 1.0), scores)


def test_processors_change_neither_their_input_nor_its_type() -> None:
    scores = logits(0).bfloat16()
    before = scores.clone()
    for found in (keep_top_k(scores, 5), keep_top_p(scores, 0.5)):
        assert found.dtype == torch.bfloat16 and torch.equal(scores, before)


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom; ids without a chance must not have come."""
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0].double(), expected[expected > 0].double()
    return float(((counts - expected).square() / expected).sum()), len(counts) - 1


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1), Sampling(temperature=0.5), Sampling(temperature=2, top_k=6), Sampling(temperature=1, top_p=0.7)],
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """Chi-square against probabilities worked out one by one, within five standard deviations of its mean."""
    draws, row = 20_000, torch.randn(12, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(0)
    found = torch.cat([choose(row.repeat(1000, 1), sampling, [generator] * 1000) for _ in range(draws // 1000)])
    weights = {i: math.exp(value / sampling.temperature) for i, value in enumerate(row.tolist())}
    likeliest = sorted(weights, key=lambda i: -weights[i])
    total, reached, kept = sum(weights.values()), 0.0, likeliest[: sampling.top_k]
    if sampling.top_p is not None:
        kept = []
        for i in likeliest:
            if reached < sampling.top_p:
                kept.append(i)
            reached += weights[i] / total
    expected = torch.tensor([weights[i] if i in kept else 0.0 for i in range(12)])
    statistic, freedom = chi_square(torch.bincount(found, minlength=12), expected / expected.sum() * draws)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_temperature_zero_is_the_likeliest_and_draws_nothing() -> None:
    scores, generator = logits(0), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(choose(scores, Sampling(), [generator] * 16), scores.argmax(-1))
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    "kept", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}, {"temperature": 1e-300}, {"top_k": 3, "top_p": 1e-9}]
)
def test_the_narrowest_settings_are_the_likeliest_too(kept: dict[str, Any]) -> None:
    scores, generators = logits(0), [torch.Generator().manual_seed(i) for i in range(16)]
    assert torch.equal(choose(scores, Sampling(**{"temperature": 1.0, **kept}), generators), scores.argmax(-1))


def test_a_row_draws_from_its_own_generator() -> None:
    scores, sampling = logits(0), Sampling(temperature=1.0)

    def drawn(rows: list[int]) -> list[int]:
        return choose(scores[rows], sampling, [torch.Generator().manual_seed(row) for row in rows]).tolist()

    together = drawn(list(range(16)))
    assert together == [drawn([row])[0] for row in range(16)]
    assert drawn([9, 2, 5]) == [together[9], together[2], together[5]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -3), ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("temperature", 101.0), ("top_k", 0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.01), ("top_p", math.nan), ("top_p", -0.5),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*: {value}"):
        Sampling(**{field: value})
    with pytest.raises(ValueError, match=field):
        replace(Sampling(), **{field: value})


def test_the_borders_are_allowed() -> None:
    Sampling(max_tokens=1, temperature=0, top_k=1, top_p=1.0)
    Sampling(temperature=100)
