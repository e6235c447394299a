"""Arrays of numbers, longer and sorted."""

from __future__ import annotations

import numpy as np
from numba import njit, types

from hornbook.text.compiled.cut import I32, I64, INNER, U8, U64, int64


@njit([U8(U8, int64), I32(I32, int64), I64(I64, int64), U64(U64, int64)], **INNER)
def more(array, size):
    """The same numbers with more room."""
    found = np.zeros(size, array.dtype)
    for k in range(len(array)):
        found[k] = array[k]
    return found


@njit(types.void(I32, int64), **INNER)
def sort(array, size):
    """Shell's sort of the first numbers: NumPy's takes ten seconds to compile."""
    gap = 1
    while gap < size // 3:
        gap = 3 * gap + 1
    while gap:
        for k in range(gap, size):
            value, j = array[k], k
            while j >= gap and array[j - gap] > value:
                array[j] = array[j - gap]
                j -= gap
            array[j] = value
        gap //= 3
