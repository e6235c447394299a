"""`hornbook tokenizer ACTION`: learn a vocabulary from any corpus; see a text as tokens; the laboratory."""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from hornbook.cli.console import opened, parse, voice
from hornbook.errors import UserError, near


@dataclass(frozen=True)
class Train:
    """Read and clean a corpus and learn a byte-level BPE vocabulary from it."""

    data: str = "town"
    out: Path = field(default=Path("runs/tokenizer"))
    vocab: int = 1024
    at_most: bool = False
    """Learn fewer rows from a text that is too small for so many, instead of refusing it."""
    split: str = "cl100k"
    language: str = "en"
    seed: int = 0
    corpus_bytes: int = 10_000_000
    """Read at most so much text."""


def train(arguments: Sequence[str]) -> None:
    settings = parse(Train, "tokenizer train", arguments)
    from hornbook.stages.corpus import make_corpus
    from hornbook.stages.keep import run_folder
    from hornbook.stages.tokens import train_tokenizer

    speak, corpus = voice(), settings.out / "corpus"
    with run_folder(settings.out):
        make_corpus(settings.data, settings.language, settings.seed, settings.corpus_bytes, 0, corpus, speak)
        train_tokenizer(corpus, settings.vocab, settings.split, settings.out / "tokenizer", speak, settings.at_most)
    print(settings.out / "tokenizer")


@dataclass(frozen=True)
class Encode:
    """Print the ids of a text (from --text or standard input) and the piece of text behind each."""

    tokenizer: Annotated[str, tyro.conf.Positional]
    """A folder with a tokenizer.json, or a model folder."""
    text: str | None = None
    json: bool = False


def encode(arguments: Sequence[str]) -> None:
    settings = parse(Encode, "tokenizer encode", arguments)
    from hornbook.stages.laboratory import open_tokenizer
    from hornbook.text.lab import cuts

    tokenizer = open_tokenizer(settings.tokenizer)
    text = sys.stdin.read() if settings.text is None else settings.text
    ids, pieces = tokenizer.encode(text), cuts(tokenizer, text)
    if settings.json:
        print(json.dumps({"ids": ids, "pieces": pieces, "bytes": len(text.encode())}, ensure_ascii=False))
        return
    for token, piece in zip(ids, pieces, strict=True):
        print(f"{token:7}  {piece!r}")
    print(f"{len(ids)} tokens, {len(text.encode())} bytes, {len(text.encode()) / max(1, len(ids)):.2f} bytes per token")


