"""A model in GGUF's names <-> the published ones: config, weights and tokenizer, each by a table.

llama.cpp turns neighbouring channels by rope where published Llamas turn channel i with channel i + K/2, so its files hold the
rows of Llama's q and k in another order (`paired` and `halved`, as in its convert_hf_to_gguf.py); other families keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hornbook.checkpoint.gguf import Gguf, read_gguf
from hornbook.errors import UserError, near
from hornbook.model.rope import halved
from hornbook.text.published import byte_level
from hornbook.text.scored import ScoredTokenizer
from hornbook.text.split import PATTERNS
from hornbook.text.tokenizer import Tokenizer

LLAMA_FIELDS = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}  # fmt: skip
GPT2_FIELDS = {
    "embedding_length": "n_embd", "block_count": "n_layer", "feed_forward_length": "n_inner", "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon", "context_length": "n_positions",
}  # fmt: skip
OPTIONAL = {"attention.head_count_kv", "attention.key_length", "rope.freq_base", "feed_forward_length"}
LLAMA_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm", "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm", "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}  # fmt: skip
GPT2_NAMES = {
    "token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f", "output": "lm_head",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1", "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn", "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc", "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, Any]]] = {
    "llama": (LLAMA_FIELDS, LLAMA_NAMES, {"hidden_act": "silu", "rope_theta": 10_000.0}),
    "qwen2": (LLAMA_FIELDS, LLAMA_NAMES, {"hidden_act": "silu", "rope_theta": 10_000.0}),
    "qwen3": (LLAMA_FIELDS, LLAMA_NAMES, {"hidden_act": "silu", "rope_theta": 10_000.0}),
    "gpt2": (GPT2_FIELDS, GPT2_NAMES, {"activation_function": "gelu_new"}),
}
# llama.cpp's names of pre-tokenizers -> the patterns of the published tokenizers, their normalizer, and whether whole words win.
PRE: dict[str, tuple[list[str], str | None, bool]] = {
    "gpt-2": ([PATTERNS["gpt2"]], None, False),
    "default": ([PATTERNS["gpt2"]], None, False),
    "smollm": ([r"\p{N}", PATTERNS["gpt2"]], None, False),
    "smaug-bpe": ([PATTERNS["cl100k"]], None, False),
    "stablelm2": ([PATTERNS["qwen2"]], None, False),
    "llama-bpe": ([PATTERNS["cl100k"]], None, True),
    "qwen2": ([PATTERNS["qwen2"]], "NFC", False),
}
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # token types; all others stand for no text


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    """The published config, weights (float32) and tokenizer that a GGUF file holds."""
    file = read_gguf(path)
    config = published_config(file)
    names = ARCHITECTURES[config["model_type"]][1]
    return config, {renamed(names, name): _published(file, name, config) for name in file.stored}, gguf_tokenizer(file)


def published_config(file: Gguf) -> dict[str, Any]:
    """The metadata as a config.json. An unknown architecture or a missing or odd key is a `UserError` that names it."""
    kind = _key(file, "general.architecture", str)
    if kind not in ARCHITECTURES:
        raise UserError(f"the architecture {kind!r} is not known", where=file.where, fix=near(kind, ARCHITECTURES))
    fields, _, config = ARCHITECTURES[kind]
    config = {"model_type": kind, "architectures": [{"gpt2": "GPT2LMHeadModel"}.get(kind, f"{kind.title()}ForCausalLM")], **config}
    for name, ours in fields.items():
        key, number = f"{kind}.{name}", float if name.endswith(("epsilon", "freq_base")) else int
        if key in file.metadata or name not in OPTIONAL:
            config[ours] = _key(file, key, number)
    layers = config[fields["block_count"]]
    if layers > len(file.stored):
        raise _odd(file, f"{kind}.block_count", f"{layers} layers and {len(file.stored)} tensors")
    if "token_embd.weight" not in file.stored:
        raise UserError("there are no weights in this file", where=file.where, why="no token_embd.weight", fix="name a whole model")
    config["vocab_size"] = file.stored["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.stored
    if kind == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.stored
    _refuse_options(file, kind, config)
    for name in ("bos", "eos"):
        if f"tokenizer.ggml.{name}_token_id" in file.metadata:
            config[f"{name}_token_id"] = _key(file, f"tokenizer.ggml.{name}_token_id", int)
    return config


def _refuse_options(file: Gguf, kind: str, config: Mapping[str, Any]) -> None:
    """What would change the logits and is not read here is an error."""
    turned = file.metadata.get(f"{kind}.rope.dimension_count")
    head = config.get("head_dim") or (config.get("hidden_size", 0) // max(config.get("num_attention_heads", 1), 1))
    if turned not in (None, head) and kind != "gpt2":
        raise _odd(file, f"{kind}.rope.dimension_count", f"{turned!r} of {head} channels are turned, not all")
    if file.metadata.get(f"{kind}.rope.scaling.type", "none") != "none":
        raise _odd(file, f"{kind}.rope.scaling.type", "scaled rope is not read from GGUF yet")
    if file.metadata.get(f"{kind}.attention.sliding_window"):
        raise _odd(file, f"{kind}.attention.sliding_window", "a sliding window is not read from GGUF yet")


def _key(file: Gguf, key: str, kind: type[Any]) -> Any:
    """A metadata value of the type; a float in the few digits that float32 needs, so that 1e-5 stays 1e-5."""
    if key not in file.metadata:
        raise _odd(file, key, "it is not there")
    value = file.metadata[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _odd(file, key, f"it is no {kind.__name__}")
    return float(str(np.float32(value))) if kind is float else value


def _odd(file: Gguf, key: str, why: str) -> UserError:
    return UserError(f"{key!r} cannot be used", where=file.where, why=why, fix="choose another file, or convert the model again")


def renamed(names: Mapping[str, str], name: str) -> str:
    """A tensor's name in the other spelling; one that the table lacks stays, and the family's own table then refuses it."""
    layer = re.search(r"(?<=[.])\d+(?=[.])", name)
    stem, _, part = (name if layer is None else f"{name[: layer.start()]}{{i}}{name[layer.end() :]}").rpartition(".")
    return f"{names[stem]}.{part}".replace("{i}", layer[0] if layer else "") if stem in names else name


def _published(file: Gguf, name: str, config: Mapping[str, Any]) -> Tensor:
    tensor, kind = file.tensor(name), config["model_type"]
    if kind == "gpt2" and tensor.ndim == 2 and name.startswith("blk."):
        return tensor.mT  # published as (in, out)
    if kind == "llama" and re.search(r"\.attn_[qk]\.", name):
        heads = config["num_attention_heads"]
        heads = heads if ".attn_q." in name else config.get("num_key_value_heads") or heads
        if heads < 1 or tensor.shape[0] % (2 * heads):
            raise _odd(file, "llama.attention.head_count", f"{heads} heads do not share the {tensor.shape[0]} rows of {name!r}")
        return halved(tensor, heads)
    return tensor


def gguf_tokenizer(file: Gguf) -> Tokenizer:
    """The tokenizer of the metadata: byte-level BPE ("gpt2") or SentencePiece's ("llama")."""
    kind, pre = _key(file, "tokenizer.ggml.model", str), file.metadata.get("tokenizer.ggml.pre", "default")
    if kind not in ("gpt2", "llama"):
        raise _odd(file, "tokenizer.ggml.model", f"{kind!r} is not known; known: gpt2, llama")
    if not isinstance(pre, str) or pre not in PRE:
        raise _odd(file, "tokenizer.ggml.pre", f"the pre-tokenizer {pre!r} is not known; {near(str(pre), PRE)}")
    tokens = _strings(file, "tokenizer.ggml.tokens")
    types = np.asarray(file.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))).tolist()
    if not isinstance(types, list) or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise _odd(file, "tokenizer.ggml.token_type", f"there are {len(tokens)} tokens, each once and each with a type")
    specials = {name: i for i, (name, kind) in enumerate(zip(tokens, types, strict=True)) if kind not in (NORMAL, BYTE)}
    ordinary = {name for name, i in specials.items() if types[i] == USER_DEFINED}
    if any(not name.replace("▁", " ").strip() for name in ordinary):
        raise _odd(file, "tokenizer.ggml.token_type", "it makes spaces tokens outside of the merges")
    settings = _settings(file, tokens, pre == "llama-bpe" or kind == "llama")
    if kind == "llama":
        scores, lead = file.metadata.get("tokenizer.ggml.scores"), file.metadata.get("tokenizer.ggml.add_space_prefix", True)
        if not isinstance(scores, np.ndarray):
            raise _odd(file, "tokenizer.ggml.scores", "it is no list of numbers")
        pieces = [token.replace("▁", " ") for token in tokens]
        return ScoredTokenizer(pieces, scores.tolist(), specials, settings, file.where, " " if lead else "")
    patterns, normalizer, whole = PRE[pre]
    document = byte_level(
        {name: i for i, name in enumerate(tokens)}, _strings(file, "tokenizer.ggml.merges"), patterns, specials, ordinary,
        normalizer, whole,
    )  # fmt: skip
    return Tokenizer(document, settings, where=file.where)


def _settings(file: Gguf, tokens: list[str], begins: bool) -> dict[str, Any]:
    """The tokenizer_config.json: begin and end tokens, and the chat template. `begins`: where the file does not say."""
    settings: dict[str, Any] = {"add_bos_token": bool(file.metadata.get("tokenizer.ggml.add_bos_token", begins))}
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            i = _key(file, key, int)
            if not 0 <= i < len(tokens):
                raise _odd(file, key, f"{i} is no id of the {len(tokens)} tokens")
            settings[f"{name}_token"] = tokens[i]
    if isinstance(file.metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = file.metadata["tokenizer.chat_template"]
    return settings


def _strings(file: Gguf, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list):
        raise _odd(file, key, "it is no list of strings")
    return value
