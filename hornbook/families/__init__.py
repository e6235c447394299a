"""Published families: a `config.json` -> a spec, and a reversible weight table. A new family is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from hornbook.errors import UserError, near
from hornbook.families import (
    bart,
    bert,
    bloom,
    distilbert,
    dots1,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    roberta,
    speech,
    t5,
    vit,
)  # fmt: skip
from hornbook.model import LMHead, Seq2Seq, Seq2SeqModel, TokenStem, Transformer, TransformerModel

Model = TransformerModel | Seq2SeqModel
FAMILIES: dict[str, ModuleType] = {
    "bart": bart, "bert": bert, "bloom": bloom, "distilbert": distilbert, "dots1": dots1, "gemma2": gemma2, "gemma3_text": gemma3,
    "gpt2": gpt2, "gpt_neox": gpt_neox, "gpt_oss": gpt_oss, "llama": llama, "mistral": mistral, "mixtral": mixtral, "olmo2": olmo2,
    "phi3": phi3, "qwen2": qwen2, "qwen2_moe": qwen2_moe, "qwen3": qwen3, "qwen3_moe": qwen3_moe, "roberta": roberta,
    "speech_ctc": speech, "t5": t5, "vit": vit,
}  # fmt: skip
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
MOST_LAYERS = 10_000  # a spec is made for each
CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
HEAD_KEYS = {"heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"), "kv_heads": ("num_key_value_heads",)}


def family(config: Mapping[str, Any], where: str = "config.json") -> ModuleType:
    """The family module that the config's `model_type` names."""
    name = str(config.get("model_type"))
    if name not in FAMILIES:
        raise UserError(f"model_type must be a known family: {name!r}", where=where, fix=near(name, FAMILIES))
    return FAMILIES[name]


def build_any(config: Mapping[str, Any], where: str = "config.json") -> Model:
    """A model of the config's shape, its weights not yet set. A missing or impossible field is a `UserError` that names it."""
    deepest = max((value for key in LAYER_KEYS if isinstance(value := config.get(key), int)), default=0)
    if deepest > MOST_LAYERS:
        raise UserError(f"a model of {deepest} layers", where=where, why=f"no more than {MOST_LAYERS} are built", fix="correct it")
    try:
        spec: Transformer | Seq2Seq = family(config, where).spec(config)
        model = spec.build()
    except KeyError as error:
        raise UserError(f"the model's config has no field {error.args[0]!r}", where=where, fix="add it") from error
    except (
        ValueError,
        TypeError,
        IndexError,
        ZeroDivisionError,
        RuntimeError,
    ) as error:  # RuntimeError: torch's, of a negative size
        if isinstance(error, UserError):
            raise
        raise UserError("the model's config has an impossible value", where=where, why=str(error), fix="correct it") from error
    model.config = dict(config)
    return model


def build(config: Mapping[str, Any], where: str = "config.json") -> TransformerModel:
    """`build_any` for a caller that needs one tower: an encoder-decoder is refused."""
    model = build_any(config, where)
    if not isinstance(model, TransformerModel):
        why = f"{config.get('model_type')} is an encoder and a decoder"
        raise UserError("this needs a model of one tower", where=where, why=why, fix="use a decoder, such as llama")
    return model


def decoder(model: Model, where: str = "model") -> TransformerModel:
    """The model itself where it goes on with a text; an encoder and an encoder-decoder are refused."""
    if not isinstance(model, TransformerModel):
        why = f"{model.config.get('model_type')} is an encoder and a decoder"
    elif not isinstance(model.spec.head, LMHead) or not isinstance(model.spec.stem, TokenStem):
        why = f"{model.config.get('model_type')} is an encoder: it has no head that says the next token of a text"
    else:
        return model
    raise UserError("this needs a model that goes on with a text", where=where, why=why, fix="use a decoder, such as llama")


def spelled(config: Mapping[str, Any], field: str) -> str:
    """A field of ours, with the config's own name for it: heads (n_head)."""
    return next((f"{field} ({key})" for key in HEAD_KEYS.get(field, ()) if key in config), field)


def context_length(model: Model) -> int | None:
    """How many positions the model's config allows; None where it does not say."""
    return next((int(model.config[key]) for key in CONTEXT_KEYS if key in model.config), None)
