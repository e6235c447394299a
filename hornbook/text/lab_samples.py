"""The texts that the laboratory measures on: a name in, a text out.

Prose and code are files of the package, written for it: a manual for a thesis in Chinese and in English, a page of Japanese, some
Python. The rest is made of them or drawn from a seed, so that one thing alone differs: the same text backwards, the same code
without its indentation, the same records as JSON and as YAML. The manuals have two halves: a tokenizer may learn from the first,
and the laboratory measures on the second.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from hornbook.errors import UserError, near

FOLDER = Path(__file__).parent / "samples"
MANUALS = ("en", "zh")


def sample(name: str) -> str:
    """A text of the package: en, zh, ja or python."""
    known = sorted(path.stem for path in FOLDER.glob("*.txt"))
    if name not in known:
        raise UserError(f"no sample text is called {name!r}", fix=near(name, known))
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def halves(language: str) -> tuple[str, str]:
    """The manual's first sections, to learn from, and the others, to measure on; joined they are the manual."""
    text = sample(language)
    sections = text.split("\n\n")
    first = "\n\n".join(sections[: (len(sections) + 1) // 2]) + "\n\n"
    return first, text[len(first) :]


@cache
def domains() -> dict[str, str]:
    """The texts of a comparison by name."""
    english, chinese, code, data = halves("en")[1], halves("zh")[1], sample("python"), records()
    return {
        "English": english,
        "Chinese": chinese,
        "Japanese": sample("ja"),
        "English backwards": english[::-1],
        "Chinese backwards": chinese[::-1],
        "Python": code,
        "Python, no indentation": "\n".join(line.lstrip() for line in code.split("\n")),
        "JSON, minified": json.dumps(data, ensure_ascii=False, separators=(",", ":")),
        "JSON, one line": json.dumps(data, ensure_ascii=False),
        "JSON, pretty": json.dumps(data, ensure_ascii=False, indent=2),
        "YAML": yaml(data),
        "numbers": " ".join(map(str, _numbers(200))),
        "sums": "\n".join(f"{a} + {b} = {a + b}" for a, b in zip(_numbers(60), reversed(_numbers(60)), strict=True)),
    }


def _numbers(count: int) -> list[int]:
    """Numbers of one to seven digits, each length as often."""
    draw = random.Random(0)
    return [draw.randrange(10 ** (i % 7), 10 ** (i % 7 + 1)) for i in range(count)]


def records(count: int = 12) -> list[dict[str, Any]]:
    """Records of theses, as a program would exchange them: strings, numbers, booleans, lists, one level of nesting."""
    draw, subjects = random.Random(0), ("bridges", "rivers", "old maps", "bees", "tides", "salt", "clocks", "paper")
    return [
        {
            "id": 1000 + i, "title": f"On {draw.choice(subjects)} and {draw.choice(subjects)}", "year": draw.randrange(1990, 2026),
            "passed": draw.random() < 0.9, "keywords": draw.sample(subjects, 3),
            "grades": {part: draw.randrange(60, 100) for part in ("thesis", "talk", "answers")},
        }
        for i in range(count)
    ]  # fmt: skip


def yaml(value: Any, indent: int = 0) -> str:
    """Records as YAML in block style, two spaces a level; strings must be such as YAML leaves without quotes."""
    pad = " " * indent
    if isinstance(value, dict):
        return "".join(f"{pad}{key}:{_inside(part, indent + 2)}" for key, part in value.items())
    if isinstance(value, list):
        return "".join(f"{pad}- {yaml(part, indent + 2).lstrip(' ')}" for part in value)
    return f"{json.dumps(value) if not isinstance(value, str) else value}\n"


def _inside(value: Any, indent: int) -> str:
    return f"\n{yaml(value, indent)}" if isinstance(value, dict | list) else f" {yaml(value)}"
