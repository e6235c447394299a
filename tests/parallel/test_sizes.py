"""The sizes of a parallel run: what multiplies to the processes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from hornbook.errors import UserError
from hornbook.parallel.sizes import Parallel
from tests.parallel.pool import ranks


def test_the_product_is_the_number_of_processes() -> None:
    sizes = Parallel(data=3, tensor=4)
    assert (sizes.world, sizes.parts) == (12, 3)
    assert (Parallel(expert=2, data=3).world, Parallel(expert=2, data=3).parts) == (6, 6)
    sizes.check_world(12)
    with pytest.raises(UserError, match="need 12 processes, and there are 2"):
        sizes.check_world(2)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 0}, "parallel.data must be at least 1: 0"),
        ({"zero": 4, "data": 2}, "parallel.zero must be 0, 1, 2 or 3: 4"),
        ({"zero": 1}, "zero=1, data=1"),
        (
            {"data": 2, "tensor": 3, "pipeline": 2},
            "parallel.pipeline, data and tensor together are not proven(?s:.*)Fix: .* same 12 processes: data=4, tensor=3 alone",
        ),
        ({"sequence": True}, "parallel.sequence needs parallel.tensor of 2 or more"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parallel(**sizes)


def rank_or_failure(rank: int, guilty: int) -> int:
    if rank == guilty:
        raise RuntimeError("as asked")
    return rank


def test_ranks_answer_in_order_and_a_failed_one_is_named() -> None:
    assert ranks(2).run(rank_or_failure, 9) == [0, 1]
    with pytest.raises(AssertionError, match="(?s)rank 1 of 2.*as asked"):
        ranks(2).run(rank_or_failure, 1)
    assert ranks(2).run(rank_or_failure, 9) == [0, 1]
