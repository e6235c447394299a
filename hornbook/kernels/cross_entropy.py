"""The rows of the fused linear cross-entropy: a chunk of logits (C, V) -> its losses, and in the same memory their gradient.

loss = log Z - logit[target], with Z the sum of exp(logit); its gradient by the logits is softmax(logits) - onehot(target). With
PaLM's z-loss both grow: z log(Z)^2, and softmax(logits) (1 + 2 z log Z) - onehot(target) (Chowdhery et al. 2022, section 5).

`train.cross_entropy` cuts the hidden rows into chunks and takes the three products with the head's matrix, which torch does best;
so the logits are never whole. What lies between the products is one kernel here. A program takes one row. Its first walk over the
vocabulary finds log Z as it goes: a new largest logit m' shrinks the sum so far by exp(m - m') (Milakov and Gimelshein 2018,
algorithm 3). Its second walk writes the gradient over the logits. Torch's own chain goes through memory about three times as often.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hornbook.kernels import check

# A multiple of what the 256 threads of a program load at once. No number is then held by two threads, and none is read again after
# another thread has put the gradient in its place.
BLOCK = 4096
LOWEST = tl.constexpr(-1e30)  # below every logit; not -inf, since -inf - -inf is no number


def row_losses(logits_cv: Tensor, targets_c1: Tensor, z_loss: float, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sums of the losses and of the z-losses, and the gradient of both by the logits, in the logits' place, where wanted.

    logits_cv (C, V), targets_c1 (C, 1); a row whose target is negative counts for nothing.
    """
    check(logits_cv)
    losses_2c = torch.empty(2, len(logits_cv), dtype=torch.float32, device=logits_cv.device)
    _rows[(len(logits_cv),)](
        logits_cv, targets_c1.contiguous(), losses_2c[0], losses_2c[1], logits_cv.shape[1], z_loss, wanted, BLOCK, num_warps=8
    )
    total, z = losses_2c.sum(1)
    return total, z, logits_cv if wanted else None


@triton.jit
def _rows(logits_ptr, targets_ptr, losses_ptr, z_ptr, vocab, z_loss, WANTED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    logits_ptr += row * vocab
    top = LOWEST + tl.zeros((), tl.float32)
    above = tl.zeros((), tl.float32)  # the sum of exp(logit - top)
    said = tl.zeros((), tl.float32)  # the target's logit
    for start in range(0, vocab, BLOCK):
        v = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + v, mask=v < vocab, other=-float("inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(logits, 0))
        above = above * tl.exp(top - new_top) + tl.sum(tl.exp(logits - new_top), 0)
        said += tl.sum(tl.where(v == target, logits, 0.0), 0)
        top = new_top
    counts = target >= 0
    log_z = top + tl.log(above)
    tl.store(losses_ptr + row, tl.where(counts, tl.log(above) - (said - top), 0.0))
    tl.store(z_ptr + row, tl.where(counts, z_loss * log_z * log_z, 0.0))
    if WANTED:
        factor = (1.0 + 2.0 * z_loss * log_z) / above
        for start in range(0, vocab, BLOCK):
            v = start + tl.arange(0, BLOCK)
            logits = tl.load(logits_ptr + v, mask=v < vocab, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(logits - top) * factor - tl.where(v == target, 1.0, 0.0)
            tl.store(logits_ptr + v, tl.where(counts, gradient, 0.0).to(logits_ptr.dtype.element_ty), mask=v < vocab)
