"""Hand-written kernels in the place of torch's operations, in a model that is built already; off unless `use_kernels` is called.

`rms_norm`, `rope` and `attention` are a layer's own computation, `cross_entropy` what the objective does with the head's logits.
Torch's own attention is such a kernel too, and one by many hands: benchmarks/kernels.py measures which of these are worth it on a
GPU. All of them can be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hornbook.errors import UserError, near
from hornbook.kernels import part
from hornbook.model.attention import AttentionLayer, attend
from hornbook.model.head import LMHeadLayer
from hornbook.model.mask import plain_causal
from hornbook.model.norm import OffsetRMSNorm
from hornbook.model.spec import Context


def use_kernels(model: nn.Module, names: Collection[str], device: torch.device | None = None) -> None:
    """Let kernels compute what `names` names, from now on, and torch all the rest; no names undo it.

    The results are torch's, up to rounding, in float32, bf16 and fp16 on a CUDA device. Attention stays torch's call by call where
    a mask tells what is seen (packed or padded rows, a cache) or weights drop out. A `UserError` for a name that is unknown or has
    nothing to replace in this model, for a model on another device, and where Triton is not installed.
    device: where the model will be, if it is not there yet.
    """
    kind, fit = (device or next(model.parameters()).device).type, fitting(model)
    if names and kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(
            f"kernels = 'triton' needs a CUDA device, and the model is on {kind}", where="kernels",
            fix="leave kernels out (torch), or start Python with TRITON_INTERPRET=1 to run them here, slowly, for a look",
        )  # fmt: skip
    for name in names:
        if name not in KERNELS:
            raise UserError(f"no kernel is called {name!r}", fix=near(name, KERNELS))
        if name not in fit:
            raise UserError(f"this model has nothing that the kernel {name} could compute", fix=f"leave {name} out")
        part(name if name != "attention" else "flash_attention")
    for name, (_, attribute, made) in KERNELS.items():
        for module in fit.get(name, []):
            vars(module).pop(attribute, None)
            if name in names:
                vars(module)[attribute] = made(module)


def fitting(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The kernels that this model has something for, each with the modules that it would go into."""
    found = {name: [module for module in model.modules() if fits(module)] for name, (fits, _, _) in KERNELS.items()}
    return {name: modules for name, modules in found.items() if modules}


def _norm(layer: Any) -> Callable[[Tensor], Tensor]:
    return partial(_normed, part("rms_norm").rms_norm, layer)


# What a layer is given is a partial and not a closure: a copy of the model then computes with its own weights.
def _normed(kernel: Any, layer: Any, x: Tensor) -> Tensor:
    return kernel(x, layer.weight, layer.eps, isinstance(layer, OffsetRMSNorm))


def _attention(layer: Any) -> Callable[[Tensor, Context], Tensor]:
    return partial(_attended, part("flash_attention").flash_attention, layer)


def _attended(kernel: Any, layer: AttentionLayer, x: Tensor, ctx: Context) -> Tensor:
    q, k, v, how = layer.looks(x, ctx)
    window = None
    if how.mask is not None and not layer.spec.cross and plain_causal(ctx, layer.spec.causal, None, x.shape[1]):
        window = layer.spec.window  # the mask says this and no more
    if how.dropout or (how.mask is not None and window is None):
        y = attend(q, k, v, how)
    else:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            q, k, v = (each.to(torch.get_autocast_dtype(kind)) for each in (q, k, v))
        y = kernel(q, k, v, causal=how.causal or window is not None, window=window, scale=how.scale)
    return layer.o(y.flatten(-2))


def _plain_attention(module: nn.Module) -> bool:
    if not isinstance(module, AttentionLayer):
        return False
    spec = module.spec
    return spec.bias is None and spec.softcap is None and not spec.sinks and spec.head_dim <= 256


def _plain_head(module: nn.Module) -> bool:
    return isinstance(module, LMHeadLayer) and type(module.out) is nn.Linear and module.spec.softcap is None


# Which modules, the name that is put in front of the class's own, and what is put there.
KERNELS: dict[str, tuple[Callable[[nn.Module], bool], str, Callable[[nn.Module], Callable[..., Any]]]] = {
    "rms_norm": (lambda module: isinstance(module, nn.RMSNorm | OffsetRMSNorm), "forward", _norm),
    "rope": (
        lambda module: isinstance(module, AttentionLayer) and module.rope is not None,
        "rotate",
        lambda _: part("rope").rotate,
    ),
    "attention": (_plain_attention, "forward", _attention),
    "cross_entropy": (_plain_head, "row_losses", lambda _: part("cross_entropy").row_losses),
}
