"""Flash attention against torch's over whole scores in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hornbook.kernels import part
from tests.reference.interpreted import assert_near

SHORT = [torch.bfloat16, torch.float16]
CASES = {  # rows, queries, keys, heads, key heads, head_dim, causal, window
    "one query": (1, 1, 1, 1, 1, 4, True, None),
    "ragged blocks, causal": (1, 70, 70, 1, 1, 16, True, None),
    "grouped, odd width": (2, 19, 19, 4, 2, 12, True, None),
    "window within a block": (1, 40, 40, 1, 1, 8, True, 5),
    "window over blocks": (1, 70, 70, 1, 1, 8, True, 34),
    "not causal": (1, 34, 34, 2, 1, 16, False, None),
    "more keys than queries": (2, 3, 40, 1, 1, 16, False, None),
    "more queries than keys": (1, 40, 3, 1, 1, 16, True, None),
    "two rows of no length": (2, 0, 0, 2, 1, 16, True, None),
    "no rows": (0, 3, 3, 2, 1, 16, True, None),
}
Case = tuple[int, int, int, int, int, int, bool, int | None]


def whole(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float | None) -> Tensor:
    i, j = torch.arange(q.shape[1], device=q.device)[:, None], torch.arange(k.shape[1], device=q.device)[None]
    seen = (j <= i) | (not causal)
    if window is not None:
        seen = seen & (i - j < window)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True).transpose(1, 2)


def compare(device: str, case: Case, dtype: torch.dtype, scale: float | None = None) -> None:
    rows, queries, keys, heads, groups, width, causal, window = case
    torch.manual_seed(0)
    shapes = ((rows, queries, heads, width), (rows, keys, groups, width), (rows, keys, groups, width))
    given = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]
    exact = [each.detach().double().requires_grad_() for each in given]
    upstream = torch.randn(shapes[0], device=device).to(dtype)
    found = part("flash_attention").flash_attention(*given, causal=causal, window=window, scale=scale)
    wanted = whole(*exact, causal, window, scale)
    assert found.dtype == dtype
    assert_near(found, wanted)
    found.backward(upstream)
    wanted.backward(upstream.double())
    for ours, theirs in zip(given, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert_near(ours.grad, theirs.grad)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_whole_scores(device: str, case: Case) -> None:
    compare(device, case, torch.float32)


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("name", ["ragged blocks, causal", "grouped, odd width"])
def test_short_formats(device: str, name: str, dtype: torch.dtype) -> None:
    compare(device, CASES[name], dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, *SHORT])
@pytest.mark.parametrize("width", [16, 64, 80, 128, 256])
def test_every_width_of_a_head(device: str, width: int, dtype: torch.dtype) -> None:
    compare(device, (2, 300, 300, 4, 2, width, True, None), dtype)


def test_a_scale_of_its_own(device: str) -> None:
    compare(device, CASES["grouped, odd width"], torch.float32, scale=0.7)


def test_scores_far_apart_stay_finite(device: str) -> None:
    q = torch.full((1, 2, 1, 16), 100.0, device=device)
    k = torch.stack((q[0, 0] * 10, -q[0, 0] * 10))[None]
    found = part("flash_attention").flash_attention(q, k, torch.arange(32.0, device=device).view(1, 2, 1, 16))
    assert found.equal(torch.arange(16.0, device=device).expand(1, 2, 1, 16))


def test_a_query_without_keys_gives_zeros(device: str) -> None:
    q, k = torch.randn(1, 2, 1, 16, device=device, requires_grad=True), torch.randn(1, 0, 1, 16, device=device)
    found = part("flash_attention").flash_attention(q, k, k)
    found.sum().backward()
    assert not found.any() and q.grad is not None and not q.grad.any()


@pytest.mark.parametrize(
    ("q", "k", "how", "message"),
    [
        ((1, 3, 3, 8), (1, 3, 2, 8), {}, "multiple of G"), ((1, 3, 2, 8), (1, 3, 2, 9), {}, "multiple of G"),
        ((1, 3, 2, 257), (1, 3, 2, 257), {}, "at most 256"), ((1, 3, 2, 8), (1, 3, 2, 8), {"window": 2}, "causal"),
        ((1, 3, 2, 8), (1, 3, 2, 8), {"window": 0, "causal": True}, "at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    device: str, q: tuple[int, ...], k: tuple[int, ...], how: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        part("flash_attention").flash_attention(torch.ones(q), torch.ones(k), torch.ones(k), **how)


def test_formats_are_not_mixed(device: str) -> None:
    x = torch.ones(1, 2, 1, 8)
    with pytest.raises(ValueError, match="one format"):
        part("flash_attention").flash_attention(x, x, x.bfloat16())
