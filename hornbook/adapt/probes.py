"""What goes on inside a model: within a `with`, each call of the model fills a dict by the names of its parts.

Attention is linear in its values: y = A v. Values that are one at one key and zero at all others therefore read A itself, column by
column, as many keys at once as a head has channels. So the layer is asked again with such values, and whatever it does to its
weights (rope, masks, windows, a cap, a bias) is in the map without being known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.model.attention import AttentionLayer
from hornbook.model.block import BlockLayer
from hornbook.model.spec import Context

Hook = Callable[[nn.Module, Any, Any], None]


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the last call of the model leaves filled: each attention layer's weights (B, H, T, S), by its name.

    The model answers as without; a call with a cache, which a second reading would change, is a `ValueError`.
    """
    maps: dict[str, Tensor] = {}
    with _hooked(model, AttentionLayer, lambda name: partial(_read_map, maps, name)):
        yield maps


@contextmanager
def hidden_states(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the last call of the model leaves filled: x (B, T, D) after the stem and after each block, by name."""
    states: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def hook(module: nn.Module, given: Any, found: Any) -> None:
            states[name] = (found[0] if isinstance(found, tuple) else found).detach()  # a stem may give (x, ctx)

        return hook

    stems = [(name, module) for name, module in model.named_children() if name.endswith("stem")]
    with _hooked(model, BlockLayer, keep), ExitStack() as stack:
        for name, module in stems:
            stack.callback(module.register_forward_hook(keep(name)).remove)
        yield states


@contextmanager
def _hooked(model: nn.Module, kind: type[nn.Module], hook: Callable[[str], Hook]) -> Iterator[None]:
    """Every module of a kind with its hook, until the `with` ends."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, kind):
                stack.callback(module.register_forward_hook(hook(name)).remove)
        yield


def _read_map(maps: dict[str, Tensor], name: str, layer: nn.Module, given: Any, found: Any) -> None:
    assert isinstance(layer, AttentionLayer)
    x, ctx = given
    if ctx.cache is not None:
        raise ValueError("attention maps are read without a cache: a second reading would change it")
    with torch.no_grad():
        maps[name] = _weights(layer, x, ctx)


def _weights(layer: AttentionLayer, x: Tensor, ctx: Context) -> Tensor:
    """The layer's weights (B, H, T, S) in this call."""
    width = layer.kv_shape()[1]
    columns: list[Tensor] = []
    keys = 0

    def point(module: nn.Module, given: Any, v_bsf: Tensor) -> Tensor:
        """Values whose channel c is one at key `first + c`, for every head."""
        nonlocal keys
        keys = v_bsf.shape[1]
        ones_sk = torch.eye(keys, dtype=v_bsf.dtype, device=v_bsf.device)[:, first : first + width]
        ones_sk = nn.functional.pad(ones_sk, (0, width - ones_sk.shape[1]))
        return ones_sk.repeat(1, v_bsf.shape[-1] // width).expand_as(v_bsf)

    def take(module: nn.Module, given: Any) -> None:
        y_bthk = given[0].unflatten(-1, (-1, width))
        columns.append(y_bthk[..., : keys - first].transpose(1, 2))

    first = 0
    with ExitStack() as stack:
        stack.callback(layer.v.register_forward_hook(point).remove)
        stack.callback(layer.o.register_forward_pre_hook(take).remove)
        while not columns or first < keys:
            layer.forward(x, ctx)  # not the call, which would run this hook again
            first += width
    return torch.cat(columns, dim=-1)
