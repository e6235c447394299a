"""Published weight names <-> ours: one table per family, read in both directions.

A rule's left side is one published name, its right side the tensors that it holds; several on the right are the published
tensor's pieces along its first axis (after the transpose, where there is one). `{i}` stands for a layer number. A rule with an
empty right side names a published tensor that carries no weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hornbook.errors import UserError


@dataclass(frozen=True)
class Rule:
    theirs: str
    ours: tuple[str, ...]
    transpose: bool = False  # published as (in, out)


def rule(theirs: str, *ours: str, transpose: bool = False) -> Rule:
    return Rule(theirs, ours, transpose)


def from_published(
    rules: Sequence[Rule], published: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], optional: Iterable[str], where: str
) -> dict[str, Tensor]:
    """Our state dict out of a published one. `shapes`: what the model expects; `optional`: tied names that may be absent.

    A weight that no rule names, that is missing, or whose shape differs is a `UserError` that names it and `where`.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in published.items():
        found, layer = _find(rules, name, where)
        whole = tensor.mT if found.transpose and tensor.ndim == 2 else tensor
        targets = [target.replace("{i}", layer) for target in found.ours]
        for target in targets:
            if target not in shapes:
                raise _unfit(f"weight {name!r} has no place in this model: it has no {target!r}", where)
        sizes = [shapes[target][0] for target in targets]
        if targets and whole.shape[:1] != (sum(sizes),):
            raise _unfit(f"weight {name!r} has shape {list(tensor.shape)}, which cannot hold {sizes} rows", where)
        for target, piece in zip(targets, whole.split(sizes) if targets else (), strict=True):
            if piece.shape != shapes[target]:
                raise _unfit(f"weight {name!r} gives {target!r} the shape {list(piece.shape)}, not {list(shapes[target])}", where)
            ours[target] = piece
    missing = sorted(set(shapes) - set(ours) - set(optional))
    if missing:
        raise _unfit(f"{len(missing)} weights are missing, the first: {_published_name(rules, missing[0])!r}", where)
    return ours


def to_published(rules: Sequence[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict out of ours, contiguous, in the rules' names."""
    published: dict[str, Tensor] = {}
    left = set(ours)
    for row in (row for row in rules if row.ours):
        for name in ours:
            layer = _layer(row.ours[0], name)
            if layer is None:
                continue
            targets = [target.replace("{i}", layer) for target in row.ours]
            whole = torch.cat([ours[target] for target in targets]) if len(targets) > 1 else ours[name]
            published[row.theirs.replace("{i}", layer)] = (whole.mT if row.transpose else whole).contiguous()
            left -= set(targets)
    if left:
        raise ValueError(f"no rule names our weight {min(left)!r}")
    return published


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{i\}", r"(\d+)"))


def _layer(pattern: str, name: str) -> str | None:
    """The layer number where `name` fits `pattern`, "" where it has none, None where it does not fit."""
    found = _pattern(pattern).fullmatch(name)
    return None if found is None else (found.group(1) if found.groups() else "")


def _find(rules: Sequence[Rule], name: str, where: str) -> tuple[Rule, str]:
    for row in rules:
        layer = _layer(row.theirs, name)
        if layer is not None:
            return row, layer
    raise _unfit(f"no rule names the published weight {name!r}", where)


def _published_name(rules: Sequence[Rule], ours: str) -> str:
    for row in rules:
        for target in row.ours:
            layer = _layer(target, ours)
            if layer is not None:
                return row.theirs.replace("{i}", layer)
    return ours


def _unfit(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix="use weights and a config.json that were published together")
