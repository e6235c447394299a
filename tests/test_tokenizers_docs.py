"""The figures of docs/*/tokenizers.md are what their commands print now; SmolLM2's are held by tests/text/test_lab_glitch.py."""

from __future__ import annotations

from pathlib import Path

from benchmarks.pages import DOCS, LANGUAGES, part
from benchmarks.tokenizer_lab import blocks


def test_what_the_pages_show_is_what_their_commands_print(data_folder: Path) -> None:
    printed = blocks(data_folder, model=False)
    for language in LANGUAGES:
        page = DOCS / language / "tokenizers.md"
        assert {name: part(page, name) for name in printed} == printed


def test_both_pages_show_the_same_figures() -> None:
    english, chinese = (part(DOCS / language / "tokenizers.md", "glitch") for language in LANGUAGES)
    assert english == chinese and "Repeated: 0 of" in english
