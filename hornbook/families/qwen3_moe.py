"""Qwen3-MoE: Qwen3's attention, many small experts and none shared (Yang et al. 2025)."""

from __future__ import annotations

from hornbook.families import llama, qwen2_moe, qwen3
from hornbook.families.fields import Config, act, architecture, either
from hornbook.families.weights import Table
from hornbook.model import GatedMLP, MoE, PerHead, RMSNorm, Spec, Transformer

ARCHITECTURES = ("Qwen3MoeForCausalLM",)


def weights(config: Config) -> Table:
    return (*qwen2_moe.EXPERTS, *qwen3.weights(config))


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    expert = GatedMLP(config["moe_intermediate_size"], act(config["hidden_act"]))
    experts = either(config, "num_experts", "num_local_experts")
    moe = MoE(expert=expert, experts=experts, router=qwen2_moe.router(config, False))
    bias, norm = bool(config.get("attention_bias")), PerHead(RMSNorm(config["rms_norm_eps"]))
    window = config.get("sliding_window") if config.get("use_sliding_window") else None

    def ffn(layer: int) -> Spec:
        return llama.dense(config) if qwen2_moe.is_dense(config, layer) else moe

    return llama.llama_like(
        config, qkv_bias=bias, out_bias=bias, qk_norm=norm, ffn=ffn, windows=[window] * config["num_hidden_layers"]
    )
