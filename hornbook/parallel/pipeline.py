"""Pipelines: a built model and a mesh of stages -> this rank's layers of it, and the gradients of a step's micro-batches.

Layers are cut into stages, and while one works on a micro-batch the next works on the one before. `gpipe` takes all forward, then
all backward (Huang et al. 2019); `1f1b` goes back as soon as it can, so that a stage keeps the activations of `stages - stage`
micro-batches and not of all (Narayanan et al. 2019, "PipeDream"). Torch's engine keeps the order and sends the messages.

The one idea: every stage has every batch, and only hidden values travel. Each stage asks the objective itself, which builds the
context it always builds; where the next layer is elsewhere, it is left there. Messages are rows (B * T, D), zeros behind the
shorter micro-batches, so that all of a step's have one shape.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from hornbook.batch import Batch, Loss
from hornbook.errors import UserError
from hornbook.model import Context, TransformerModel, Undrawn
from hornbook.model.stem import TokenStemLayer
from hornbook.model.transformer import Ties
from hornbook.optim.shards import entire

Look = Callable[[Any, Batch], tuple[Tensor, Any]]  # what the last stage gives back to the engine, and what it keeps


@dataclass(frozen=True)
class Share:
    """The parameters of one stage, each under the first of its names here.

    names    -> its name in the whole model, another one where a tied parameter's first place is in another stage
    owned    those that count here in a norm and are saved from here: each of the whole model's is owned by one stage
    shared   of those that several stages hold, a copy each -> these stages
    """

    names: dict[str, str]
    owned: frozenset[str]
    shared: dict[str, tuple[int, ...]]


def starts(layers: int, stages: int) -> list[int]:
    """The first layer of each stage, and the end. Spare layers go to the middle, then to the first: the last has the head."""
    if stages > layers:
        raise UserError(
            f"parallel.pipeline must be at most the model's layers: {stages} stages, {layers} layers", where="[parallel]",
            why="each stage holds one layer or more", fix=f"set pipeline to {layers} or less",
        )  # fmt: skip
    spare = [*range(1, stages - 1), 0][: layers % stages]
    return [0, *accumulate(layers // stages + (stage in spare) for stage in range(stages))]


class Absent(nn.Module):
    """In the place of a block that another stage holds."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        return x


class AbsentStem(nn.Module):
    def forward(self, x: Tensor, ctx: Context) -> tuple[Tensor, Context]:
        return x, ctx


def cut(model: TransformerModel, stage: int, stages: int) -> Share:
    """Take out of a built model what other stages hold, under unchanged names; it may be on the meta device."""
    if not isinstance(model, TransformerModel) or not isinstance(model.stem, TokenStemLayer):
        raise UserError(
            "a pipeline cuts models of one tower that read tokens", where="[parallel]",
            why=f"this is a {type(model).__name__} with {', '.join(name for name, _ in model.named_children())}",
            fix="set pipeline to 1",
        )  # fmt: skip
    begin = starts(len(model.tower.blocks), stages)
    share, model.ties = _shared_out(model, begin, stage)
    for layer in range(len(model.tower.blocks)):
        if not begin[stage] <= layer < begin[stage + 1]:
            model.tower.blocks[layer] = Absent()
    if stage > 0:
        model.stem = AbsentStem()
    if stage < stages - 1:
        model.tower.norm, model.tower.dropout, model.head = nn.Identity(), 0.0, nn.Identity()
    return share


