"""DistilBERT: BERT without token types and pooler, half as deep (Sanh et al. 2019)."""

from __future__ import annotations

from hornbook.families.fields import Config, act, architecture, labels, tied
from hornbook.families.weights import Rule, Table, both, rule
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
)

KINDS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
ARCHITECTURES = tuple(f"DistilBertFor{kind}" for kind in KINDS)
THEIRS, OURS = "distilbert.transformer.layer.{i}.", "tower.blocks.{i}."


def weights(config: Config) -> Table:
    kind = KINDS[ARCHITECTURES.index(architecture(config, ARCHITECTURES))]
    heads: dict[str, tuple[Rule, ...]] = {
        "MaskedLM": (
            *both("vocab_projector", "head.out"),
            *both("vocab_transform", "head.dense"),
            *both("vocab_layer_norm", "head.norm"),
        ),
        "SequenceClassification": (*both("classifier", "head.out"), *both("pre_classifier", "head.dense")),
        "TokenClassification": both("classifier", "head.out"),
        "QuestionAnswering": both("qa_outputs", "head.out"),
    }  # fmt: skip
    return (
        rule("distilbert.embeddings.word_embeddings.weight", "stem.tokens.weight"),
        rule("distilbert.embeddings.position_embeddings.weight", "stem.positions.weight"),
        *both("distilbert.embeddings.LayerNorm", "stem.norm"),
        *(row for x in "qkv" for row in both(THEIRS + f"attention.{x}_lin", OURS + f"attn.op.{x}")),
        *both(THEIRS + "attention.out_lin", OURS + "attn.op.o"),
        *both(THEIRS + "sa_layer_norm", OURS + "attn.outer"),
        *both(THEIRS + "ffn.lin1", OURS + "ffn.op.up"),
        *both(THEIRS + "ffn.lin2", OURS + "ffn.op.down"),
        *both(THEIRS + "output_layer_norm", OURS + "ffn.outer"),
        *heads[kind],
    )


def head(config: Config, kind: str, norm: LayerNorm) -> Spec:
    if kind == "MaskedLM":
        return MLMHead(vocab=config["vocab_size"], norm=norm, act=act(config["activation"]))
    if kind == "SequenceClassification":
        return ClassHead(classes=labels(config), act="relu", dropout=config.get("seq_classif_dropout", 0.2))
    if kind == "QuestionAnswering":
        return TagHead(classes=2, dropout=config.get("qa_dropout", 0.1))
    return TagHead(classes=labels(config), dropout=config.get("dropout", 0.1))


def spec(config: Config) -> Transformer:
    kind = KINDS[ARCHITECTURES.index(architecture(config, ARCHITECTURES))]
    dim, heads, norm, dropout = config["dim"], config["n_heads"], LayerNorm(1e-12), config.get("dropout", 0.1)
    attention = Attention(
        heads=heads, head_dim=dim // heads, causal=False, qkv_bias=True, out_bias=True, dropout=config.get("attention_dropout", 0.1)
    )  # fmt: skip
    ffn = MLP(config["hidden_dim"], act(config["activation"]))
    block = Block(attn=Residual(attention, outer=norm), ffn=Residual(ffn, outer=norm, dropout=dropout))
    return Transformer(
        stem=TokenStem(vocab=config["vocab_size"], positions=config["max_position_embeddings"], norm=norm, dropout=dropout),
        tower=Tower(dim, (block,) * config["n_layers"]),
        head=head(config, kind, norm),
        ties=tied(config, default=True) if kind == "MaskedLM" else (),
    )
