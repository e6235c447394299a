"""The chunked cross-entropy against torch's over whole logits, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from hornbook.batch import IGNORE
from hornbook.model.head import LMHead
from hornbook.train import cross_entropy as module
from hornbook.train.cross_entropy import cross_entropy

DIM, VOCAB, ROWS = 6, 11, (3, 7)


def whole(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


def losses_and_gradients(
    loss: Callable[..., torch.Tensor], spec: LMHead, share: float, factor: float
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    head = spec.build(DIM).double()
    hidden = torch.randn(*ROWS, DIM, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCAB, ROWS).masked_fill(torch.rand(ROWS) < share, IGNORE)
    total = loss(head, hidden, targets)
    wanted = [hidden, *head.parameters()]
    return total.detach(), list(torch.autograd.grad(total * factor, wanted))


@pytest.mark.parametrize("chunk", [1, 4, 21, 100])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spec", [LMHead(vocab=VOCAB), LMHead(vocab=VOCAB, bias=True, scale=0.3), LMHead(vocab=VOCAB, softcap=2.0)])
def test_sums_and_gradients_are_those_of_whole_logits(
    chunk: int, share: float, spec: LMHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    for factor in (1.0, 0.25):
        (total, gradients), (expected, wanted) = (
            losses_and_gradients(loss, spec, share, factor) for loss in (cross_entropy, whole)
        )
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, want, rtol=1e-12, atol=1e-12)


def test_a_frozen_head_gets_no_gradient() -> None:
    head = LMHead(vocab=VOCAB).build(DIM).requires_grad_(False)
    hidden = torch.randn(*ROWS, DIM, requires_grad=True)
    cross_entropy(head, hidden, torch.zeros(ROWS, dtype=torch.long)).backward()
    assert hidden.grad is not None and head.out.weight.grad is None


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    head, hidden, targets = LMHead(vocab=VOCAB).build(DIM), torch.randn(*ROWS, DIM), torch.zeros(ROWS, dtype=torch.long)
    asked = []

    def seen(
        logits: torch.Tensor, targets: torch.Tensor, z_loss: float, wanted: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        asked.append(wanted)
        return module.row_losses(logits, targets, z_loss, wanted)

    vars(head)["row_losses"] = seen
    with torch.no_grad():
        without = cross_entropy(head, hidden, targets)
    assert without == cross_entropy(head, hidden, targets) and asked == [False, True]


def test_a_target_far_from_likely_keeps_its_loss() -> None:
    """log p is computed as a logarithm: a probability under the smallest float still has one."""
    head = LMHead(vocab=2).build(1)
    with torch.no_grad():
        head.out.weight.copy_(torch.tensor([[0.0], [500.0]]))
    assert float(cross_entropy(head, torch.ones(1, 1, 1), torch.zeros(1, 1, dtype=torch.long)).detach()) == 500.0


def test_a_graph_is_walked_once() -> None:
    head, hidden = LMHead(vocab=VOCAB).build(DIM), torch.randn(*ROWS, DIM, requires_grad=True)
    total = cross_entropy(head, hidden, torch.zeros(ROWS, dtype=torch.long))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="walked only once"):
        total.backward()


def test_logits_are_never_whole() -> None:
    """No tensor of the graph or of the pass is as large as all logits: the profiler's largest allocation says so."""
    rows, vocab = 2048, 4096
    head, hidden = LMHead(vocab=vocab).build(8), torch.randn(1, rows, 8, requires_grad=True)
    targets = torch.randint(vocab, (1, rows))
    largest = {}
    for name, loss in (("chunked", cross_entropy), ("whole", whole)):
        with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            loss(head, hidden, targets).backward()
        largest[name] = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest["whole"] >= 4 * rows * vocab and largest["chunked"] < 4 * rows * vocab / 4


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spec", [LMHead(vocab=VOCAB, bias=True, scale=3.0), LMHead(vocab=VOCAB, softcap=2.0)])
def test_z_loss_and_its_gradients_are_those_of_the_formula(
    chunk: int, share: float, spec: LMHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chowdhery et al. 2022, section 5: coefficient * log(Z)^2 for each counted target, Z the sum of exp(logit)."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    coefficient, terms = 0.3, []

    def chunked(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        total, z = module.with_z_loss(head, hidden, targets, coefficient)
        terms.append(z)
        return total

    def formula(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        z = coefficient * (head(hidden).exp().sum(-1).log()[targets != IGNORE] ** 2).sum()
        terms.append(z)
        return whole(head, hidden, targets) + z

    (total, gradients), (expected, wanted) = (losses_and_gradients(loss, spec, share, 0.25) for loss in (chunked, formula))
    assert not terms[0].requires_grad
    torch.testing.assert_close((total, terms[0], gradients), (expected, terms[1].detach(), wanted), rtol=1e-12, atol=1e-12)
