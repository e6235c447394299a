"""CTC: a text's letters learned from frames without a word on where each letter is heard.

What flows in: logits (B, T, V) of T frames, and letters (B, L). What flows out: -log p(letters | frames), where p sums over every
path of T ids that becomes the letters once repeats are merged and blanks dropped. The one idea: blanks are put around the letters
(S = 2L + 1 ids), and two recursions over frames, alpha forward and beta backward, sum all paths at once, as logarithms
(Graves et al. 2006, "Connectionist temporal classification", equations 6 to 16).

The paper's beta counts a frame's own probability, as alpha does, and divides by it later; here beta is what follows the frame.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hornbook.batch import IGNORE, Batch, Loss
from hornbook.model import Context, TransformerModel

NEVER = -math.inf  # the logarithm of a probability of 0


def ctc(model: TransformerModel, batch: Batch) -> Loss:
    """-log p(letters | frames) in nats, summed over recordings; the count is of recordings, not of letters or frames.

    A recording with fewer positions than its letters need has no path: it gives nothing to the sum or the count, and is counted in
    the metric `too_short`.
    """
    logits_btv = model(batch.tokens_bt, Context(padding_bs=batch.padding_bs))
    letters_b = (batch.targets_bt != IGNORE).sum(1)
    loss_b = ctc_loss(logits_btv, batch.targets_bt, positions(logits_btv, batch.padding_bs), letters_b)
    fits_b = loss_b.isfinite()
    return Loss(loss_b.where(fits_b, 0).sum(), fits_b.sum(), {"too_short": (~fits_b).sum()})


def positions(logits_btv: Tensor, padding_bs: Tensor | None) -> Tensor:
    """How many positions of each row are not padding (B,), of a model whose stem makes one position of two frames."""
    rows, length = logits_btv.shape[:2]
    return torch.full((rows,), length, device=logits_btv.device) if padding_bs is None else padding_bs[:, ::2].sum(1)


def ctc_loss(
    logits_btv: Tensor, targets_bl: Tensor, positions_b: Tensor, letters_b: Tensor, blank: int = 0, zero_infinity: bool = False
) -> Tensor:
    """-log p(letters | frames) in nats, (B,).

    Row b has `positions_b[b]` frames and `letters_b[b]` letters; what lies behind them is not read. No letters: every frame is a
    blank. More letters than frames can hold (a repeated letter needs a blank between): the loss is infinite and its gradient NaN,
    or both are 0 with `zero_infinity`.
    """
    (rows, length, vocab), most = logits_btv.shape, targets_bl.shape[1]
    for name, lengths_b, limit in (("positions_b", positions_b, length), ("letters_b", letters_b, most)):
        if lengths_b.shape != (rows,) or (rows and not 0 <= int(lengths_b.min()) <= int(lengths_b.max()) <= limit):
            raise ValueError(f"{name} must be {rows} lengths from 0 to {limit}: {lengths_b.tolist()}")
    heard_bl = torch.arange(most, device=targets_bl.device) < letters_b[:, None]
    if bool((heard_bl & ((targets_bl < 0) | (targets_bl >= vocab) | (targets_bl == blank))).any()):
        raise ValueError(f"targets_bl must be ids from 0 to {vocab - 1} without the blank {blank}: {targets_bl.tolist()}")
    loss_b: Tensor = _CTC.apply(logits_btv, targets_bl.where(heard_bl, blank), positions_b, letters_b, blank)
    return torch.where(loss_b.isinf(), 0, loss_b) if zero_infinity else loss_b


class _CTC(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_btv: Tensor, targets_bl: Tensor, positions_b: Tensor, letters_b: Tensor, blank: int
    ) -> Tensor:  # fmt: skip
        wide = torch.promote_types(logits_btv.dtype, torch.float32)
        log_y_btv = logits_btv.log_softmax(-1, dtype=wide)
        states_bs = torch.full((len(targets_bl), 2 * targets_bl.shape[1] + 1), blank, device=targets_bl.device)
        states_bs[:, 1::2] = targets_bl
        leaps_bs = torch.zeros_like(states_bs, dtype=torch.bool)  # a blank may be left out between two letters that differ
        leaps_bs[:, 2:] = (states_bs[:, 2:] != blank) & (states_bs[:, 2:] != states_bs[:, :-2])
        states_bts = states_bs[:, None].expand(-1, logits_btv.shape[1], -1)
        log_y_bts = log_y_btv.gather(2, states_bts)

        alpha_tbs, log_p_b = _alpha(log_y_bts, leaps_bs, positions_b, letters_b)
        if ctx.needs_input_grad[0]:
            beta_tbs = _beta(log_y_bts, leaps_bs, positions_b, letters_b)
            # Equation 14: the share of p that passes each state at each frame. Equation 16: y less the share of each id.
            share_bts = (alpha_tbs[1:] + beta_tbs[1:] - log_p_b[:, None]).exp().transpose(0, 1)
            gradient_btv = log_y_btv.exp().scatter_add_(2, states_bts, -share_bts)
            padding_bt = torch.arange(logits_btv.shape[1], device=logits_btv.device) >= positions_b[:, None]
            ctx.save_for_backward(gradient_btv.masked_fill_(padding_bt[..., None], 0).to(logits_btv.dtype), log_p_b)
        return -log_p_b

    @staticmethod
    def backward(ctx: Any, grad_b: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient_btv, log_p_b = ctx.saved_tensors
        nothing_b = (grad_b == 0) & log_p_b.isinf()  # an infinite loss that the caller left out, whose gradient is NaN
        scaled_btv = gradient_btv * grad_b[:, None, None].to(gradient_btv.dtype)
        return scaled_btv.masked_fill_(nothing_b[:, None, None], 0), None, None, None, None


def _alpha(log_y_bts: Tensor, leaps_bs: Tensor, positions_b: Tensor, letters_b: Tensor) -> tuple[Tensor, Tensor]:
    """alpha (T + 1, B, S), log p of being in each state after so many frames; and log p of the letters (B,). Equations 6 to 8."""
    alpha_bs = torch.full_like(leaps_bs, NEVER, dtype=log_y_bts.dtype)
    alpha_bs[:, 0] = 0  # before the first frame; from here the first blank and the first letter can be reached
    alpha = [alpha_bs]
    for log_y_bs in log_y_bts.unbind(1):
        leapt_bs = _later(alpha_bs, 2).masked_fill(~leaps_bs, NEVER)
        alpha_bs = torch.stack((alpha_bs, _later(alpha_bs, 1), leapt_bs)).logsumexp(0) + log_y_bs
        alpha.append(alpha_bs)
    alpha_tbs = torch.stack(alpha)
    last_bs = alpha_tbs[positions_b, torch.arange(len(positions_b), device=positions_b.device)]
    return alpha_tbs, last_bs.masked_fill(~_ends(leaps_bs, letters_b), NEVER).logsumexp(1)


def _beta(log_y_bts: Tensor, leaps_bs: Tensor, positions_b: Tensor, letters_b: Tensor) -> Tensor:
    """beta (T + 1, B, S): log p of the rest of the letters from each state after so many frames. Equations 9 to 11."""
    end_bs = torch.zeros_like(leaps_bs, dtype=log_y_bts.dtype).masked_fill_(~_ends(leaps_bs, letters_b), NEVER)
    beta_bs = torch.full_like(end_bs, NEVER)
    beta: list[Tensor] = []
    for frames in range(log_y_bts.shape[1], -1, -1):
        if beta:
            ahead_bs = beta_bs + log_y_bts[:, frames]
            leapt_bs = _earlier(ahead_bs.masked_fill(~leaps_bs, NEVER), 2)
            beta_bs = torch.stack((ahead_bs, _earlier(ahead_bs, 1), leapt_bs)).logsumexp(0)
        beta_bs = torch.where((positions_b == frames)[:, None], end_bs, beta_bs)
        beta.append(beta_bs)
    return torch.stack(beta[::-1])


def _ends(leaps_bs: Tensor, letters_b: Tensor) -> Tensor:
    """Where a path may end (B, S): at the last letter or the blank behind it."""
    states = torch.arange(leaps_bs.shape[1], device=leaps_bs.device)
    return (states == 2 * letters_b[:, None]) | (states == 2 * letters_b[:, None] - 1)


def _later(x_bs: Tensor, by: int) -> Tensor:
    """Each state has what the one `by` before it had."""
    return torch.nn.functional.pad(x_bs, (by, 0), value=NEVER)[:, : x_bs.shape[1]]


def _earlier(x_bs: Tensor, by: int) -> Tensor:
    return torch.nn.functional.pad(x_bs, (0, by), value=NEVER)[:, by:]
