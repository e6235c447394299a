"""`fit` against training that is written out by hand, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hornbook.batch import Batch, Loss
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers, build_optimizer
from hornbook.optim.schedule import batch_ramp, warmup_decay
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal_lm
from tests.reference import plain_training
from tests.reference.tiny import FAMILIES, LLAMA, Given, furthest, random_batch, tiny_model, weights

NEVER = math.inf  # a norm that clips nothing
CLOSE = 1e-12
# Micro-batches as they come from packed conversations: many targets, few, none at all, one.
RAGGED = [(3, 9, 1.0), (2, 7, 0.2), (1, 5, 0.0), (4, 6, 0.5), (1, 12, 0.1), (2, 3, 0.9)]


def ragged(count: int, seed: int = 0) -> list[Batch]:
    shapes = [RAGGED[number % len(RAGGED)] for number in range(count)]
    return [random_batch(rows, length, seed + number, share) for number, (rows, length, share) in enumerate(shapes)]


def joined(batches: list[Batch]) -> Batch:
    """The one big batch: all rows, the shorter ones filled up with targets that count for nothing."""
    longest = max(batch.tokens_bt.shape[1] for batch in batches)

    def padded(rows: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(rows, (0, longest - rows.shape[1]), value=fill)

    tokens = torch.cat([padded(batch.tokens_bt, 0) for batch in batches])
    return Batch(tokens, torch.cat([padded(batch.targets_bt, -100) for batch in batches]))


def gradients(config: dict[str, Any], batches: list[Batch], clip: float = NEVER) -> dict[str, Tensor]:
    """The gradients that one step of `fit` hands to its optimizer: what plain descent at rate 1 takes off the weights."""
    model = tiny_model(config)
    before = weights(model)
    plain = Optimizers([torch.optim.SGD(model.parameters(), lr=1.0)])
    fit(model, Given(batches), causal_lm, plain, lambda step: 1.0, Run(steps=1, accumulate=len(batches), clip=clip))
    return {name: before[name] - value for name, value in weights(model).items()}


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_micro_batches_give_the_gradients_of_one_batch(config: dict[str, Any]) -> None:
    batches = ragged(6)
    counts = {int((batch.targets_bt >= 0).sum()) for batch in batches}
    assert 0 in counts and len(counts) > 3
    _, by_hand = plain_training.mean_gradients(tiny_model(config), batches)
    many, one = gradients(config, batches), gradients(config, [joined(batches)])
    assert furthest(many, one) < CLOSE
    assert furthest(many, by_hand) < CLOSE


def test_a_mean_of_means_would_be_found_out() -> None:
    wrong = plain_training.mean_of_means(tiny_model(LLAMA), ragged(6))
    assert furthest(gradients(LLAMA, ragged(6)), wrong) > 1e-3


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_micro_batches_give_the_weights_of_one_batch(accumulate: int) -> None:
    """After several steps of AdamW, whose every step depends on all gradients before it."""
    steps, batches = 5, ragged(5 * accumulate)
    together = [joined(batches[step * accumulate : (step + 1) * accumulate]) for step in range(steps)]
    found = []
    for source, size in ((batches, accumulate), (together, 1)):
        model = tiny_model()
        optimizer = build_optimizer(model, "adamw", 0.01)
        fit(model, Given(source), causal_lm, optimizer, warmup_decay(steps, 2), Run(steps=steps, accumulate=size, clip=0.5))
        found.append(weights(model))
    assert furthest(*found) < CLOSE


def rates(name: str, value: Tensor) -> tuple[float, float]:
    """Learning rate and decay of a parameter, by its name: what `build_optimizer` is asked for below."""
    if value.ndim < 2:
        return 0.02, 0.0
    return (0.01, 0.3) if name.startswith("tower.") else (0.02, 0.3)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, NEVER), (1, 0.6), (3, 0.6)])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_fit_is_the_loop_written_by_hand(config: dict[str, Any], accumulate: int, clip: float) -> None:
    """Groups, accumulation, clipping, schedule, AdamW, and the figures of the log."""
    steps = 7
    batches = ragged(steps * accumulate) if accumulate > 1 else [random_batch(2, 6, seed, 0.6) for seed in range(steps)]
    grouped = [batches[step * accumulate : (step + 1) * accumulate] for step in range(steps)]
    factors = [1 / 2, 1.0] + [(steps - step) / (steps - 2) for step in range(2, steps)]
    plain = tiny_model(config)
    expected = plain_training.train(plain, grouped, factors, rates, clip)

    model, rows = tiny_model(config), list[dict[str, Any]]()
    optimizer = build_optimizer(model, "adamw", 0.01, embedding_rate=0.02, weight_decay=0.3)
    run = Run(steps=steps, accumulate=accumulate, clip=clip, log_every=1, log=rows.append)
    state = fit(model, Given(batches), causal_lm, optimizer, warmup_decay(steps, 2), run)

    assert state.step == steps
    assert clip == NEVER or all(norm > clip for _, norm in expected)
    # A key's bias shifts every logit of a query alike: its true gradient is nothing, and AdamW makes steps of the rounding.
    silent = {name for name, _ in model.named_parameters() if name.endswith(".k.bias")}
    ours, theirs = ({n: v for n, v in weights(m).items() if n not in silent} for m in (model, plain))
    assert furthest(ours, theirs) < CLOSE
    assert [row["loss"] for row in rows] == pytest.approx([loss for loss, _ in expected], abs=CLOSE)
    assert [row["grad_norm"] for row in rows] == pytest.approx([norm for _, norm in expected], abs=CLOSE)
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01 * factor for factor in factors], abs=1e-15)


def test_a_ramp_is_the_loop_written_by_hand(tmp_path: Path) -> None:
    """Steps of 1, 1, 1, 1, 2, 2, 3, 4 micro-batches; and a run that stops behind any of them goes on to the same weights."""
    ramp = batch_ramp(1, 4, 10)
    sizes, steps = [ramp(step) for step in range(8)], 8
    assert sizes == [1, 1, 1, 1, 2, 2, 3, 4]
    batches = [random_batch(2, 6, seed, 0.6) for seed in range(sum(sizes))]
    grouped = [batches[sum(sizes[:step]) : sum(sizes[: step + 1])] for step in range(steps)]
    factors = [1 / 2, 1.0] + [(steps - step) / (steps - 2) for step in range(2, steps)]
    plain = tiny_model()
    expected = plain_training.train(plain, grouped, factors, rates, NEVER)

    def trained(until: int, folder: Path | None = None) -> tuple[TransformerModel, list[dict[str, Any]]]:
        model, rows = tiny_model(), list[dict[str, Any]]()
        optimizer = build_optimizer(model, "adamw", 0.01, embedding_rate=0.02, weight_decay=0.3)
        run = Run(steps=until, accumulate=ramp, clip=NEVER, log_every=1, log=rows.append, folder=folder)
        fit(model, Given(batches), causal_lm, optimizer, warmup_decay(steps, 2), run)
        return model, rows

    model, rows = trained(steps)
    assert furthest(weights(model), weights(plain)) < CLOSE
    assert [row["loss"] for row in rows] == pytest.approx([loss for loss, _ in expected], abs=CLOSE)
    assert [row["tokens"] for row in rows] == [12 * sum(sizes[: step + 1]) for step in range(steps)]
    for stop in range(1, steps):
        folder = tmp_path / str(stop)
        trained(stop, folder)
        assert furthest(weights(trained(steps, folder)[0]), weights(model)) == 0


def test_clipping_shortens_the_whole_gradient() -> None:
    """Torch's rule, g * min(1, clip / (|g| + 1e-6)), with one norm over all parameters."""
    batches = ragged(3)
    whole, clipped = gradients(LLAMA, batches), gradients(LLAMA, batches, clip=0.05)
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in whole.values()))
    assert norm > 0.05
    assert furthest(clipped, {name: gradient * (0.05 / (norm + 1e-6)) for name, gradient in whole.items()}) < CLOSE


