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


@dataclass(frozen=True)
class Saved:
    """A state that verifies: where it is, its step, the data position, and what its run said of itself."""

    folder: Path
    step: int
    position: dict[str, Any]
    run: dict[str, Any]
    groups: list[list[dict[str, Any]]]


@dataclass(frozen=True)
class Snapshot:
    """A state in memory, which later steps do not touch."""

    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass(frozen=True)
class Keep:
    """Which states stay when a new one is written: the newest `last`, for the newest may be damaged; the newest at a multiple of
    `back`, for rollbacks; all at multiples of `every`; that of step `best`. 0 and None: none."""

    last: int = 2
    back: int = 0
    every: int = 0
    best: int | None = None

    def of(self, steps: list[int]) -> set[int]:
        """Those of the ascending `steps` that stay."""
        back = [step for step in steps if self.back and step % self.back == 0][-1:]
        return {
            *steps[-self.last :],
            *back,
            *(step for step in steps if step == self.best or (self.every and step % self.every == 0)),
        }


def snapshot(step: int, model: TransformerModel, optimizer: Optimizers, position: dict[str, Any], run: dict[str, Any]) -> Snapshot:
    """A copy of everything that training goes on from. `run` says what the state belongs to and is given back."""
    tensors = {f"model/{name}": value.detach() for name, value in model.state_dict().items() if name not in _tied(model)}
    plain: list[list[dict[str, Any]]] = []
    for number, part in enumerate(optimizer.parts):
        whole = part.state_dict()
        for index, values in whole["state"].items():
            for key, value in values.items():
                tensors[f"optimizer/{number}/{index}/{key}"] = torch.as_tensor(value)
        plain.append(whole["param_groups"])
    copies = {name: torch.empty_like(value, device="cpu").copy_(value) for name, value in (tensors | random_numbers()).items()}
    # Groups, positions and figures are plain values; as JSON they are copied, too.
    record = json.loads(json.dumps({"step": step, "position": position, "groups": plain, "run": run}))
    return Snapshot(step, copies, record)


def write_snapshot(folder: Path, found: Snapshot, keep: Keep) -> None:
    """Write `folder/step-N`, then forget the states that do not stay.

    States of later steps go too, for had they been sound, this run would have continued from them; and what killed writers left.
    """
    target = folder / f"step-{found.step:08d}"
    with written_folder(target, {"step": found.step}) as place:
        save_tensors({name: value.contiguous() for name, value in found.tensors.items()}, place / "state.safetensors")
        (place / "state.json").write_text(json.dumps(found.record, indent=1), encoding="utf-8")
    numbers = {path: _step_of(path) for path in folder.glob("step-*")}
    stay = keep.of(sorted(number for number in numbers.values() if number <= found.step))
    for path in [path for path, number in numbers.items() if number not in stay] + list(folder.glob(".step-*")):
        shutil.rmtree(path)


def state_bytes(model: TransformerModel) -> int:
    """About what a state of the model takes on disk, with two moments for each weight that learns."""
    return sum(p.nbytes + (2 * p.numel() * 4 if p.requires_grad else 0) for p in model.parameters())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def newest_state(folder: Path, say: Callable[[str], None], wanted: Callable[[int], bool] = lambda step: True) -> Saved | None:
    """The newest state of a step that is wanted and that verifies, or None where there is none. Damage is said, not hidden."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not wanted(_step_of(path)):
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
    """Where torch's random numbers stand, on the processor and on the GPU that this process computes on."""
    gpu = {"random/gpu": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"random": torch.get_rng_state(), **gpu}


def set_random_numbers(tensors: dict[str, Tensor]) -> None:
    """Go on from where `random_numbers` stood; a GPU that is not there any more is left out."""
    torch.set_rng_state(tensors["random"])
    if "random/gpu" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/gpu"])


def _tied(model: TransformerModel) -> set[str]:
    return {name for name, _ in model.ties}


def _moments(tensors: dict[str, Tensor], number: int) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"optimizer/{number}/"):
            _, _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
    return state
