"""Qwen3: Qwen2's shape with a norm on each head's queries and keys in place of the biases (Yang et al. 2025)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, architecture, head_dim, optional_windows
from hornbook.families.weights import Table
from hornbook.model import PerHead, RMSNorm, Transformer

ARCHITECTURES = ("Qwen3ForCausalLM",)


def weights(config: Config) -> Table:
    return (*llama.weights(config), *llama.QK_NORMS)


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    bias, norm = bool(config.get("attention_bias")), PerHead(RMSNorm(config["rms_norm_eps"]))
    config = {**config, "head_dim": head_dim(config, 128)}
    return llama.llama_like(config, qkv_bias=bias, out_bias=bias, qk_norm=norm, windows=optional_windows(config))
