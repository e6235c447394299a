"""Each test of a kernel runs in Triton's interpreter, and once more on a CUDA device where the mark `gpu` is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reference.interpreted import kernels_on


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels_on(request.param):
        yield request.param
