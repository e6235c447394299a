"""Every family and switch against transformers: outputs and gradients of tiny random models whose every parameter is perturbed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from hornbook.families import FAMILIES, Model, family
from hornbook.families.weights import to_published
from tests.reference.published import CASES, Case, answer_of, inputs_of, loaded, oracle, published

# transformers computes these families' norms, rotations or biases in float32, whatever the weights' type.
EXACT_IN_FLOAT64 = {"gpt2", "bert", "roberta", "distilbert", "bart", "vit", "speech_ctc"}
ROUTED = {"gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "dots1"}
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 0.06}
cases = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@cache
def pair(case: Case, dtype: torch.dtype) -> tuple[Any, Model]:
    theirs = oracle(case, dtype)
    return theirs, loaded(*published(theirs))


def back(ours: Model, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    tied = {name for name, _ in ours.ties}
    return to_published(family(ours.config).weights(ours.config), {key: value for key, value in tensors.items() if key not in tied})


def test_every_family_is_compared() -> None:
    assert {case.model_type for case in CASES} == set(FAMILIES)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["float32", "float64", "bfloat16"])
def test_outputs(case: Case, dtype: torch.dtype) -> None:
    """Differences in units of the largest value, where that is above one."""
    theirs, ours = pair(case, dtype)
    inputs = inputs_of(case, dtype)
    with torch.no_grad():
        a, b = answer_of(theirs, case, inputs), ours(*inputs)
    assert a.dtype == b.dtype == dtype and a.shape == b.shape and float(a.std()) > 0.1
    bound = 1e-10 if dtype == torch.float64 and case.model_type in EXACT_IN_FLOAT64 else BOUNDS[dtype]
    apart = (a - b).abs().float()
    if dtype == torch.bfloat16 and case.model_type in ROUTED:  # rounding may send a token to another expert
        by_token = apart.flatten(0, -2).amax(-1).sort().values
        apart = by_token[: int(0.8 * len(by_token))]
    assert float(apart.max()) < bound * max(1.0, float(a.abs().max()))


@cases
def test_gradients(case: Case) -> None:
    theirs, ours = pair(case, torch.float32)
    inputs = inputs_of(case)
    for model, answer in ((theirs, answer_of(theirs, case, inputs)), (ours, ours(*inputs))):
        model.zero_grad()
        answer.float().logsumexp(-1).square().sum().backward()
    with torch.no_grad():  # their gradients in the place of their weights: published, they have our rules' names
        as_weights = oracle(case)
        for weight, parameter in zip(as_weights.parameters(), theirs.parameters(), strict=True):
            none = 0.0 if parameter.requires_grad else torch.nan
            weight.copy_(torch.full_like(weight, none) if parameter.grad is None else parameter.grad)
    _, expected = published(as_weights)
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in ours.named_parameters()}
    names = set(gradients) | {name for name, _ in ours.ties}
    rest = {name: value for name, value in ours.state_dict().items() if name not in names}  # buffers have none
    found = back(ours, {**gradients, **rest})
    largest = max(float(value.abs().max()) for value in gradients.values())
    assert largest > 0.1
    trained = back(ours, {**{name: torch.ones_like(value) for name, value in gradients.items()},
                          **{name: torch.zeros_like(value) for name, value in rest.items()}})  # fmt: skip
    for name, value in expected.items():
        if bool(trained[name].all()) and not bool(value.isnan().any()) and name != "final_logits_bias":  # BART's is a buffer there
            assert float((found[name] - value).abs().max()) < 1e-5 * max(1.0, largest), name


@cases
def test_weights_out_equal_weights_in(case: Case) -> None:
    theirs, ours = pair(case, torch.float32)
    config, tensors = published(theirs)
    found = back(ours, ours.state_dict())
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@cases
def test_traced_in_one_graph(case: Case) -> None:
    """torch.compile without a graph break; the graph's answer is the model's."""
    _, ours = pair(case, torch.float32)
    inputs = inputs_of(case)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(ours, fullgraph=True, backend="eager")(*inputs)
        assert torch.allclose(compiled, ours(*inputs), atol=1e-6)
