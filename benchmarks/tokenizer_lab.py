"""The figures of docs/*/tokenizers.md: what its commands print. `--write` puts them into the pages.

GPT-2's vocabulary is read from the folder of third-party data, SmolLM2's from its package; see tests/conftest.py and the Makefile.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

from benchmarks.pages import DOCS, LANGUAGES, write
from hornbook.cli.main import run
from hornbook.text.split import PATTERNS
from hornbook.text.tokenizer import Tokenizer, byte_level

DATA = Path(os.environ.get("HORNBOOK_TEST_DATA", DOCS.parent.parent / "shared" / "data"))
COMPARE = ("compare", "home-zh", "home-en", "gpt2")
KINDS = ("compare", "--kinds", "home-en")
INSPECT = ("inspect", "gpt2", "--text", "strawberry")
GLITCH = ("glitch", "--model", "smollm2", "--probe", "16")


def gpt2(data: Path) -> Tokenizer:
    """GPT-2's published pair of files, as one tokenizer.json."""
    folder = data / "tokenizers" / "gpt2"
    vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    end = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
    merges = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]
    return Tokenizer(byte_level(vocab, merges, [PATTERNS["gpt2"]], end))


def printed(words: tuple[str, ...], data: Path = DATA) -> str:
    """What `hornbook tokenizer WORDS` prints in a folder where `gpt2` is GPT-2's tokenizer."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(said):
        if "gpt2" in words:
            gpt2(data).save("gpt2")
        if code := run(["tokenizer", *words]):
            raise SystemExit(code)
    return said.getvalue().strip()


def shown(words: tuple[str, ...], answer: str) -> str:
    return f"```\n$ hornbook tokenizer {' '.join(words)}\n{answer}\n```"


def blocks(data: Path = DATA, model: bool = True) -> dict[str, str]:
    """The generated parts of the page by name; with `model`, what SmolLM2 says too."""
    tables = printed(COMPARE, data).split("\n\n")
    found = {
        "tokens": shown(COMPARE, tables[0] + "\n..."),
        "cuts": shown(COMPARE, "...\n" + tables[-1]),
        "kinds": shown(KINDS, printed(KINDS)),
        "merges": shown(INSPECT, "...\n" + printed(INSPECT, data).split("\n\n")[-1]),
    }
    return found | ({"glitch": shown(GLITCH, printed(GLITCH))} if model else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put them into the guides")
    write_pages = parser.parse_args().write
    for name, block in blocks().items():
        print(block)
        for language in LANGUAGES if write_pages else ():
            write(DOCS / language / "tokenizers.md", name, block)


if __name__ == "__main__":
    main()
