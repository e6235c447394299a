"""How a run is spread over processes: five sizes, whose product is their number. Nothing here imports torch.

The axes, from the outermost to the innermost: pipeline, data, expert, tensor. Ranks that differ in `tensor` alone are neighbours,
for they talk most. The batch is split over data and expert; everything but the experts is alike on the expert axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hornbook.errors import UserError

AXES = ("pipeline", "data", "expert", "tensor")


def _refusal(what: str, fix: str) -> UserError:
    return UserError(what, where="[parallel]", fix=fix)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """data: parts that every batch is cut into, a copy of the model for each; zero: what those copies share out (Rajbhandari et al.
    2020): 0 nothing, 1 the moments, 2 gradients also, 3 weights also.
    tensor: ranks with a part of each matrix (Shoeybi et al. 2019); sequence: between matrices each has a part of the positions.
    pipeline: groups of layers, one after the other, in the order of `schedule`.
    expert: ranks that hold some of a mixture's experts each.
    """

    data: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    expert: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            if getattr(self, name) < 1:
                raise _refusal(f"parallel.{name} must be at least 1: {getattr(self, name)}", f"leave parallel.{name} out")
        if self.zero not in (0, 1, 2, 3):
            raise _refusal(f"parallel.zero must be 0, 1, 2 or 3: {self.zero}", "leave parallel.zero out, or choose one of them")
        if self.zero and self.parts == 1:
            raise _refusal(
                f"parallel.zero shares out among copies, and there is one: zero={self.zero}, data=1",
                "set parallel.data to 2 or more, or parallel.zero to 0",
            )
        used = [axis for axis in AXES if getattr(self, axis) > 1]
        if len(used) > 2:
            together = f"{', '.join(used[:-1])} and {used[-1]}"
            kept, ranks = used[-1], getattr(self, used[-1])
            raise _refusal(
                f"parallel.{together} together are not proven, and every pair is",
                f"set one of them to 1, as for the same {self.world} processes: data={self.world // ranks}, {kept}={ranks} alone",
            )
        if self.sequence and self.tensor == 1:
            raise _refusal(
                "parallel.sequence needs parallel.tensor of 2 or more: tensor=1", "set parallel.tensor, or leave sequence out"
            )

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.pipeline * self.parts * self.tensor

    @property
    def parts(self) -> int:
        """Parts that every batch is cut into."""
        return self.data * self.expert

    def check_rows(self, rows: int) -> None:
        """Refuse rows of a batch that its parts cannot share evenly."""
        if rows % self.parts:
            axes = [f"parallel.{axis}" for axis in ("data", "expert") if getattr(self, axis) > 1]
            fewer = rows - rows % self.parts
            raise UserError(
                f"rows must be a multiple of {' x '.join(axes)}: {rows} rows, {self.parts} parts", where=", ".join(["rows", *axes]),
                why="each part of a batch has the same number of rows",
                fix=f"set rows to {' or '.join(str(each) for each in (fewer, fewer + self.parts) if each)}",
            )  # fmt: skip

    def check_world(self, world: int) -> None:
        """Refuse a number of processes that the sizes do not multiply to."""
        if self.world != world:
            sizes = " x ".join(f"{name} {getattr(self, name)}" for name in AXES)
            raise UserError(
                f"the parallel sizes need {self.world} processes, and there are {world}", where="[parallel]", why=sizes,
                fix=f"start it with torchrun --nproc-per-node {self.world}, or change the sizes",
            )  # fmt: skip