def test_rows_are_means_since_the_row_before() -> None:
    """Every figure of a row against sums by hand: rows come at step 1, at every third step and at the end."""
    steps, batches = 8, [random_batch(2, 6, seed, share) for seed, share in enumerate([0.2, 1, 0.5, 0.9, 0.1, 1, 0.3, 0.8])]
    plain = tiny_model()
    losses = plain_training.train(plain, [[batch] for batch in batches], [1.0] * steps, lambda name, value: (0.01, 0.0), NEVER)
    counts = [int((batch.targets_bt >= 0).sum()) for batch in batches]
    rows: list[dict[str, Any]] = []
    model = tiny_model()
    run = Run(steps=steps, clip=NEVER, log_every=3, stage="sft", log=rows.append)
    fit(model, Given(batches), causal_lm, build_optimizer(model, "adamw", 0.01, weight_decay=0.0), lambda step: 1.0, run)

    spans = {1: (0, 1), 3: (1, 3), 6: (3, 6), 8: (6, 8)}
    assert [row["step"] for row in rows] == list(spans)
    for row, (first, after) in zip(rows, spans.values(), strict=True):
        nats = sum(losses[step][0] * counts[step] for step in range(first, after))
        size = sum(batch.text_bytes for batch in batches[first:after])
        assert row["stage"] == "sft"
        assert row["loss"] == pytest.approx(nats / sum(counts[first:after]), abs=1e-12)
        assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, abs=1e-12)
        assert row["tokens"] == 12 * after
        assert row["tokens_per_second"] > 0 and row["seconds"] > 0


def test_a_step_without_any_target_moves_nothing() -> None:
    model = tiny_model()
    before, rows = weights(model), list[dict[str, Any]]()
    optimizer = build_optimizer(model, "adamw", 0.01, weight_decay=0.0)
    fit(model, Given([random_batch(2, 5, 0, 0.0)]), causal_lm, optimizer, lambda step: 1.0, Run(steps=1, log=rows.append))
    assert furthest(before, weights(model)) == 0
    assert rows[0]["loss"] == 0


def test_hooks_see_the_model_as_it_answers() -> None:
    seen: list[tuple[int, bool]] = []
    rows: list[dict[str, Any]] = []
    modes: list[bool] = []

    def hook(step: int, model: TransformerModel) -> dict[str, Any]:
        seen.append((step, model.training))
        return {"figure": step * 10}

    def objective(model: TransformerModel, batch: Batch) -> Loss:
        modes.append(model.training)
        return causal_lm(model, batch)

    model = tiny_model()
    run = Run(steps=7, hook_every=3, log_every=100, log=rows.append, stage="sft")
    batches = Given([random_batch(1, 4, seed) for seed in range(7)])
    fit(model, batches, objective, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run, [hook])
    assert seen == [(3, False), (6, False), (7, False)]
    assert [row for row in rows if "figure" in row] == [{"stage": "sft", "step": step, "figure": step * 10} for step in (3, 6, 7)]
    assert modes == [True] * 7
    assert not model.training


def test_hooks_that_draw_nothing_change_nothing() -> None:
    """A look at held-out text is only a look: with and without it the weights are the same bits."""

    def look(step: int, model: TransformerModel) -> dict[str, Any]:
        return {"elsewhere": causal_lm(model, random_batch(2, 4, 99)).total.item()}

    found = []
    for hooks in ((), (look,)):
        model = tiny_model(dtype=torch.float32)
        batches = Given([random_batch(2, 6, seed) for seed in range(5)])
        run = Run(steps=5, hook_every=1)
        fit(model, batches, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run, hooks)
        found.append(weights(model))
    assert furthest(*found) == 0


def test_a_finished_run_takes_no_further_batch(tmp_path: Path) -> None:
    batches, run = [random_batch(1, 4, seed) for seed in range(3)], Run(steps=3, folder=tmp_path, name="one")
    for source in (Given(batches), Given([])):
        model = tiny_model()
        state = fit(model, source, causal_lm, build_optimizer(model, "adamw", 0.01), lambda step: 1.0, run)
        assert (state.step, state.tokens) == (3, 12)
        assert not model.training
