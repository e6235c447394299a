"""A published config, weights and tokenizer as one GGUF file: the tables of `gguf_model`, read the other way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hornbook.checkpoint.gguf import gguf_package
from hornbook.checkpoint.gguf_model import ARCHITECTURES, NORMAL, PRE, USER_DEFINED, renamed
from hornbook.errors import UserError, near
from hornbook.model.rope import paired
from hornbook.text.tokenizer import Tokenizer

CONTROL = 3
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
        stored = types["F32" if rows.ndim == 1 else "F16" if dtype == "q8_0" and rows.shape[-1] % 32 else dtype.upper()]
        writer.add_tensor(renamed(theirs, name), quants.quantize(rows.numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    document, settings = tokenizer.document, tokenizer.settings()
    if not document:
        raise UserError("a SentencePiece vocabulary cannot be written yet", fix="keep the file that it was read from")
    way = (list(tokenizer.patterns), tokenizer.normalizer, bool(document["model"].get("ignore_merges")))
    pre = next((name for name, known in PRE.items() if known == way), None)
    if pre is None:
        fix = "export with --to hf, or train with split='cl100k', 'qwen2' or 'gpt2'"
        raise UserError("llama.cpp has no name for how this tokenizer cuts text", where="tokenizer.json", why=str(way), fix=fix)
    rows = {i: (text, NORMAL) for text, i in document["model"]["vocab"].items()}
    for entry in document["added_tokens"]:
        rows[entry["id"]] = (entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    merges = document["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([rows[i][0] for i in range(len(rows))])
    writer.add_token_types([rows[i][1] for i in range(len(rows))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(bool(tokenizer.begin_ids))
    for name, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        if tokenizer.configured(name, settings) in tokenizer.specials:
            add(tokenizer.specials[tokenizer.configured(name, settings)])
    if isinstance(settings.get("chat_template"), str):
        writer.add_chat_template(settings["chat_template"])
