"""Training state on disk: weights, optimizer moments and positions in one verified folder per step.

Tensors go into safetensors, everything else into JSON. The newest folder that verifies is the state; older or damaged ones are
never mixed in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hornbook.checkpoint.tensors import save_tensors
from hornbook.errors import DamagedError
from hornbook.files import verified, written_folder
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers

KEEP = 2  # the newest, and the one before in case the newest is damaged


@dataclass(frozen=True)
class Saved:
    """A state that verifies: where it is, its step, the data position, and what its run said of itself."""

    folder: Path
    step: int
    position: dict[str, Any]
    run: dict[str, Any]
    groups: list[list[dict[str, Any]]]


def save_state(
    folder: Path, step: int, model: TransformerModel, optimizer: Optimizers, position: dict[str, Any], run: dict[str, Any]
) -> None:
    """Write `folder/step-N`, then forget all but the newest few. `run` says what the state belongs to and is given back.

    States of later steps go too, for had they been sound, this run would have continued from them; and what killed writers left.
    """
    tensors = {f"model/{name}": value.detach() for name, value in model.state_dict().items() if name not in _tied(model)}
    plain: list[list[dict[str, Any]]] = []
    for number, part in enumerate(optimizer.parts):
        whole = part.state_dict()
        for index, values in whole["state"].items():
            for key, value in values.items():
                tensors[f"optimizer/{number}/{index}/{key}"] = torch.as_tensor(value)
        plain.append(whole["param_groups"])
    tensors["random"] = torch.get_rng_state()
    name = f"step-{step:08d}"
    with written_folder(folder / name, {"step": step}) as target:
        save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()}, target / "state.safetensors")
        record = {"step": step, "position": position, "groups": plain, "run": run}
        (target / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    reached = [path for path in sorted(folder.glob("step-*")) if path.name <= name]
    for path in {*folder.glob("step-*"), *folder.glob(".step-*")} - set(reached[-KEEP:]):
        shutil.rmtree(path)


def newest_state(folder: Path, say: Callable[[str], None]) -> Saved | None:
    """The newest state that verifies, or None where there is none. Damage is said, not hidden."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            verified(path)
        except DamagedError as error:
            say(f"{path} is damaged and left out ({error.why}: {error.where})")
            continue
        record = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Saved(path, record["step"], record["position"], record["run"], record["groups"])
    return None


def restore(saved: Saved, model: TransformerModel, optimizer: Optimizers) -> None:
    """Put the state's weights, moments and random numbers in place. The model must be of the run that saved it."""
    tensors = load_file(saved.folder / "state.safetensors")
    weights = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert set(missing) <= _tied(model) and not unknown  # the caller compared the run's name
    model.tie()
    for number, part in enumerate(optimizer.parts):
        part.load_state_dict({"state": _moments(tensors, number), "param_groups": saved.groups[number]})
    torch.set_rng_state(tensors["random"])


def _tied(model: TransformerModel) -> set[str]:
    return {name for name, _ in model.ties}


def _moments(tensors: dict[str, Tensor], number: int) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"optimizer/{number}/"):
            _, _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
    return state
