"""The whole model: tokens (B, T) -> hidden (B, T, D) -> logits (B, T, V).

`hidden` and `head` are apart, so that a caller may cut the loss into chunks, take the last position, or swap the head, without a
flag. The loss is never inside the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hornbook.model.block import Tower
from hornbook.model.spec import Context, Spec


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """ties: pairs (name, owner): the parameter `name` is the same tensor as `owner`."""

    stem: Spec
    tower: Tower
    head: Spec
    ties: tuple[tuple[str, str], ...] = ()

    def build(self) -> TransformerModel:
        return TransformerModel(self)


class TransformerModel(nn.Module):
    def __init__(self, spec: Transformer):
        super().__init__()
        self.spec = spec
        self.config: dict[str, Any] = {}  # the published config.json that this model was built from, where there is one
        self.stem = spec.stem.build(spec.tower.dim)
        self.tower = spec.tower.build()
        self.head = spec.head.build(spec.tower.dim)
        self.tie()

    def tie(self) -> None:
        """Make each tied parameter one tensor again, as after a load that replaced parameters."""
        for name, owner in self.spec.ties:
            module, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(module), attribute, self.get_parameter(owner))

    def hidden(self, tokens_bt: Tensor, ctx: Context | None = None) -> Tensor:
        ctx = ctx or Context()
        return self.tower(self.stem(tokens_bt, ctx), ctx)

    def forward(self, tokens_bt: Tensor, ctx: Context | None = None) -> Tensor:
        return self.head(self.hidden(tokens_bt, ctx))
