"""One Transformer core, assembled from specs.

Shape letters, everywhere in hornbook:
  B batch   T query positions   S key positions   D width   V vocabulary
  H query heads   G key/value heads   K head width   F hidden width   E experts   N = B*T
A bare `x` is always the residual stream (B, T, D).
"""

from hornbook.model.attention import Attention, PerHead, Whole
from hornbook.model.bias import ALiBi, BucketBias
from hornbook.model.block import Block, Parallel, Residual, Tower
from hornbook.model.head import ClassHead, HiddenHead, LMHead, MLMHead, TagHead
from hornbook.model.init import Undrawn, initialize, shapes_only
from hornbook.model.mlp import MLP, Chunked, GatedMLP
from hornbook.model.moe import ExpertChoice, Hash, MoE, TopK
from hornbook.model.norm import LayerNorm, RMSNorm
from hornbook.model.rope import Rope
from hornbook.model.spec import Context, Spec
from hornbook.model.stem import FrameStem, PatchStem, TokenStem
from hornbook.model.transformer import Seq2Seq, Seq2SeqModel, Transformer, TransformerModel

__all__ = [
    "MLP", "ALiBi", "Attention", "Block", "BucketBias", "Chunked", "ClassHead", "Context", "ExpertChoice", "FrameStem", "GatedMLP",
    "Hash", "HiddenHead", "LMHead", "LayerNorm", "MLMHead", "MoE", "Parallel", "PatchStem", "PerHead", "RMSNorm", "Residual",
    "Rope", "Seq2Seq", "Seq2SeqModel", "Spec", "TagHead", "TokenStem", "TopK", "Tower", "Transformer", "TransformerModel",
    "Undrawn", "Whole", "initialize", "shapes_only",
]  # fmt: skip
