"""The products of a model's blocks in 8-bit floats, where it trains on a GPU that multiplies them.

y = x W^T with x and W rounded to e4m3 (3 bits of fraction), dx = g W and dW = g^T x with g rounded to e5m2 (2 bits, and further
reach), as Micikevicius et al. 2022, "FP8 Formats for Deep Learning". A tensor is multiplied by what brings its largest value to its
format's, found anew each time; sums are float32. All else is left alone: embeddings, attention itself, routers, stacked experts,
the head.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hornbook.model.attention import AttentionLayer
from hornbook.model.mlp import MLPLayer

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of every size of a product that a GPU takes


def use_fp8(model: nn.Module) -> tuple[int, int]:
    """Let the matrices of attention and feed-forward multiply in 8 bits where they train; how many do, of how many.

    A matrix whose sizes are no multiples of 16 does not, nor any in a call with another number of tokens or without gradients.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, AttentionLayer | MLPLayer)]
    found = [each for layer in layers for each in layer.children() if type(each) is nn.Linear]
    fit = [each for each in found if each.in_features % MULTIPLE == each.out_features % MULTIPLE == 0]
    for linear in fit:
        vars(linear)["forward"] = partial(_product, linear)  # no closure: a copy then computes with its own weight
    return len(fit), len(found)


def _product(linear: nn.Linear, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or x[..., 0].numel() % MULTIPLE:
        return F.linear(x, linear.weight, linear.bias)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    y: Tensor = _Product.apply(x.flatten(0, -2), linear.weight, dtype).unflatten(0, x.shape[:-1])
    return y if linear.bias is None else y + linear.bias.to(dtype)


def shortened(x: Tensor, form: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in 8 bits, and the scale by which they are multiplied to be x. What is not finite makes all of it not a number."""
    scale = (x.abs().amax().float() / torch.finfo(form).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (x.float() / scale).to(form), scale


class _Product(torch.autograd.Function):
    """x (N, D), weight (F, D) -> (N, F). Torch's 8-bit product wants its second factor's columns together in memory."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_fd: Tensor, dtype: torch.dtype) -> Tensor:
        (x8_nd, x_scale), (weight8_fd, weight_scale) = shortened(x_nd, FORWARD), shortened(weight_fd, FORWARD)
        ctx.save_for_backward(x8_nd, x_scale, weight8_fd, weight_scale)
        return torch._scaled_mm(x8_nd, weight8_fd.t(), x_scale, weight_scale, out_dtype=dtype)

    @staticmethod
    def backward(ctx: Any, gradient_nf: Tensor) -> tuple[Tensor, Tensor, None]:
        x8_nd, x_scale, weight8_fd, weight_scale = ctx.saved_tensors
        back_nf, scale = shortened(gradient_nf, BACKWARD)
        x_nd = torch._scaled_mm(back_nf, weight8_fd.t().contiguous().t(), scale, weight_scale, out_dtype=gradient_nf.dtype)
        weight_fd = torch._scaled_mm(
            back_nf.t().contiguous(), x8_nd.t().contiguous().t(), scale, x_scale, out_dtype=torch.float32
        )  # fmt: skip
        return x_nd, weight_fd, None
