"""Which numbers a step computes with: the format of its products, and the loss's scale where that format ends early.

Weights, moments and sums stay in float32; torch's autocast takes the products in the shorter format. bf16 reaches as far as
float32. fp16 does not: small gradients vanish, so the loss is multiplied by a scale and the gradients divided by it (Micikevicius
et al. 2018, section 3.2). A step whose gradients overflow is left out and halves the scale; many without an overflow double it.
fp8 is bf16 but for the products that `adapt/fp8.py` takes over.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hornbook.errors import UserError, near

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}  # fp8: of all the rest
FIRST_SCALE, CLEAN_STEPS = 2.0**16, 2000


class Precision:
    """One run's format on one kind of device, with the scale of its losses. All but fp16 have none: it is 1."""

    def __init__(self, name: str = "fp32", device: str = "cpu", scale: float = FIRST_SCALE):
        if name not in FORMATS:
            raise ValueError(f"precision must be a known one: {name!r} ({near(name, FORMATS)})")
        self.name, self._device = name, device
        self.scale, self._clean = scale if name == "fp16" else 1.0, 0

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.name == "fp32" else torch.autocast(self._device, FORMATS[self.name])

    def overflowed(self, finite: bool) -> bool:
        """Tell how a step's gradients ended; true where the scale was too large for them and the next one is smaller."""
        if self.name != "fp16":
            return False
        if finite:
            self._clean += 1
            if self._clean == CLEAN_STEPS:
                self.scale, self._clean = self.scale * 2, 0
            return False
        halved, self.scale, self._clean = self.scale > 1, max(1.0, self.scale / 2), 0
        return halved

    def state(self) -> dict[str, Any]:
        return {"name": self.name, "scale": self.scale, "clean": self._clean}

    def load_state(self, state: dict[str, Any]) -> None:
        self.scale, self._clean = state["scale"], state["clean"]


def choose_precision(name: str, device: torch.device) -> str:
    """`auto`: bf16 on a GPU that has it, fp16 on one that has not, else fp32. A format that the device lacks is a `UserError`."""
    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        return "fp32" if device.type != "cuda" else "bf16" if bf16 else "fp16"
    if name not in FORMATS:
        raise UserError(
            f"precision must be auto, {', '.join(FORMATS)}: {name!r}", where="precision", fix=near(name, ["auto", *FORMATS])
        )
    fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    for short, there, fix in (("bf16", bf16, "use fp16 or fp32"), ("fp8", fp8, "use auto")):
        if name == short and not there:
            raise UserError(f"precision {name} is not there", where="precision", why=f"{device} computes without it", fix=fix)
    return name


def said(name: str, device: torch.device) -> str:
    """The chosen format and, where `auto` left it alone on a processor that multiplies bf16 in hardware, that name."""
    idle = name == "auto" and device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # those with AMX have it, too
    hint = ' (precision = "bf16" may be faster: this processor multiplies bf16 in hardware)' if idle else ""
    return choose_precision(name, device) + hint


def allow_tf32(wanted: bool, device: torch.device) -> None:
    """Let this process's float32 products on a GPU keep 10 bits of fraction, or not. A device without them is a `UserError`."""
    if wanted and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError("tf32 is not there", where="tf32", why=f"{device} computes without it", fix="set tf32 to false")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted
