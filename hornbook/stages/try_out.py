"""A recipe -> what rates and optimizers do on its own text, in a few minutes, before a long run is paid for.

Every trial begins from the same weights and reads the same batches; only the optimizer and its rate differ. The rate finder (Smith
2017, section 3.3) raises the rate at every step and watches the loss: where it stops falling, the rate is too large, and a third of
that is a rule of thumb. The comparison gives each optimizer the best of a few rates of its own; at one rate for all, the winner
would be whom that rate suits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hornbook import families
from hornbook.batch import Batch
from hornbook.data.batches import Batches, Rows
from hornbook.errors import UserError
from hornbook.model import TransformerModel, initialize
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.ranks import choose_device
from hornbook.stages.keep import run_folder
from hornbook.stages.learn import check_model, held_out, model_config, training_rows
from hornbook.stages.runs import prepared
from hornbook.stages.settings import Recipe
from hornbook.stages.voice import Voice
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.loop import Hook, Run, fit, ignore
from hornbook.train.objective import causal_lm
from hornbook.train.signals import Ended

HOPELESS = 1.25  # times the first loss: the sweep ends there
AROUND = 2  # neighbours on either side that a swept loss is averaged with
PART = 1 / 3  # of the rate where the loss was least; Smith 2017 gives a third or a quarter
# Around what small models want; the table says where the best lies at an end.
RATES = {"sgd": (0.1, 0.3, 1.0), "adam": (0.001, 0.003, 0.01), "adamw": (0.001, 0.003, 0.01), "muon": (0.003, 0.01, 0.03)}


class OneBatch:
    """A source of batches that gives one and the same."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return


@dataclass(frozen=True)
class Trials:
    """What all trials share: the recipe, its model, its text, and how a trained model is looked at."""

    recipe: Recipe
    config: dict[str, Any]
    rows: Rows
    held_out: Hook
    device: torch.device

    def learn(
        self, settings: dict[str, Any], rates: Sequence[float], one_batch: bool = False, hopeless: float = math.inf,
        tell: Callable[[int], None] = ignore,
    ) -> tuple[TransformerModel, list[float]]:  # fmt: skip
        """A new model after a step at each of the rates, and each step's loss; it ends where a loss is not finite or hopeless.

        `settings` go to `build_optimizer`, whose rates are multiplied by those given. `tell` is called with each step's number.
        """
        recipe, losses = self.recipe, list[float]()
        torch.manual_seed(recipe.seed)  # dropout's
        model = initialize(families.build(self.config, "[model]"), recipe.seed, recipe.init_std).to(self.device)
        optimizer = build_optimizer(model, **settings, weight_decay=recipe.weight_decay)
        batches: Any = Batches(self.rows, recipe.rows, recipe.seed, self.device)

        def log(row: dict[str, Any]) -> None:
            losses.append(row.get("loss", math.inf))  # a step that is not finite is left out, and logged without a loss
            tell(len(losses))
            if not losses[-1] < hopeless * losses[0]:
                raise Ended

        accumulate = 1 if one_batch else recipe.accumulate
        run = Run(steps=len(rates), accumulate=accumulate, clip=recipe.clip, sigmas=0, log=log, log_every=1)
        try:
            fit(model, OneBatch(next(batches)) if one_batch else batches, causal_lm, optimizer, rates.__getitem__, run)
        except Ended:
            pass
        return model, losses


def trials(recipe: Recipe, voice: Voice) -> Trials:
    """The recipe's corpus, tokenizer and shards, made in `recipe.out` or kept from before, as trials need them."""
    device, out = choose_device(recipe.device), Path(recipe.out)
    voice.say(f"device: {device}")
    if recipe.objective != "causal":
        raise UserError(
            f"{recipe.objective} recipes cannot be tried out", where="objective", fix="name a recipe whose objective is causal"
        )
    check_model(recipe)
    with run_folder(out):
        tokenizer: Tokenizer = prepared(recipe, voice)
        rows = training_rows(recipe, tokenizer, out / "shards", voice)
        return Trials(recipe, model_config(recipe, tokenizer), rows, held_out(tokenizer, out / "corpus", recipe.context), device)


