"""bf16 weights with float32 masters, beside a float32 run and beside bf16 alone; stopped and continued to the bit."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from hornbook.checkpoint.state import Keep, newest_state, restore, snapshot, write_snapshot
from hornbook.data.batches import Batches
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers, build_optimizer
from hornbook.optim.masters import Masters
from hornbook.train.loop import Run, fit, ignore
from hornbook.train.objective import causal_lm
from tests.reference.tiny import LLAMA, TIED, random_batch, tiny_model, tiny_stream, weights


def short(kind: str = "adamw", rate: float = 1e-2, config: dict[str, object] = TIED) -> tuple[TransformerModel, Masters]:
    model = tiny_model(config, dtype=torch.float32)
    return model, Masters(model, build_optimizer(model, kind, rate))


def trained(model: TransformerModel, optimizer: Optimizers, steps: int = 30, accumulate: int = 2) -> list[float]:
    losses: list[float] = []
    run = Run(steps=steps, accumulate=accumulate, log_every=1, log=lambda row: losses.append(row["loss"]))
    fit(model, Batches(tiny_stream(), 4, 0), causal_lm, optimizer, lambda step: 1.0, run)
    return losses


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd"])
def test_a_run_is_a_float32_run_within_bf16(kind: str) -> None:
    plain = tiny_model(TIED, dtype=torch.float32)
    long = trained(plain, build_optimizer(plain, kind, 1e-2))
    model, optimizer = short(kind)
    losses = trained(model, optimizer)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert losses != long  # bf16 is at work
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(long), rtol=0, atol=0.03)
    optimizer.finish()
    assert model.head.out.weight is model.stem.tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(p, q) for p, q in zip(optimizer.parameters(), model_masters(optimizer), strict=True))


def model_masters(optimizer: Optimizers) -> list[torch.Tensor]:
    return [p for group in optimizer.groups() for p in group["params"]]


def test_steps_too_small_for_bf16_add_up() -> None:
    """SGD by hand: forty steps of a 2,000th of a weight move it by a fiftieth; in bf16 alone each is rounded away."""
    model, optimizer = short("sgd", rate=1.0)
    for group in optimizer.groups():
        group.update(momentum=0.0, weight_decay=0.0)
    before, alone = ({n: p.detach().clone() for n, p in model.named_parameters()} for _ in range(2))
    for _ in range(40):
        for name, p in model.named_parameters():
            p.grad = before[name].float() / 2000
            alone[name] -= before[name] / 2000
        optimizer.step()
    assert all(torch.equal(alone[name], value) for name, value in before.items())
    for long, name in zip(model_masters(optimizer), order(model, optimizer), strict=True):
        torch.testing.assert_close(long.detach(), before[name].float() * 0.98, rtol=2**-7, atol=0)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if before[n].abs().max() > 0)


def order(model: TransformerModel, optimizer: Optimizers) -> list[str]:
    """The parameters' names in the order of their masters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for parameter, _, _ in optimizer.states()]


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    model, _ = short(config=LLAMA)
    batches = [random_batch(2, 8, seed) for seed in range(3)]
    for batch in batches:
        causal_lm(model, batch).total.backward()
    whole = {name: p.grad for name, p in model.named_parameters()}
    parts = []
    for batch in batches:
        model.zero_grad()
        causal_lm(model, batch).total.backward()
        parts.append({name: p.grad for name, p in model.named_parameters()})
    for name, found in whole.items():
        assert found is not None and found.dtype == torch.float32
        assert torch.equal(found, parts[0][name] + parts[1][name] + parts[2][name])  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [0, 5])
def test_a_state_brings_the_masters_back_to_the_bit(kind: str, steps: int, tmp_path: Path) -> None:
    source = list(islice(Batches(tiny_stream(), 4, 0), 9))

    def go_on(model: TransformerModel, optimizer: Optimizers, first: int, last: int) -> None:
        for batch in source[first:last]:
            causal_lm(model, batch).total.backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = short(kind)
    go_on(model, optimizer, 0, steps)
    write_snapshot(tmp_path, snapshot(steps, model, optimizer, {}, {}), Keep())
    go_on(model, optimizer, steps, 9)
    again, continued = short(kind)
    go_on(again, continued, 3, 6)  # is forgotten
    found = newest_state(tmp_path, ignore)
    assert found is not None
    restore(found, again, continued)
    go_on(again, continued, steps, 9)
    for mine, theirs in ((weights(model), weights(again)), *zip(*map(masters_named, (optimizer, continued)), strict=True)):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def masters_named(optimizer: Optimizers) -> list[dict[str, torch.Tensor]]:
    return [{str(n): p.detach() for n, p in enumerate(model_masters(optimizer))}]
