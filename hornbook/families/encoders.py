"""What BERT and RoBERTa share: the encoder's spec, its weights behind a prefix, the heads."""

from __future__ import annotations

from hornbook.families.fields import Config, act, fixed, labels, tied
from hornbook.families.weights import Rule, both, rule
from hornbook.model import (
    MLP,
    Attention,
    Block,
    ClassHead,
    LayerNorm,
    MLMHead,
    Residual,
    Spec,
    TagHead,
    TokenStem,
    Tower,
    Transformer,
)  # fmt: skip

THEIRS, OURS = "encoder.layer.{i}.", "tower.blocks.{i}."


def encoder_rules(prefix: str) -> tuple[Rule, ...]:
    """Stem and layers, as BERT and RoBERTa publish them behind a prefix."""
    stem, layer = prefix + "embeddings.", prefix + THEIRS
    names = (("word", "tokens"), ("position", "positions"), ("token_type", "types"))
    return (
        *(rule(f"{stem}{theirs}_embeddings.weight", f"stem.{ours}.weight") for theirs, ours in names),
        *both(stem + "LayerNorm", "stem.norm"),
        rule(stem + "position_ids"),
        *(row for x in ("query", "key", "value") for row in both(f"{layer}attention.self.{x}", OURS + f"attn.op.{x[0]}")),
        *both(layer + "attention.output.dense", OURS + "attn.op.o"),
        *both(layer + "attention.output.LayerNorm", OURS + "attn.outer"),
        *both(layer + "intermediate.dense", OURS + "ffn.op.up"),
        *both(layer + "output.dense", OURS + "ffn.op.down"),
        *both(layer + "output.LayerNorm", OURS + "ffn.outer"),
    )


def head(config: Config, kind: str, pooler: bool = True) -> Spec:
    """The head of a kind of encoder. RoBERTa has no pooler: its classifier's dense layer is behind a dropout instead."""
    dropout = config.get("classifier_dropout")
    dropout = config.get("hidden_dropout_prob", 0.1) if dropout is None else dropout
    if kind == "MaskedLM":
        return MLMHead(vocab=config["vocab_size"], norm=LayerNorm(config["layer_norm_eps"]), act=act(config["hidden_act"]))
    if kind == "Model":
        return ClassHead(classes=None, act="tanh")
    if kind == "SequenceClassification":
        return ClassHead(classes=labels(config), act="tanh", dropout=dropout, dense_dropout=0.0 if pooler else dropout)
    return TagHead(classes=2) if kind == "QuestionAnswering" else TagHead(classes=labels(config), dropout=dropout)


def encoder_like(config: Config, kind: str, position_offset: int = 0, pooler: bool = True) -> Transformer:
    """BERT's encoder with the head of a kind; `position_offset` rows of the table of positions are not used."""
    fixed(config, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    dim, heads, norm = config["hidden_size"], config["num_attention_heads"], LayerNorm(config["layer_norm_eps"])
    dropout, rows = config.get("hidden_dropout_prob", 0.1), config["max_position_embeddings"]
    attention = Attention(
        heads=heads, head_dim=dim // heads, causal=False, qkv_bias=True, out_bias=True,
        dropout=config.get("attention_probs_dropout_prob", 0.1),
    )  # fmt: skip
    ffn = MLP(config["intermediate_size"], act(config["hidden_act"]))
    block = Block(attn=Residual(attention, outer=norm, dropout=dropout), ffn=Residual(ffn, outer=norm, dropout=dropout))
    return Transformer(
        stem=TokenStem(
            vocab=config["vocab_size"], positions=rows - position_offset, position_offset=position_offset,
            types=config.get("type_vocab_size", 2), norm=norm, dropout=dropout,
        ),
        tower=Tower(dim, (block,) * config["num_hidden_layers"]),
        head=head(config, kind, pooler),
        ties=tied(config, default=True) if kind == "MaskedLM" else (),
    )  # fmt: skip
