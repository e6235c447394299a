"""BLOOM: ALiBi in place of positions, a norm on the embeddings (Le Scao et al. 2022)."""

from __future__ import annotations

from hornbook.families.fields import Config, architecture, either, fixed, tied
from hornbook.families.weights import Alias, Table, both, per_head, rule
from hornbook.model import MLP, ALiBi, Attention, Block, LayerNorm, LMHead, Residual, TokenStem, Tower, Transformer

ARCHITECTURES = ("BloomForCausalLM",)
THEIRS, OURS = "transformer.h.{i}.", "tower.blocks.{i}."


def weights(config: Config) -> Table:
    heads = per_head(either(config, "n_head", "num_attention_heads"))
    return (
        Alias(r"^(word_embeddings|word_embeddings_layernorm|h|ln_f)\.", r"transformer.\1."),  # as BigScience's upload spells them
        rule("transformer.word_embeddings.weight", "stem.tokens.weight"),
        rule("lm_head.weight", "head.out.weight"),
        *both("transformer.word_embeddings_layernorm", "stem.norm"),
        *both("transformer.ln_f", "tower.norm"),
        *both(THEIRS + "self_attention.query_key_value", *(OURS + f"attn.op.{x}" for x in "qkv"), form=heads),
        *both(THEIRS + "self_attention.dense", OURS + "attn.op.o"),
        *both(THEIRS + "mlp.dense_h_to_4h", OURS + "ffn.op.up"),
        *both(THEIRS + "mlp.dense_4h_to_h", OURS + "ffn.op.down"),
        *both(THEIRS + "input_layernorm", OURS + "attn.pre"),
        *both(THEIRS + "post_attention_layernorm", OURS + "ffn.pre"),
    )


def spec(config: Config) -> Transformer:
    fixed(config, apply_residual_connection_post_layernorm=False)
    architecture(config, ARCHITECTURES)
    dim, heads = either(config, "hidden_size", "n_embed"), either(config, "n_head", "num_attention_heads")
    norm, dropout = LayerNorm(config["layer_norm_epsilon"]), config.get("hidden_dropout") or 0.0
    attention = Attention(
        heads=heads, head_dim=dim // heads, bias=ALiBi(), qkv_bias=True, out_bias=True,
        dropout=config.get("attention_dropout") or 0.0,
    )  # fmt: skip
    block = Block(
        attn=Residual(attention, pre=norm, dropout=dropout), ffn=Residual(MLP(4 * dim, "gelu_tanh"), pre=norm, dropout=dropout)
    )
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"], norm=norm),
        tower=Tower(dim, (block,) * (either(config, "n_layer", "num_hidden_layers")), norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=tied(config, default=True),
    )
