"""A parameter that is cut over ranks, as the optimizer sees it: this rank's part, a plain tensor.

Elementwise optimizers need no more: their moments are cut as the weights are, and no collective runs. `whole` and `part` are for
those that do need more (Muon).
"""

from __future__ import annotations

from torch import Tensor, nn

from hornbook.ranks import is_cut


def plain(value: Tensor) -> Tensor:
    """This rank's part of a tensor, on the same memory; the tensor itself where it is not cut."""
    return value.to_local() if is_cut(value) else value


def local(parameter: nn.Parameter) -> nn.Parameter:
    """The same for a parameter."""
    return nn.Parameter(plain(parameter.detach()), parameter.requires_grad) if is_cut(parameter) else parameter


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A part as large as the parameter's, as the tensor that it is a part of: cut over the same ranks."""
    if not is_cut(parameter):
        return value
    from torch.distributed.tensor import DTensor

    mesh, places = parameter.device_mesh, parameter.placements
    return DTensor.from_local(value, mesh, places, run_check=False, shape=parameter.shape, stride=parameter.stride())


def whole(value: Tensor, parameter: Tensor) -> Tensor:
    """All ranks' parts together: a collective, where the parameter is cut."""
    return entire(like(value, parameter))


def entire(value: Tensor) -> Tensor:
    """A tensor that is cut over ranks, put together: a collective. The tensor itself where it is not cut."""
    return value.full_tensor() if is_cut(value) else value


def part(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole that every rank has."""
    if not is_cut(parameter):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements).to_local()
