"""The CTC loss against torch's, and against the sum over every path, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hornbook.batch import IGNORE, Batch
from hornbook.model import FrameStem, LMHead, Tower, Transformer
from hornbook.train.ctc import ctc, ctc_loss
from tests.reference.ctc import spellings

Case = tuple[Tensor, Tensor, Tensor, Tensor, int]


def case(seed: int, most: int = 14) -> Case:
    """Logits (B, T, V), targets with rubbish behind their ends, lengths and a blank; few ids, so that letters repeat."""
    dice = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=dice)

    rows, length, vocab, letters = (int(draw(low, high)) for low, high in ((1, 5), (1, most), (2, 6), (1, 8)))
    blank = int(draw(0, vocab))
    logits = torch.randn(rows, length, vocab, generator=dice, dtype=torch.float64) * 3
    targets = draw(0, vocab - 1, rows, letters)
    return logits, targets + (targets >= blank), draw(1, length + 1, rows), draw(0, letters + 1, rows), blank


def graded(loss: Any, logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    found = loss(logits)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    return found.detach(), gradient


def test_loss_and_gradient_are_those_of_torch() -> None:
    """1000 cases; torch's loss takes log probabilities, so that its gradient comes through its own log-softmax."""
    kinds = {"infinite": 0, "empty": 0, "repeats": 0}
    for seed in range(1000):
        logits, targets, positions, letters, blank = case(seed)
        weights = torch.rand(len(logits), dtype=torch.float64) + 0.5

        def theirs(x: Tensor, given: Any = (targets, positions, letters), blank: int = blank) -> Tensor:
            return F.ctc_loss(x.log_softmax(-1).transpose(0, 1), *given, blank, reduction="none", zero_infinity=True)

        def ours(x: Tensor, given: Any = (targets, positions, letters), blank: int = blank) -> Tensor:
            return ctc_loss(x, *given, blank, zero_infinity=True)

        expected, found = graded(theirs, logits, weights), graded(ours, logits, weights)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        raw = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), targets, positions, letters, blank, reduction="none")
        assert torch.equal(ctc_loss(logits, targets, positions, letters, blank).isinf(), raw.isinf())
        kinds["infinite"] += int(raw.isinf().sum())
        kinds["empty"] += int((letters == 0).sum())
        kinds["repeats"] += int((targets[:, 1:] == targets[:, :-1]).sum())
    assert min(kinds.values()) > 100, kinds


@pytest.mark.parametrize("seed", range(60))
def test_loss_is_the_sum_over_all_paths(seed: int) -> None:
    logits, targets, positions, letters, blank = case(seed, most=7)
    found = ctc_loss(logits, targets, positions, letters, blank)
    for row in range(len(logits)):
        every = spellings(logits[row, : positions[row]].log_softmax(-1), blank)
        p = every.get(tuple(targets[row, : letters[row]].tolist()), 0.0)
        assert abs(sum(every.values()) - 1) < 1e-12
        assert math.exp(-found[row]) == pytest.approx(p, rel=1e-10, abs=1e-300)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    for seed in range(5):
        logits, targets, _, _, blank = case(seed, most=6)
        targets, positions = targets[:, :2], torch.full((len(logits),), logits.shape[1])
        letters = torch.full_like(positions, min(1, targets.shape[1]))
        assert torch.autograd.gradcheck(
            lambda x, *given: ctc_loss(x, *given), (logits.requires_grad_(), targets, positions, letters, blank)
        )


def test_what_cannot_be_spelled_is_infinite_or_left_out() -> None:
    logits = torch.zeros(3, 2, 3, dtype=torch.float64, requires_grad=True)
    given = torch.tensor([[1, 1], [1, 2], [1, 1]]), torch.tensor([2, 2, 0]), torch.tensor([2, 2, 0])
    loss = ctc_loss(logits, *given)
    assert loss.isinf().tolist() == [True, False, False] and loss[2] == 0  # no frame spells nothing, surely
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient[0].isnan().any() and gradient[1:].isfinite().all() and not gradient[2].any()
    (gradient,) = torch.autograd.grad(ctc_loss(logits, *given, zero_infinity=True).sum(), logits)
    assert not gradient[0].any() and gradient[1].any()


@pytest.mark.parametrize(
    ("targets", "positions", "letters", "named"),
    [
        ([[0]], [2], [1], "targets_bl"), ([[3]], [2], [1], "targets_bl"), ([[-1]], [2], [1], "targets_bl"),
        ([[1]], [3], [1], "positions_b"), ([[1]], [-1], [1], "positions_b"), ([[1]], [2], [2], "letters_b"),
        ([[1]], [2, 2], [1], "positions_b"),
    ],
)  # fmt: skip
def test_lengths_and_ids_that_cannot_be_are_errors(targets: Any, positions: Any, letters: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ctc_loss(torch.zeros(1, 2, 3), torch.tensor(targets), torch.tensor(positions), torch.tensor(letters))


def test_a_shorter_format_is_summed_in_a_longer_one() -> None:
    logits, targets, positions, letters, blank = case(3)
    short, long = (ctc_loss(x, targets, positions, letters, blank) for x in (logits.bfloat16(), logits.bfloat16().float()))
    assert torch.equal(short, long)


def test_the_objective_is_the_sum_over_recordings_and_says_which_were_too_short() -> None:
    torch.manual_seed(0)
    model = Transformer(stem=FrameStem(mels=4, positions=8), tower=Tower(8, ()), head=LMHead(vocab=3, bias=True)).build().double()
    frames = torch.randn(3, 4, 9, dtype=torch.float64)
    targets = torch.tensor([[1, 2, IGNORE], [2, IGNORE, IGNORE], [1, 1, 2]])
    padding = torch.arange(9) < torch.tensor([[9], [7], [4]])
    loss = ctc(model, Batch(frames, targets, padding_bs=padding))
    log_p = model(frames).log_softmax(-1).transpose(0, 1)
    theirs = F.ctc_loss(log_p, targets.clamp(min=0), torch.tensor([5, 4, 2]), torch.tensor([2, 1, 3]), reduction="none")
    assert theirs[2].isinf()
    assert (int(loss.count), int(loss.metrics["too_short"])) == (2, 1)
    whole = ctc(model, Batch(frames[:1], targets[:1]))
    assert (whole.total - theirs[0]).abs() < 1e-12
    assert torch.autograd.grad(loss.total, model.head.out.weight)[0].isfinite().all()
