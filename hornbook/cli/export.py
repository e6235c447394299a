"""`hornbook export MODEL --out FOLDER`: a model as a folder that transformers opens without remote code, or as GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hornbook.cli.console import opened, parse
from hornbook.errors import UserError


@dataclass(frozen=True)
class Export:
    """Write a model and its tokenizer as a published folder."""

    model: Annotated[str, tyro.conf.Positional]
    """A model folder, a run folder, a .gguf or llama2.c file."""
    out: Path
    to: Literal["hf", "gguf"] = "hf"
    """gguf writes model.gguf into the folder, tokenizer and all."""
    dtype: Literal["f32", "f16", "bf16", "q8_0"] | None = None
    """Precision of the weights; left out, they keep theirs."""


def main(arguments: Sequence[str]) -> None:
    settings = parse(Export, "export", arguments)
    import torch

    from hornbook.checkpoint.pretrained import model_folder, save, save_gguf

    precisions = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    if settings.out.exists() and not (settings.out.is_dir() and not any(settings.out.iterdir())):
        raise UserError("something stands at the output folder's place", where=str(settings.out), fix="choose another --out")
    if settings.to == "hf" and settings.dtype == "q8_0":
        raise UserError("q8_0 is a precision of GGUF", where="--dtype", fix="use --to gguf, or another precision")
    model, tokenizer = opened(settings.model)
    if settings.to == "gguf":
        own = next((name for name, dtype in precisions.items() if dtype == next(model.parameters()).dtype), "f32")
        save_gguf(model, tokenizer, settings.out, settings.dtype or own)
    else:
        card = model_folder(Path(settings.model)) / "README.md" if Path(settings.model).is_dir() else Path()
        if settings.dtype:
            model.to(precisions[settings.dtype])
        save(model, tokenizer, settings.out, card=card.read_text(encoding="utf-8") if card.is_file() else "")
    print(settings.out)
