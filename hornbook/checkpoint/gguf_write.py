"""A published config, weights and tokenizer as one GGUF file: the tables of `gguf_model`, read the other way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hornbook.checkpoint.gguf import gguf_package
from hornbook.checkpoint.gguf_model import ARCHITECTURES, renamed
from hornbook.errors import UserError, near
from hornbook.model.rope import paired
from hornbook.text.gguf_vocabulary import gguf_metadata
from hornbook.text.tokenizer import Tokenizer

DTYPES = ("f32", "f16", "bf16", "q8_0")


def write_gguf(config: Mapping[str, Any], published: Mapping[str, Tensor], tokenizer: Tokenizer, path: Path, dtype: str) -> None:
    """Write `path`, matrices in `dtype` (rows that no block of Q8_0 fits in F16), vectors in float32.

    What the format or llama.cpp has no name for is a `UserError`: a family, a kind of rope, a way to split text.
    """
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise UserError(f"{kind} models cannot be written as GGUF", where="model_type", fix=near(kind, ARCHITECTURES))
    quants = gguf_package("quants")
    types, writer = quants.GGMLQuantizationType, gguf_package("gguf_writer").GGUFWriter(path, kind)
    _add_config(writer, config, kind)
    _add_tokenizer(writer, tokenizer)
    theirs = {name: stem for stem, name in ARCHITECTURES[kind][1].items()}
    for name, tensor in published.items():
        rows = tensor.float()
        if kind == "gpt2" and tensor.ndim == 2 and name.startswith("transformer.h."):
            rows = rows.mT.contiguous()
        if kind == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads"]
            rows = paired(rows, heads if ".q_proj." in name else config.get("num_key_value_heads") or heads)
        place = renamed(theirs, name)
        if place in ("token_embd.weight", "output.weight"):
            rows = rows[: tokenizer.vocab_size]  # llama.cpp takes one row per token, and none for no token
        stored = types["F32" if rows.ndim == 1 else "F16" if dtype == "q8_0" and rows.shape[-1] % 32 else dtype.upper()]
        writer.add_tensor(place, quants.quantize(rows.numpy(), stored), raw_dtype=stored)
    _finish(writer)


def _add_config(writer: Any, config: Mapping[str, Any], kind: str) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError("scaled rope cannot be written as GGUF yet", where="config.json: rope_scaling", fix="export with --to hf")
    fields, _, defaults = ARCHITECTURES[kind]
    known = {**defaults, **config, **({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})}
    if kind == "gpt2":
        known["n_inner"] = known.get("n_inner") or 4 * known["n_embd"]
    else:
        known["head_dim"] = known.get("head_dim") or known["hidden_size"] // known["num_attention_heads"]
        writer.add_uint32(f"{kind}.rope.dimension_count", known["head_dim"])
    for name, ours in fields.items():
        if known.get(ours) is not None:
            add = writer.add_float32 if name.endswith(("epsilon", "freq_base")) else writer.add_uint32
            add(f"{kind}.{name}", known[ours])


def write_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """Write a GGUF file that holds a tokenizer and no weights."""
    writer = gguf_package("gguf_writer").GGUFWriter(path, "llama")
    _add_tokenizer(writer, tokenizer)
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    for key, value in gguf_metadata(tokenizer).items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}.get(type(value), writer.add_array)
        add(key, value)
