"""Which parameter gets which optimizer: matrices of the tower, embeddings with the head, and vectors (norms, biases)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hornbook.model import TransformerModel


@dataclass(frozen=True)
class Groups:
    matrices: list[nn.Parameter]
    embeddings: list[nn.Parameter]
    vectors: list[nn.Parameter]


def parameter_groups(model: TransformerModel) -> Groups:
    """Every trainable parameter in exactly one group; a tied parameter counts as the embedding that it is."""
    tower = {id(parameter) for parameter in model.tower.parameters()}
    groups = Groups([], [], [])
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        if parameter.ndim < 2:
            groups.vectors.append(parameter)
        else:
            (groups.matrices if id(parameter) in tower else groups.embeddings).append(parameter)
    return groups
