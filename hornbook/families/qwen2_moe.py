"""Qwen2-MoE: Qwen2's attention; experts whose weights are not scaled to one, and a shared one behind a gate (Yang et al. 2024)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, act, architecture, optional_windows
from hornbook.families.weights import Table, rule
from hornbook.model import GatedMLP, MoE, Spec, TopK, Transformer

ARCHITECTURES = ("Qwen2MoeForCausalLM",)
THEIRS, OURS = llama.THEIRS + "mlp.", llama.OURS + "ffn.op."
EXPERTS = (
    rule(THEIRS + "gate.weight", OURS + "router.out.weight"),
    *(rule(THEIRS + f"experts.{{e}}.{x}_proj.weight", OURS + x) for x in ("gate", "up", "down")),
)


def weights(config: Config) -> Table:
    shared = llama.gated("mlp.shared_expert", "ffn.op.shared")
    gate = rule(THEIRS + "shared_expert_gate.weight", OURS + "shared_gate.weight")
    return (*EXPERTS, *shared, gate, *llama.weights(config))


def is_dense(config: Config, layer: int) -> bool:
    return layer in (config.get("mlp_only_layers") or ()) or bool((layer + 1) % (config.get("decoder_sparse_step") or 1))


def router(config: Config, default: bool) -> TopK:
    return TopK(
        top_k=config["num_experts_per_tok"], normalize=config.get("norm_topk_prob", default),
        balance=config.get("router_aux_loss_coef", 0.001),
    )  # fmt: skip


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    kind = act(config["hidden_act"])
    moe = MoE(
        expert=GatedMLP(config["moe_intermediate_size"], kind), experts=config["num_experts"], router=router(config, False),
        shared=GatedMLP(config["shared_expert_intermediate_size"], kind), shared_gate=True,
    )  # fmt: skip

    def ffn(layer: int) -> Spec:
        return llama.dense(config) if is_dense(config, layer) else moe

    return llama.llama_like(config, qkv_bias=config.get("qkv_bias", True), ffn=ffn, windows=optional_windows(config))
