"""Training state on disk: weights, optimizer moments and positions in one verified folder per step.

Tensors go into safetensors, everything else into JSON. The newest folder that verifies is the state; older or damaged ones are
never mixed in. Several ranks write a file each, in the format of torch's distributed checkpoints; any number of ranks, one too,
reads what any number wrote, however their weights are cut.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hornbook.checkpoint.tensors import save_tensors
from hornbook.errors import DamagedError
from hornbook.files import verified, written_folder
from hornbook.model import TransformerModel
from hornbook.optim.build import Optimizers
from hornbook.optim.shards import like
from hornbook.ranks import from_first, patient_group, rank, several

IMPLEMENTATION = ("fused", "foreach")  # of an optimizer's step: this run's own, whatever the saved one's was
WHOLE = "state.safetensors"  # what a single process writes
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}


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
    """Which states stay when a new one is written: the newest `last`, for the newest may be damaged; all at multiples of `every`
    (0: none); those of `these` steps."""

    last: int = 2
    every: int = 0
    these: tuple[int | None, ...] = ()

    def of(self, steps: list[int]) -> set[int]:
        """Those of the ascending `steps` that stay."""
        return {*steps[-self.last :], *(step for step in steps if step in self.these or (self.every and step % self.every == 0))}


def snapshot(step: int, model: TransformerModel, optimizer: Optimizers, position: dict[str, Any], run: dict[str, Any]) -> Snapshot:
    """A copy of everything that training goes on from. `run` says what the state belongs to and is given back."""
    tensors = _weights(model)
    for name, parameter, _, moments in _moments(model, optimizer):
        for key, value in moments.items():
            value = torch.as_tensor(value)
            tensors[f"optimizer/{name}/{key}"] = like(value, parameter) if value.ndim else value
    tensors |= {f"rank/{rank()}/{name}": value for name, value in random_numbers().items()}
    groups = [part.state_dict()["param_groups"] for part in optimizer.parts]
    # Groups, positions and figures are plain values; as JSON they are copied, too.
    record = json.loads(json.dumps({"step": step, "position": position, "groups": groups, "run": run}))
    return Snapshot(step, _copies(tensors), record)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In this process's memory; of what is cut over ranks, its parts."""
    if not several():
        return {name: torch.empty_like(value, device="cpu").copy_(value) for name, value in tensors.items()}
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    return dict(BlockingAsyncStager().stage(tensors))


def write_snapshot(folder: Path, found: Snapshot, keep: Keep) -> None:
    """Write `folder/step-N`, then forget the states that do not stay. Several ranks write together, through `patient_group`.

    States of later steps go too, for had they been sound, this run would have continued from them; and what killed writers left.
    """
    target = folder / f"step-{found.step:08d}"
    if several():
        _write_together(target, found)
    else:
        with written_folder(target, {"step": found.step}) as place:
            save_tensors({name: value.contiguous() for name, value in found.tensors.items()}, place / WHOLE)
            (place / "state.json").write_text(json.dumps(found.record, indent=1), encoding="utf-8")
    if rank():
        return
    numbers = {path: _step_of(path) for path in folder.glob("step-*")}
    stay = keep.of(sorted(number for number in numbers.values() if number <= found.step))
    for path in [path for path, number in numbers.items() if number not in stay] + list(folder.glob(".step-*")):
        shutil.rmtree(path)


