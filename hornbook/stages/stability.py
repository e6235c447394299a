"""A recipe -> its run as it is and with each known remedy against blowing up, all from the same weights and the same batches.

At the edge chance decides what blows up, so each is run from several seeds, the same ones for all.

QK-norm (Dehghani et al. 2023) and softcaps (Gemma 2) change the spec of a built model from outside, so that all else stays equal;
z-loss is PaLM's. The guard, which would rescue every run, watches only the one that is named after it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hornbook import families
from hornbook.data.batches import Batches
from hornbook.errors import Interrupted
from hornbook.model import TransformerModel, initialize
from hornbook.model.attention import Attention, PerHead
from hornbook.model.head import LMHead
from hornbook.model.norm import RMSNorm
from hornbook.optim.build import build_optimizer
from hornbook.optim.schedule import warmup_decay
from hornbook.stages.settings import Recipe
from hornbook.stages.try_out import Trials
from hornbook.stages.voice import Voice
from hornbook.train.layers import looks
from hornbook.train.loop import Run, fit
from hornbook.train.objective import causal
from hornbook.train.signals import Ended

SEEDS = 3  # the recipe's, and those that follow it
LOOKS = 50  # at the layers, in a run
RISE = 1.0  # nats above the best loss before it: more than a batch differs from the next
POINTS = 5  # states in a run that the guard may go back to


@dataclass(frozen=True)
class Remedy:
    """What differs from the recipe: its settings, and fields of every `Attention` and of the head."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)

    def model(self, trials: Trials) -> TransformerModel:
        recipe = trials.recipe
        spec = changed(changed(families.build(trials.config, "[model]").spec, Attention, self.attention), LMHead, self.head)
        return initialize(spec.build(), recipe.seed, recipe.init_std).to(trials.device)


def remedies(steps: int) -> dict[str, Remedy]:
    """Each by the name that tells its setting."""
    qk_norm, warmup = PerHead(RMSNorm()), max(1, steps // 5)
    return {
        "as it is": Remedy(),
        "z-loss 1e-4": Remedy({"z_loss": 1e-4}),
        "QK-norm": Remedy(attention={"qk_norm": qk_norm}),
        "attention softcap 50": Remedy(attention={"softcap": 50.0}),
        "logit softcap 30": Remedy(head={"softcap": 30.0}),
        "clipping at 1": Remedy({"clip": 1.0}),
        f"warmup of {warmup}": Remedy({"warmup": warmup}),
        "QK-norm and clipping": Remedy({"clip": 1.0}, {"qk_norm": qk_norm}),
        "the guard alone": Remedy({"sigmas": 6.0}),
    }


def changed(spec: Any, kind: type, values: Mapping[str, Any]) -> Any:
    """The spec with `values` for those fields of every spec of that kind inside it that are None: what is set already stays."""
    if isinstance(spec, kind):
        return replace(spec, **{name: value for name, value in values.items() if getattr(spec, name) is None})  # type: ignore[type-var]
    if isinstance(spec, tuple):
        return tuple(changed(part, kind, values) for part in spec)
    if is_dataclass(spec) and not isinstance(spec, type):
        return replace(spec, **{part.name: changed(getattr(spec, part.name), kind, values) for part in fields(spec)})
    return spec


def try_stability(trials: Trials, steps: int, voice: Voice) -> dict[str, Any]:
    """Every remedy's runs, as the record of `try-stability.json`."""
    recipe, tried, found = replace(trials.recipe, steps=steps, sigmas=0.0), remedies(steps), list[dict[str, Any]]()
    seeds = range(recipe.seed, recipe.seed + SEEDS)
    doing = f"{len(tried)} times {SEEDS} runs of {steps} steps of {recipe.rows * recipe.accumulate * recipe.context} tokens"
    voice.begin("try stability", doing)
    for name, remedy in tried.items():
        runs = [{"seed": seed, **_run(replace(trials, recipe=replace(recipe, seed=seed)), remedy)} for seed in seeds]
        found.append({"name": name, "runs": runs})
        voice.progress(len(found), len(tried), {})
    voice.end(f"{len(tried) * SEEDS} runs")
    shown = ("optimizer", "learning_rate", "embedding_rate", "init_std", "warmup", "clip", "z_loss", "rows", "context")
    return {"steps": steps, "rise": RISE, "settings": {name: str(getattr(recipe, name)) for name in shown}, "remedies": found}


def _run(trials: Trials, remedy: Remedy) -> dict[str, Any]:
    recipe = replace(trials.recipe, **remedy.settings)
    torch.manual_seed(recipe.seed)  # dropout's
    model, rows, layers = remedy.model(trials), list[dict[str, Any]](), list[dict[str, Any]]()

    def log(row: dict[str, Any]) -> None:
        rows.append(row)
        if "left_out" in row and not recipe.sigmas or len(rows) > 2 * recipe.steps:  # the guard may go back again and again
            raise Ended

    optimizer = build_optimizer(
        model, recipe.optimizer, recipe.learning_rate, embedding_rate=recipe.embedding_rate, weight_decay=recipe.weight_decay,
        betas=(recipe.beta1, recipe.beta2), momentum=recipe.momentum, nesterov=recipe.nesterov,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            steps=recipe.steps, accumulate=recipe.accumulate, clip=recipe.clip, sigmas=recipe.sigmas, log=log, log_every=1,
            folder=Path(folder) if recipe.sigmas else None, save_every=max(1, recipe.steps // POINTS),
            look=looks("try", max(1, recipe.steps // LOOKS), layers.append),
        )  # fmt: skip
        batches, factor = Batches(trials.rows, recipe.rows, recipe.seed, trials.device), _factor(recipe)
        try:
            fit(model, batches, causal(recipe.z_loss), optimizer, factor, run)
        except Ended:
            pass
        except Interrupted:
            raise KeyboardInterrupt from None  # there is no state of a trial to save
    return figures(rows, layers, recipe.steps)


def _factor(recipe: Recipe) -> Callable[[int], float]:
    return warmup_decay(recipe.steps, recipe.warmup, recipe.decay, recipe.decay_steps)


def figures(rows: list[dict[str, Any]], layers: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """What a run's rows, one per step, and its looks say.

    `final` is the mean loss of the last tenth of the steps, None where the run did not get there; `worst` the loss that stood the
    highest above the best before it; `rose` the first step that stood more than `RISE` above the best before it.
    """
    learned = [row for row in rows if "loss" in row]
    best, height, worst, rose = math.inf, 0.0, None, None
    for row in learned:
        best = min(best, row["loss"])
        if row["loss"] - best >= height:
            height, worst = row["loss"] - best, row["loss"]
        if rose is None and row["loss"] > best + RISE:
            rose = row["step"]
    end = [row["loss"] for row in learned if row["step"] > 0.9 * steps]
    reached = bool(rows) and rows[-1]["step"] == steps and bool(end)
    peaks = [(look["step"], [peak for peak in look["attention_logit"] if peak is not None]) for look in layers]
    logits = {step: max(found) for step, found in peaks if found}  # of a step that the guard went back over, the later
    return {
        "final": sum(end) / len(end) if reached else None, "worst": worst, "rose": rose,
        "left_out": sum("left_out" in row for row in rows),
        "last_step": rows[-1]["step"] if rows else 0, "gradient": max((row["grad_norm"] for row in learned), default=None),
        "logit": max((max(found) for _, found in peaks if found), default=None),
        "logits": [{"step": step, "logit": logit} for step, logit in sorted(logits.items())],
        "losses": [{"step": step, "loss": loss} for step, loss in sorted({row["step"]: row["loss"] for row in learned}.items())],
    }  # fmt: skip
