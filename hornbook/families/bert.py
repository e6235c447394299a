"""BERT: an encoder with post-norm LayerNorm, learned positions and token types, and its heads (Devlin et al. 2019)."""

from __future__ import annotations

from hornbook.families import encoders
from hornbook.families.fields import Config, architecture
from hornbook.families.weights import Alias, Rule, Table, both, rule
from hornbook.model import Transformer

KINDS = ("MaskedLM", "Model", "SequenceClassification", "TokenClassification", "QuestionAnswering")
ARCHITECTURES = tuple(f"Bert{'' if kind == 'Model' else 'For'}{kind}" for kind in KINDS)
MASKED = (
    rule("cls.predictions.bias", "head.out.bias"),
    rule("cls.predictions.decoder.weight", "head.out.weight"),
    rule("cls.predictions.decoder.bias"),  # the same as cls.predictions.bias
    *both("cls.predictions.transform.dense", "head.dense"),
    *both("cls.predictions.transform.LayerNorm", "head.norm"),
    *both("cls.seq_relationship"),  # of next-sentence prediction
)


def weights(config: Config) -> Table:
    kind = KINDS[ARCHITECTURES.index(architecture(config, ARCHITECTURES))]
    bare, pooled = kind == "Model", kind in ("Model", "SequenceClassification")
    prefix = "" if bare else "bert."
    heads: dict[str, tuple[Rule, ...]] = {
        "MaskedLM": MASKED,
        "Model": tuple(rule(row.theirs) for row in MASKED),  # a file of the whole pretrained model serves the bare encoder too
        "QuestionAnswering": both("qa_outputs", "head.out"),
    }
    return (
        Alias(r"\.gamma$", ".weight"),  # as the first uploads spell a norm's
        Alias(r"\.beta$", ".bias"),
        Alias(r"^bert\.", "") if bare else Alias(r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
        *encoders.encoder_rules(prefix),
        *heads.get(kind, both("classifier", "head.out")),
        *both(prefix + "pooler.dense", *(("head.dense",) if pooled else ())),
    )


def spec(config: Config) -> Transformer:
    return encoders.encoder_like(config, KINDS[ARCHITECTURES.index(architecture(config, ARCHITECTURES))])
