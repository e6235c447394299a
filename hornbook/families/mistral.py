"""Mistral: Llama's shape, each query looking back over a window (Jiang et al. 2023)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, architecture, windows
from hornbook.model import Transformer

ARCHITECTURES = ("MistralForCausalLM",)
weights = llama.weights


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    return llama.llama_like(config, windows=windows(config, everywhere=True, default=4096))
