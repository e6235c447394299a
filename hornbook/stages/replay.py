"""A step that was not learned from, taken again on the weights and random numbers that it met: what in it is to blame."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hornbook import families
from hornbook.batch import Batch, Loss
from hornbook.checkpoint.state import set_random_numbers
from hornbook.data.batches import moved
from hornbook.errors import UserError
from hornbook.model import TransformerModel, Undrawn
from hornbook.train.ctc import ctc
from hornbook.train.incident import read_incident
from hornbook.train.loop import Objective, gradients
from hornbook.train.objective import causal_lm, causal_lm_with_z_loss, masked_lm
from hornbook.train.precision import Precision

OBJECTIVES: dict[str, Callable[..., Loss]] = {each.__name__: each for each in (causal_lm, causal_lm_with_z_loss, masked_lm, ctc)}


def replay(folder: Path, device: torch.device) -> dict[str, Any]:
    """The incident's record, with `again`: loss and gradient norm as they are now, and `rows`: each row's mean loss, highest first.

    On the same device with the same number of threads `again` has the same bits as the record.
    """
    record, tensors, batches = read_incident(folder)
    if record["objective"] not in OBJECTIVES:
        raise UserError(
            f"an incident of {record['objective'] or 'an objective without a name'} cannot be taken again", where=str(folder),
            why=f"only {', '.join(OBJECTIVES)} is known here", fix="read its incident.json and incident.safetensors",
        )  # fmt: skip
    objective = partial(OBJECTIVES[record["objective"]], **record["settings"])
    with Undrawn():
        model = families.build(record["config"], str(folder))
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    model.load_state_dict(weights, strict=False)
    model.tie()
    model.to(device, next(iter(weights.values())).dtype).train()
    batches = [moved(batch, device) for batch in batches]
    precision = Precision(record["precision"]["name"], device.type, record["precision"]["scale"])
    set_random_numbers(tensors)
    step = gradients(model, batches, objective, precision, record["position"])
    return {**record, "again": {"loss": step.loss, "gradient_norm": step.norm}, "rows": _rows(model, objective, batches, record)}


@torch.no_grad()
def _rows(model: TransformerModel, objective: Objective, batches: list[Batch], record: dict[str, Any]) -> list[dict[str, Any]]:
    model.eval()
    rows = []
    for n, batch in enumerate(batches):
        for row in range(len(batch.tokens_bt)):
            one: dict[str, Any] = {
                name: value[row : row + 1] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
            }
            loss = objective(model, Batch(**one))
            text = record["text"][n][row] if record["text"] else None
            rows.append({"batch": n, "row": row, "loss": float(loss.total) / max(1, int(loss.count)), "text": text})
    return sorted(rows, key=lambda found: (found["loss"] == found["loss"], -found["loss"]))  # what is no number comes first
