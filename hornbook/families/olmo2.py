"""OLMo-2: norms after attention and feed-forward, before the sum; queries and keys normed over all heads (OLMo Team 2025)."""

from __future__ import annotations

from hornbook.families import llama
from hornbook.families.fields import Config, act, architecture, head_dim, rope, tied
from hornbook.families.weights import Table, rule
from hornbook.model import Attention, Block, GatedMLP, LMHead, Residual, RMSNorm, TokenStem, Tower, Transformer, Whole

ARCHITECTURES = ("Olmo2ForCausalLM",)


def weights(config: Config) -> Table:
    theirs, ours = llama.THEIRS, llama.OURS
    return (
        *llama.OUTSIDE,
        rule(theirs + "post_attention_layernorm.weight", ours + "attn.post.weight"),
        rule(theirs + "post_feedforward_layernorm.weight", ours + "ffn.post.weight"),
        *(rule(theirs + f"self_attn.{x}_norm.weight", ours + f"attn.op.{x}_norm.1.weight") for x in "qk"),
        *llama.ATTENTION,
        *llama.DENSE,
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    norm, width, heads = RMSNorm(config["rms_norm_eps"]), head_dim(config), config["num_attention_heads"]
    bias = bool(config.get("attention_bias"))
    attention = Attention(
        heads=heads, kv_heads=config.get("num_key_value_heads") or heads, head_dim=width, rope=rope(config, width),
        qk_norm=Whole(norm), qkv_bias=bias, out_bias=bias, dropout=config.get("attention_dropout") or 0.0,
    )  # fmt: skip
    ffn = GatedMLP(config["intermediate_size"], act(config["hidden_act"]))
    block = Block(attn=Residual(attention, post=norm), ffn=Residual(ffn, post=norm))
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"]),
        tower=Tower(config["hidden_size"], (block,) * config["num_hidden_layers"], norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=tied(config),
    )
