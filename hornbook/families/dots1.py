"""dots.llm1: Qwen3's attention; sigmoid routing with a correction bias, groups, shared experts (Huo et al. 2025; DeepSeek-V3)."""

from __future__ import annotations

from hornbook.families import llama, qwen2_moe, qwen3
from hornbook.families.fields import Config, act, architecture, windows
from hornbook.families.weights import Table, rule
from hornbook.model import GatedMLP, MoE, PerHead, RMSNorm, Spec, TopK, Transformer

ARCHITECTURES = ("Dots1ForCausalLM",)


def weights(config: Config) -> Table:
    correction = rule(qwen2_moe.THEIRS + "gate.e_score_correction_bias", qwen2_moe.OURS + "router.correction")
    shared = llama.gated("mlp.shared_experts", "ffn.op.shared")
    return (correction, *qwen2_moe.EXPERTS, *shared, *qwen3.weights(config))


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    kind, hidden = act(config["hidden_act"]), config["moe_intermediate_size"]
    router = TopK(
        top_k=config["num_experts_per_tok"], score="sigmoid", normalize=config.get("norm_topk_prob", False), correction=True,
        scale=config.get("routed_scaling_factor", 1.0), groups=config.get("n_group") or 1, top_groups=config.get("topk_group") or 1,
    )  # fmt: skip
    moe = MoE(
        expert=GatedMLP(hidden, kind), experts=config["n_routed_experts"], router=router,
        shared=GatedMLP(hidden * config["n_shared_experts"], kind),
    )  # fmt: skip
    bias, norm = bool(config.get("attention_bias")), PerHead(RMSNorm(config["rms_norm_eps"]))

    def ffn(layer: int) -> Spec:
        return llama.dense(config) if layer < config.get("first_k_dense_replace", 0) else moe

    return llama.llama_like(config, qkv_bias=bias, out_bias=bias, qk_norm=norm, ffn=ffn, windows=windows(config))
