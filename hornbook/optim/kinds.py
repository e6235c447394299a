"""The optimizers by name, and which settings each has. Nothing here imports torch, so that a recipe is checked at once."""

from __future__ import annotations

from hornbook.errors import near

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
MOMENTUM = {"sgd": 0.9, "muon": 0.95}  # the usual of those that have one


def check_optimizer(kind: str, betas: tuple[float, float], momentum: float | None, nesterov: bool) -> None:
    """Refuse a name that is not known, and settings that the named optimizer does not have."""
    if kind not in OPTIMIZERS:
        raise ValueError(f"optimizer must be a known one: {kind!r} ({near(kind, OPTIMIZERS)})")
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        if not 0 <= beta < 1:
            raise ValueError(f"{name} must be at least 0 and below 1: {beta}")
    if momentum is not None and (kind not in MOMENTUM or not 0 <= momentum < 1):
        rule = "must be at least 0 and below 1" if kind in MOMENTUM else f"is for {' and '.join(MOMENTUM)}, not for {kind}"
        raise ValueError(f"momentum {rule}: {momentum}")
    if nesterov and (kind != "sgd" or momentum == 0):
        raise ValueError("nesterov is for sgd with momentum; muon always has it")
