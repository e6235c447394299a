"""Which parameter gets which optimizer: matrices of the tower, embeddings with the head, and vectors (norms, biases).

The experts of a layer are one parameter, a stack of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hornbook.model.block import TowerLayer
from hornbook.model.moe import MoELayer
from hornbook.model.transformer import Tied


@dataclass(frozen=True)
class Groups:
    matrices: list[nn.Parameter]
    embeddings: list[nn.Parameter]
    vectors: list[nn.Parameter]


def parameter_groups(model: Tied) -> Groups:
    """Every trainable parameter in exactly one group; a tied parameter counts as the embedding that it is."""
    inside = {id(parameter) for tower in model.modules() if isinstance(tower, TowerLayer) for parameter in tower.parameters()}
    groups, settled = Groups([], [], []), set[int]()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in settled or not parameter.requires_grad:
                continue
            settled.add(id(parameter))
            if parameter.ndim > 1 and (isinstance(module, nn.Embedding) or id(parameter) not in inside):
                groups.embeddings.append(parameter)
            elif parameter.ndim > 1 and isinstance(module, nn.Linear | MoELayer):
                groups.matrices.append(parameter)
            else:
                groups.vectors.append(parameter)
    return groups
