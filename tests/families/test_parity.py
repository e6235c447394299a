"""Every family and switch against transformers: outputs and gradients of tiny random models whose every parameter is perturbed."""

from __future__ import annotations

import pytest
import torch

from hornbook.families import FAMILIES
from tests.reference.published import CASES, Case, answers, apart, dropouts, dropped, gradients, round_trip, traced

# transformers computes these families' norms, rotations or biases in float32, whatever the weights' type.
EXACT_IN_FLOAT64 = {"gpt2", "bert", "roberta", "distilbert", "bart", "vit", "speech_ctc"}
ROUTED = {"gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "dots1"}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 0.06}
cases = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
TRACED = {"gpt2", "llama 3 rope", "gemma2", "qwen2-moe", "t5", "bart", "bert", "vit"}  # the others are slow: seconds each


def test_every_family_is_compared() -> None:
    assert {case.model_type for case in CASES} == set(FAMILIES)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"])
def test_outputs(case: Case, dtype: torch.dtype) -> None:
    a, b = answers(case, dtype)
    assert a.dtype == b.dtype == dtype and a.shape == b.shape and float(a.std()) > 0.1
    difference = apart(a, b).float()
    if dtype == torch.bfloat16 and case.model_type in ROUTED:  # rounding may send a token to another expert
        by_token = difference.flatten(0, -2).amax(-1).sort().values
        difference = by_token[: int(0.8 * len(by_token))]
    assert float(difference.max()) < (1e-10 if dtype == torch.float64 and case.model_type in EXACT_IN_FLOAT64 else BOUNDS[dtype])


@cases
def test_gradients(case: Case) -> None:
    expected, found = gradients(case)
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0.1
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 1e-5 * max(1.0, largest), name


@cases
def test_weights_out_equal_weights_in(case: Case) -> None:
    tensors, found = round_trip(case)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[] if case.name in TRACED else pytest.mark.slow) for case in CASES]
)
def test_traced_in_one_graph(case: Case) -> None:
    """torch.compile without a graph break; the graph's answer is the model's."""
    eager, graph = traced(case)
    assert torch.allclose(graph, eager, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if dropouts(case)], ids=lambda case: case.name)
def test_dropout_falls_where_it_does_in_transformers(case: Case) -> None:
    a, b = dropped(case, 0.3)
    assert float(apart(a, b).max()) < 1e-5
    assert float(apart(a, answers(case, torch.float32)[0]).max()) > 0.01, "nothing was dropped"
