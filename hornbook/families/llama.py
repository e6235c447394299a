"""Llama: pre-norm RMSNorm, rope, grouped-query attention, gated feed-forward (Touvron et al. 2023; Grattafiori et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hornbook.errors import UserError
from hornbook.families.weights import rule
from hornbook.model import Attention, Block, GatedMLP, LMHead, PerHead, Residual, RMSNorm, Rope, TokenStem, Tower, Transformer

THEIRS, OURS = "model.layers.{i}.", "tower.blocks.{i}."
ARCHITECTURE = "LlamaForCausalLM"
WEIGHTS = (
    rule("model.embed_tokens.weight", "stem.tokens.weight"),
    rule("model.norm.weight", "tower.norm.weight"),
    rule("lm_head.weight", "head.out.weight"),
    rule(THEIRS + "input_layernorm.weight", OURS + "attn.pre.weight"),
    rule(THEIRS + "post_attention_layernorm.weight", OURS + "ffn.pre.weight"),
    *(rule(THEIRS + f"self_attn.{x}_proj.{p}", OURS + f"attn.op.{x}.{p}") for x in "qkvo" for p in ("weight", "bias")),
    *(rule(THEIRS + f"mlp.{x}_proj.{p}", OURS + f"ffn.op.{x}.{p}") for x in ("gate", "up", "down") for p in ("weight", "bias")),
    rule(THEIRS + "self_attn.rotary_emb.inv_freq"),
)


def llama_like(config: Mapping[str, Any], *, qkv_bias: bool = False, out_bias: bool = False, qk_norm: bool = False) -> Transformer:
    """The shape that Llama and its children share; what differs comes as an option."""
    norm = RMSNorm(config["rms_norm_eps"])
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    attention = Attention(
        heads=heads, kv_heads=config.get("num_key_value_heads") or heads, head_dim=head_dim, rope=rope(config, head_dim),
        qk_norm=PerHead(norm) if qk_norm else None, qkv_bias=qkv_bias, out_bias=out_bias,
    )  # fmt: skip
    ffn = GatedMLP(config["intermediate_size"], config["hidden_act"], bool(config.get("mlp_bias")))
    block = Block(attn=Residual(attention, pre=norm), ffn=Residual(ffn, pre=norm))
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"]),
        tower=Tower(config["hidden_size"], (block,) * config["num_hidden_layers"], norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=(("head.out.weight", "stem.tokens.weight"),) if config.get("tie_word_embeddings") else (),
    )


def rope(config: Mapping[str, Any], head_dim: int) -> Rope:
    """The rope of a config.json, in its older spelling (rope_theta, rope_scaling) or its newer (rope_parameters)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"rope type {kind!r} is not known yet",
            where="config.json: rope_scaling",
            fix="use a model whose rope type is 'default'",
        )
    return Rope(head_dim, parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def spec(config: Mapping[str, Any]) -> Transformer:
    bias = bool(config.get("attention_bias"))
    return llama_like(config, qkv_bias=bias, out_bias=bias)
