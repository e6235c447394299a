"""Several optimizers that step as one, against torch's own, each alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import AdamW

from hornbook.model import TransformerModel
from hornbook.optim.build import OPTIMIZERS, build_optimizer
from hornbook.optim.muon import Muon
from tests.reference.tiny import FAMILIES, LLAMA, TIED, furthest, tiny_model, weights

FACTORS = (0.25, 0.5, 1.0, 0.75, 0.1)


def set_gradients(model: TransformerModel, seed: int) -> None:
    """The same random gradients for every model of one shape."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return name.startswith("tower.") and parameter.ndim == 2


def test_muon_has_torchs_adamw_beside_it() -> None:
    ours, theirs = tiny_model(), tiny_model()
    optimizer = build_optimizer(ours, "muon", 0.02, embedding_rate=0.005, weight_decay=0.1, betas=(0.8, 0.9))
    matrices = [parameter for name, parameter in theirs.named_parameters() if is_matrix(name, parameter)]
    others = [parameter for name, parameter in theirs.named_parameters() if not is_matrix(name, parameter)]
    muon, adamw = Muon(matrices, lr=0.02, weight_decay=0.1), AdamW(others, lr=0.005, weight_decay=0.0, betas=(0.8, 0.9))
    for step, factor in enumerate(FACTORS):
        for model in (ours, theirs):
            set_gradients(model, step)
        assert optimizer.set_rate(factor) == 0.02 * factor
        optimizer.step()
        for part, rate in ((muon, 0.02), (adamw, 0.005)):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
    assert furthest(weights(ours), weights(theirs)) < 1e-14


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_vectors_never_decay(config: dict[str, Any], kind: str) -> None:
    """Without any gradient, what is left of a step is the decay: w * (1 - rate * decay)."""
    model = tiny_model(config)
    before = weights(model)
    optimizer = build_optimizer(model, kind, 0.1, embedding_rate=0.2, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, after in weights(model).items():
        embeddings = 0.0 if kind == "muon" else 0.2 * 0.5  # Muon's companion leaves embeddings undecayed
        shrink = 0.0 if after.ndim < 2 else 0.1 * 0.5 if is_matrix(name, after) else embeddings
        torch.testing.assert_close(after, before[name] * (1 - shrink), rtol=1e-14, atol=0)


def test_one_rate_for_all_where_none_is_given() -> None:
    optimizer = build_optimizer(tiny_model(), "adamw", 0.3)
    assert {group["lr"] for group in optimizer.groups()} == {0.3}
    assert {group["lr"] for group in build_optimizer(tiny_model(), "muon", 0.3, embedding_rate=0.1).groups()} == {0.3, 0.1}


def test_rates_scale_from_their_peaks_and_not_from_each_other() -> None:
    optimizer = build_optimizer(tiny_model(), "muon", 0.3, embedding_rate=0.1)
    for factor in (0.5, 0.5, 0.0, 1.0):
        optimizer.set_rate(factor)
        assert [group["lr"] for group in optimizer.groups()] == [0.3 * factor, 0.1 * factor, 0.1 * factor]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["apart", "tied"])
def test_every_parameter_is_stepped_and_cleared(config: dict[str, Any], kind: str) -> None:
    model = tiny_model(config)
    before, optimizer = weights(model), build_optimizer(model, kind, 0.01)
    assert len(optimizer.parameters()) == len(list(model.parameters()))
    set_gradients(model, 0)
    optimizer.step()
    assert all(bool((before[name] != after).any()) for name, after in weights(model).items())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_unknown_optimizer_offers_the_near_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        build_optimizer(tiny_model(), "adam", 0.1)
