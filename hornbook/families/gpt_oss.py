"""gpt-oss: a learned sink per head, alternating windows, clamped experts with biases (OpenAI 2025). Weights in bf16, not MXFP4."""

from __future__ import annotations

from dataclasses import replace

from hornbook.families import llama
from hornbook.families.fields import Config, architecture, either, head_dim, rope, tied, windows
from hornbook.families.weights import ALTERNATE, ALTERNATE_TRANSPOSED, TRANSPOSED, Table, both, rule
from hornbook.model import Attention, Block, GatedMLP, LMHead, MoE, Residual, RMSNorm, TokenStem, TopK, Tower, Transformer

ARCHITECTURES = ("GptOssForCausalLM",)


def weights(config: Config) -> Table:
    theirs, ours = llama.THEIRS + "mlp.", llama.OURS + "ffn.op."
    return (
        *llama.OUTSIDE,
        *llama.PRE_NORMS,
        *llama.ATTENTION,
        rule(llama.THEIRS + "self_attn.sinks", llama.OURS + "attn.op.sinks"),
        *both(theirs + "router", ours + "router.out"),
        rule(theirs + "experts.gate_up_proj", ours + "gate", ours + "up", form=ALTERNATE_TRANSPOSED),
        rule(theirs + "experts.gate_up_proj_bias", ours + "biases.gate", ours + "biases.up", form=ALTERNATE),
        rule(theirs + "experts.down_proj", ours + "down", form=TRANSPOSED),
        rule(theirs + "experts.down_proj_bias", ours + "biases.down"),
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    norm, width, layers = RMSNorm(config["rms_norm_eps"]), head_dim(config, 64), range(config["num_hidden_layers"])
    bias = bool(config.get("attention_bias", True))
    scaled = {**config, "rope_parameters": either(config, "rope_parameters", "rope_scaling")}
    attention = Attention(
        heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"], head_dim=width, rope=rope(scaled, width),
        sinks=True, qkv_bias=bias, out_bias=bias, dropout=config.get("attention_dropout") or 0.0,
    )  # fmt: skip
    expert = GatedMLP(config["intermediate_size"], "quick_gelu", bias=True, limit=config.get("swiglu_limit", 7.0))
    router = TopK(top_k=config["num_experts_per_tok"], bias=True, balance=config.get("router_aux_loss_coef", 0.001))
    moe = Residual(MoE(expert=expert, experts=config["num_local_experts"], router=router), pre=norm)
    kinds = config.get("layer_types") or ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
    blocks = tuple(
        Block(attn=Residual(replace(attention, window=window), pre=norm), ffn=moe)
        for window in windows({**config, "layer_types": kinds})
    )
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"]),
        tower=Tower(config["hidden_size"], blocks, norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=tied(config),
    )
