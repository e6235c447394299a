"""`hornbook pretrain RECIPE.toml`: a corpus, its tokenizer and shards, and a model trained on them, as the recipe says."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hornbook.cli.console import parse, voice
from hornbook.config import from_toml, to_toml
from hornbook.errors import UserError
from hornbook.stages.settings import Recipe


def main(arguments: Sequence[str]) -> None:
    path, rest = recipe_path("pretrain", arguments)
    recipe = parse(Recipe, f"pretrain {path}", rest, default=from_toml(Recipe, path))
    print(f"hornbook pretrain: {recipe.reads} -> {recipe.out}, {recipe.steps} steps", file=sys.stderr, flush=True)
    from hornbook.stages.runs import pretrain_run

    print(to_toml(asdict(recipe)), file=sys.stderr)
    print(pretrain_run(recipe, voice(), shlex.join(["hornbook", "pretrain", *arguments])))


def recipe_path(verb: str, arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """The recipe that comes first, and the flags after it."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"usage: hornbook {verb} RECIPE.toml [--FIELD VALUE ...]\n\nhornbook {verb} RECIPE.toml --help lists the fields.")
            sys.exit(0)
        recipe = {"pretrain": "town", "sft": "town-sft", "speech": "digits-ctc"}[verb]
        raise UserError(f"{verb} needs a recipe", fix=f"hornbook {verb} recipes/{recipe}.toml")
    return Path(arguments[0]), list(arguments[1:])
