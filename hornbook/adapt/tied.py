"""Tied embeddings, whose look-up hands over the rows that it read and not a gradient as large as the vocabulary.

The head's gradient of the same matrix is whole anyway, so autograd adds the rows into it. That saves the zeros, their sum and the
memory of both: for GPT-2 124M at 512 tokens the largest thing that a step holds. Sums come in another order, so last bits differ.
"""

from __future__ import annotations

from torch import nn

from hornbook.model.transformer import Tied


def rows_of_tied_embeddings(model: Tied) -> None:
    """For training on a processor with an objective that reads the head: else the rows would be all that there is."""
    tied = {id(model.get_parameter(owner)) for name, owner in model.ties if name.startswith("head.")}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and id(module.weight) in tied and module.weight.device.type == "cpu":
            module.sparse = True
