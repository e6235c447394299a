"""8-bit floats by arithmetic: a number is a whole multiple of its step, which its exponent and the bits of fraction give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Float8:
    """Micikevicius et al. 2022, table 1."""

    fraction: int  # bits
    least: int  # the exponent of the smallest normal number
    largest: float

    @property
    def error(self) -> float:
        """At most so large a share of a normal number is lost."""
        return 2.0 ** -(self.fraction + 1)

    def lost(self, x: Tensor) -> Tensor:
        """The most that each number of x may lose: half a step, of its own exponent or the smallest."""
        return x.double().abs() * self.error + self.scale(x) * 2.0 ** (self.least - self.fraction - 1)

    def scale(self, x: Tensor) -> Tensor:
        return (x.abs().max().float() / self.largest).double()

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest number of the format to each of x, the even one of two, at the scale that brings the largest to its end."""
        scaled = (x.float() / self.scale(x).float()).double()
        step = torch.exp2(torch.frexp(scaled).exponent.double() - 1).clamp(min=2.0**self.least) * 2.0**-self.fraction
        return (scaled / step).round() * step * self.scale(x)


E4M3, E5M2 = Float8(3, -6, 448.0), Float8(2, -14, 57344.0)
