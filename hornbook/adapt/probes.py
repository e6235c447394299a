"""What goes on inside a model: within a `with`, each call of the model fills a dict by the names of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.adapt.prune import attention_layers
from hornbook.model.attention import AttentionLayer, attention_weights
from hornbook.model.block import BlockLayer
from hornbook.model.spec import Context


@contextmanager
def attention_maps(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the last call of the model leaves filled: each attention layer's weights (B, H, T, S), by its name.

    The model answers as without; a call with a cache, which a second reading would change, is a `ValueError`.
    """
    with _kept(attention_layers(model).items(), lambda layer, given, found: _weights(layer, *given)) as maps:
        yield maps


@contextmanager
def attention_peaks(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the calls of the model leave filled: each attention layer's largest logit in all of them, by its name.

    The logit is q k / sqrt(K) over the keys that a query sees, before any softcap or bias: what grows before attention collapses
    (Zhai et al. 2023, "Stabilizing Transformer Training by Preventing Attention Entropy Collapse").
    """
    with _kept(attention_layers(model).items(), lambda layer, given, found: _peak(layer, *given), _larger) as peaks:
        yield peaks


@contextmanager
def residual_squares(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the calls of the model leave filled: (sum of squares, count) of x after each block, by the block's name."""

    @torch.no_grad()
    def squares(block: nn.Module, given: Any, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.stack((wide.square().sum(), wide.new_tensor(x.numel())))

    blocks = [(name, module) for name, module in model.named_modules() if isinstance(module, BlockLayer)]
    with _kept(blocks, squares, lambda old, new: new if old is None else old + new) as sums:
        yield sums


@contextmanager
def hidden_states(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the last call of the model leaves filled: x (B, T, D) after the stem and after each block, by name."""
    blocks = [(name, module) for name, module in model.named_modules() if name.endswith("stem") or isinstance(module, BlockLayer)]
    with _kept(
        blocks, lambda block, given, x: (x[0] if isinstance(x, tuple) else x).detach()
    ) as states:  # a stem may give (x, ctx)
        yield states


def _larger(old: Tensor | None, new: Tensor) -> Tensor:
    """The same operations each time: activation checkpointing, under which a layer runs twice, compares them."""
    return torch.maximum(new if old is None else old, new)


@contextmanager
def _kept(
    modules: Iterable[tuple[str, nn.Module]], what: Callable[[Any, Any, Any], Tensor],
    join: Callable[[Tensor | None, Tensor], Tensor] = lambda old, new: new,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """`what` of the calls of each module, by name: the last one's, or those before joined to it."""
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, module in modules:
            hook = module.register_forward_hook(lambda *call, name=name: found.update({name: join(found.get(name), what(*call))}))
            stack.callback(hook.remove)
        yield found


@torch.no_grad()
def _weights(layer: AttentionLayer, x: Tensor, ctx: Context) -> Tensor:
    """The layer's weights (B, H, T, S) in this call."""
    if ctx.cache is not None:
        raise ValueError("attention maps are read without a cache: a second reading would change it")
    q_bthk, k_bsgk, _, how = layer.looks(x, ctx)
    return attention_weights(q_bthk, k_bsgk, how)


@torch.no_grad()
def _peak(layer: AttentionLayer, x: Tensor, ctx: Context) -> Tensor:
    """The largest logit of a query and a key that it sees, in this call."""
    if ctx.cache is not None:
        raise ValueError("attention logits are read without a cache: a second reading would change it")
    q_bthk, k_bsgk, _, how = layer.looks(x, ctx)
    scale = q_bthk.shape[-1] ** -0.5 if how.scale is None else how.scale
    scores_bhts = torch.einsum("bthk,bshk->bhts", q_bthk, k_bsgk.repeat_interleave(q_bthk.shape[2] // k_bsgk.shape[2], 2)) * scale
    mask = how.seen(q_bthk, k_bsgk)
    return scores_bhts.max() if mask is None else scores_bhts.masked_fill(~mask, -torch.inf).max()
