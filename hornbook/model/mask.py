"""Who may look at whom: context and key positions -> a boolean mask (B or 1, 1, T, S), True where a query may look, or None.

None with `causal` true means "plain causal", which the attention kernel knows by itself: building the mask would cost it its
fastest path.
"""

from __future__ import annotations

from torch import Tensor

from hornbook.model.spec import Context


def plain_causal(ctx: Context, causal: bool) -> bool:
    """True where query i sees exactly keys 0..i, so that the kernel needs no mask."""
    return causal and all(value is None for value in (ctx.positions_bt, ctx.padding_bs, ctx.documents_bt, ctx.cache))


def visible(ctx: Context, causal: bool, positions_bt: Tensor, positions_bs: Tensor) -> Tensor | None:
    """The mask for queries at `positions_bt` and keys at `positions_bs`; None where everything may be seen."""
    seen_bts: Tensor | None = None
    if causal:
        seen_bts = positions_bs[:, None, :] <= positions_bt[:, :, None]
    if ctx.documents_bt is not None:
        if ctx.cache is not None:
            raise ValueError("documents_bt and cache cannot be used together: the cache does not keep document numbers")
        same_bts = ctx.documents_bt[:, :, None] == ctx.documents_bt[:, None, :]
        seen_bts = same_bts if seen_bts is None else seen_bts & same_bts
    if ctx.padding_bs is not None:
        padding_b1s = ctx.padding_bs[:, None, :]
        seen_bts = padding_b1s if seen_bts is None else seen_bts & padding_b1s
    return None if seen_bts is None else seen_bts[:, None]
