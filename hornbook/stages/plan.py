"""A size, a config or a model's folder -> the record of what it takes: parameters, bytes, cache, vocabulary.

Nothing is loaded: a model is built on the meta device, so that the largest takes seconds. A size alone (`7B`) needs no torch.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from hornbook.errors import UserError
from hornbook.parallel.sizes import Parallel
from hornbook.plan import memory
from hornbook.stages.processes import processes

SCALES = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}  # powers of ten
LARGEST = 10**18


def planned(
    asked: str, sizes: Parallel | None = None, rows: int = 16, context: int = 256, accumulate: int = 1
) -> dict[str, Any]:  # fmt: skip
    """What `asked` takes, as `hornbook plan --json` prints it; with `sizes` of several processes also what each holds and sends."""
    path = Path(asked)
    named = not path.exists() and re.match(r"[+-]?\.?\d", asked) and "/" not in asked and path.suffix != ".json"
    found = {"parameters": {"total": size_named(asked)}} if named else _of_model(path)
    total = found["parameters"]["total"]
    more = {}
    if sizes and sizes.world > 1:
        build = None if named else lambda: built(str(found["config"]))
        more["processes"] = processes(build, total, sizes, rows, context, accumulate)
    return {"asked": asked, **found, "weights": memory.weights(total), "training": memory.training(total), **more}


def size_named(words: str) -> int:
    """The count that `7B`, `7e9`, `124M` or `1.5T` stands for."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:e(\d{1,2}))?([KMBT]?)", words, re.IGNORECASE)
    number, power, scale = found.groups() if found else ("0", None, "")
    value = Decimal(number).scaleb(int(power or 0) + SCALES[scale.upper()])
    if value != value.to_integral_value() or not 1 <= value <= LARGEST:
        raise UserError(
            f"{words!r} is no size and no path", why="a size is a whole count of parameters, with K, M, B or T for 10^3 to 10^12",
            fix="write a size such as 7B, 7e9, 124M or 1.5T, or name a model folder or a config.json",
        )  # fmt: skip
    return int(value)


def built(file: str) -> Any:
    """The model of a config.json, on the meta device."""
    from hornbook.checkpoint.pretrained import read_json
    from hornbook.families import build
    from hornbook.model import shapes_only

    with shapes_only():
        return build(read_json(Path(file)), file)


def _of_model(path: Path) -> dict[str, Any]:
    from hornbook.checkpoint.pretrained import model_folder, read_json
    from hornbook.families import FAMILIES, context_length
    from hornbook.plan.params import count

    file = path if path.is_file() and path.suffix == ".json" else model_folder(path) / "config.json"
    config = read_json(file)
    if "model_type" not in config:
        raise UserError(
            "the config does not say which model it is", where=f"{file}: model_type", fix=f"add model_type: {', '.join(FAMILIES)}"
        )
    model = built(str(file))
    found, context = count(model), context_length(model)
    cache = {"values_per_token": found.cache_values, "per_token": memory.size(found.cache_values, memory.FORMATS["bf16"])}
    if context:
        cache |= {"context": context, "per_context": memory.size(found.cache_values * context, memory.FORMATS["bf16"])}
    return {
        "config": str(file), "model_type": config["model_type"],
        "parameters": {"total": found.total, "active": found.active, "tied": found.shared, "groups": found.groups},
        "cache_bf16": cache, **_vocabulary(file.parent, model),
    }  # fmt: skip


def _vocabulary(folder: Path, model: Any) -> dict[str, Any]:
    """The rows of the first embedding of tokens beside a tokenizer's, where the model has one and a tokenizer.json is there."""
    from hornbook.checkpoint.pretrained import read_json
    from hornbook.plan.vocabulary import vocabulary

    rows = next((len(value) for name, value in model.named_parameters() if name.endswith("stem.tokens.weight")), None)
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if rows is None or not file.is_file():
        return {}
    found = vocabulary(rows, read_json(file), read_json(settings) if settings.is_file() else {}, str(file))
    return {"vocabulary": {**vars(found), "explained": found.explained()}}
