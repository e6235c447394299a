"""A look into the layers against figures taken by hand in float64, in every family, and a training that does not notice it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from hornbook.adapt.probes import hidden_states
from hornbook.adapt.recompute import KINDS, recompute
from hornbook.errors import UserError
from hornbook.model.attention import AttentionLayer
from hornbook.model.block import BlockLayer
from hornbook.model.mlp import MLPLayer
from hornbook.model.moe import MoELayer
from hornbook.optim.build import build_optimizer
from hornbook.train.layers import Look, NoLook, looks
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference.published import CASES, Case, inputs_of, loaded, oracle, published
from tests.reference.tiny import GPT2, LLAMA, Given, furthest, random_batch, tiny_model, weights

DROPPING = {**GPT2, "resid_pdrop": 0.2, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
FIGURES = ("activation", "attention_logit", "gradient", "weight", "update", "dead")


def run(config: dict[str, Any], watched: bool, kind: str = "none", accumulate: int = 1, optimizer: str = "adamw") -> Any:
    """The weights after six steps, and the rows of looks at steps 1, 2, 4 and 6."""
    model, rows = tiny_model(config), list[dict[str, Any]]()
    recompute(model, kind)
    torch.manual_seed(3)
    batches = [random_batch(2, 8, n, 0.7) for n in range(6 * accumulate)]
    settings: dict[str, Any] = {"look": looks("pretrain", 2, rows.append)} if watched else {}
    fit(
        model, Given(batches), causal_lm, build_optimizer(model, optimizer, 0.01), lambda step: 1.0,
        Run(steps=6, accumulate=accumulate, **settings),
    )  # fmt: skip
    return weights(model), rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_bit_of_the_training_changes(kind: str, optimizer: str) -> None:
    plain, _ = run(DROPPING, False, kind, 2, optimizer)
    watched, rows = run(DROPPING, True, kind, 2, optimizer)
    assert furthest(plain, watched) == 0 and [row["step"] for row in rows] == [1, 2, 4, 6]


def test_a_forward_that_runs_twice_shows_the_same() -> None:
    plain, *others = (run(DROPPING, True, kind, 2)[1] for kind in KINDS)
    assert others == [plain, plain]


def by_hand(model: Any, batches: list[Any], rate: float) -> dict[str, list[float]]:
    """The figures of one step of plain descent, each from its definition; the model steps."""
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, BlockLayer)}
    squares: dict[str, list[Tensor]] = {name: [] for name in blocks}
    logits: dict[str, list[float]] = {name: [] for name in blocks}
    units: dict[str, list[Tensor]] = {name: [] for name in blocks}

    def attended(layer: AttentionLayer, given: Any, y: Tensor, name: str) -> None:
        x, ctx = given
        q, k, _, how = layer.looks(x, ctx)
        for row in range(len(q)):
            for head in range(q.shape[2]):
                for query in range(q.shape[1]):
                    seen = k[row, : query + 1, head * k.shape[2] // q.shape[2]]
                    logits[name].append(float((seen @ q[row, query, head]).detach().max()) / q.shape[-1] ** 0.5)

    hooks = []
    for name, block in blocks.items():
        for part in block.modules():
            if isinstance(part, AttentionLayer):
                hooks.append(part.register_forward_hook(lambda *call, name=name: attended(*call, name=name)))
            if isinstance(part, MLPLayer):
                kept = units[name]
                hooks.append(part.down.register_forward_hook(lambda _, given, y, kept=kept: kept.append(given[0].flatten(0, 1))))
    count = sum(int((batch.targets_bt >= 0).sum()) for batch in batches)
    for batch in batches:
        with hidden_states(model) as states:
            (causal_lm(model, batch).total / count).backward()
        for name in blocks:
            squares[name].append(states[name].square())
    for hook in hooks:
        hook.remove()
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for name, block in blocks.items():
        grads = torch.cat([p.grad.flatten() for p in block.parameters() if p.grad is not None])
        norm = float(torch.cat([p.detach().flatten() for p in block.parameters()]).norm())
        found["activation"].append(float(torch.cat([x.flatten() for x in squares[name]]).mean().sqrt()))
        found["attention_logit"].append(max(logits[name]))
        found["gradient"].append(float(grads.norm()))
        found["weight"].append(norm)
        found["update"].append(rate * float(grads.norm()) / norm)
        found["dead"].append(float((torch.cat(units[name]).abs().amax(0) == 0).double().mean()))
    return found


@pytest.mark.parametrize("config", [LLAMA, {**GPT2, "activation_function": "relu"}], ids=["llama", "gpt2 with relu"])
def test_the_figures_are_those_taken_by_hand(config: dict[str, Any]) -> None:
    """Over ragged micro-batches. Two hidden units of the second block are dead: below zero whatever comes in."""
    batches, rows = [random_batch(rows, 7, rows) for rows in (1, 3, 2)], list[dict[str, Any]]()
    models = [tiny_model(config), tiny_model(config)]
    for model in models:
        mlp: Any = [module for module in model.modules() if isinstance(module, MLPLayer)][1]
        with torch.no_grad():
            mlp.up.weight[:2] = 0.0
            if mlp.up.bias is not None:
                mlp.up.bias[:2] = -1.0
    expected = by_hand(models[0], batches, 0.1)
    optimizer = build_optimizer(models[1], "sgd", 0.1, weight_decay=0.0, momentum=0.0)
    run = Run(steps=1, accumulate=3, clip=1e9, look=looks("pretrain", 5, rows.append))
    fit(models[1], Given(batches), causal_lm, optimizer, lambda step: 1.0, run)
    (row,) = rows
    assert row["stage"] == "pretrain" and row["step"] == 1 and row["layers"] == ["tower.blocks.0", "tower.blocks.1"]
    assert expected["dead"][1] >= 2 / 64
    for name in FIGURES:
        assert row[name] == pytest.approx(expected[name], rel=1e-7 if name == "dead" else 1e-9, abs=1e-12), name


FIRST = {case.model_type: case for case in reversed(CASES)}  # of each family


@pytest.mark.parametrize("case", FIRST.values(), ids=FIRST)
def test_every_family_can_be_looked_into(case: Case) -> None:
    """Every block has every figure, and the gradients are those of a step that nobody looks at, to the bit."""
    found, rows, whole = [], list[dict[str, Any]](), loaded(*published(oracle(case))).train()
    for watched in (True, False):
        model = copy.deepcopy(whole)
        look = Look({"step": 1}, model, rows.append) if watched else NoLook()
        with look:
            model(*inputs_of(case)).logsumexp(-1).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.01
        look.taken()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert furthest(*found) == 0
    (row,) = rows
    assert row["layers"] == [name for name, module in model.named_modules() if isinstance(module, BlockLayer)]
    assert not any(module._forward_hooks for module in model.modules())
    for name in FIGURES:
        assert len(row[name]) == len(row["layers"]) and all(value is not None for value in row[name])
    assert row["update"] == pytest.approx([0.01] * len(row["layers"]), rel=1e-3)
    assert min(row["activation"] + row["gradient"] + row["weight"]) > 0 and max(row["dead"]) < 1


def test_an_expert_that_nobody_asks_is_dead() -> None:
    case, rows = FIRST["mixtral"], list[dict[str, Any]]()
    model = loaded(*published(oracle(case))).train()
    moe = [module for module in model.modules() if isinstance(module, MoELayer)][0]
    with torch.no_grad():
        moe.up[3] = 0.0  # silent whatever comes
    with Look({}, model, rows.append) as look:
        model(*inputs_of(case)).logsumexp(-1).sum().backward()
    look.taken()
    (row,) = rows
    asked = 1 - float(((moe.load_e == 0) | (torch.arange(5) == 3)).float().mean())  # of five experts
    assert row["dead"] == pytest.approx([1 - asked, *([row["dead"][1]] * 2)]) and row["dead"][0] >= 0.2


def test_what_is_no_number_is_none() -> None:
    """And a step that was not learned from moved nothing."""
    rows: list[dict[str, Any]] = []
    model = tiny_model(LLAMA)
    with torch.no_grad():
        next(model.tower.blocks[1].parameters())[0, 0] = torch.nan
    with pytest.raises(UserError, match="cannot be learned from"):
        fit(
            model, Given([random_batch(2, 8, n) for n in range(6)]), causal_lm, build_optimizer(model, "adamw", 0.01),
            lambda step: 1.0, Run(steps=6, look=looks("pretrain", 1, rows.append)),
        )  # fmt: skip
    json.dumps(rows, allow_nan=False)
    assert len(rows) == 3 and rows[0]["activation"][1] is rows[0]["dead"][1] is rows[0]["gradient"][0] is None
    assert rows[0]["activation"][0] > 0 == rows[0]["update"][0] and rows[0]["weight"][1] is rows[0]["update"][1] is None
