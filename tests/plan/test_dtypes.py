"""What a type can hold, against every number that it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hornbook.plan.dtypes import FLOATS, float_type

NARROW = [name for name, dtype in FLOATS.items() if dtype.itemsize <= 2]


@pytest.mark.parametrize("name", NARROW)
def test_the_range_is_that_of_all_bit_patterns(name: str) -> None:
    dtype = FLOATS[name]
    whole = torch.uint8 if dtype.itemsize == 1 else torch.uint16
    patterns = torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int32).to(whole)
    values = patterns.view(dtype).to(torch.float64)
    positive = values[torch.isfinite(values) & (values > 0)].unique()
    found = float_type(name)
    assert found.largest == positive.max() and found.smallest_subnormal == positive.min()
    assert found.eps == positive[positive > 1].min() - 1
    # Numbers from one power of two to the next: 2^mantissa of them, and the subnormal ones one less.
    steps = torch.log2(positive).floor()
    assert (steps == 0).sum() == 2**found.mantissa
    assert (positive < found.smallest_normal).sum() == 2**found.mantissa - 1 and found.smallest_normal in positive
    assert found.sign + found.exponent + found.mantissa == 8 * dtype.itemsize
    # The exponent's patterns, the subnormal one among them; some types keep the last pattern or two for what is no number.
    assert len(steps[positive >= found.smallest_normal].unique()) + 1 in (2**found.exponent, 2**found.exponent - 1)


def test_float32_is_numpys() -> None:
    theirs, found = np.finfo(np.float32), float_type("float32")
    assert (found.sign, found.exponent, found.mantissa) == (1, theirs.iexp, theirs.nmant)
    assert (found.largest, found.eps) == (theirs.max, theirs.eps)
    assert (found.smallest_normal, found.smallest_subnormal) == (theirs.smallest_normal, theirs.smallest_subnormal)
