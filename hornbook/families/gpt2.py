"""GPT-2: pre-norm LayerNorm, learned positions, full attention, tanh GELU, tied embeddings (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hornbook.errors import UserError
from hornbook.families.weights import Rule, rule
from hornbook.model import MLP, Attention, Block, LayerNorm, LMHead, Residual, TokenStem, Tower, Transformer

THEIRS, OURS = "transformer.h.{i}.", "tower.blocks.{i}."
ACT = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}


# Options that change the logits and that no published GPT-2 changes.
FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def _rules(part: str) -> tuple[Rule, ...]:
    conv1d = part == "weight"  # published as (in, out), with q, k and v in one tensor
    return (
        rule(THEIRS + f"ln_1.{part}", OURS + f"attn.pre.{part}"),
        rule(THEIRS + f"ln_2.{part}", OURS + f"ffn.pre.{part}"),
        rule(f"transformer.ln_f.{part}", f"tower.norm.{part}"),
        rule(THEIRS + f"attn.c_attn.{part}", *(OURS + f"attn.op.{x}.{part}" for x in "qkv"), transpose=conv1d),
        rule(THEIRS + f"attn.c_proj.{part}", OURS + f"attn.op.o.{part}", transpose=conv1d),
        rule(THEIRS + f"mlp.c_fc.{part}", OURS + f"ffn.op.up.{part}", transpose=conv1d),
        rule(THEIRS + f"mlp.c_proj.{part}", OURS + f"ffn.op.down.{part}", transpose=conv1d),
    )


ARCHITECTURE = "GPT2LMHeadModel"
WEIGHTS = (
    rule("transformer.wte.weight", "stem.tokens.weight"),
    rule("transformer.wpe.weight", "stem.positions.weight"),
    rule("lm_head.weight", "head.out.weight"),
    *_rules("weight"),
    *_rules("bias"),
)


def spec(config: Mapping[str, Any]) -> Transformer:
    for name, known in FIXED.items():
        if config.get(name, known) != known:
            raise UserError(f"{name} is not known yet", where=f"config.json: {name}", fix=f"set it to {str(known).lower()}")
    act = config["activation_function"]
    norm, dim, heads = LayerNorm(config["layer_norm_epsilon"]), config["n_embd"], config["n_head"]
    attention = Attention(heads=heads, head_dim=dim // heads, qkv_bias=True, out_bias=True)
    mlp = MLP(config.get("n_inner") or 4 * dim, ACT.get(act, act))
    block = Block(attn=Residual(attention, pre=norm), ffn=Residual(mlp, pre=norm))
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"], positions=config["n_positions"]),
        tower=Tower(dim, (block,) * config["n_layer"], norm),
        head=LMHead(vocab=config["vocab_size"]),
        ties=(("head.out.weight", "stem.tokens.weight"),) if config.get("tie_word_embeddings", True) else (),
    )
