"""GPT-2: pre-norm LayerNorm, learned positions, full attention, tanh GELU, tied embeddings (Radford et al. 2019)."""

from __future__ import annotations

from hornbook.families.fields import Config, act, architecture, fixed, tied
from hornbook.families.weights import ROWS, TRANSPOSED, Alias, Form, Rule, Table, rule
from hornbook.model import MLP, Attention, Block, LayerNorm, LMHead, Residual, TokenStem, Tower, Transformer

ARCHITECTURES = ("GPT2LMHeadModel",)
THEIRS, OURS = "transformer.h.{i}.", "tower.blocks.{i}."


def _rules(part: str, form: Form) -> tuple[Rule, ...]:
    return (
        rule(THEIRS + f"ln_1.{part}", OURS + f"attn.pre.{part}"),
        rule(THEIRS + f"ln_2.{part}", OURS + f"ffn.pre.{part}"),
        rule(f"transformer.ln_f.{part}", f"tower.norm.{part}"),
        rule(THEIRS + f"attn.c_attn.{part}", *(OURS + f"attn.op.{x}.{part}" for x in "qkv"), form=form),
        rule(THEIRS + f"attn.c_proj.{part}", OURS + f"attn.op.o.{part}", form=form),
        rule(THEIRS + f"mlp.c_fc.{part}", OURS + f"ffn.op.up.{part}", form=form),
        rule(THEIRS + f"mlp.c_proj.{part}", OURS + f"ffn.op.down.{part}", form=form),
    )


def weights(config: Config) -> Table:
    return (
        Alias(r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),  # as OpenAI's own upload spells them
        rule("transformer.wte.weight", "stem.tokens.weight"),
        rule("transformer.wpe.weight", "stem.positions.weight"),
        rule("lm_head.weight", "head.out.weight"),
        *_rules("weight", TRANSPOSED),
        *_rules("bias", ROWS),
        rule(THEIRS + "attn.bias"),
        rule(THEIRS + "attn.masked_bias"),
    )


def spec(config: Config) -> Transformer:
    # Options that change the logits and that no published GPT-2 changes.
    fixed(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    architecture(config, ARCHITECTURES)
    norm, dim, heads = LayerNorm(config["layer_norm_epsilon"]), config["n_embd"], config["n_head"]
    dropout = config.get("resid_pdrop", 0.1)
    attention = Attention(
        heads=heads, head_dim=dim // heads, qkv_bias=True, out_bias=True, dropout=config.get("attn_pdrop", 0.1)
    )  # fmt: skip
    mlp = MLP(config.get("n_inner") or 4 * dim, act(config["activation_function"]))
    block = Block(attn=Residual(attention, pre=norm, dropout=dropout), ffn=Residual(mlp, pre=norm, dropout=dropout))
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"], positions=config["n_positions"], dropout=config.get("embd_pdrop", 0.1)),
        tower=Tower(dim, (block,) * config["n_layer"], norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=tied(config, default=True),
    )
