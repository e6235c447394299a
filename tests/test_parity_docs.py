"""The table in docs/*/parity.md has exactly the cases that the tests compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages import DOCS, LANGUAGES, part, table, write
from tests.reference.published import CASES


def rows(page: Path) -> list[list[str]]:
    """The cells of each line of the page's table, its header and ruler left out."""
    lines = [line for line in part(page, "parity").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_case_has_its_row_and_every_row_its_case(language: str) -> None:
    found = [(row[0], row[1].strip("`")) for row in rows(DOCS / language / "parity.md")]
    assert found == [(case.name, case.model_type) for case in CASES]
    assert len({name for name, _ in found}) == len(CASES)


def test_both_pages_say_the_same_figures() -> None:
    english, chinese = ([row[2:5] for row in rows(DOCS / language / "parity.md")] for language in LANGUAGES)
    assert english == chinese
    assert max(float(figure) for row in english for figure in row) < 1e-5


def test_a_part_is_replaced_and_what_is_around_it_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- /figures -->\nafter\n")
    block = table(("a", "b"), [("1", r"\1")])
    write(page, "figures", block)
    write(page, "figures", block)
    assert page.read_text() == f"before\n<!-- figures -->\n\n{block}\n\n<!-- /figures -->\nafter\n"
    assert part(page, "figures") == block
    with pytest.raises(ValueError, match="others"):
        write(page, "others", block)
