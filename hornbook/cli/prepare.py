"""`hornbook prepare`: a corpus from any source, cleaned; its tokenizer; its token shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hornbook.cli.console import parse, voice


@dataclass(frozen=True)
class Prepare:
    """Read and clean a corpus, learn a vocabulary from it (or take a ready one), and write token shards."""

    data: str = "town"
    out: Path = field(default=Path("runs/prepared"))
    language: str = "en"
    seed: int = 0
    corpus_bytes: int = 10_000_000
    """Read at most so much text."""
    conversations: int = 2000
    vocab: int = 1024
    split: str = "cl100k"
    tokenizer: Path | None = None
    """A folder with a tokenizer.json to use instead of learning one."""


def main(arguments: Sequence[str]) -> None:
    settings = parse(Prepare, "prepare", arguments)
    from hornbook.stages.corpus import make_corpus
    from hornbook.stages.keep import run_folder
    from hornbook.stages.tokens import make_shards, train_tokenizer
    from hornbook.text.tokenizer import Tokenizer

    speak, corpus = voice(), settings.out / "corpus"
    with run_folder(settings.out):
        make_corpus(settings.data, settings.language, settings.seed, settings.corpus_bytes, settings.conversations, corpus, speak)
        if settings.tokenizer:
            tokenizer = Tokenizer.load(settings.tokenizer)
        else:
            tokenizer = train_tokenizer(corpus, settings.vocab, settings.split, settings.out / "tokenizer", speak)
        make_shards(corpus, tokenizer, settings.out / "shards", speak)
    print(settings.out / "shards")
