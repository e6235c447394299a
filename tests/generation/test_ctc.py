"""Decoding of CTC's frames against every path there is."""

from __future__ import annotations

import math

import pytest
import torch

from hornbook.generation.ctc import greedy, prefix_beam
from tests.reference.ctc import spelled, spellings


def frames(seed: int, length: int, vocab: int, sharp: float = 2.0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return (torch.randn(length, vocab, generator=dice, dtype=torch.float64) * sharp).log_softmax(-1)


@pytest.mark.parametrize("length", range(6))
@pytest.mark.parametrize("vocab", [2, 3, 4])
def test_a_beam_that_drops_nothing_finds_every_text_and_its_probability(length: int, vocab: int) -> None:
    for seed in range(4):
        for blank in (0, vocab - 1):
            log_p = frames(seed, length, vocab)
            every = spellings(log_p, blank) if length else {(): 1.0}
            found = prefix_beam(log_p, width=4**6, blank=blank)
            assert {letters: math.exp(p) for letters, p in found} == pytest.approx(every, rel=1e-10)
            assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)


def test_a_narrow_beam_finds_the_best_text_nearly_always_and_greedy_less_often() -> None:
    hits = {"beam": 0, "greedy": 0}
    for seed in range(200):
        log_p = frames(seed, 6, 3, sharp=1.0)
        every = spellings(log_p)
        best = max(every, key=lambda letters: every[letters])
        letters, p = prefix_beam(log_p, width=8)[0]
        assert p <= math.log(every[letters]) + 1e-9
        hits["beam"] += letters == best
        hits["greedy"] += greedy(log_p) == best
    assert hits["beam"] >= 190 and hits["greedy"] < hits["beam"]


def test_greedy_spells_the_best_path() -> None:
    for seed in range(200):
        log_p = frames(seed, 12, 3)
        assert greedy(log_p) == spelled(tuple(log_p.argmax(-1).tolist()))
        assert greedy(log_p, blank=2) == spelled(tuple(log_p.argmax(-1).tolist()), blank=2)
    assert greedy(torch.zeros(0, 3)) == ()


def test_a_beam_of_no_width_is_an_error() -> None:
    with pytest.raises(ValueError, match="width"):
        prefix_beam(frames(0, 2, 2), width=0)


def test_ids_that_cannot_be_are_not_part_of_a_text() -> None:
    log_p = torch.tensor([[-math.inf, 0.0, -math.inf], [-math.inf, 0.0, -math.inf]])
    assert prefix_beam(log_p) == [((1,), 0.0)]
