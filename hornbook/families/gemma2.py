"""Gemma 2: norms before and after each part, alternating windows, soft caps, norms that scale by 1 + w (Gemma Team 2024)."""

from __future__ import annotations

from dataclasses import replace

from hornbook.families import llama
from hornbook.families.fields import Config, act, architecture, fixed, head_dim, rope, tied, windows
from hornbook.families.weights import Table, rule
from hornbook.model import Attention, Block, GatedMLP, LMHead, Residual, RMSNorm, TokenStem, Tower, Transformer

ARCHITECTURES = ("Gemma2ForCausalLM",)
NORMS = tuple(
    rule(llama.THEIRS + f"{theirs}_layernorm.weight", llama.OURS + f"{ours}.weight")
    for theirs, ours in (
        ("input", "attn.pre"), ("post_attention", "attn.post"), ("pre_feedforward", "ffn.pre"), ("post_feedforward", "ffn.post"),
    )
)  # fmt: skip


def weights(config: Config) -> Table:
    return (*llama.OUTSIDE, *NORMS, *llama.ATTENTION, *llama.DENSE)


def gemma_like(config: Config, attentions: list[Attention], softcap: float | None) -> Transformer:
    """The shape that both Gemmas share, around one attention per layer."""
    fixed(config, use_bidirectional_attention=False)
    norm = RMSNorm(config["rms_norm_eps"], offset=True)
    ffn = GatedMLP(config["intermediate_size"], act(config.get("hidden_activation") or "gelu_pytorch_tanh"))
    blocks = tuple(Block(Residual(attention, norm, norm), Residual(ffn, norm, norm)) for attention in attentions)
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"], scale=config["hidden_size"] ** 0.5),
        tower=Tower(config["hidden_size"], blocks, norm),
        head=LMHead(vocab=config["vocab_size"], softcap=softcap),
        ties=tied(config, default=True),
    )


def attention_of(config: Config, softcap: float | None) -> Attention:
    """What every layer's attention has in common, rope and window apart."""
    bias = bool(config.get("attention_bias"))
    return Attention(
        heads=config["num_attention_heads"], kv_heads=config["num_key_value_heads"], head_dim=head_dim(config, 256), qkv_bias=bias,
        out_bias=bias, scale=config["query_pre_attn_scalar"] ** -0.5, softcap=softcap,
        dropout=config.get("attention_dropout") or 0.0,
    )  # fmt: skip


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    layers = range(config["num_hidden_layers"])
    kinds = config.get("layer_types") or ["full_attention" if layer % 2 else "sliding_attention" for layer in layers]
    attention = attention_of(config, config.get("attn_logit_softcapping", 50.0))
    attention = replace(attention, rope=rope(config, attention.head_dim))
    attentions = [replace(attention, window=window) for window in windows({**config, "layer_types": kinds})]
    return gemma_like(config, attentions, config.get("final_logit_softcapping", 30.0))
