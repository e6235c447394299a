"""Cross-entropy of hidden values through a head's matrix, without the (tokens, vocabulary) logits ever being whole.

Rows are taken a chunk at a time: their logits, their losses and at once their gradients, softmax(logits) - onehot(target), which
is all that the rest of the backward pass needs. Rows without a target are left out. The same sums as torch's cross-entropy of the
whole logits, in another order (the idea: Wijmans et al. 2024, "Cut Your Losses", section 4).

Where the head's rows are cut over ranks (`parallel/tensor.py`), each computes the logits of its own: what ranks tell each other is
three numbers per row (Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.batch import IGNORE
from hornbook.model.head import LMHeadLayer
from hornbook.ranks import is_cut

CHUNK = 256  # rows: few enough for a small vocabulary's logits to stay in cache, enough for full-speed products with a large one
RowLosses = Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor, Tensor | None]]


def cross_entropy(head: nn.Module, hidden_btd: Tensor, targets_bt: Tensor) -> Tensor:
    """The sum of -log p(target) in nats over the targets that are not `IGNORE`. hidden_btd (..., D), targets_bt (...)."""
    return with_z_loss(head, hidden_btd, targets_bt, 0.0)[0]


def with_z_loss(head: nn.Module, hidden_btd: Tensor, targets_bt: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """`cross_entropy` plus the sum of z_loss * log(Z)^2 over the same targets, and that second sum alone, without a gradient.

    Z is the sum of a target's exponentiated logits: the term holds them near the scale of log probabilities (Chowdhery et al.
    2022, "PaLM", section 5).
    """
    hidden_nd, targets_n = hidden_btd.flatten(0, -2), targets_bt.flatten()
    counted = targets_n != IGNORE
    if not counted.all():
        hidden_nd, targets_n = hidden_nd[counted], targets_n[counted]
    if not isinstance(head, LMHeadLayer) or type(head.out) is not nn.Linear or head.spec.softcap is not None:
        logits_nv = head(hidden_nd)
        z = z_loss * logits_nv.logsumexp(-1).square().sum() if z_loss else logits_nv.new_zeros(())
        return F.cross_entropy(logits_nv, targets_n, reduction="sum") + z, z.detach()
    if head.spec.scale != 1.0:
        hidden_nd = hidden_nd * head.spec.scale
    weight: Tensor = head.out.weight
    bias: Tensor | None = head.out.bias
    rows: RowLosses = getattr(head, "row_losses", row_losses)
    if is_cut(weight):
        from hornbook.parallel.tensor import entered

        mesh = weight.device_mesh
        hidden_nd, weight, bias = entered(hidden_nd, mesh), weight.to_local(), bias.to_local() if is_cut(bias) else None
        rows = CutRows(mesh.get_local_rank() * len(weight), len(weight), mesh.get_group()).losses
    given, kind = [hidden_nd, weight, bias], hidden_nd.device.type
    if torch.is_autocast_enabled(kind):  # the products below name where their results go, which autocast leaves alone
        given = [each if each is None else each.to(torch.get_autocast_dtype(kind)) for each in given]
    if not torch.is_grad_enabled():  # a function of autograd does not see that by itself
        given = [each if each is None else each.detach() for each in given]
    with torch.autocast(kind, enabled=False):
        total, z = _Chunked.apply(*given, targets_n, z_loss, rows)
    return total, z


def row_losses(logits_cv: Tensor, targets_c1: Tensor, z_loss: float, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sums of a chunk's losses and of its z-losses, and the gradient of both by its logits, where wanted.

    A head's own `row_losses` goes before this one: `adapt.kernels` puts it there.
    """
    short, logits_cv = logits_cv.dtype, logits_cv.to(torch.promote_types(logits_cv.dtype, torch.float32))
    log_z_c1 = logits_cv.logsumexp(-1, keepdim=True) if z_loss else None
    log_p_cv = logits_cv.log_softmax(-1)
    del logits_cv  # as large as the next
    total = -log_p_cv.gather(1, targets_c1).sum()
    z = torch.zeros_like(total) if log_z_c1 is None else z_loss * log_z_c1.square().sum()
    if not wanted:
        return total, z, None
    p_cv = log_p_cv.exp_()
    if log_z_c1 is not None:  # the gradient of z_loss log(Z)^2 is 2 z_loss log(Z) softmax(logits)
        p_cv *= 1 + 2 * z_loss * log_z_c1
    return total, z, p_cv.scatter_add_(1, targets_c1, -torch.ones_like(p_cv[:, :1])).to(short)


