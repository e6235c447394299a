"""Initial weights, measured: the first loss, the spreads, the seed, the ties."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from hornbook.families import build
from hornbook.model import Context, TransformerModel, initialize
from tests.reference.models import DECODERS, small_config, small_model

pytestmark = pytest.mark.parametrize("family", DECODERS)
VOCAB = 500
# A wider shape than the small configs have, so that a spread is measured on thousands of numbers.
WIDE = {
    "gpt2": {"n_embd": 128, "n_layer": 4},
    "bloom": {"hidden_size": 128, "n_layer": 4},
}
USUAL = {"hidden_size": 128, "intermediate_size": 384, "moe_intermediate_size": 384, "head_dim": 32, "num_hidden_layers": 4,
         "layer_types": None, "use_sliding_window": False}  # fmt: skip


def wide_model(family: str, seed: int = 0, std: float = 0.02) -> TransformerModel:
    model = build(small_config(family, VOCAB, **WIDE.get(family, USUAL)))
    with torch.no_grad():
        for parameter in model.parameters():  # what initialize forgets stays visible
            parameter.fill_(math.nan)
    return initialize(model, seed, std)


def test_the_first_loss_is_that_of_a_guess(family: str) -> None:
    tokens = torch.randint(VOCAB, (8, 33), generator=torch.Generator().manual_seed(0))
    logits = wide_model(family)(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(VOCAB)) < 0.3


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_spreads_as_measured(family: str, std: float) -> None:
    model, layers = wide_model(family, std=std), 4
    for name, parameter in ((name, value.detach()) for name, value in model.named_parameters()):
        offset = family.startswith("gemma") and parameter.ndim == 1  # its norms scale by 1 + w
        if name.endswith(("bias", "sinks")) or ".biases." in name or offset:
            assert (parameter == 0).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            writes = name.endswith((".o.weight", ".down.weight", ".down"))  # into the residual stream
            expected = std / math.sqrt(2 * layers) if writes else std
            assert abs(float(parameter.std()) / expected - 1) < 5 / math.sqrt(2 * parameter.numel()), name  # five standard errors
            assert abs(float(parameter.mean())) < 5 * expected / math.sqrt(parameter.numel()), name


def test_the_streams_variance_does_not_grow_with_depth(family: str) -> None:
    """What the division by sqrt(2 * layers) is for: eight times the layers add no more to the stream."""
    if family in ("gemma2", "gemma3_text", "olmo2"):
        pytest.skip("a norm after each part gives it unit variance, whatever its weights")
    depth = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    tokens = torch.randint(VOCAB, (4, 16), generator=torch.Generator().manual_seed(0))
    added = []
    for layers in (2, 16):
        model = initialize(build(small_config(family, VOCAB, **{**WIDE.get(family, USUAL), depth: layers})), 0)
        model.tower.norm = torch.nn.Identity()
        added.append(float((model.hidden(tokens) - model.stem(tokens, Context())[0]).detach().var()))
    assert added[1] < 2 * added[0]


def test_the_seed_alone_decides(family: str) -> None:
    first = wide_model(family).state_dict()
    torch.manual_seed(1234)
    torch.rand(17)
    again, other = wide_model(family).state_dict(), wide_model(family, seed=1).state_dict()
    assert all(torch.isfinite(value).all() and torch.equal(value, again[name]) for name, value in first.items())
    assert all(not torch.equal(value, other[name]) for name, value in first.items() if value.ndim == 2 and ".biases." not in name)


def test_drawing_weights_leaves_torchs_own_generator_alone(family: str) -> None:
    model = build(small_config(family, 50))
    state = torch.get_rng_state()
    initialize(model, 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_tied_weights_are_one_tensor(family: str) -> None:
    tie = {"tie_word_embeddings": True}
    built = small_model(family, **tie)
    assert built.ties
    loaded = build(small_config(family, **tie))
    loaded.load_state_dict(built.state_dict())
    assigned = build(small_config(family, **tie))
    assigned.load_state_dict({name: value.clone() for name, value in built.state_dict().items()}, assign=True)
    assigned.tie()
    for model in (built, loaded, assigned, loaded.double(), small_model(family, **tie).bfloat16()):
        for name, owner in model.ties:
            assert model.get_parameter(name) is model.get_parameter(owner)
        parameters = set(model.state_dict()) - {name for name, _ in model.named_buffers()}
        assert len(list(model.parameters())) == len(parameters) - len(model.ties)
    untied = small_model(family, tie_word_embeddings=False)
    assert untied.get_parameter("head.out.weight") is not untied.get_parameter("stem.tokens.weight")


def test_a_tied_weight_gathers_both_gradients(family: str) -> None:
    """The tied gradient is the sum of what the embedding and the head would get apart."""
    tied, untied = (small_model(family, tie_word_embeddings=tie).double() for tie in (True, False))
    untied.load_state_dict(tied.state_dict())
    tokens = torch.arange(12)[None]
    for model in (tied, untied):
        model(tokens).logsumexp(-1).square().sum().backward()
    apart = [untied.get_parameter(name).grad for name in ("head.out.weight", "stem.tokens.weight")]
    assert (tied.get_parameter("stem.tokens.weight").grad - sum(apart)).abs().max() < 1e-10
