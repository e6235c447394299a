"""A count of parameters -> bytes: to hold them in each format, and to train them.

What training keeps per parameter is that of ZeRO (Rajbhandari et al. 2020, section 3.1). Activations are not in it: they grow with
the batch and its context, not with the parameters alone.
"""

from __future__ import annotations

import math
from typing import Any

FORMATS = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}  # bytes per weight, scales not counted
MIXED, PLAIN = "mixed_precision_adamw", "fp32_adamw"
TRAINING = {
    MIXED: {"weights": 2, "gradients": 2, "master_weights": 4, "first_moment": 4, "second_moment": 4},
    PLAIN: {"weights": 4, "gradients": 4, "first_moment": 4, "second_moment": 4},
}


def size(values: int, each: float) -> dict[str, Any]:
    """`values` numbers of `each` bytes, in bytes, GB (10^9) and GiB (2^30)."""
    total = math.ceil(values * each)
    return {"bytes_each": each, "bytes": total, "GB": total / 1e9, "GiB": total / 2**30}


def weights(parameters: int) -> dict[str, dict[str, Any]]:
    """The weights alone, by format."""
    return {name: size(parameters, each) for name, each in FORMATS.items()}


def training(parameters: int) -> dict[str, dict[str, dict[str, Any]]]:
    """What training holds beside the activations, item by item and in total."""
    return {
        recipe: {**{item: size(parameters, each) for item, each in items.items()}, "total": size(parameters, sum(items.values()))}
        for recipe, items in TRAINING.items()
    }
