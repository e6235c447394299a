"""Qwen2: Llama's shape with biases on queries, keys and values, and a window in some layers (Yang et al. 2024)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, architecture, windows
from hornbook.model import Transformer

ARCHITECTURES = ("Qwen2ForCausalLM",)
weights = llama.weights


def layer_windows(config: Config) -> list[int | None]:
    """None unless `use_sliding_window`; then by layer_types, or from layer `max_window_layers` on."""
    if not config.get("use_sliding_window"):
        return [None] * config["num_hidden_layers"]
    if config.get("layer_types"):
        return windows(config)
    first = config.get("max_window_layers", 28)
    return [config["sliding_window"] if layer >= first else None for layer in range(config["num_hidden_layers"])]


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    return llama.llama_like(config, qkv_bias=True, windows=layer_windows(config))