@dataclass(frozen=True)
class Compare:
    """Count tokens, bytes per token and fertility of several tokenizers on the laboratory's texts, side by side."""

    tokenizers: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders or files of tokenizers; home-zh, home-en and home-zh-en are learned at once from texts that hornbook brings."""
    text: Path | None = None
    """Compare on this file instead."""
    kinds: str | None = None
    """A corpus on which to compare bytes, characters, words and BPE: home-en (learned as that tokenizer was, measured on the
    manual's other half), town, shakespeare, python, a path."""
    language: str = "en"
    """Of the town."""
    corpus_bytes: int = 1_000_000
    """Read at most so much of the corpus."""
    html: Path | None = None
    json: bool = False


def compare(arguments: Sequence[str]) -> None:
    settings = parse(Compare, "tokenizer compare", arguments)
    if not settings.tokenizers and settings.kinds is None:
        raise UserError("there is nothing to compare", fix="hornbook tokenizer compare home-zh home-en, or --kinds home-en")
    from hornbook.stages import laboratory
    from hornbook.text.lab_page import compare_page, kinds_table

    record: dict[str, Any] = {}
    if settings.tokenizers:
        record |= laboratory.compared(settings.tokenizers, settings.text)
    if settings.kinds is not None:
        record |= laboratory.kinds_compared(settings.kinds, settings.language, settings.corpus_bytes)
    if not _told(record, settings.json, settings.html, compare_page):
        return
    for label, key in (("tokens", "tokens"), ("bytes per token", "bytes_per_token"), ("fertility", "fertility")):
        rows = [[title, *(found[name][key] for name in found)] for title, found in record.get("texts", {}).items()]
        _print_table([label, *record.get("vocab", ())], rows)
    _print_table(["text", *record.get("vocab", ())], [[p, *map("│".join, f.values())] for p, f in record.get("probes", {}).items()])
    _print_table(*kinds_table(record.get("kinds", [])))
    if "corpus" in record:
        print(record["corpus"])


@dataclass(frozen=True)
class Inspect:
    """Show a text's tokens, bytes, code points and merges, from --text or standard input."""

    tokenizer: Annotated[str, tyro.conf.Positional]
    text: str | None = None
    html: Path | None = None
    json: bool = False


def inspect(arguments: Sequence[str]) -> None:
    settings = parse(Inspect, "tokenizer inspect", arguments)
    from hornbook.stages.laboratory import inspected
    from hornbook.text.lab_page import inspect_page

    record = inspected(settings.tokenizer, sys.stdin.read() if settings.text is None else settings.text)
    if not _told(record, settings.json, settings.html, inspect_page):
        return
    _print_table(
        ["id", "piece", "spelled", "bytes"], [[str(t["id"]), _dots(t["piece"]), t["spelled"], t["bytes"]] for t in record["tokens"]]
    )
    characters = ([c["character"], c["code"], str(c["ord"]), c["bytes"], c["name"]] for c in record["characters"])
    _print_table(["character", "code", "ord", "UTF-8", "name"], list(characters))
    for word, steps in record["merges"].items():
        print("\n".join([f"{word!r}", *("  " + " ".join(map(_dots, step)) for step in steps)]))


@dataclass(frozen=True)
class Vocab:
    """Survey a vocabulary: scripts, the longest tokens, tokens out of every text's reach, duplicates."""

    tokenizer: Annotated[str, tyro.conf.Positional]
    html: Path | None = None
    json: bool = False


def vocab(arguments: Sequence[str]) -> None:
    settings = parse(Vocab, "tokenizer vocab", arguments)
    from hornbook.stages.laboratory import surveyed
    from hornbook.text.lab_page import vocab_page

    record = surveyed(settings.tokenizer)
    if not _told(record, settings.json, settings.html, vocab_page):
        return
    rows = record["rows"]
    _print_table(["script", "rows", "share"], [[name, many, f"{many / rows:.1%}"] for name, many in record["scripts"].items()])
    _print_table(["longest", "id", "bytes"], [[t["piece"], str(t["id"]), t["bytes"]] for t in record["longest"]])
    _print_table(["out of reach", "id", "why"], [[t["piece"], str(t["id"]), t["why"]] for t in record["unreachable"][:SHOWN]])
    print(
        f"{rows:,} rows: {len(record['specials'])} special, {len(record['unreachable']):,} out of reach, "
        f"{len(record['duplicates']):,} duplicates, {record['variants']:,} the same as another but for case or a space"
    )


@dataclass(frozen=True)
class Glitch:
    """List tokens that no document of a corpus produces, and with a model the rows that were never trained."""

    tokenizer: Annotated[str, tyro.conf.Positional] = ""
    """By default the model's."""
    data: str | None = None
    """A corpus: town, shakespeare, python, a path, hf:OWNER/NAME."""
    model: str | None = None
    """A model folder, a run folder, or hf:OWNER/NAME."""
    probe: int = 0
    """Ask the model to repeat so many suspects, and as many ordinary words."""
    fix: Path | None = None
    """Write the model there with the suspects' rows begun anew near the mean of the used rows."""
    language: str = "en"
    """Of the town."""
    corpus_bytes: int = 10_000_000
    html: Path | None = None
    json: bool = False


def glitch(arguments: Sequence[str]) -> None:
    settings = parse(Glitch, "tokenizer glitch", arguments)
    if settings.model is None and (settings.fix or settings.probe):
        raise UserError("--probe and --fix need a model", where="hornbook tokenizer glitch", fix="add --model FOLDER")
    from hornbook.families import decoder
    from hornbook.stages.laboratory import corpus_texts, glitches, open_tokenizer
    from hornbook.text.lab_page import glitch_page

    if not settings.tokenizer and settings.model is None:
        raise UserError("glitch needs a tokenizer or a model", fix="hornbook tokenizer glitch TOKENIZER --data town")
    model = None
    if settings.model is not None:
        loaded, tokenizer = opened(settings.model)
        model = decoder(loaded, settings.model)
    if settings.tokenizer:
        tokenizer = open_tokenizer(settings.tokenizer)
    texts = None if settings.data is None else corpus_texts(settings.data, settings.language, settings.corpus_bytes)
    record = glitches(settings.tokenizer or str(settings.model), tokenizer, texts, model, settings.probe, settings.fix)
    if not _told(record, settings.json, settings.html, glitch_page):
        return
    names = [name for name in ("id", "piece", "uses", "distance", "norm", "similarity", "repeats")
             if any(row.get(name) is not None for row in record["suspects"])]  # fmt: skip
    _print_table(names, [[str(row["id"]), *(row.get(name) for name in names[1:])] for row in record["suspects"][:SHOWN]])
    unused = "" if record["unused"] is None else f"{record['unused']:,} that the corpus never produced, "
    print(f"{record['out_of_reach']:,} rows that no text can use, {unused}{record['suspected']:,} suspects", end="")
    print(f", the first {SHOWN} above" if record["suspected"] > SHOWN else "")
    print(record["explained"], record["note"], sep="\n")
    if "ordinary_asked" in record:
        asked = [row["repeats"] for row in record["suspects"] if "repeats" in row]
        words = f"{record['ordinary_repeated']} of {record['ordinary_asked']} ordinary words"
        print(f"Repeated: {sum(asked)} of {len(asked)} suspects, {words}")


SHOWN = 40  # rows of a list on the screen; --json and --html have more


def _told(record: dict[str, Any], as_json: bool, html: Path | None, page: Callable[[dict[str, Any]], str]) -> bool:
    """Write the page and print the JSON where they are wanted; whether the terminal wants tables still."""
    if html is not None:
        from hornbook.files import write_text

        write_text(html, page(record))
        print(html, file=sys.stderr)
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
    return not as_json


def _print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell, where a character of CJK takes two places; numbers on the right."""
    if not rows:
        return
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    wide = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    for line in cells:
        parts = (
            " " * (w - _columns(c)) + c if r else c + " " * (w - _columns(c)) for c, w, r in zip(line, wide, right, strict=True)
        )
        print("  ".join(parts).rstrip())
    print()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value) if isinstance(value, str | bool) else f"{value:,}"


def _dots(piece: str) -> str:
    return piece.replace(" ", "·")


def _columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@dataclass(frozen=True)
class Warm:
    """Compile what encodes and learns from large texts, once per machine; it would else happen with the first of them."""


def warm(arguments: Sequence[str]) -> None:
    parse(Warm, "tokenizer warm", arguments)
    start = time.perf_counter()
    from hornbook.text import compiled

    compiled.warm()
    print(f"{compiled.__name__} is ready after {time.perf_counter() - start:.1f} s")


@dataclass(frozen=True)
class Fetch:
    """Fetch a published vocabulary by its name (gpt2, cl100k, o200k, llama3, qwen3) and check its SHA-256."""

    name: Annotated[str, tyro.conf.Positional]
    url: str | None = None
    """Another address of the same file; llama3 has no other, for its licence has to be accepted first."""


def fetch(arguments: Sequence[str]) -> None:
    settings = parse(Fetch, "tokenizer fetch", arguments)
    from hornbook.checkpoint.hub import fetch_vocabulary

    print(fetch_vocabulary(settings.name, settings.url, say=lambda line: print(line, file=sys.stderr, flush=True)))


ACTIONS = {
    "train": train, "encode": encode, "compare": compare, "inspect": inspect, "vocab": vocab, "glitch": glitch, "fetch": fetch,
    "warm": warm,
}  # fmt: skip
SETTINGS = (Train, Encode, Compare, Inspect, Vocab, Glitch, Fetch, Warm)


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: hornbook tokenizer {'|'.join(ACTIONS)} [OPTION ...]\n")
        print("\n".join(f"  {name:8} {kind.__doc__}" for name, kind in zip(ACTIONS, SETTINGS, strict=True)))
        return
    if arguments[0] not in ACTIONS:
        raise UserError(f"no such action: {arguments[0]!r}", where="hornbook tokenizer", fix=near(arguments[0], ACTIONS))
    ACTIONS[arguments[0]](arguments[1:])
