"""Qwen2: Llama's shape with biases on queries, keys and values, and a window in some layers (Yang et al. 2024)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, architecture, optional_windows
from hornbook.model import Transformer

ARCHITECTURES = ("Qwen2ForCausalLM",)
weights = llama.weights


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    return llama.llama_like(config, qkv_bias=True, windows=optional_windows(config))