def _write_together(target: Path, found: Snapshot) -> None:
    """The first rank makes the folder, each rank its file, the first one seals. What one of them met, all raise."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    group = patient_group("saving")
    with ExitStack() as opened:
        place = from_first(lambda: str(opened.enter_context(written_folder(target, {"step": found.step}))), group)
        writer = HuggingFaceStorageWriter(place, save_distributed=True)
        try:
            save(found.tensors, storage_writer=writer, process_group=group)
        except CheckpointException as error:
            for met, _ in error.failures.values():
                if isinstance(met, OSError):
                    raise met from None
            raise RuntimeError(f"a rank could not write its part of {target}: {error}") from None
        if rank() == 0:
            (Path(place) / "state.json").write_text(json.dumps(found.record, indent=1), encoding="utf-8")
        from_first(opened.close, group)


def state_bytes(model: TransformerModel) -> int:
    """About what a state of the model takes on disk, with two moments for each weight that learns."""
    return sum(p.nbytes + (2 * p.numel() * 4 if p.requires_grad else 0) for p in model.parameters())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def newest_state(folder: Path, say: Callable[[str], None], wanted: Callable[[int], bool] = lambda step: True) -> Saved | None:
    """The newest state of a step that is wanted and that verifies, or None where there is none. Damage is said, not hidden.

    Of several ranks the first one looks, and all get what it found.
    """
    found = from_first(lambda: _newest(folder, say, wanted))
    if found is None:
        return None
    path = Path(found)
    record = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Saved(path, record["step"], record["position"], record["run"], record["groups"])


def _newest(folder: Path, say: Callable[[str], None], wanted: Callable[[int], bool]) -> str | None:
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not wanted(_step_of(path)):
            continue
        try:
            verified(path)
        except DamagedError as error:
            say(f"{path} is damaged and left out ({error.why}: {error.where})")
            continue
        return str(path)
    return None


@torch.no_grad()
def restore(saved: Saved, model: TransformerModel, optimizer: Optimizers) -> None:
    """Put the state's weights, moments and random numbers in place. The model must be of the run that saved it."""
    stored = _stored(saved.folder)
    targets, keys = _weights(model), dict[str, list[str]]()
    for name in stored:
        keys.setdefault(name.rpartition("/")[0], []).append(name)
    found = list[tuple[nn.Parameter, dict[str, Tensor]]]()
    for name, parameter, mine, _ in _moments(model, optimizer):
        found.append((mine, moments := {}))
        for full in keys.get(f"optimizer/{name}", []):
            dtype, scalar = stored[full]
            moments[full.rpartition("/")[2]] = value = torch.zeros(() if scalar else mine.shape, dtype=dtype, device=mine.device)
            targets[full] = value if scalar else like(value, parameter)
    place = f"rank/{rank()}"
    numbers = random_numbers()
    targets |= {full: numbers[full.removeprefix(f"{place}/")] for full in keys.get(place, [])}
    _read(saved.folder, targets)
    set_random_numbers(numbers)
    optimizer.put(found)
    for part, groups in zip(optimizer.parts, saved.groups, strict=True):
        for group, values in zip(part.param_groups, groups, strict=True):
            group.update({key: value for key, value in values.items() if key not in ("params", *IMPLEMENTATION)})


@torch.no_grad()
def load_weights(saved: Saved, model: TransformerModel) -> None:
    """The state's weights alone, into a whole model on one rank, however many ranks saved them."""
    _read(saved.folder, _weights(model), alone=True)


def _weights(model: TransformerModel) -> dict[str, Tensor]:
    weights = model.state_dict()
    return {f"model/{stored}": weights[name].detach() for name, stored in _stored_names(model).items()}


def _stored_names(model: TransformerModel) -> dict[str, str]:
    """Each of the model's tensors, and the name that it is stored by: the whole model's. A tied one is stored by its owner's."""
    tied = {name for name, _ in model.ties}
    return {name: model.whole_names.get(name, name) for name in model.state_dict() if name not in tied}


def _moments(model: TransformerModel, optimizer: Optimizers) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, dict[str, Any]]]:
    """The stored name of each parameter that learns, the parameter, this rank's part of it, and its moments."""
    stored, names = _stored_names(model), {parameter: name for name, parameter in model.named_parameters()}
    for parameter, mine, moments in optimizer.states():
        yield stored[names[parameter]], parameter, mine, moments


def _stored(folder: Path) -> dict[str, tuple[torch.dtype, bool]]:
    """Every stored tensor's type, and whether it is a single number."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no dictionary
                part = file.get_slice(name)
                found[name] = DTYPES[part.get_dtype()], not part.get_shape()
    return found


def _read(folder: Path, targets: dict[str, Tensor], alone: bool = False) -> None:
    """Fill the targets with the tensors stored under their names; one that is cut with this rank's part."""
    if (folder / WHOLE).exists() and not several():
        with safe_open(folder / WHOLE, "pt") as file:
            for name, target in targets.items():
                target.copy_(file.get_tensor(name))
        return
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be where one process reads
        load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone or not several())


def random_numbers() -> dict[str, Tensor]:
    """Where torch's random numbers stand, on the processor and on the GPU that this process computes on."""
    gpu = {"random_gpu": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}
    return {"random": torch.get_rng_state(), **gpu}


def set_random_numbers(tensors: dict[str, Tensor]) -> None:
    """Go on from where `random_numbers` stood; a GPU that is not there any more is left out."""
    torch.set_rng_state(tensors["random"])
    if "random_gpu" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random_gpu"])
