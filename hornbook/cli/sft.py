"""`hornbook sft RECIPE.toml`: teach the model of a pretraining run to answer."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict

from hornbook.cli.console import parse, voice
from hornbook.cli.pretrain import recipe_path
from hornbook.config import from_toml, to_toml
from hornbook.stages.settings import SftRecipe


def main(arguments: Sequence[str]) -> None:
    path, rest = recipe_path("sft", arguments)
    recipe = parse(SftRecipe, f"sft {path}", rest, default=from_toml(SftRecipe, path))
    print(f"hornbook sft: the model of {recipe.base}, {recipe.steps} steps", file=sys.stderr, flush=True)
    from hornbook.stages.runs import sft_run

    print(to_toml(asdict(recipe)), file=sys.stderr)
    print(sft_run(recipe, voice(), shlex.join(["hornbook", "sft", *arguments])))
