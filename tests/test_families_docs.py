"""The generated parts of docs/*/add-a-family.md and docs/*/ids-to-logits.md are what the code says now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from benchmarks.families import families_table, qwen_diff
from benchmarks.pages import DOCS, LANGUAGES, part
from hornbook.cli.main import run
from hornbook.families import FAMILIES
from tests.reference import published

languages = pytest.mark.parametrize("language", LANGUAGES)


@languages
def test_the_diff_on_the_page_is_that_of_the_files(language: str) -> None:
    assert part(DOCS / language / "add-a-family.md", "diff") == qwen_diff()


def test_a_new_family_is_at_most_ten_lines() -> None:
    new = [line for line in qwen_diff().splitlines() if re.match(r"\+(?!\+\+)\s*[^\s\"]", line)]  # neither blank nor the docstring
    assert len(new) == 9


@languages
def test_the_lines_that_the_page_shows_are_in_the_code(language: str) -> None:
    page = (DOCS / language / "add-a-family.md").read_text(encoding="utf-8")
    families = (DOCS.parent / "hornbook" / "families" / "__init__.py").read_text(encoding="utf-8")
    cases = (DOCS.parent / "tests" / "reference" / "published.py").read_text(encoding="utf-8")
    entry, case = re.findall(r"```python\n(.*?)\n```", page, re.S)
    assert entry in families and case in cases
    assert [case.name for case in published.CASES if "qwen3" in case.name and "moe" not in case.name] == [
        "qwen3",
        "qwen3 tied, biases",
    ]


@languages
def test_the_table_of_factors_has_every_family_and_says_what_the_specs_say(language: str) -> None:
    shown = part(DOCS / language / "ids-to-logits.md", "families")
    assert re.findall(r"^\| `(\w+)`", shown, re.M) == list(FAMILIES)
    if shown.startswith(f"transformers {transformers.__version__}\n"):  # another version may have other default configs
        assert shown == families_table(language)


@languages
def test_what_the_page_shows_is_what_its_commands_print(
    language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / language / "ids-to-logits.md").read_text(encoding="utf-8")
    shapes, counts = (shown.replace("\n    ", "\n")[1:] for shown in re.findall(r"(?:\n    (?:ids    | {8}).*)(?:\n    .+)+", page))
    (code,), (config,) = re.findall(r"```python\n(.*?)```", page, re.S), re.findall(r"<<'END'\n(.*?)END\n", page, re.S)
    printed = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent, capture_output=True, text=True, check=True).stdout
    assert printed == shapes + "\n"
    (tmp_path / "config.json").write_text(config)
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "config.json"]) == 0
    assert counts in "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
