"""A built model and a batch's shape -> the floating-point operations of its products: those that a model's FLOPs are counted in.

Two per multiplication and addition, in the matrices and in attention's two products, `2 T K` each per query and head. As in PaLM
(Chowdhery et al. 2022, appendix B) and in torch's counter, attention counts all T keys, those behind a mask too; and the backward
pass takes twice the forward's. Nothing that is computed a second time to save memory counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hornbook.model import TransformerModel
from hornbook.model.attention import AttentionLayer
from hornbook.model.stem import TokenStemLayer


@dataclass(frozen=True)
class Flops:
    """matrices: entries that a token meets; looks: heads times their width, over all layers; head: entries that a target meets."""

    matrices: int
    looks: int
    head: int

    def training(self, tokens: int, length: int, targets: int) -> int:
        """Of a forward and a backward pass of rows of `length` tokens, where the head is asked for `targets` of them."""
        return 3 * 2 * (tokens * (self.matrices + 2 * self.looks * length) + targets * self.head)


def flops(model: nn.Module) -> Flops | None:
    """None for a model of another kind than one tower that reads tokens, whose positions are its inputs, and for a part of one."""
    if not isinstance(model, TransformerModel) or not isinstance(model.stem, TokenStemLayer) or model.whole_names:
        return None
    inside = [*model.stem.modules(), *model.tower.modules()]
    shares = [(module, share) for module in inside if (share := getattr(module, "active_share", None)) is not None]
    experts = sum(round(weight.numel() * share) for module, share in shares for weight in module.parameters(recurse=False))
    looks = sum(module.q.out_features for module in inside if isinstance(module, AttentionLayer))
    return Flops(_entries(inside) + experts, looks, _entries([*model.head.modules()]))


def _entries(modules: list[nn.Module]) -> int:
    weights: list[Tensor] = [module.weight for module in modules if isinstance(module, nn.Linear)]
    return sum(weight.numel() for weight in weights)
