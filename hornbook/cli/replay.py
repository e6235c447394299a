"""`hornbook replay INCIDENT`: take a step again that training left out, and show what in it stands out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from hornbook.cli.console import parse

SHOWN = 5


@dataclass(frozen=True)
class Replay:
    """Take a step again that training left out: RUN/checkpoints/STAGE/incidents/step-N."""

    incident: Annotated[Path, tyro.conf.Positional]
    device: str = "auto"
    json: bool = False


def main(arguments: Sequence[str]) -> None:
    settings = parse(Replay, "replay", arguments)
    from hornbook.ranks import choose_device
    from hornbook.stages.replay import replay

    record = replay(settings.incident, choose_device(settings.device))
    print(json.dumps(record, ensure_ascii=False, allow_nan=True) if settings.json else shown(record))


def shown(record: dict[str, Any]) -> str:
    """The record as a screen of text."""
    again = record["again"]
    lines = [
        f"step {record['step']} of {record['stage']} was left out: {record['odd']}",
        f"loss            {record['loss']} then, {again['loss']} again",
        f"gradient norm   {record['gradient_norm']} then, {again['gradient_norm']} again",
        "",
        "largest gradients, of their weights' norms:",
    ]
    norms = {name: (float(found["gradient"] or 0), float(found["weight"])) for name, found in record["parameters"].items()}
    order = sorted(norms, key=lambda name: (norms[name][0] == norms[name][0], -norms[name][0]))
    lines += [f"  {name:44} {norms[name][0]:10.4g}  {norms[name][1]:10.4g}" for name in order[:SHOWN]]
    lines += ["", "largest attention logits:"]
    peaks = sorted(record["attention_logits"].items(), key=lambda item: -float(item[1]))
    lines += [f"  {name:44} {float(peak):10.4g}" for name, peak in peaks[:SHOWN]]
    lines += ["", "rows with the highest loss:"]
    for row in record["rows"][:SHOWN]:
        lines.append(f"  batch {row['batch']} row {row['row']}  {row['loss']:8.4g}  {(row['text'] or '')[:90]!r}")
    return "\n".join(lines)
