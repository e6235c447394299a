"""The matrix products of a GPT-2 step and nothing else: what no step of that shape can be faster than on the same machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Products:
    """A step's products of weights, forward and backward, written over and over into the same memory; attention's are left out."""

    def __init__(self, rows: int, layers: int, dim: int, vocab: int, clock: Callable[[], float]):
        self.clock = clock
        sizes = [(dim, 3 * dim), (dim, dim), (dim, 4 * dim), (4 * dim, dim)] * layers + [(dim, vocab)]
        values = {width: torch.randn(rows, width) for pair in sizes for width in pair}
        results = {width: torch.empty_like(value) for width, value in values.items()}
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        for wide, out in sizes:
            weight, gradient = torch.randn(out, wide), torch.empty(out, wide)
            x, dy = values[wide], values[out]
            self.products += [(x, weight.t(), results[out]), (dy, weight, results[wide]), (dy.t(), x, gradient)]

    @torch.no_grad()
    def train(self, steps: int) -> float:
        start = self.clock()
        for _ in range(steps):
            for left, right, out in self.products:
                torch.mm(left, right, out=out)
        return self.clock() - start
