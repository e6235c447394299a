"""A step that was not learned from, in a folder of its own: its batches, the weights and random numbers that it met, figures.

The step left the weights as they were, so what is written here is what it met, and `hornbook replay` can take it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hornbook.adapt.probes import attention_peaks, hidden_states
from hornbook.batch import Batch
from hornbook.checkpoint.tensors import save_tensors
from hornbook.errors import UserError
from hornbook.files import verified, write_json, written_folder
from hornbook.model import TransformerModel
from hornbook.optim.shards import entire
from hornbook.ranks import from_first, rank

MOST = 5  # folders of a run: each holds the weights


@dataclass(frozen=True)
class Step:
    """One step's micro-batches, where the data and the random numbers stood before it, and what it gave.

    batches are this process's; the sums, in nats, of targets, tokens and bytes of text, and the norm are all processes'.
    """

    batches: list[Batch]
    position: dict[str, Any]
    random_numbers: dict[str, Tensor]
    total: float
    count: int
    tokens: int
    text_bytes: int
    norm: float
    norm_tensor: Tensor
    metrics: dict[str, float] = field(default_factory=dict)  # the objective's, sums too

    @property
    def loss(self) -> float:
        """The mean in nats."""
        return self.total / max(1, self.count)


def figures(model: TransformerModel, batches: list[Batch], look: Callable[[Batch], Any]) -> dict[str, Any]:
    """Norms of each parameter and its gradient; of the model's calls in `look`, the largest root mean squares and attention logits.

    The gradients are those that the model holds now, before they are clipped.
    """
    hidden = dict[str, Tensor]()
    with torch.no_grad(), hidden_states(model) as states, attention_peaks(model) as peaks:
        for batch in batches:
            look(batch)
            for name, x in states.items():
                size = x.float().square().mean().sqrt()
                hidden[name] = torch.maximum(hidden.get(name, size), size)
        parameters = {
            name: {"weight": _plain(entire(p.norm())), "gradient": None if p.grad is None else _plain(entire(p.grad.norm()))}
            for name, p in model.named_parameters()
        }
    found = {"hidden": hidden, "attention_logits": peaks}
    return {"parameters": parameters, **{kind: {name: _plain(x) for name, x in each.items()} for kind, each in found.items()}}


def named(objective: Any) -> dict[str, Any]:
    """An objective's name and, where it is a formula with settings (`partial`), those that are plain values."""
    formula, settings = (objective.func, objective.keywords) if isinstance(objective, partial) else (objective, {})
    plain = {name: value for name, value in settings.items() if isinstance(value, int | float | str)}
    return {"objective": getattr(formula, "__name__", ""), "settings": plain}


def write_incident(
    folder: Path, odd: str, number: int, step: Step, model: TransformerModel, about: dict[str, Any],
    describe: Callable[[Batch], list[str]] | None, look: Callable[[Batch], Any],
) -> Path | None:  # fmt: skip
    """Write `folder/step-N`; its path, or None where there are `MOST` already. `about`: what a replay must know.

    Step N with other data, to which a rollback led, is `step-N-2`. Of several ranks all take part, with the batches of all, and the
    first one writes.
    """
    free = from_first(lambda: _place(folder, f"step-{number:08d}", step.position))
    if not free:
        return None
    place = Path(free)
    tensors = {f"model/{name}": entire(value.detach()) for name, value in model.named_parameters()} | step.random_numbers
    for n, batch in enumerate(step.batches):
        tensors |= {f"batch/{n}/{name}": value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    record = {
        "odd": odd, "step": number, "loss": _plain(step.loss), "gradient_norm": _plain(step.norm), "targets": step.count,
        "position": step.position, **about, "text": [describe(batch) for batch in step.batches] if describe else [],
        "text_bytes": [batch.text_bytes for batch in step.batches], **figures(model, step.batches, look),
    }  # fmt: skip
    if rank():
        return place
    with written_folder(place, {"step": number}) as target:
        save_tensors({name: value.contiguous().cpu().clone() for name, value in tensors.items()}, target / "incident.safetensors")
        write_json(target / "incident.json", record)
    return place


def _place(folder: Path, name: str, position: dict[str, Any]) -> str:
    """Where an incident at this position of the data belongs: where a run that was stopped has written it, else a free name; empty
    where there are `MOST`.
    """
    there = [folder / name] + [folder / f"{name}-{again}" for again in range(2, MOST + 1)]
    for place in there:
        if not place.exists():
            return str(place) if len(list(folder.glob("step-*"))) < MOST else ""
        if json.loads((place / "incident.json").read_text(encoding="utf-8"))["position"] == position:
            return str(place)
    return ""


def read_incident(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[Batch]]:
    """The record, the tensors (`model/...` and random numbers) and the batches of an incident."""
    if not (folder / "incident.json").is_file():
        raise UserError("no incident", where=str(folder), fix="name a folder under RUN/checkpoints/STAGE/incidents")
    verified(folder)
    record = json.loads((folder / "incident.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "incident.safetensors")
    known = {field.name for field in fields(Batch)}
    batches = []
    for n, text_bytes in enumerate(record["text_bytes"]):
        given = {name.rpartition("/")[2]: value for name, value in tensors.items() if name.startswith(f"batch/{n}/")}
        batches.append(Batch(**{name: value for name, value in given.items() if name in known}, text_bytes=text_bytes))
    return record, tensors, batches


def _plain(value: Tensor | float) -> float | str:
    """A number as JSON has it: infinities and what is no number by name."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
