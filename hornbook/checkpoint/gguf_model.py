"""A model in GGUF's names <-> the published ones: config, weights and tokenizer, each by a table.

llama.cpp turns neighbouring channels by rope where published Llamas turn channel i with channel i + K/2, so its files hold the
rows of Llama's q and k in another order (`paired` and `halved`, as in its convert_hf_to_gguf.py); other families keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hornbook.checkpoint.gguf import Gguf, read_gguf
from hornbook.errors import UserError, near
from hornbook.model.rope import halved
from hornbook.text.gguf_vocabulary import gguf_tokenizer
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


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tokenizer]:
    """The published config, weights (float32) and tokenizer that a GGUF file holds."""
    file = read_gguf(path)
    config = published_config(file)
    names = ARCHITECTURES[config["model_type"]][1]
    return config, {renamed(names, name): _published(file, name, config) for name in file.stored}, gguf_tokenizer(file)


def published_config(file: Gguf) -> dict[str, Any]:
    """The metadata as a config.json. An unknown architecture or a missing or odd key is a `UserError` that names it."""
    kind = file.key("general.architecture", str)
    if kind not in ARCHITECTURES:
        raise UserError(f"the architecture {kind!r} is not known", where=file.where, fix=near(kind, ARCHITECTURES))
    fields, _, config = ARCHITECTURES[kind]
    config = {"model_type": kind, "architectures": [{"gpt2": "GPT2LMHeadModel"}.get(kind, f"{kind.title()}ForCausalLM")], **config}
    for name, ours in fields.items():
        key, number = f"{kind}.{name}", float if name.endswith(("epsilon", "freq_base")) else int
        if key in file.metadata or name not in OPTIONAL:
            config[ours] = file.key(key, number)
    layers = config[fields["block_count"]]
    if layers > len(file.stored):
        raise file.odd(f"{kind}.block_count", f"{layers} layers and {len(file.stored)} tensors")
    if "token_embd.weight" not in file.stored:
        raise UserError("there are no weights in this file", where=file.where, why="no token_embd.weight", fix="name a whole model")
    config["vocab_size"] = file.stored["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file.stored
    if kind == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.stored
    _refuse_options(file, kind, config)
    for name in ("bos", "eos"):
        if f"tokenizer.ggml.{name}_token_id" in file.metadata:
            config[f"{name}_token_id"] = file.key(f"tokenizer.ggml.{name}_token_id", int)
    return config


def _refuse_options(file: Gguf, kind: str, config: Mapping[str, Any]) -> None:
    """What would change the logits and is not read here is an error."""
    turned = file.metadata.get(f"{kind}.rope.dimension_count")
    head = config.get("head_dim") or (config.get("hidden_size", 0) // max(config.get("num_attention_heads", 1), 1))
    if turned not in (None, head) and kind != "gpt2":
        raise file.odd(f"{kind}.rope.dimension_count", f"{turned!r} of {head} channels are turned, not all")
    if file.metadata.get(f"{kind}.rope.scaling.type", "none") != "none":
        raise file.odd(f"{kind}.rope.scaling.type", "scaled rope is not read from GGUF yet")
    if file.metadata.get(f"{kind}.attention.sliding_window"):
        raise file.odd(f"{kind}.attention.sliding_window", "a sliding window is not read from GGUF yet")


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
            raise file.odd("llama.attention.head_count", f"{heads} heads do not share the {tensor.shape[0]} rows of {name!r}")
        return halved(tensor, heads)
    return tensor
