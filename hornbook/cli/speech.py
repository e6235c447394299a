"""`hornbook speech RECIPE.toml --folder PATH --held-out SPEAKER`: a model that spells what it hears, and its errors."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict

from hornbook.cli.console import parse, voice
from hornbook.cli.pretrain import recipe_path
from hornbook.config import from_toml, to_toml
from hornbook.stages.settings import SpeechRecipe


def main(arguments: Sequence[str]) -> None:
    path, rest = recipe_path("speech", arguments)
    recipe = parse(SpeechRecipe, f"speech {path}", rest, default=from_toml(SpeechRecipe, path))
    print(f"hornbook speech: {recipe.folder} -> {recipe.out}, {recipe.steps} steps", file=sys.stderr, flush=True)
    from hornbook.stages.speech import speech_run

    print(to_toml(asdict(recipe)), file=sys.stderr)
    print(speech_run(recipe, voice(), shlex.join(["hornbook", "speech", *arguments])))
