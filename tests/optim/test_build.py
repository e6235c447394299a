"""Several optimizers that step as one, against torch's own, each alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hornbook.data.batches import Batches
from hornbook.families import build_any
from hornbook.model import TransformerModel
from hornbook.model.block import TowerLayer
from hornbook.model.moe import MoELayer
from hornbook.optim.build import Optimizers, Update, build_optimizer
from hornbook.optim.kinds import OPTIMIZERS
from hornbook.optim.muon import Muon
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.published import CASES, Case, oracle, published
from tests.reference.tiny import FAMILIES, LLAMA, TIED, furthest, tiny_model, tiny_stream, weights

every_family = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
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


@pytest.mark.parametrize(
    ("kind", "settings", "theirs"),
    [
        ("sgd", {"momentum": 0.0}, lambda groups: SGD(groups, foreach=False)),
        ("sgd", {}, lambda groups: SGD(groups, momentum=0.9, foreach=False)),
        ("sgd", {"momentum": 0.7, "nesterov": True}, lambda groups: SGD(groups, momentum=0.7, nesterov=True, foreach=False)),
        ("adam", {"betas": (0.8, 0.9)}, lambda groups: Adam(groups, betas=(0.8, 0.9), foreach=False)),
        ("adamw", {}, lambda groups: AdamW(groups, betas=(0.9, 0.95), foreach=False)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_equal_to_torchs(config: dict[str, Any], kind: str, settings: dict[str, Any], theirs: Callable[[Any], Optimizer]) -> None:
    """One parameter after the other, by name and shape, in torch's own loops: rates, decay and gradients of many sizes."""
    ours, other = tiny_model(config), tiny_model(config)
    optimizer = build_optimizer(ours, kind, 0.02, embedding_rate=0.005, weight_decay=0.1, **settings)
    groups = [
        {"params": [parameter], "peak": 0.02 if is_matrix(name, parameter) else 0.005, "weight_decay": 0.1 * (parameter.ndim > 1)}
        for name, parameter in other.named_parameters()
    ]
    reference = theirs(groups)
    for step, factor in enumerate(FACTORS):
        for model in (ours, other):
            set_gradients(model, step)
        optimizer.set_rate(factor)
        optimizer.step()
        for group in reference.param_groups:
            group["lr"] = factor * group["peak"]
        reference.step()
    assert furthest(weights(ours), weights(other)) < 1e-14


@pytest.mark.parametrize("kind", ["adamw", "muon"])
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


@every_family
def test_decay_of_every_published_family(case: Case) -> None:
    """Each parameter is in one group; no vector decays, every matrix of a tower does, embeddings do but beside Muon."""
    model = build_any(published(oracle(case))[0])
    towers = [module for tower in model.modules() if isinstance(tower, TowerLayer) for module in tower.modules()]
    for kind in OPTIMIZERS:
        groups = build_optimizer(model, kind, 0.1, weight_decay=0.5).groups()
        decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(decay) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            assert parameter.ndim > 1 or decay[id(parameter)] == 0, name
        matrices = [layer.weight for layer in towers if isinstance(layer, nn.Linear)]
        matrices += [weight for layer in towers if isinstance(layer, MoELayer) for weight in (layer.gate, layer.up, layer.down)]
        assert matrices and {decay[id(weight)] for weight in matrices} == {0.5}
        tables = [layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)]
        assert {decay[id(table)] for table in tables} <= {0.0 if kind == "muon" else 0.5}


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("adamv", {}, "did you mean 'adam'"), ("sdg", {}, "did you mean 'sgd'"),
        ("adamw", {"momentum": 0.9}, "momentum is for sgd and muon, not for adamw: 0.9"),
        ("sgd", {"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ("muon", {"nesterov": True}, "nesterov is for sgd"), ("sgd", {"nesterov": True, "momentum": 0}, "nesterov is for sgd with"),
        ("adam", {"betas": (0.9, 1.0)}, "beta2 must be"), ("adam", {"betas": (-0.1, 0.9)}, "beta1 must be"),
    ],
)  # fmt: skip
def test_what_an_optimizer_does_not_have_is_refused(kind: str, settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        build_optimizer(tiny_model(), kind, 0.1, **settings)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_however_it_is_computed_a_step_is_the_same(kind: str) -> None:
    """And so are the names, shapes and types of what an optimizer remembers."""
    found, states = [], []
    for update in get_args(Update):
        model = tiny_model(TIED, dtype=torch.float32)
        optimizer = build_optimizer(model, kind, 0.01, weight_decay=0.1, update=update)
        assert [(group["fused"], group["foreach"]) for group in optimizer.parts[-1].param_groups][0] == (
            update == "fused", update == "foreach",
        )  # fmt: skip
        for step in range(5):
            set_gradients(model, step)
            optimizer.step(clip=1.0)
        found.append(weights(model))
        states.append(
            [{name: (value.shape, value.dtype) for name, value in moments.items()} for _, _, moments in optimizer.states()]
        )
    assert furthest(found[0], found[1]) < 1e-6 and furthest(found[0], found[2]) < 1e-6
    assert states[0] == states[1] == states[2] and states[0]


def test_training_loads_no_compiler(tmp_path: Path) -> None:
    """Steps, states and going on from them; torch's own optimizers load it, two seconds long."""
    code = """
import sys
from pathlib import Path
from hornbook.data.batches import Batches
from hornbook.optim.build import build_optimizer
from hornbook.optim.kinds import OPTIMIZERS
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.tiny import tiny_model, tiny_stream
for kind in OPTIMIZERS:
    for steps in (1, 2):
        model, run = tiny_model(), Run(steps=steps, folder=Path(sys.argv[1], kind))
        fit(model, Batches(tiny_stream(), 4, 0), causal_lm, build_optimizer(model, kind, 0.01), lambda step: 1.0, run)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_run_goes_on_with_another_update(tmp_path: Path) -> None:
    """Stopped when fused and resumed a parameter at a time, it ends where it ends in one go."""

    def trained(steps: int, update: Update, folder: Path) -> tuple[TransformerModel, Optimizers]:
        model = tiny_model(TIED, dtype=torch.float32)
        optimizer = build_optimizer(model, "adamw", 0.01, update=update)
        run = Run(steps=steps, folder=folder, save_every=3)
        fit(model, Batches(tiny_stream(), 4, 0), causal_lm, optimizer, lambda step: 1.0, run)
        return model, optimizer

    whole, _ = trained(6, "fused", tmp_path / "whole")
    for update in get_args(Update):
        trained(3, "fused", tmp_path / update)
        model, optimizer = trained(6, update, tmp_path / update)
        assert all(group["fused"] == (update == "fused") for group in optimizer.groups())
        assert furthest(weights(model), weights(whole)) < 1e-6