def _shared_out(model: TransformerModel, begin: list[int], stage: int) -> tuple[Share, Ties]:
    """What the stage holds of a model that is still whole, and which of its names are of one tensor."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)

    def home(name: str) -> int:
        if name.startswith("tower.blocks."):
            return bisect(begin, int(name.split(".")[2])) - 1
        return 0 if name.startswith("stem.") else len(begin) - 2

    names, owned, shared, ties = dict[str, str](), set[str](), dict[str, tuple[int, ...]](), list[tuple[str, str]]()
    for same in places.values():
        homes = [home(name) for name in same]
        if stage not in homes:
            continue
        first, *rest = (name for name, where in zip(same, homes, strict=True) if where == stage)
        names[first] = same[0]
        ties += [(name, first) for name in rest]
        if stage == homes[0]:
            owned.add(first)
        if len(set(homes)) > 1:
            shared[first] = tuple(sorted(set(homes)))
    return Share(names, frozenset(owned), shared), tuple(ties)


class _Left(Exception):
    """The next layer is in another stage, which goes on from x (B, T, D)."""

    def __init__(self, x: Tensor):
        self.x = x


class _Seen:
    """A stage as an objective sees it: the whole model, which reads the batch's tokens. x: from the stage before."""

    def __init__(self, model: TransformerModel, batch: Batch, x: Tensor | None, last: bool):
        self._model, self._batch, self._x, self._last = model, batch, x, last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def hidden(self, inputs: Tensor, ctx: Context | None = None) -> Tensor:
        if inputs is not self._batch.tokens_bt:
            raise ValueError("in a pipeline a model reads the batch's own tokens_bt alone: the other stages know of nothing else")
        ctx = ctx or Context()
        if self._x is not None:
            ctx = ctx if inputs.is_floating_point() else replace(ctx, tokens_bt=inputs)
            inputs = self._x
        x = self._model.hidden(inputs, ctx)
        if not self._last:
            raise _Left(x)
        return x

    def __call__(self, inputs: Tensor, ctx: Context | None = None) -> Tensor:
        return self._model.head(self.hidden(inputs, ctx))


class _Stage(nn.Module):
    """What the engine runs: a micro-batch through this rank's layers, and in the last stage to its end."""

    def __init__(self, model: TransformerModel, first: bool, last: bool):
        super().__init__()
        self.model, self.first, self.last = model, first, last
        self.batches, self.look, self.kept, self.rows = list[Batch](), cast(Look, None), list[Any](), 0
        self.before_last: Callable[[], None] | None = None

    def forward(self, x_nd: Tensor, *, index: Tensor) -> Tensor:
        found, before_last = self._forward(x_nd, int(index)), self.before_last
        last = int(index) + 1 == len(self.batches)  # both schedules go back in the order of the micro-batches
        if before_last and last and found.requires_grad:
            found.register_hook(lambda _: before_last())
        return found

    def _forward(self, x_nd: Tensor, index: int) -> Tensor:
        batch = self.batches[index]
        size = batch.tokens_bt.shape[:2]
        x = None if self.first else x_nd[: size.numel()].unflatten(0, size)
        try:
            found, kept = self.look(_Seen(self.model, batch, x, self.last), batch)
        except _Left as left:
            if left.x.shape[:2] != size:
                raise ValueError(f"hidden values that leave a stage must be (B, T, D): {size} and {left.x.shape}") from None
            x_nd = left.x.flatten(0, 1).to(next(self.model.parameters()).dtype)
            return F.pad(x_nd, (0, 0, 0, self.rows - len(x_nd))) if len(x_nd) < self.rows else x_nd.contiguous()
        self.kept.append(kept)
        return found


