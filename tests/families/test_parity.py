"""Every family against transformers: logits and gradients of tiny random models whose every parameter is perturbed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from hornbook.families import FAMILIES, build, family
from hornbook.families.weights import from_published, to_published

LLAMA = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
GPT2 = {"vocab_size": 99, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "resid_pdrop": 0.0, "attn_pdrop": 0.0,
        "embd_pdrop": 0.0}  # fmt: skip
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "n_inner": 40, "activation_function": "gelu"}),
    ("llama", LLAMA),
    ("llama", {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    (
        "llama",
        {**LLAMA, "num_key_value_heads": 4, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    ("qwen3", {**LLAMA, "head_dim": 16}),
    ("qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
]
# transformers computes these families' norms and rotations in float32, whatever the weights' type.
ROUNDS_TO_FLOAT32 = {"llama", "qwen3"}


def pair(name: str, settings: dict[str, Any], dtype: torch.dtype) -> tuple[torch.nn.Module, Any, dict[str, torch.Tensor]]:
    """The same random weights in transformers' model and in ours, and the published tensors."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **settings)
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # so that every bias and norm matters
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    published = {key: value for key, value in theirs.state_dict().items() if key not in tied}
    ours = build(config.to_dict()).to(dtype).eval()
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    rules = family(config.to_dict()).WEIGHTS
    ours.load_state_dict(from_published(rules, published, shapes, [n for n, _ in ours.spec.ties], "memory"), strict=False)
    ours.tie()
    return theirs, ours, published


def test_every_family_is_compared() -> None:
    assert {name for name, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_logits_and_gradients(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    bound = 1e-10 if dtype == torch.float64 and name not in ROUNDS_TO_FLOAT32 else 1e-5
    theirs, ours, _ = pair(name, settings, dtype)
    ids = torch.randint(0, 99, (2, 14))
    a, b = theirs(ids).logits, ours(ids)
    assert (a - b).abs().max() < bound
    a.logsumexp(-1).sum().backward()
    b.logsumexp(-1).sum().backward()
    gradients = {key: p.grad for key, p in ours.named_parameters()}
    rules = family(ours.config).WEIGHTS
    published = to_published(rules, gradients)
    for key, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max().clamp(min=1)
        assert ((published[key] - parameter.grad).abs().max() / scale) < bound, key


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_weights_out_equal_weights_in(name: str, settings: dict[str, Any]) -> None:
    _, ours, published = pair(name, settings, torch.float32)
    tied = {key for key, _ in ours.spec.ties}
    back = to_published(family(ours.config).WEIGHTS, {key: value for key, value in ours.state_dict().items() if key not in tied})
    assert set(back) == set(published)
    assert all(torch.equal(back[key], published[key]) for key in published)
