"""Generated parts of the guides: what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a page of docs/en or docs/zh."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
LANGUAGES = ("en", "zh")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n)(.*?)(?=<!-- /{name} -->)", re.S)


def part(page: Path, name: str) -> str:
    """What the page says between the marks; a page without them is a ValueError."""
    found = _marks(name).search(page.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page} has no marks {name!r}")
    return found[1].strip("\n")


def write(page: Path, name: str, block: str) -> None:
    """Put the block between the marks."""
    part(page, name)
    page.write_text(_marks(name).sub(lambda _: f"\n{block}\n\n", page.read_text(encoding="utf-8")), encoding="utf-8")
