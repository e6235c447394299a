"""What goes on inside a model: within a `with`, each call of the model fills a dict by the names of its parts.

Attention is linear in its values: y = A v. Values that are one at one key and zero at all others therefore read A itself, column by
column, as many keys at once as a head has channels. So the layer is asked again with such values, and whatever it does to its
weights (rope, masks, windows, a cap, a bias) is in the map without being known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.attention import AttentionLayer
from hornbook.model.block import BlockLayer
from hornbook.model.spec import Context


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the last call of the model leaves filled: each attention layer's weights (B, H, T, S), by its name.

    The model answers as without; a call with a cache, which a second reading would change, is a `ValueError`.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, AttentionLayer)]
    with _kept(layers, lambda layer, given, found: _weights(layer, *given)) as maps:
        yield maps


@contextmanager
def hidden_states(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the last call of the model leaves filled: x (B, T, D) after the stem and after each block, by name."""
    blocks = [(name, module) for name, module in model.named_modules() if name.endswith("stem") or isinstance(module, BlockLayer)]
    with _kept(
        blocks, lambda block, given, x: (x[0] if isinstance(x, tuple) else x).detach()
    ) as states:  # a stem may give (x, ctx)
        yield states


@contextmanager
def _kept(modules: Iterable[tuple[str, nn.Module]], what: Callable[[Any, Any, Any], Tensor]) -> Iterator[dict[str, Tensor]]:
    """`what` of each call of each module, by name."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules:
            hook = module.register_forward_hook(lambda *call, name=name: found.update({name: what(*call)}))
            stack.callback(hook.remove)
        yield found


@torch.no_grad()
def _weights(layer: AttentionLayer, x: Tensor, ctx: Context) -> Tensor:
    """The layer's weights (B, H, T, S) in this call."""
    if ctx.cache is not None:
        raise ValueError("attention maps are read without a cache: a second reading would change it")
    width, first, keys = layer.kv_shape()[1], 0, 1
    columns: list[Tensor] = []

    def point(module: nn.Module, given: Any, v_bsf: Tensor) -> Tensor:
        """Values whose channel c is one at key `first + c`, for every head."""
        nonlocal keys
        keys = v_bsf.shape[1]
        ones_sk = torch.eye(keys, dtype=v_bsf.dtype, device=v_bsf.device)[:, first : first + width]
        ones_sk = F.pad(ones_sk, (0, width - ones_sk.shape[1]))
        return ones_sk.repeat(1, v_bsf.shape[-1] // width).expand_as(v_bsf)

    def take(module: nn.Module, given: Any) -> None:
        columns.append(given[0].unflatten(-1, (-1, width))[..., : keys - first].transpose(1, 2))

    with ExitStack() as stack:
        stack.callback(layer.v.register_forward_hook(point).remove)
        stack.callback(layer.o.register_forward_pre_hook(take).remove)
        while first < keys:
            layer.forward(x, ctx)  # not the call, which would run this hook again
            first += width
    return torch.cat(columns, dim=-1)
