"""Who may look at whom: context and key positions -> a boolean mask (B or 1, 1, T, S), True where a query may look, or None.

None with `causal` true means "plain causal", which the attention kernel knows by itself: building the mask would cost it its
fastest path.
"""

from __future__ import annotations

from functools import reduce
from operator import and_

from torch import Tensor

from hornbook.model.spec import Context


def plain_causal(ctx: Context, causal: bool, window: int | None, length: int) -> bool:
    """True where query i sees exactly keys 0..i, so that the kernel needs no mask."""
    special = (ctx.positions_bt, ctx.padding_bs, ctx.documents_bt, ctx.prefix_b, ctx.cache)
    return causal and all(value is None for value in special) and (window is None or length <= window)


def visible(ctx: Context, causal: bool, positions_bt: Tensor, positions_bs: Tensor, window: int | None = None) -> Tensor | None:
    """The mask for queries at `positions_bt` and keys at `positions_bs`; None where everything may be seen.

    With a window, a query sees the keys less than `window` positions back, itself one of them. A prefix is seen by every query.
    """
    conditions: list[Tensor] = []
    distance_bts = positions_bt[:, :, None] - positions_bs[:, None, :]
    if causal:
        past_bts = distance_bts >= 0
        if ctx.prefix_b is not None:
            past_bts = past_bts | (positions_bs < ctx.prefix_b[:, None])[:, None, :]
        conditions.append(past_bts)
    if window is not None:
        conditions.append(distance_bts < window)
    if ctx.documents_bt is not None:
        if ctx.cache is not None:
            raise ValueError("documents_bt and cache cannot be used together: the cache does not keep document numbers")
        conditions.append(ctx.documents_bt[:, :, None] == ctx.documents_bt[:, None, :])
    if ctx.padding_bs is not None:
        conditions.append(ctx.padding_bs[:, None, :])
    return reduce(and_, conditions)[:, None] if conditions else None
