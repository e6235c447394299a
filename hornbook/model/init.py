"""Initial weights by layer type, one function.

Matrices and embeddings are normal with one standard deviation; what writes into the residual stream (attention's `o`, the
feed-forward's `down`) is divided by sqrt(2 * layers), so that the stream's variance does not grow with depth (Radford et al. 2019,
section 2.3). Norms are one, biases zero. The first loss is then ln(vocabulary).
"""

from __future__ import annotations

import torch
from torch import nn

from hornbook.model.attention import AttentionLayer
from hornbook.model.mlp import MLPLayer
from hornbook.model.transformer import TransformerModel


@torch.no_grad()
def initialize(model: TransformerModel, seed: int, std: float = 0.02) -> TransformerModel:
    """Fill every parameter from `seed`; the same seed gives the same weights whatever was drawn before."""
    generator = torch.Generator().manual_seed(seed)
    residual = std / (2 * len(model.tower.blocks)) ** 0.5
    writers = {id(m.o) for m in model.modules() if isinstance(m, AttentionLayer)}
    writers |= {id(m.down) for m in model.modules() if isinstance(m, MLPLayer)}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            spread = residual if id(module) in writers else std
            module.weight.copy_(torch.empty(module.weight.shape).normal_(0.0, spread, generator=generator))
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
    return model