def try_rates(trials: Trials, steps: int, low: float, high: float, voice: Voice) -> dict[str, Any]:
    """The recipe's optimizer at `steps` rates from `low` to `high`, each larger by one factor; and the rate that this suggests."""
    if not 0 < low < high or steps < 2 * AROUND + 1:
        raise UserError(
            "the rates cannot be swept", where=f"--low {low} --high {high} --steps {steps}",
            why=f"low must be above 0 and below high, steps at least {2 * AROUND + 1}", fix="give --low 1e-5 --high 10 --steps 100",
        )  # fmt: skip
    recipe = trials.recipe
    voice.begin("try rates", f"{recipe.optimizer}, {low:g} to {high:g} in {steps} steps of {_tokens(recipe)} tokens")
    settings = {
        "kind": recipe.optimizer, "learning_rate": 1.0, "embedding_rate": recipe.embedding_rate / recipe.learning_rate,
        "betas": (recipe.beta1, recipe.beta2), "momentum": recipe.momentum, "nesterov": recipe.nesterov,
    }  # fmt: skip
    rates = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    _, losses = trials.learn(settings, rates, hopeless=HOPELESS, tell=lambda step: voice.progress(step, steps, {}))
    found = {
        "optimizer": recipe.optimizer, "recipe_rate": recipe.learning_rate,
        "sweep": [{"rate": rate, "loss": loss} for rate, loss in zip(rates, losses, strict=False) if math.isfinite(loss)],
    } | suggestion(rates, losses)  # fmt: skip
    if found["lowest"] == found["smooth"][-1]["rate"]:
        voice.say("the loss still fell where the sweep ended: a larger --high would show more")
    voice.end(f"suggested rate {found['suggested']:.2g}")
    return found


def suggestion(rates: Sequence[float], losses: Sequence[float]) -> dict[str, Any]:
    """Where the averaged loss was least, and a third of that rate. Steps at the ends, and all beside a loss of inf, have none."""
    smooth = {rates[i]: sum(losses[i - AROUND : i + AROUND + 1]) / (2 * AROUND + 1) for i in range(AROUND, len(losses) - AROUND)}
    finite = {rate: loss for rate, loss in smooth.items() if math.isfinite(loss)}
    if not finite:
        raise UserError(
            "no rate of the sweep can be learned with", why=f"it ended after {len(losses)} steps", fix="give a lower --low"
        )
    lowest = min(finite, key=lambda rate: finite[rate])
    rows = [{"rate": rate, "loss": loss} for rate, loss in finite.items()]
    return {"smooth": rows, "lowest": lowest, "suggested": lowest * PART}


def try_optimizers(trials: Trials, steps: int, voice: Voice) -> dict[str, Any]:
    """Each optimizer at each of its rates: on one batch, to learn it by heart, and on a short run of new text.

    Beside the loss of the last tenth of the steps, the best of a kind has the held-out figure of its model.
    """
    recipe, start = trials.recipe, time.perf_counter()
    voice.begin("try optimizers", f"{len(RATES)} optimizers, {steps} steps of {_tokens(recipe)} tokens per trial")
    total, done = 2 * sum(map(len, RATES.values())), 0
    shared = {"rows": recipe.rows, "context": recipe.context, "weight_decay": recipe.weight_decay}
    found: dict[str, Any] = {"steps": steps, **shared, "one_batch": {}, "short_run": {}}
    factors = {
        "one_batch": warmup_decay(steps, max(1, steps // 10), "constant"),
        "short_run": warmup_decay(steps, max(1, steps // 10), "linear"),
    }
    for task, factor in factors.items():
        for kind, rates in RATES.items():
            trained = {}
            for rate in rates:
                voice.progress(done, total, {})
                settings = {"kind": kind, "learning_rate": rate}
                trained[rate] = trials.learn(settings, list(map(factor, range(steps))), task == "one_batch")
                done += 1
            found[task][kind] = _best(trained, steps)
            if task == "short_run" and found[task][kind]["loss"] is not None:
                found[task][kind] |= trials.held_out(steps, trained[found[task][kind]["rate"]][0].eval())
    found["seconds"] = time.perf_counter() - start
    voice.end(f"{total} trials")
    return found


def _best(trained: dict[float, tuple[TransformerModel, list[float]]], steps: int) -> dict[str, Any]:
    """The losses at the end by rate, None where a trial did not get there, and the best rate with its whole curve."""
    last = max(1, steps // 10)
    ends = {rate: sum(losses[-last:]) / last if len(losses) == steps else math.inf for rate, (_, losses) in trained.items()}
    best = min(ends, key=lambda rate: ends[rate])
    tried = {rate: loss if math.isfinite(loss) else None for rate, loss in ends.items()}
    return {
        "rate": best, "loss": tried[best], "at_an_end": best in (min(ends), max(ends)),
        "losses": list(filter(math.isfinite, trained[best][1])),
        "tried": [{"rate": rate, "loss": loss} for rate, loss in tried.items()],
    }  # fmt: skip


def _tokens(recipe: Recipe) -> int:
    return recipe.rows * recipe.accumulate * recipe.context
