"""The whole model: inputs -> hidden (B, T, D) -> what the head says, logits (B, T, V) mostly.

`hidden` and `head` are apart, so that a caller may cut the loss into chunks, take the last position, or swap the head, without a
flag. The loss is never inside the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hornbook.model.block import Tower
from hornbook.model.spec import Context, Spec

Ties = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """ties: pairs (name, owner): the parameter `name` is the same tensor as `owner`."""

    stem: Spec
    tower: Tower
    head: Spec
    ties: Ties = ()

    def build(self) -> TransformerModel:
        return TransformerModel(self)


class Tied(nn.Module):
    """A model whose spec names parameters that are one tensor."""

    def __init__(self, ties: Ties):
        super().__init__()
        self.ties = ties
        self.config: dict[str, Any] = {}  # the published config.json that this model was built from, where there is one
        self.whole_names: dict[str, str] = {}  # of a part of a model: its parameters' names in the whole, where they differ

    def tie(self) -> None:
        """Make each tied parameter one tensor again, as after a load that replaced parameters."""
        for name, owner in self.ties:
            module, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(module), attribute, self.get_parameter(owner))


class TransformerModel(Tied):
    def __init__(self, spec: Transformer):
        super().__init__(spec.ties)
        self.spec = spec
        self.stem = spec.stem.build(spec.tower.dim)
        self.tower = spec.tower.build()
        self.head = spec.head.build(spec.tower.dim)
        self.tie()

    def hidden(self, inputs: Tensor, ctx: Context | None = None) -> Tensor:
        """inputs: what the stem takes; for text ids (B, T), or embeddings (B, T, D) in their place."""
        x, ctx = self.stem(inputs, ctx or Context())
        return self.tower(x, ctx)

    def forward(self, inputs: Tensor, ctx: Context | None = None) -> Tensor:
        return self.head(self.hidden(inputs, ctx))


@dataclass(frozen=True, kw_only=True)
class Seq2Seq:
    """An encoder whose last hidden values are the memory of a decoder (Vaswani et al. 2017)."""

    encoder_stem: Spec
    encoder: Tower
    decoder_stem: Spec
    decoder: Tower
    head: Spec
    ties: Ties = ()

    def build(self) -> Seq2SeqModel:
        return Seq2SeqModel(self)


class Seq2SeqModel(Tied):
    def __init__(self, spec: Seq2Seq):
        super().__init__(spec.ties)
        self.spec = spec
        self.encoder_stem = spec.encoder_stem.build(spec.encoder.dim)
        self.encoder = spec.encoder.build()
        self.decoder_stem = spec.decoder_stem.build(spec.decoder.dim)
        self.decoder = spec.decoder.build()
        self.head = spec.head.build(spec.decoder.dim)
        self.tie()

    def encode(self, source: Tensor, padding_bs: Tensor | None = None) -> Tensor:
        """The memory (B, S, D) of a source; `padding_bs` is true where a source token may be seen."""
        x, ctx = self.encoder_stem(source, Context(padding_bs=padding_bs))
        return self.encoder(x, ctx)

    def hidden(self, target_bt: Tensor, ctx: Context) -> Tensor:
        """The decoder's hidden values; `ctx.memory` is what `encode` gave."""
        x, ctx = self.decoder_stem(target_bt, ctx)
        return self.decoder(x, ctx)

    def forward(self, source: Tensor, target_bt: Tensor, ctx: Context | None = None) -> Tensor:
        """Logits (B, T, V). In `ctx`, `padding_bs` is the target's and `memory_padding_bs` the source's."""
        ctx = ctx or Context()
        memory = self.encode(source, ctx.memory_padding_bs)
        return self.head(self.hidden(target_bt, replace(ctx, memory=memory)))