@dataclass(frozen=True)
class CutRows:
    """The rows of the head's matrix that this rank holds, and the ranks that hold the others."""

    first: int
    count: int
    group: Any  # dist.ProcessGroup

    def losses(self, logits_cv: Tensor, targets_c1: Tensor, z_loss: float, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `row_losses`, of the logits of all ranks' rows; the gradient is that by the own ones."""
        short, logits_cv = logits_cv.dtype, logits_cv.to(torch.promote_types(logits_cv.dtype, torch.float32))
        here_c1 = (targets_c1 >= self.first) & (targets_c1 < self.first + self.count)
        own_c1 = (targets_c1 - self.first) * here_c1
        most_c1 = logits_cv.amax(-1, keepdim=True)
        dist.all_reduce(most_c1, dist.ReduceOp.MAX, self.group)
        sum_c1, target_c1 = sums = torch.stack(((logits_cv - most_c1).exp().sum(-1, True), logits_cv.gather(1, own_c1) * here_c1))
        dist.all_reduce(sums, group=self.group)
        log_z_c1 = most_c1 + sum_c1.log()
        total, z = (log_z_c1 - target_c1).sum(), z_loss * log_z_c1.square().sum()
        if not wanted:
            return total, z, None
        p_cv = logits_cv.sub_(log_z_c1).exp_()
        p_cv *= 1 + 2 * z_loss * log_z_c1
        return total, z, p_cv.scatter_add_(1, own_c1, -here_c1.to(p_cv)).to(short)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor, z_loss: float, rows: RowLosses
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        total = torch.zeros((), dtype=torch.promote_types(x_nd.dtype, torch.float32), device=x_nd.device)
        z = torch.zeros_like(total)
        wanted = ctx.needs_input_grad
        grad_x = torch.empty_like(x_nd) if wanted[0] else None
        made = torch.empty_like if len(x_nd) and x_nd.dtype == total.dtype else torch.zeros_like
        grad_weight = made(weight_vd, dtype=total.dtype) if wanted[1] else None
        grad_bias = torch.zeros_like(bias_v) if bias_v is not None and wanted[2] else None
        for start in range(0, len(x_nd), CHUNK):
            x_cd, targets_c1 = x_nd[start : start + CHUNK], targets_n[start : start + CHUNK, None]
            losses, z_losses, grad_cv = rows(F.linear(x_cd, weight_vd, bias_v), targets_c1, z_loss, any(wanted[:3]))
            total += losses
            z += z_losses
            if grad_cv is not None:
                if grad_x is not None:
                    torch.mm(grad_cv, weight_vd, out=grad_x[start : start + CHUNK])
                if grad_weight is not None:
                    if x_nd.dtype == total.dtype:
                        grad_weight.addmm_(grad_cv.mT, x_cd, beta=float(start > 0))
                    else:  # a short format's products, summed in a long one
                        grad_weight += grad_cv.mT @ x_cd
                if grad_bias is not None:
                    grad_bias += grad_cv.sum(0)
        ctx.gradients = grad_x, None if grad_weight is None else grad_weight.to(weight_vd.dtype), grad_bias
        ctx.mark_non_differentiable(z)
        return total + z, z

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """Hands the gradients over, so that nothing copies them: a graph can be walked once."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the graph of `cross_entropy` can be walked only once: call it again")
        if grad.device.type != "cpu" or grad != 1:
            gradients = [None if each is None else each.mul_(grad) for each in gradients]
        return *gradients, None, None, None
