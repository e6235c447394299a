"""Heads masked and taken out, for an encoder, decoders and an encoder-decoder."""

from __future__ import annotations

import pytest
import torch

from hornbook.adapt.prune import attention_layers, head_mask, prune_heads
from hornbook.families import Model
from tests.reference.published import CASES, Case, inputs_of, loaded, oracle, published

NAMES = ("bert masked", "gpt2", "llama grouped", "qwen3", "bloom", "gpt-oss", "t5", "vit classes", "gemma2")
cases = pytest.mark.parametrize("case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name)


def model_of(case: Case) -> Model:
    return loaded(*published(oracle(case)))


@cases
@torch.no_grad()
def test_ones_change_nothing_at_all(case: Case) -> None:
    model, inputs = model_of(case), inputs_of(case)
    layers = attention_layers(model)
    plain = model(*inputs)
    with head_mask(model, torch.ones(len(layers), next(iter(layers.values())).spec.heads)):
        assert torch.equal(model(*inputs), plain)
    assert torch.equal(model(*inputs), plain)


@cases
@torch.no_grad()
def test_a_zero_is_a_zeroed_slice_of_o_and_a_head_taken_out(case: Case) -> None:
    model, zeroed, inputs = model_of(case), model_of(case), inputs_of(case)
    layers = attention_layers(model)
    name, layer = list(layers.items())[1]
    share = layer.spec.heads // layer.kv_shape()[0]
    gone = list(range(share, 2 * share))  # the second group
    mask = torch.ones(len(layers), layer.spec.heads)
    mask[1, gone] = 0
    with head_mask(model, mask):
        masked = model(*inputs)
    assert not torch.allclose(masked, model(*inputs), atol=1e-3)
    width = layer.spec.head_dim
    attention_layers(zeroed)[name].o.weight[:, gone[0] * width : (gone[-1] + 1) * width] = 0
    assert torch.equal(zeroed(*inputs), masked)
    before = sum(parameter.numel() for parameter in layer.parameters())
    prune_heads(model, {name: gone})
    assert (model(*inputs) - masked).abs().max() < 1e-5
    assert sum(parameter.numel() for parameter in layer.parameters()) < before


def test_a_masks_gradient_is_a_heads_importance() -> None:
    """Michel et al. 2019, equation 2: the derivative by a head's mask, against a finite difference."""
    case = next(case for case in CASES if case.name == "gpt2")
    model, inputs = model_of(case).double(), inputs_of(case)
    mask = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    with head_mask(model, mask):
        (gradient,) = torch.autograd.grad(model(*inputs).logsumexp(-1).sum(), mask)
    for layer, head in ((0, 1), (2, 3)):
        ends = []
        for shift in (1e-5, -1e-5):
            moved = mask.detach().clone()
            moved[layer, head] += shift
            with head_mask(model, moved), torch.no_grad():
                ends.append(float(model(*inputs).logsumexp(-1).sum()))
        assert abs((ends[0] - ends[1]) / 2e-5 - float(gradient[layer, head])) < 1e-5


def test_what_cannot_be_taken_out_is_said() -> None:
    model = model_of(next(case for case in CASES if case.name == "llama grouped"))
    name = next(iter(attention_layers(model)))
    for heads, message in (
        ({"tower": [0]}, "no attention layer is called 'tower'"), ({name: [4]}, "of 0 to 3"), ({name: range(4)}, "not all"),
        ({name: [1]}, "2 to a group"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            prune_heads(model, heads)
    with pytest.raises(ValueError, match="3 layers, 4 heads"), head_mask(model, torch.ones(2, 4)):
        pass
