"""The rows of `metrics.jsonl` -> charts, samples, steps that were left out: what a run's report and `hornbook watch` both draw.

Rows are read by what they hold, not by who wrote them: a figure that no chart here knows (an objective's own) gets its own chart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hornbook import page
from hornbook.page import Html, Point

Record = Mapping[str, Any]

STAGES = {"pretrain": "Pretraining", "sft": "Fine-tuning"}
SAMPLES_SHOWN = 6
GIGA, PERCENT = 1e-9, 100.0
LEARNED = (
    ("Loss, nats per token", {"training": "loss", "held out": "held_out_loss"}),
    ("Bits per byte", {"training": "bits_per_byte", "held out": "held_out_bits_per_byte"}),
)
RAN = (
    ("Learning rate", "learning_rate", False, 1.0), ("Tokens per second", "tokens_per_second", False, 1.0),
    ("Gradient norm", "grad_norm", True, 1.0), ("Peak memory, GB", "memory", False, GIGA),
    ("MFU, % of the measured peak", "mfu", False, PERCENT), ("Waiting for data, % of time", "data_wait", False, PERCENT),
)  # fmt: skip
COUNTS = ("stage", "step", "steps", "tokens", "seconds", "seconds_left", "flops_per_second", "samples", "left_out")
DRAWN = {*COUNTS, *(key for _, key, _, _ in RAN), *(key for _, keys in LEARNED for key in keys.values())}


def words(name: str) -> str:
    return name.replace("_", " ")


def stage_name(stage: str) -> str:
    return STAGES.get(stage, stage)


def stages(metrics: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(str(line["stage"]) for line in metrics if "stage" in line))


def series(metrics: Sequence[Record], stage: str, key: str, unit: float = 1.0) -> list[Point]:
    """(step, value) in the order of steps; a step that a resumed run took twice counts as it went the last time."""
    found = {int(line["step"]): line[key] for line in metrics if line.get("stage") == stage and key in line}
    return [(float(step), math.nan if value is None else float(value) * unit) for step, value in sorted(found.items())]


def curves(stage: str, metrics: Sequence[Record]) -> Html:
    """All that a stage's rows hold, by step."""

    def chart(title: str, keys: Mapping[str, str], width: int, log_y: bool, unit: float = 1.0) -> Html:
        found = {words(name): points for name, key in keys.items() if (points := series(metrics, stage, key, unit))}
        return page.lines(found, "step", title, log_y, width) if found else Html()

    mine = (line for line in metrics if line.get("stage") == stage)
    numbers = {key for line in mine for key, value in line.items() if isinstance(value, (int, float))}
    learned = [chart(title, keys, 480, True) for title, keys in LEARNED]
    ran = [chart(title, {key: key}, 330, log_y, unit) for title, key, log_y, unit in RAN]
    own = [chart(words(key), {key: key}, 330, False) for key in sorted(numbers - DRAWN)]
    return page.section(stage_name(stage), page.row(*learned), page.row(*ran, *own))


def samples_of(metrics: Sequence[Record]) -> list[dict[str, Any]]:
    """What the model wrote while it was trained, with stage and step."""
    return [{"stage": row["stage"], "step": row["step"], **sample} for row in metrics for sample in row.get("samples") or ()]


def samples(found: Sequence[Record], language: str | None) -> Html:
    """A few of the samples, spread over the run, and all of them where there are more."""

    def shown(one: Record) -> Html:
        when = f"{stage_name(str(one['stage'])).lower()}, step {one['step']:,}"
        return page.caption(when, page.code(page.join(page.element("b", one["prompt"]), one["text"]), language))

    note = "The prompt is bold; the rest is the model's."
    if len(found) <= SAMPLES_SHOWN:
        return page.section("Samples during training", *map(shown, found), note=note)
    few = [found[round(i * (len(found) - 1) / (SAMPLES_SHOWN - 1))] for i in range(SAMPLES_SHOWN)]
    everything = page.details(f"All {len(found)} samples", *map(shown, found))
    return page.section("Samples during training", *map(shown, few), everything, note=note)


def left_out(metrics: Sequence[Record]) -> Html:
    """The steps that were not learned from, the newest first."""
    lost = [[stage_name(row["stage"]), row["step"], row["left_out"]] for row in reversed(metrics) if "left_out" in row]
    return page.section("Steps left out", page.table(["stage", "step", "why"], lost))
