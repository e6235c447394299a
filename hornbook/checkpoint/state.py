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
    folder: Path, step: int, model: TransformerModel, optimizer: Optimizers, position: dict[str, Any], run: dict[str, Any],
    every: int = 0,
) -> None:  # fmt: skip
    """Write `folder/step-N`, then forget all but the newest few, and the newest at a multiple of `every`, if that is not 0.

    `run` says what the state belongs to and is given back.

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
    tensors |= random_numbers()
    name = f"step-{step:08d}"
    with written_folder(folder / name, {"step": step}) as target:
        save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()}, target / "state.safetensors")
        record = {"step": step, "position": position, "groups": plain, "run": run}
        (target / "state.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    reached = [path for path in sorted(folder.glob("step-*")) if path.name <= name]
    milestones = [path for path in reached if every and int(path.name.removeprefix("step-")) % every == 0]
    for path in {*folder.glob("step-*"), *folder.glob(".step-*")} - {*reached[-KEEP:], *milestones[-1:]}:
        shutil.rmtree(path)


def newest_state(folder: Path, say: Callable[[str], None], wanted: Callable[[int], bool] = lambda step: True) -> Saved | None:
    """The newest state of a step that is wanted and that verifies, or None where there is none. Damage is said, not hidden."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not wanted(int(path.name.removeprefix("step-"))):
            continue
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
    set_random_numbers(tensors)


def random_numbers() -> dict[str, Tensor]:
    """Where torch's random numbers stand, on the processor and on each GPU."""
    devices = enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    return {"random": torch.get_rng_state()} | {f"random/{number}": state for number, state in devices}


def set_random_numbers(tensors: dict[str, Tensor]) -> None:
    """Go on from where `random_numbers` stood; a GPU that is not there any more is left out."""
    torch.set_rng_state(tensors["random"])
    for number in range(torch.cuda.device_count()):
        if f"random/{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random/{number}"], number)


def _tied(model: TransformerModel) -> set[str]:
    return {name for name, _ in model.ties}


def _moments(tensors: dict[str, Tensor], number: int) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"optimizer/{number}/"):
            _, _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
    return state
