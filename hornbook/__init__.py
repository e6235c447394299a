"""hornbook: everything it takes to teach a machine to write.

The names below are the public surface. They are loaded when first used: importing hornbook imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hornbook.batch import Batch, Loss
    from hornbook.checkpoint.pretrained import load, save
    from hornbook.generation.decode import Completion, generate
    from hornbook.generation.sampling import Sampling
    from hornbook.model.spec import Context
    from hornbook.text.tokenizer import Tokenizer
    from hornbook.train.loop import TrainState, fit

_HOMES = {
    "Batch": "hornbook.batch",
    "Completion": "hornbook.generation.decode",
    "Context": "hornbook.model.spec",
    "Loss": "hornbook.batch",
    "Sampling": "hornbook.generation.sampling",
    "Tokenizer": "hornbook.text.tokenizer",
    "TrainState": "hornbook.train.loop",
    "fit": "hornbook.train.loop",
    "generate": "hornbook.generation.decode",
    "load": "hornbook.checkpoint.pretrained",
    "save": "hornbook.checkpoint.pretrained",
}

__all__ = [
    "Batch", "Completion", "Context", "Loss", "Sampling", "Tokenizer", "TrainState", "__version__",
    "fit", "generate", "load", "save",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hornbook' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
