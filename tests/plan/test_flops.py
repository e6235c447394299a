"""The operations of a step as counted by formula, against torch's own counter on the step itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hornbook.batch import Batch
from hornbook.families import build
from hornbook.model import initialize
from hornbook.plan.flops import flops
from hornbook.train.objective import causal_lm, classification
from tests.reference.tiny import FAMILIES, LLAMA, VOCAB, random_batch, tiny_model

BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2,
}  # fmt: skip
GEMMA2 = {
    **LLAMA, "model_type": "gemma2", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8,
    "sliding_window": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {**FAMILIES, "bert": BERT, "gemma2": GEMMA2, "mixtral": MIXTRAL}


def by_experts(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Rows (A, d) by weights (E, o, d), or by rows (A, o)."""
    return 2 * left[0] * left[1] * right[1]


def added(total: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


# What torch's counter does not know.
PRODUCTS = {
    torch.ops.hornbook.expert_products: by_experts, torch.ops.hornbook.expert_gradients: by_experts,
    torch.ops.aten.addmm_: added,
}  # fmt: skip


@pytest.mark.parametrize("share", [1.0, 0.3])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_formula_is_torchs_count_of_a_step(config: dict[str, Any], share: float) -> None:
    model, batch = tiny_model(config, dtype=torch.float32).train(), random_batch(3, 12, 0, share)
    targets = int((batch.targets_bt >= 0).sum())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter:
        causal_lm(model, batch).total.backward()
    found = flops(model)
    assert found is not None and found.training(36, 12, targets) == counter.get_total_flops()


def test_a_class_is_asked_of_a_row_once() -> None:
    model = initialize(build({**BERT, "architectures": ["BertForSequenceClassification"], "num_labels": 5}), 0)
    batch = Batch(random_batch(4, 10, 0).tokens_bt, torch.zeros(4, dtype=torch.long))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        classification()(model, batch).total.backward()
    found = flops(model)
    assert found is not None and found.training(40, 10, 4) == counter.get_total_flops()


def test_six_per_parameter_is_the_part_without_attention_and_embeddings() -> None:
    """6 N per token (Kaplan et al. 2020, section 2.1), where N are the parameters of matrices that a token meets."""
    model = tiny_model(LLAMA)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("stem"))
    found = flops(model)
    assert found is not None and found.training(1, 0, 1) == 6 * matrices


def test_what_it_cannot_count_it_does_not() -> None:
    assert flops(torch.nn.Linear(2, 2)) is None
