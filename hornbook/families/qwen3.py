"""Qwen3: Llama's shape with a norm on each head's queries and keys (Yang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hornbook.errors import UserError
from hornbook.families import llama
from hornbook.families.weights import rule
from hornbook.model import Transformer

ARCHITECTURE = "Qwen3ForCausalLM"
WEIGHTS = (
    *llama.WEIGHTS,
    *(rule(llama.THEIRS + f"self_attn.{x}_norm.weight", llama.OURS + f"attn.op.{x}_norm.weight") for x in "qk"),
)


def spec(config: Mapping[str, Any]) -> Transformer:
    if config.get("use_sliding_window"):
        raise UserError("a sliding window is not known yet", where="config.json: use_sliding_window", fix="set it to false")
    bias = bool(config.get("attention_bias"))
    return llama.llama_like(config, qkv_bias=bias, out_bias=bias, qk_norm=True)
