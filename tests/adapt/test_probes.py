"""Maps and hidden states against transformers' own, against the layer's own output, and with nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hornbook.adapt.probes import attention_maps, hidden_states
from hornbook.generation.cache import DenseCache
from hornbook.model import Context
from hornbook.model.attention import AttentionLayer
from tests.reference.models import DECODERS, small_model
from tests.reference.published import CASES, MLM, Case, loaded, oracle, published

TEXT = [case for case in CASES if case.auto in ("AutoModelForCausalLM", MLM) and case.model_type != "speech_ctc"]
TOKENS = torch.tensor([[5, 17, 3, 96, 41, 8, 3, 22, 60, 11, 77, 30], [9, 9, 4, 4, 88, 2, 6, 31, 50, 12, 7, 70]])  # more than K keys


def layers(model: nn.Module) -> dict[str, AttentionLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AttentionLayer)}


@pytest.mark.parametrize("case", TEXT, ids=[case.name for case in TEXT])
def test_maps_and_states_are_those_of_transformers(case: Case) -> None:
    theirs = oracle(case)
    model = loaded(*published(theirs))
    theirs.set_attn_implementation("eager")
    with attention_maps(model) as maps, hidden_states(model) as states, torch.no_grad():
        answer = model(TOKENS)
    with torch.no_grad():
        found = theirs(TOKENS, output_attentions=True, output_hidden_states=True)
        assert torch.equal(answer, model(TOKENS))
    assert list(maps) == list(layers(model))
    for ours, other in zip(maps.values(), found.attentions, strict=True):
        assert (ours - other[..., : ours.shape[-1]]).abs().max() < 1e-5
    assert list(states) == ["stem", *(f"tower.blocks.{i}" for i in range(len(maps)))]
    *other_states, last = found.hidden_states  # theirs ends with the last block's after the norm
    for ours, other in zip([*states.values()], [*other_states, None], strict=True):
        ours, other = (model.tower.norm(ours), last) if other is None else (ours, other)
        assert (ours - other).abs().max() < 1e-4


def contexts() -> dict[str, Context]:
    padding = torch.ones(TOKENS.shape, dtype=torch.bool)
    padding[1, :3] = False  # rows that see nothing
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2], [0] * 12])
    return {"plain": Context(), "padding": Context(padding_bs=padding), "packed": Context(documents_bt=documents)}


@pytest.mark.parametrize("kind", contexts())
@pytest.mark.parametrize("family", DECODERS)
def test_a_map_times_the_values_is_the_layers_output(family: str, kind: str) -> None:
    model, ctx = small_model(family), contexts()[kind]
    outputs: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, given, y, name=name: outputs.update({name: (layer.v(given[0]), y)}))
        for name, layer in layers(model).items()
    ]
    with attention_maps(model) as maps, torch.no_grad():
        model(TOKENS, ctx)
    for hook in hooks:
        hook.remove()
    for name, layer in layers(model).items():
        v_bsf, y = outputs[name]
        v_bhsk = (
            v_bsf.unflatten(-1, layer.kv_shape()).repeat_interleave(maps[name].shape[1] // layer.kv_shape()[0], 2).transpose(1, 2)
        )
        rebuilt = layer.o((maps[name] @ v_bhsk).transpose(1, 2).flatten(-2))
        assert (rebuilt - y).abs().max() < 1e-5
        sums = maps[name].sum(-1)
        blind = ctx.padding_bs is not None
        sums = sums.where((sums == 0) | (layer.sinks is None), 1)  # a sink takes its share
        assert ((sums - 1).abs() < 1e-5).logical_or(sums == 0 if blind else sums < 0).all()
        assert (sums == 0).any() == blind


def test_nothing_is_left_behind_even_after_an_error() -> None:
    model = small_model("llama")
    with pytest.raises(ValueError, match="without a cache"), attention_maps(model), hidden_states(model):
        model(TOKENS, Context(positions_bt=torch.arange(12)[None], cache=DenseCache(12)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_flow_as_without() -> None:
    model = small_model("qwen3")
    with attention_maps(model) as maps, hidden_states(model) as states:
        watched = torch.autograd.grad(model(TOKENS).logsumexp(-1).sum(), list(model.parameters()))
    plain = torch.autograd.grad(model(TOKENS).logsumexp(-1).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    assert not any(value.requires_grad for value in [*maps.values(), *states.values()])
