"""GPT-NeoX (Pythia): attention and feed-forward side by side, rope on a part of each head (Black et al. 2022)."""

from __future__ import annotations

from hornbook.families.fields import Config, act, architecture, rope, tied
from hornbook.families.weights import Table, both, per_head, rule
from hornbook.model import MLP, Attention, Block, LayerNorm, LMHead, Parallel, Residual, TokenStem, Tower, Transformer

ARCHITECTURES = ("GPTNeoXForCausalLM",)
THEIRS = "gpt_neox.layers.{i}."


def weights(config: Config) -> Table:
    if config.get("use_parallel_residual", True):
        op = "tower.blocks.{i}.attn.op."
        attn, ffn, attn_norm, ffn_norm = op + "attn", op + "ffn", op + "attn_norm", op + "ffn_norm"
    else:
        block = "tower.blocks.{i}."
        attn, ffn, attn_norm, ffn_norm = block + "attn.op", block + "ffn.op", block + "attn.pre", block + "ffn.pre"
    heads = per_head(config["num_attention_heads"])
    return (
        rule("gpt_neox.embed_in.weight", "stem.tokens.weight"),
        rule("embed_out.weight", "head.out.weight"),
        *both("gpt_neox.final_layer_norm", "tower.norm"),
        *both(THEIRS + "attention.query_key_value", *(f"{attn}.{x}" for x in "qkv"), form=heads),
        *both(THEIRS + "attention.dense", f"{attn}.o"),
        *both(THEIRS + "mlp.dense_h_to_4h", f"{ffn}.up"),
        *both(THEIRS + "mlp.dense_4h_to_h", f"{ffn}.down"),
        *both(THEIRS + "input_layernorm", attn_norm),
        *both(THEIRS + "post_attention_layernorm", ffn_norm),
        *(rule(THEIRS + f"attention.{name}") for name in ("bias", "masked_bias", "rotary_emb.inv_freq")),
    )


def spec(config: Config) -> Transformer:
    architecture(config, ARCHITECTURES)
    dim, heads, norm = config["hidden_size"], config["num_attention_heads"], LayerNorm(config["layer_norm_eps"])
    bias, dropout = config.get("attention_bias", True), config.get("hidden_dropout") or 0.0
    rotary = config if "rotary_pct" in config or "rope_parameters" in config else {**config, "rotary_pct": 0.25}
    theta = config.get("rotary_emb_base") or config.get("rope_theta")
    attn = Attention(
        heads=heads, head_dim=dim // heads, rope=rope({**rotary, "rope_theta": theta}, dim // heads), qkv_bias=bias, out_bias=bias,
        dropout=config.get("attention_dropout") or 0.0,
    )  # fmt: skip
    ffn = MLP(config["intermediate_size"], act(config["hidden_act"]))
    if config.get("use_parallel_residual", True):
        block = Block(Residual(Parallel(attn, ffn, norm, norm, dropout)))
    else:
        block = Block(Residual(attn, pre=norm, dropout=dropout), Residual(ffn, pre=norm, dropout=dropout))
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"], dropout=dropout),
        tower=Tower(dim, (block,) * config["num_hidden_layers"], norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=tied(config),
    )
