"""RoBERTa: BERT with its positions two rows on, and heads of its own (Liu et al. 2019)."""

from __future__ import annotations

from hornbook.families import encoders
from hornbook.families.fields import Config, architecture
from hornbook.families.weights import Rule, Table, both, rule
from hornbook.model import Transformer

KINDS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
ARCHITECTURES = tuple(f"RobertaFor{kind}" for kind in KINDS)


def weights(config: Config) -> Table:
    kind = KINDS[ARCHITECTURES.index(architecture(config, ARCHITECTURES))]
    heads: dict[str, tuple[Rule, ...]] = {
        "MaskedLM": (
            rule("lm_head.bias", "head.out.bias"),
            rule("lm_head.decoder.weight", "head.out.weight"),
            rule("lm_head.decoder.bias"),  # the same as lm_head.bias
            *both("lm_head.dense", "head.dense"),
            *both("lm_head.layer_norm", "head.norm"),
        ),
        "SequenceClassification": (*both("classifier.dense", "head.dense"), *both("classifier.out_proj", "head.out")),
        "TokenClassification": both("classifier", "head.out"),
        "QuestionAnswering": both("qa_outputs", "head.out"),
    }
    return (*encoders.encoder_rules("roberta."), *heads[kind], *both("roberta.pooler.dense"))


def spec(config: Config) -> Transformer:
    kind = KINDS[ARCHITECTURES.index(architecture(config, ARCHITECTURES))]
    padding = config.get("pad_token_id")
    return encoders.encoder_like(config, kind, position_offset=(1 if padding is None else padding) + 1, pooler=False)
