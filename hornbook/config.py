"""Settings: a frozen dataclass <-> TOML, strictly. An unknown or missing key or a value of the wrong type names file and line."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from hornbook.errors import UserError, near

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        siblings = [entry.name for entry in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        fix = near(path.name, siblings) if siblings else "name a .toml file, such as recipes/town.toml"
        raise UserError(f"no such recipe: {path}", where=str(path), fix=fix) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = re.search(r"line (\d+)", str(error))
        raise UserError(
            "not a TOML file", where=f"{path}:{found.group(1)}" if found else str(path), why=str(error), fix="correct that line"
        ) from error
    except OSError as error:
        raise UserError("the recipe cannot be read", where=str(path), why=error.strerror, fix="name a .toml file") from error


def from_toml(kind: type[T], path: Path) -> T:
    """An instance of the dataclass `kind` out of the file at `path`."""
    return from_dict(kind, read_toml(path), path)


def from_dict(kind: type[T], values: dict[str, Any], path: Path) -> T:
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"unknown key {key!r}", where=_place(path, key), fix=near(key, fields))
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            values = values | {key: from_dict(hints[key], value, path)}
        elif not _fits(value, hints[key]):
            raise _misfit(key, value, hints[key], _place(path, key))
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"the key {name!r} is missing", where=str(path), fix=f"add it: {name} = ...")
    try:
        return kind(**values)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        place = _place(path, str(error).partition(" ")[0])  # a message begins with the field that it is about
        raise UserError("a value cannot be used", where=place, why=str(error), fix="correct it") from error


def _misfit(key: str, value: Any, hint: Any, where: str) -> UserError:
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        return UserError(f"{key} must be one of {', '.join(choices)}: {value!r}", where=where, fix=near(str(value), choices))
    wanted = getattr(hint, "__name__", str(hint))
    return UserError(f"{key} must be {wanted}: {value!r}", where=where, fix=f"write a value of type {wanted}")


def _place(path: Path, key: str) -> str:
    """path:line of the first line that sets `key`."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pattern = re.compile(rf"\s*\[?\s*{re.escape(key)}\s*[=\].]")
    return next((f"{path}:{number}" for number, line in enumerate(lines, 1) if pattern.match(line)), str(path))


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    kind = origin or hint
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def to_toml(value: Any) -> str:
    """The dataclass or dict as TOML: plain values first, then one table per dict. None is left out."""
    values = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else dict(value)
    return "\n".join(_table(values, ())) + "\n"


def _table(values: dict[str, Any], place: tuple[str, ...]) -> list[str]:
    """The lines of one table and of those inside it, each headed by its whole name."""
    plain = {key: item for key, item in values.items() if item is not None and not isinstance(item, dict)}
    lines = [f"{_key(key)} = {_literal(item)}" for key, item in plain.items()]
    for key, item in values.items():
        if isinstance(item, dict):
            inner = (*place, _key(key))
            lines += ["", f"[{'.'.join(inner)}]", *_table(item, inner)]
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_literal(item)}" for key, item in value.items() if item is not None) + "}"
    # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)