class Pipeline:
    """This rank's stage of a model, which it cuts; what shards, casts or recomputes the model comes after.

    mesh: the ranks of one pipeline, in order. `share` says whose parameters are whose.
    """

    def __init__(self, model: TransformerModel, mesh: DeviceMesh, schedule: str = "1f1b"):
        self.model, self.schedule, self.group = model, schedule, mesh.get_group()
        self.stage, self.stages = mesh.get_local_rank(), mesh.size()
        self.last = self.stage == self.stages - 1
        self.share, self.dim = cut(model, self.stage, self.stages), model.spec.tower.dim
        self._stage = _Stage(model, self.stage == 0, self.last)
        self._engines: dict[bool, tuple[int, int, ScheduleGPipe | Schedule1F1B]] = {}
        ranks, groups = dist.get_process_group_ranks(self.group), {tuple(range(self.stages)): self.group}
        for holders in self.share.shared.values():
            if holders not in groups:
                groups[holders] = dist.new_group([ranks[holder] for holder in holders], use_local_synchronization=True)
        self._shared = {name: groups[holders] for name, holders in self.share.shared.items()}

    def gradients(
        self, batches: list[Batch], objective: Callable[[TransformerModel, Batch], Loss],
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext, scale: float = 1.0,
        before_last: Callable[[], None] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Fill `.grad`, which must be empty, for the summed loss of all micro-batches times `scale`; its total (float64) and count.

        Both are zero but in the last stage. Every rank of the pipeline gives the same batches. Parameters that several stages
        hold have the same, whole gradient in each. `before_last` is called when the last micro-batch's backward pass begins here.
        """
        if any(parameter.grad is not None for parameter in self.model.parameters()):
            raise ValueError("the gradients of a pipeline start from None: call zero_grad(set_to_none=True) first")

        def look(model: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            with autocast():
                loss = objective(model, batch)
            return loss.total * scale if scale != 1 else loss.total, (loss.total.detach(), loss.count)

        total = torch.zeros((), dtype=torch.float64, device=batches[0].tokens_bt.device)
        count = torch.zeros((), dtype=torch.long, device=total.device)
        self._stage.before_last = before_last
        for more, asked in self._run(batches, look, training=True):
            total, count = total + more, count + asked
        for name, group in self._shared.items():
            parameter = self.model.get_parameter(name)
            if parameter.requires_grad:
                grad = parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(grad.to_local() if isinstance(grad, DTensor) else grad, group=group)
        return total, count

    @torch.no_grad()
    def forward_only(self, batches: list[Batch], function: Callable[[TransformerModel, Batch], Any]) -> list[Any]:
        """What the function gives for each batch, in the last stage; nothing in the others. It is called in all of them."""

        def look(model: Any, batch: Batch) -> tuple[Tensor, Any]:
            found = function(model, batch)
            return torch.zeros((), device=batch.tokens_bt.device), found

        self._stage.before_last = None
        few = 4 * self.stages  # at a time: the engine keeps what each micro-batch sent
        cuts = [batches[start : start + few] for start in range(0, len(batches), few)]
        return [found for some in cuts for found in self._run(some, look, training=False)]

    @torch.no_grad()
    def whole(self) -> TransformerModel:
        """A copy of the whole model, with its gradients where it has some, for what cannot look through stages; it is filled in the
        first of them. All must ask.
        """
        names, owned, parameters = self.share.names, self.share.owned, dict(self.model.named_parameters())
        own = {
            names.get(name, name): entire(value).cpu() for name, value in self.model.state_dict().items()
            if name in owned or name not in parameters
        }  # fmt: skip
        slopes = {
            names[name]: entire(value.grad).cpu() for name, value in parameters.items() if name in owned and value.grad is not None
        }
        stages: list[Any] = [None] * self.stages
        dist.all_gather_object(stages, (own, slopes), group=self.group)
        first = next(iter(parameters.values()))
        with Undrawn():
            found = self.model.spec.build().to(first.device, first.dtype)
        found.config = self.model.config
        if self.stage == 0:
            missing, unknown = found.load_state_dict(
                {name: value for part, _ in stages for name, value in part.items()}, strict=False
            )
            assert set(missing) <= {name for name, _ in found.ties} and not unknown
            found.tie()
            for name, slope in [pair for _, part in stages for pair in part.items()]:
                parameter = found.get_parameter(name)
                parameter.grad = slope.to(parameter)
        return found

    def _run(self, batches: list[Batch], look: Look, training: bool) -> list[Any]:
        rows = max(batch.tokens_bt.shape[:2].numel() for batch in batches)
        count, room, engine = self._engines.get(training, (0, 0, None))
        if engine is None or count != len(batches) or room < rows:
            room, engine = rows, self._engine(len(batches), rows, training)
            self._engines[training] = len(batches), rows, engine
        stage, index = self._stage, torch.arange(len(batches))
        stage.batches, stage.look, stage.kept, stage.rows = batches, look, [], room
        given, target = [index] if self.stage == 0 else [], index if training else None
        try:
            engine.step(*given, index=index, target=target, return_outputs=False)
        except RuntimeError as failed:  # what the engine wraps errors of the objective in
            if isinstance(failed.__cause__, ValueError):
                raise failed.__cause__ from None
            raise
        kept, stage.batches, stage.kept = stage.kept, [], []
        return kept

    def _engine(self, count: int, rows: int, training: bool) -> ScheduleGPipe | Schedule1F1B:
        """For so many micro-batches, and rows per message; torch's 1F1B takes no fewer micro-batches than stages, GPipe any.

        The shape is told, so that the engine needs no trial run, whose findings it would send pickled.
        """
        first = next(self.model.parameters())
        message = torch.empty(rows, self.dim, dtype=first.dtype, device="meta", requires_grad=training)
        stage = PipelineStage(
            self._stage, self.stage, self.stages, first.device, input_args=message, output_args=message, group=self.group
        )
        schedule = Schedule1F1B if training and self.schedule == "1f1b" and count >= self.stages else ScheduleGPipe
        return schedule(stage, count, loss_fn=(lambda total, _: total) if training else None, scale_grads=False)
