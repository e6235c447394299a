"""Published families: a `config.json` -> a spec, and a reversible weight table. A new family is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from hornbook.errors import UserError, near
from hornbook.families import gpt2, llama, qwen3
from hornbook.model import TransformerModel

FAMILIES: dict[str, ModuleType] = {"gpt2": gpt2, "llama": llama, "qwen3": qwen3}
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")


def family(config: Mapping[str, Any], where: str = "config.json") -> ModuleType:
    """The family module that the config's `model_type` names."""
    name = str(config.get("model_type"))
    if name not in FAMILIES:
        raise UserError(f"model_type must be a known family: {name!r}", where=where, fix=near(name, FAMILIES))
    return FAMILIES[name]


def build(config: Mapping[str, Any], where: str = "config.json") -> TransformerModel:
    """A model of the config's shape, its weights not yet set. A missing or impossible field is a `UserError` that names it."""
    try:
        model: TransformerModel = family(config, where).spec(config).build()
    except KeyError as error:
        raise UserError(f"the model's config has no field {error.args[0]!r}", where=where, fix="add it") from error
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:  # RuntimeError: torch's, of a negative size
        if isinstance(error, UserError):
            raise
        raise UserError("the model's config has an impossible value", where=where, why=str(error), fix="correct it") from error
    model.config = dict(config)
    return model


def context_length(model: TransformerModel) -> int | None:
    """How many positions the model's config allows; None where it does not say."""
    return next((int(model.config[key]) for key in CONTEXT_KEYS if key in model.config), None)
