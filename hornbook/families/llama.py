"""Llama: pre-norm RMSNorm, rope, grouped-query attention, gated feed-forward (Touvron et al. 2023; Grattafiori et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hornbook.families.fields import Config, act, architecture, head_dim, rope, tied
from hornbook.families.weights import Rule, Table, both, rule
from hornbook.model import Attention, Block, GatedMLP, LMHead, Residual, RMSNorm, Spec, TokenStem, Tower, Transformer
from hornbook.model.attention import HeadNorm

ARCHITECTURES = ("LlamaForCausalLM",)
THEIRS, OURS = "model.layers.{i}.", "tower.blocks.{i}."
OUTSIDE = (
    rule("model.embed_tokens.weight", "stem.tokens.weight"),
    rule("model.norm.weight", "tower.norm.weight"),
    rule("lm_head.weight", "head.out.weight"),
)
PRE_NORMS = (
    rule(THEIRS + "input_layernorm.weight", OURS + "attn.pre.weight"),
    rule(THEIRS + "post_attention_layernorm.weight", OURS + "ffn.pre.weight"),
)
ATTENTION = (
    *(row for x in "qkvo" for row in both(THEIRS + f"self_attn.{x}_proj", OURS + f"attn.op.{x}")),
    rule(THEIRS + "self_attn.rotary_emb.inv_freq"),
)
QK_NORMS = tuple(rule(THEIRS + f"self_attn.{x}_norm.weight", OURS + f"attn.op.{x}_norm.weight") for x in "qk")


def gated(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of a gated feed-forward."""
    return tuple(row for x in ("gate", "up", "down") for row in both(f"{THEIRS}{theirs}.{x}_proj", f"{OURS}{ours}.{x}"))


DENSE = gated("mlp", "ffn.op")


def weights(config: Config) -> Table:
    return (*OUTSIDE, *PRE_NORMS, *ATTENTION, *DENSE)


def dense(config: Config) -> GatedMLP:
    return GatedMLP(config["intermediate_size"], act(config["hidden_act"]), bool(config.get("mlp_bias")))


def llama_like(
    config: Config, *, qkv_bias: bool = False, out_bias: bool = False, qk_norm: HeadNorm | None = None,
    ffn: Callable[[int], Spec] | None = None, windows: Sequence[int | None] = (),
) -> Transformer:  # fmt: skip
    """The shape that Llama and its children share; what differs comes as an option. `ffn(layer)`: None, the dense one."""
    norm, heads, width = RMSNorm(config["rms_norm_eps"]), config["num_attention_heads"], head_dim(config)
    attention = Attention(
        heads=heads, kv_heads=config.get("num_key_value_heads") or heads, head_dim=width, rope=rope(config, width), qk_norm=qk_norm,
        qkv_bias=qkv_bias, out_bias=out_bias, dropout=config.get("attention_dropout") or 0.0,
    )  # fmt: skip
    dropout = config.get("resid_pdrop") or 0.0
    blocks = tuple(
        Block(
            attn=Residual(replace(attention, window=windows[layer] if windows else None), pre=norm, dropout=dropout),
            ffn=Residual(ffn(layer) if ffn else dense(config), pre=norm, dropout=dropout),
        )
        for layer in range(config["num_hidden_layers"])
    )
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"]),
        tower=Tower(config["hidden_size"], blocks, norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=tied(config),
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    bias = bool(config.get("attention_bias"))
    return llama_like(config, qkv_bias=bias, out_bias=bias)
