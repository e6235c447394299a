"""Mixtral: Mistral's shape with eight experts, of which each token uses two (Jiang et al. 2024)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, act, architecture, windows
from hornbook.families.weights import Table, rule
from hornbook.model import GatedMLP, MoE, TopK, Transformer

ARCHITECTURES = ("MixtralForCausalLM",)


def weights(config: Config) -> Table:
    theirs, ours = llama.THEIRS + "block_sparse_moe.", llama.OURS + "ffn.op."
    return (
        *llama.OUTSIDE,
        *llama.PRE_NORMS,
        *llama.ATTENTION,
        rule(theirs + "gate.weight", ours + "router.out.weight"),
        *(rule(theirs + f"experts.{{e}}.{x}.weight", ours + y) for x, y in (("w1", "gate"), ("w3", "up"), ("w2", "down"))),
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    router = TopK(top_k=config["num_experts_per_tok"], balance=config.get("router_aux_loss_coef", 0.001))
    expert = GatedMLP(config["intermediate_size"], act(config["hidden_act"]))
    moe = MoE(expert=expert, experts=config["num_local_experts"], router=router)
    config = {"rope_theta": 1e6, **config}
    return llama.llama_like(config, ffn=lambda layer: moe, windows=windows(config, everywhere=True))
