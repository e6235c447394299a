"""Initial weights by layer type, one function.

Matrices and embeddings are normal with one standard deviation; what writes into the residual stream (attention's `o`, the
feed-forward's `down`) is divided by sqrt(2 * layers), so that the stream's variance does not grow with depth (Radford et al. 2019,
section 2.3). Norms are one, biases zero. The first loss is then ln(vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hornbook.model.attention import AttentionLayer
from hornbook.model.block import TowerLayer
from hornbook.model.mlp import MLPLayer
from hornbook.model.moe import MoELayer
from hornbook.model.norm import OffsetRMSNorm
from hornbook.model.transformer import Tied

Model = TypeVar("Model", bound=Tied)
NORMS = (nn.LayerNorm, nn.RMSNorm, OffsetRMSNorm)


@contextmanager
def shapes_only() -> Iterator[None]:
    """What is built within has shapes and no memory, on the meta device, and nothing is drawn for it."""
    with torch.device("meta"), Undrawn():
        yield


class Undrawn(TorchFunctionMode):
    """Weights of layers built within are not drawn but filled later; torch would load its compiler to draw on the meta device."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def initialize(model: Model, seed: int, std: float = 0.02) -> Model:
    """Fill every parameter from `seed`; the same seed gives the same weights whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    writers = {id(weight): spread for weight, spread in _writers(model, std)}
    settled = set[int]()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in settled:  # tied
                continue
            settled.add(id(parameter))
            if isinstance(module, NORMS):
                parameter.fill_(float(name == "weight" and not isinstance(module, OffsetRMSNorm)))
            elif parameter.ndim < 2 or name == "bias" or isinstance(module, nn.ParameterDict):
                parameter.zero_()
            else:
                spread = writers.get(id(parameter), std)
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, spread, generator=generator))
    return model


def _writers(model: nn.Module, std: float) -> list[tuple[Tensor, float]]:
    """The weights that write into a residual stream, with their spread."""
    found: list[tuple[Tensor, float]] = []
    for tower in (module for module in model.modules() if isinstance(module, TowerLayer)):
        spread = std / (2 * max(1, len(tower.blocks))) ** 0.5
        for module in tower.modules():
            if isinstance(module, AttentionLayer):
                found.append((module.o.weight, spread))
            elif isinstance(module, MLPLayer):
                found.append((module.down.weight, spread))
            elif isinstance(module, MoELayer):
                found.append((module.down, spread))
    return found
