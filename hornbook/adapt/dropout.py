"""Which attention dropout a model trains with, whatever its family: the published one, or one that keeps the kernel's fastest path.

`weights` drops each weight of a query and a key by itself (Vaswani et al. 2017, as GPT-2 was trained). `keys` drops a key of a
head for all its queries at once: the columns of Zehui et al. 2019, "DropAttention", not normalized again. Each query alone meets
the same distribution either way, so the same mean; what differs is that the queries of a row lose the same keys. It is another
dropout: a curve trained with it is not the other's. The published config and the finished model know nothing of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import nn

from hornbook.adapt.prune import attention_layers


def attention_dropout(model: nn.Module, kind: Literal["weights", "keys"]) -> None:
    """Let every attention layer of the model drop in that way, as often as it did."""
    for layer in attention_layers(model).values():
        layer.spec = replace(layer.spec, dropout_kind=kind)
