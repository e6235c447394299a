"""Gemma 3 (text): five layers with a window and a short rope to each full one with a long rope; QK-norm (Gemma Team 2025)."""

from __future__ import annotations

from dataclasses import replace

from hornbook.families import gemma2, llama
from hornbook.families.fields import Config, architecture, rope, windows
from hornbook.families.weights import Table
from hornbook.model import PerHead, RMSNorm, Transformer

ARCHITECTURES = ("Gemma3ForCausalLM",)


def weights(config: Config) -> Table:
    return (*gemma2.weights(config), *llama.QK_NORMS)


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    layers = range(config["num_hidden_layers"])
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    kinds = config.get("layer_types") or ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in layers]
    by_kind = config.get("rope_parameters") or {
        "full_attention": {"rope_theta": config.get("rope_theta", 1e6), **(config.get("rope_scaling") or {})},
        "sliding_attention": {"rope_theta": config.get("rope_local_base_freq", 1e4)},
    }
    attention = gemma2.attention_of(config, config.get("attn_logit_softcapping"))
    attention = replace(attention, qk_norm=PerHead(RMSNorm(config["rms_norm_eps"], offset=True)))
    attentions = [
        replace(attention, window=window, rope=rope(config, attention.head_dim, by_kind[kind]))
        for window, kind in zip(windows({**config, "layer_types": kinds}), kinds, strict=True)
    ]
    return gemma2.gemma_like(config, attentions, config.get("final_logit_softcapping"))
