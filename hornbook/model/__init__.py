"""One Transformer core, assembled from specs.

Shape letters, everywhere in hornbook:
  B batch   T query positions   S key positions   D width   V vocabulary
  H query heads   G key/value heads   K head width   F hidden width   N = B*T
A bare `x` is always the residual stream (B, T, D).
"""

from hornbook.model.attention import Attention, PerHead
from hornbook.model.block import Block, Residual, Tower
from hornbook.model.head import LMHead
from hornbook.model.init import initialize
from hornbook.model.mlp import MLP, GatedMLP
from hornbook.model.norm import LayerNorm, RMSNorm
from hornbook.model.rope import Rope
from hornbook.model.spec import Context, Spec
from hornbook.model.stem import TokenStem
from hornbook.model.transformer import Transformer, TransformerModel

__all__ = [
    "MLP", "Attention", "Block", "Context", "GatedMLP", "LMHead", "LayerNorm", "PerHead", "RMSNorm", "Residual", "Rope", "Spec",
    "TokenStem", "Tower", "Transformer", "TransformerModel", "initialize",
]  # fmt: skip
