"""The fused linear cross-entropy, its rows by the kernel, against torch's over whole logits in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.batch import IGNORE
from hornbook.kernels import part
from hornbook.model.head import LMHead
from hornbook.train import cross_entropy as module
from tests.reference.interpreted import assert_near


def whole(head: nn.Module, hidden: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    logits = head(hidden)
    z = z_loss * (logits.logsumexp(-1)[targets != IGNORE] ** 2).sum()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum") + z


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rows", "vocab", "share"), [((3, 5), 11, 0.4), ((1, 1), 7, 0.0), ((2, 3), 4096 + 5, 0.2), ((2, 3), 11, 1.0)], ids=str
)
def test_sums_and_gradients_are_those_of_whole_logits(
    device: str, rows: tuple[int, int], vocab: int, share: float, z_loss: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    torch.manual_seed(0)
    head = LMHead(vocab=vocab, bias=True).build(6).to(device, dtype)
    exact = LMHead(vocab=vocab, bias=True).build(6).to(device, torch.float64)
    exact.load_state_dict(head.state_dict())
    vars(head)["row_losses"] = part("cross_entropy").row_losses
    hidden = torch.randn(*rows, 6, device=device).to(dtype).requires_grad_()
    hidden64 = hidden.detach().double().requires_grad_()
    targets = torch.randint(vocab, rows, device=device).masked_fill(torch.rand(rows, device=device) < share, IGNORE)
    total, z = module.with_z_loss(head, hidden, targets, z_loss)
    wanted = whole(exact, hidden64, targets, z_loss)
    assert total.dtype == torch.float32 and not z.requires_grad
    torch.testing.assert_close(total.double(), wanted, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)
    (total * 0.5).backward()
    (wanted * 0.5).backward()
    pairs = ((hidden, hidden64), *zip(head.parameters(), exact.parameters(), strict=True))
    for ours, theirs in pairs:
        assert ours.grad is not None and theirs.grad is not None
        assert_near(ours.grad, theirs.grad)


def test_a_row_without_a_target_counts_for_nothing(device: str) -> None:
    logits, targets = torch.randn(3, 9, device=device), torch.tensor([[2], [IGNORE], [8]], device=device)
    exact = logits.double().requires_grad_()
    wanted = F.cross_entropy(exact, targets[:, 0], reduction="sum")
    wanted.backward()
    total, z, gradient = part("cross_entropy").row_losses(logits, targets, 0.0, True)
    assert gradient.data_ptr() == logits.data_ptr() and not gradient[1].any() and not z
    assert_near(total, wanted)
    assert_near(gradient, exact.grad)


def test_logits_stay_where_no_gradient_is_wanted(device: str) -> None:
    logits = torch.randn(2, 5, device=device)
    before = logits.clone()
    total, _, gradient = part("cross_entropy").row_losses(logits, torch.zeros(2, 1, dtype=torch.long, device=device), 0.0, False)
    assert gradient is None and logits.equal(before) and float(total) > 0


def test_what_is_unlikely_keeps_its_loss_and_what_is_broken_shows(device: str) -> None:
    """log p is computed as a logarithm; a logit may be minus infinity, a whole block of them too, and a nan is not lost."""
    logits = torch.zeros(3, 5000, device=device)
    logits[:, 4500] = 500.0
    logits[1, :4500] = -torch.inf
    logits[2, 3] = torch.nan
    targets = torch.tensor([[7], [4500], [4]], device=device)
    rows = [part("cross_entropy").row_losses(logits[n : n + 1], targets[n : n + 1], 0.0, True) for n in range(3)]
    assert float(rows[0][0]) == 500.0 and float(rows[1][0]) == 0.0 and rows[2][0].isnan()
    assert rows[1][2].isfinite().all()
