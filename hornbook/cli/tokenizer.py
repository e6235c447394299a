"""`hornbook tokenizer train|encode`: learn a vocabulary from any corpus; see a text as tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hornbook.cli.console import parse, voice
from hornbook.errors import UserError, near


@dataclass(frozen=True)
class Train:
    """Read and clean a corpus and learn a byte-level BPE vocabulary from it."""

    data: str = "town"
    out: Path = field(default=Path("runs/tokenizer"))
    vocab: int = 1024
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
        train_tokenizer(corpus, settings.vocab, settings.split, settings.out / "tokenizer", speak)
    print(settings.out / "tokenizer")


@dataclass(frozen=True)
class Encode:
    """Print the ids of a text (from --text or standard input) and the piece of text behind each."""

    tokenizer: Annotated[Path, tyro.conf.Positional]
    """A folder with a tokenizer.json, or a model folder."""
    text: str | None = None
    json: bool = False


def encode(arguments: Sequence[str]) -> None:
    settings = parse(Encode, "tokenizer encode", arguments)
    from hornbook.text.tokenizer import Tokenizer

    folder = settings.tokenizer
    inner = [folder / name for name in ("model", "tokenizer") if (folder / name / "tokenizer.json").exists()]
    tokenizer = Tokenizer.load(folder if not inner or (folder / "tokenizer.json").exists() else inner[0])
    text = sys.stdin.read() if settings.text is None else settings.text
    ids = tokenizer.encode(text)
    pieces = [tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace") for token in ids]
    if settings.json:
        print(json.dumps({"ids": ids, "pieces": pieces, "bytes": len(text.encode())}, ensure_ascii=False))
        return
    for token, piece in zip(ids, pieces, strict=True):
        print(f"{token:7}  {piece!r}")
    print(f"{len(ids)} tokens, {len(text.encode())} bytes, {len(text.encode()) / max(1, len(ids)):.2f} bytes per token")


ACTIONS = {"train": train, "encode": encode}


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hornbook tokenizer train|encode [OPTION ...]\n\n  train   " + (Train.__doc__ or ""))
        print("  encode  Print the ids of a text and the piece of text behind each.")
        return
    if arguments[0] not in ACTIONS:
        raise UserError(f"no such action: {arguments[0]!r}", where="hornbook tokenizer", fix=near(arguments[0], ACTIONS))
    ACTIONS[arguments[0]](arguments[1:])
