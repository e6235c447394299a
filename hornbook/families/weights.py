"""Published weight names <-> ours: one table per family, read in both directions.

A rule's left side is one published name, its right side the tensors that it holds, taken apart and put together by its form.
`{i}` stands for a layer number, `{e}` for an expert's: the experts of a layer are published one by one and kept here as one
tensor. A rule with an empty right side names a published tensor that carries no weight. An alias is another published spelling,
read but never written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Size, Tensor

from hornbook.errors import UserError


@dataclass(frozen=True)
class Form:
    """How one published tensor holds several of ours: `apart(whole, shapes of ours)` and `together(ours)`, each other's inverse."""

    apart: Callable[[Tensor, Sequence[Size]], Sequence[Tensor]]
    together: Callable[[Sequence[Tensor]], Tensor]


def _by_rows(whole: Tensor, shapes: Sequence[Size]) -> Sequence[Tensor]:
    return whole.split([shape[0] for shape in shapes])


ROWS = Form(_by_rows, lambda pieces: torch.cat(list(pieces)) if len(pieces) > 1 else pieces[0])
TRANSPOSED = Form(  # published as (in, out), as GPT-2's and gpt-oss's are
    lambda whole, shapes: _by_rows(whole.mT, shapes) if whole.ndim == 2 else [whole.mT], lambda pieces: ROWS.together(pieces).mT
)
ONE_ROW = Form(lambda whole, _: [whole.squeeze(0)], lambda pieces: pieces[0][None])  # published as (1, n)
ALTERNATE = Form(  # the last axis alternates between two
    lambda whole, _: [whole[..., 0::2], whole[..., 1::2]], lambda pieces: torch.stack(list(pieces), -1).flatten(-2)
)
ALTERNATE_TRANSPOSED = Form(
    lambda whole, _: [whole[..., 0::2].mT, whole[..., 1::2].mT],
    lambda pieces: torch.stack([piece.mT for piece in pieces], -1).flatten(-2),
)


def per_head(heads: int) -> Form:
    """Rows head by head: the first head's q, k and v, then the second's (GPT-NeoX, BLOOM)."""

    def apart(whole: Tensor, shapes: Sequence[Size]) -> Sequence[Tensor]:
        return [piece.flatten(0, 1) for piece in whole.unflatten(0, (heads, len(shapes), -1)).unbind(1)]

    def together(pieces: Sequence[Tensor]) -> Tensor:
        return torch.stack([piece.unflatten(0, (heads, -1)) for piece in pieces], 1).flatten(0, 2)

    return Form(apart, together)


@dataclass(frozen=True)
class Rule:
    theirs: str
    ours: tuple[str, ...]
    form: Form = ROWS


@dataclass(frozen=True)
class Alias:
    """A regular expression of published names, and how it is spelled in the rules."""

    pattern: str
    spelling: str


Table = Sequence[Rule | Alias]


def rule(theirs: str, *ours: str, form: Form = ROWS) -> Rule:
    return Rule(theirs, ours, form)


def both(theirs: str, *ours: str, form: Form = ROWS) -> tuple[Rule, ...]:
    """The rules of a layer's weight and of its bias."""
    return tuple(rule(f"{theirs}.{part}", *(f"{name}.{part}" for name in ours), form=form) for part in ("weight", "bias"))


def from_published(
    table: Table, published: Mapping[str, Tensor], shapes: Mapping[str, Size], optional: Iterable[str], where: str
) -> dict[str, Tensor]:
    """Our state dict out of a published one. `shapes`: what the model expects; `optional`: tied names that may be absent.

    A weight that no rule names, that is missing, or whose shape differs is a `UserError` that names it and `where`.
    """
    ours: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in published.items():
        found, numbers = _find(table, name, where)
        targets = [_filled(target, numbers) for target in found.ours]
        for target in targets:
            if target not in shapes:
                raise _unfit(f"weight {name!r} has no place in this model: it has no {target!r}", where)
        one_of_many = "{e}" in found.theirs
        expected = [Size(shapes[target][1:]) if one_of_many else shapes[target] for target in targets]
        for target, piece, shape in zip(targets, _apart(found, name, tensor, expected, where), expected, strict=True):
            if piece.shape != shape:
                raise _unfit(f"weight {name!r} gives {target!r} the shape {list(piece.shape)}, not {list(shape)}", where)
            if one_of_many:
                experts.setdefault(target, {})[int(numbers["e"])] = piece
            else:
                ours[target] = piece.contiguous()
    for target, pieces in experts.items():
        for expert in (number for number in range(shapes[target][0]) if number not in pieces):
            name = _published_name(table, target).replace("{e}", str(expert))
            raise _unfit(f"{shapes[target][0] - len(pieces)} experts are missing, the first: {name!r}", where)
        if len(pieces) > shapes[target][0]:
            raise _unfit(f"{target!r} has {shapes[target][0]} experts, and {len(pieces)} are here", where)
        ours[target] = torch.stack([pieces[expert] for expert in range(len(pieces))])
    missing = sorted(set(shapes) - set(ours) - set(optional))
    if missing:
        raise _unfit(f"{len(missing)} weights are missing, the first: {_published_name(table, missing[0])!r}", where)
    return ours


def _apart(found: Rule, name: str, whole: Tensor, expected: Sequence[Size], where: str) -> Sequence[Tensor]:
    if not found.ours:
        return ()
    try:
        return found.form.apart(whole, expected)
    except (RuntimeError, IndexError) as error:  # torch's, of sizes that do not add up
        rows = [list(shape) for shape in expected]
        raise _unfit(f"weight {name!r} has shape {list(whole.shape)}, which cannot hold {rows}", where) from error


def to_published(table: Table, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict out of ours, contiguous, in the rules' names."""
    published: dict[str, Tensor] = {}
    left = set(ours)
    for row in (row for row in table if isinstance(row, Rule) and row.ours):
        for name in ours:
            numbers = _numbers(row.ours[0], name)
            if numbers is None:
                continue
            targets = [_filled(target, numbers) for target in row.ours]
            theirs = _filled(row.theirs, numbers)
            if "{e}" in theirs:
                for expert, piece in enumerate(ours[name]):
                    published[theirs.replace("{e}", str(expert))] = row.form.together([piece]).contiguous()
            else:
                published[theirs] = row.form.together([ours[target] for target in targets]).contiguous()
            left -= set(targets)
    if left:
        raise ValueError(f"no rule names our weight {min(left)!r}")
    return published


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{([ie])\\}", r"(?P<\1>\\d+)", re.escape(name)))


def _numbers(pattern: str, name: str) -> dict[str, str] | None:
    """The layer's and the expert's number where `name` fits `pattern`, None where it does not."""
    found = _pattern(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


def _filled(pattern: str, numbers: Mapping[str, str]) -> str:
    return pattern.replace("{i}", numbers.get("i", "{i}"))


def _find(table: Table, name: str, where: str) -> tuple[Rule, dict[str, str]]:
    spelled = name
    for row in table:
        if isinstance(row, Alias):
            spelled = re.sub(row.pattern, row.spelling, spelled)
    for row in table:
        if isinstance(row, Rule):
            numbers = _numbers(row.theirs, spelled)
            if numbers is not None:
                return row, numbers
    raise _unfit(f"no rule names the published weight {name!r}", where)


def _published_name(table: Table, ours: str) -> str:
    for row in (row for row in table if isinstance(row, Rule)):
        for target in row.ours:
            numbers = _numbers(target, ours)
            if numbers is not None:
                return _filled(row.theirs, numbers)
    return ours


def _unfit(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix="use weights and a config.json that were published together")
