"""The RMSNorm kernel against torch's in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hornbook.kernels import part
from tests.reference.interpreted import assert_near

SHAPES = [(3, 7, 33), (1, 1), (2, 5, 4, 16), (0, 8), (3, 5000)]


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_torchs(device: str, shape: tuple[int, ...], dtype: torch.dtype, offset: bool) -> None:
    compare(device, shape, dtype, offset)


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_programs_share_the_weights_gradient(device: str, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 rows of 33 are five tiles of 64."""
    monkeypatch.setattr(part("rms_norm"), "PROGRAMS", programs)
    compare(device, (300, 33), torch.float32, False)


def test_rows_that_are_not_neighbours_in_memory(device: str) -> None:
    x = torch.randn(6, 5, device=device).t()
    found = part("rms_norm").rms_norm(x, torch.ones(6, device=device), 1e-6)
    assert_near(found, F.rms_norm(x.double(), (6,), None, 1e-6))


def test_a_row_of_zeros_stays_finite(device: str) -> None:
    x = torch.zeros(2, 8, device=device, requires_grad=True)
    y = part("rms_norm").rms_norm(x, torch.ones(8, device=device), 1e-6)
    y.sum().backward()
    assert not y.any() and x.grad is not None and x.grad.isfinite().all()


def test_a_longer_format_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="float64"):
        part("rms_norm").rms_norm(torch.ones(2, 3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), 1e-6)


def compare(device: str, shape: tuple[int, ...], dtype: torch.dtype, offset: bool) -> None:
    torch.manual_seed(0)
    given = [torch.randn(size, device=device).to(dtype).requires_grad_() for size in (shape, shape[-1:])]
    exact = [each.detach().double().requires_grad_() for each in given]
    upstream = torch.randn(shape, device=device).to(dtype)
    found = part("rms_norm").rms_norm(*given, 1e-5, offset)
    wanted = F.rms_norm(exact[0], shape[-1:], exact[1] + offset, 1e-5)
    assert found.dtype == dtype
    found.backward(upstream)
    wanted.backward(upstream.double())
    for ours, theirs in ((found, wanted), *((a.grad, b.grad) for a, b in zip(given, exact, strict=True))):
        assert_near(ours, theirs)
