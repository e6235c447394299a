"""The rotary kernel against `model.rope` in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch

from hornbook.kernels import part
from hornbook.model import rope
from tests.reference.interpreted import assert_near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows_of_angles", [1, 3])
@pytest.mark.parametrize(
    ("length", "heads", "width", "turned"), [(5, 3, 12, None), (1, 1, 2, None), (7, 4, 16, 6), (0, 2, 8, None)]
)
def test_values_and_gradients_are_the_models(
    device: str, length: int, heads: int, width: int, turned: int | None, rows_of_angles: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    positions = torch.randint(100, (rows_of_angles, length), device=device)
    rotation = rope.Rope(width, turned=turned).angles(positions, dtype)
    x = torch.randn(3, length, heads, width, device=device).to(dtype).requires_grad_()
    exact, upstream = x.detach().double().requires_grad_(), torch.randn(x.shape, device=device).to(dtype)
    found = part("rope").rotate(x, rotation)
    wanted = rope.rotate(exact, (rotation[0].double(), rotation[1].double()))
    found.backward(upstream)
    wanted.backward(upstream.double())
    assert x.grad is not None and exact.grad is not None
    assert_near(found, wanted)
    assert_near(x.grad, exact.grad)


def test_short_queries_and_long_angles_give_long_results_as_torchs_do(device: str) -> None:
    """What autocast leaves: products in bf16, angles in float32. And rows that are not neighbours in memory."""
    x = torch.randn(4, 2, 3, 8, device=device).bfloat16().transpose(0, 1).requires_grad_()
    rotation = rope.Rope(8).angles(torch.arange(4, device=device)[None], torch.float32)
    found = part("rope").rotate(x, rotation)
    found.sum().backward()
    assert found.dtype == rope.rotate(x, rotation).dtype == torch.float32 and x.grad is not None and x.grad.dtype == torch.bfloat16
    assert_near(found, rope.rotate(x.double(), (rotation[0].double(), rotation[1].double())))
