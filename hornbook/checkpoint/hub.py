"""A repository of a model hub: its name in, a folder in the user's cache with its safetensors, tokenizer and JSON files out.

One idea: a name is first resolved to a commit, and everything is kept under that commit. So what a download left half-way is
continued, what is whole is never asked for again, and a commit that is in the cache needs no network. The layout of the answers
is that of the Hugging Face Hub (its API documentation); HF_ENDPOINT names another server that speaks it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from hornbook.errors import DamagedError, UserError, near
from hornbook.files import continued, held, sha256, write_json
from hornbook.text import vocabularies
from hornbook.text.vocabularies import NAMES

SHORT = {"gpt2": "hf:openai-community/gpt2"}
NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(.+))?", re.ASCII)
COMMIT, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors", re.ASCII)
# What a loader may read; nothing else is fetched, so nothing that could run.
READ = {
    "config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
    "chat_template.jinja",
}  # fmt: skip
COMPLETE = ".complete"  # written last: the files of a whole download and their sizes
CHUNK, MOST_DESCRIPTION, TIMEOUT = 1 << 20, 1 << 25, 60.0


def download(name: str, say: Callable[[str], None] = lambda line: None, weights: bool = True) -> Path:
    """The folder that holds hf:OWNER/NAME[@REVISION], fetched where it is not in the cache. `say` is told of what is fetched.

    Without `weights` only what is beside them, into a folder of its own. Sizes, and SHA-256 where the hub states it, are checked.
    What goes wrong is a `UserError`; the same call then continues.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise UserError("this is no name of a repository", where=name, fix="write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    repository, revision = found[1], found[2] or "main"
    place, kind = cache() / repository.replace("/", "--"), "" if weights else "-tokenizer"
    if COMMIT.fullmatch(revision) and _is_whole(place / (revision + kind)):
        return place / (revision + kind)
    commit, files = _described(repository, revision, name, weights)
    folder = place / (commit + kind)
    if _is_whole(folder):
        return folder
    with held(folder):
        finished = _finished(folder)
        for file in files:
            if not _is_there(folder / file, finished.get(file)):
                say(f"downloading {file} of {repository} at {commit[:12]}")
                _fetch(f"{_endpoint()}/{repository}/resolve/{commit}/{file}", folder / file, name)
        write_json(folder / COMPLETE, {file: (folder / file).stat().st_size for file in files})
    return folder


def fetch_vocabulary(name: str, url: str | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Fetch a published vocabulary into the user's cache, where `Tokenizer.load(name)` finds it; `url` names another copy of it.

    Only what has the published SHA-256 is kept. An interrupted call is continued by the next.
    """
    if name not in NAMES:
        raise UserError(f"no vocabulary is named {name!r}", where="name", fix=near(name, NAMES))
    known = NAMES[name]
    address, file = url or known.url, vocabularies.folder(name) / known.file
    if address is None or not address.startswith(("https://", "http://")):
        why = "its licence has to be accepted where it is published" if address is None else f"{address!r} is no web address"
        raise UserError(f"{name} needs an address", where="url", why=why, fix=f"give the url of its {known.file}")
    with held(file.parent):
        if not file.is_file():
            say(f"downloading {address} to {file}")
            _fetch(address, file, name, known.sha256)
    vocabularies.check(file, known.sha256)
    return file


def cache() -> Path:
    """Where downloads are kept: `hornbook/hub` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hornbook" / "hub"


def _endpoint() -> str:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not endpoint.startswith(("https://", "http://")):
        raise UserError("the hub's address is no web address", where=f"HF_ENDPOINT={endpoint}", fix="begin it with https://")
    return endpoint


def _finished(folder: Path) -> dict[str, int]:
    """The files of a finished download and their sizes; none before it is finished."""
    file = folder / COMPLETE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _is_whole(folder: Path) -> bool:
    sizes = _finished(folder)
    return bool(sizes) and all(_is_there(folder / name, size) for name, size in sizes.items())


def _is_there(path: Path, size: int | None = None) -> bool:
    """Whether a downloaded file is there, and as long as it was when the download was finished."""
    return path.is_file() and size in (None, path.stat().st_size)


def _described(repository: str, revision: str, where: str, with_weights: bool) -> tuple[str, list[str]]:
    """The commit that a revision is now, and the files of it that a loader may read, the weights last."""
    response, _ = _opened(f"{_endpoint()}/api/models/{repository}/revision/{quote(revision, safe='')}", where)
    try:
        with response:
            told = json.loads(response.read(MOST_DESCRIPTION))
        commit, names = told["sha"], [entry["rfilename"] for entry in told["siblings"]]
        known = COMMIT.fullmatch(commit) and all(isinstance(name, str) for name in names)
    except (OSError, HTTPException) as error:
        raise _stopped(where, str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        known = None
    if not known or (COMMIT.fullmatch(revision) and commit != revision):
        why = "no commit and list of files, or those of another commit"
        raise DamagedError("the hub's answer cannot be read", where=where, why=why, fix="try again, or check HF_ENDPOINT")
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith("/") or "\\" in name:
            raise DamagedError(
                "the repository names a file outside of itself", where=where, why=repr(name), fix="use another repository"
            )
    weights = sorted(name for name in names if with_weights and WEIGHTS.fullmatch(name))
    if with_weights and not weights:
        others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".gguf", ".msgpack"))]
        raise UserError(
            "the repository has no safetensors", where=where, why=f"its weights are {', '.join(others[:5]) or 'of no known kind'}",
            fix="choose a repository or a revision that has model.safetensors",
        )  # fmt: skip
    return commit, sorted(READ.intersection(names)) + weights


def _fetch(url: str, path: Path, where: str, stated: str | None = None) -> None:
    """One file, from where an earlier call stopped; it takes its name when its size and hash are right."""
    with continued(path) as file:
        have = file.seek(0, os.SEEK_END)
        response, hops = _resumed(url, where, file, have)
        with response:
            if response.status == 206 and not str(response.headers.get("Content-Range")).startswith(f"bytes {have}-"):
                raise _stopped(where, f"the server sends another part of {path.name} than was asked for")
            if response.status != 206:
                file.truncate(have := 0)
            size = next((int(hop["X-Linked-Size"]) for hop in hops if (hop["X-Linked-Size"] or "").isdecimal()), None)
            if size is None and (response.headers["Content-Length"] or "").isdecimal():
                size = have + int(response.headers["Content-Length"])
            while chunk := _read(response, where):
                file.write(chunk)
        file.flush()
        got = file.seek(0, os.SEEK_END)
        if size is not None and got < size:
            raise _stopped(where, f"{path.name} ended at {got:,} of {size:,} bytes")
        expected = stated or _hash(hops)
        if (size is not None and got > size) or (expected and sha256(Path(file.name)) != expected):
            Path(file.name).unlink()
            raise DamagedError(
                "a downloaded file is not the one that was published", where=f"{where}: {path.name}",
                why=f"{got:,} bytes with another size or SHA-256; they were deleted", fix="run the same command again",
            )  # fmt: skip


def _resumed(url: str, where: str, file: BinaryIO, have: int) -> tuple[Any, list[Message]]:
    """The answer for the rest of a file; for all of it where there is no rest, as when a kill came just before the end."""
    try:
        return _opened(url, where, {"Range": f"bytes={have}-"} if have else {})
    except _OutOfRange:
        file.truncate(0)
        return _opened(url, where)


def _read(response: Any, where: str) -> bytes:
    try:
        return bytes(response.read(CHUNK))
    except (OSError, HTTPException) as error:
        raise _stopped(where, str(error) or type(error).__name__) from error


def _hash(hops: list[Message]) -> str | None:
    """The SHA-256 that the hub states: beside its link to the storage, or as its own ETag; the storage's ETag is another thing."""
    tags = [*(hop["X-Linked-Etag"] for hop in hops), hops[0]["ETag"]]
    found = (SHA256.fullmatch((tag or "").removeprefix("W/").strip('"')) for tag in tags)
    return next((match[0] for match in found if match), None)


class _OutOfRange(Exception):
    """The server has no bytes from there on."""


class _Hops(HTTPRedirectHandler):
    """Keeps the headers of every answer that sent us on."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        self.seen.append(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(url: str, where: str, headers: dict[str, str] | None = None) -> tuple[Any, list[Message]]:
    """The answer, and the headers of every answer on the way to it. A refusal is a `UserError` that says what to do."""
    hops = _Hops()
    try:
        response = build_opener(hops).open(Request(url, headers={"User-Agent": "hornbook", **(headers or {})}), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and headers:
            raise _OutOfRange from error
        gated = ("the repository is gated or private, or is not there", "accept its terms, download it yourself, name the folder")
        what, fix = {
            401: gated, 403: gated, 404: ("no such repository, revision or file", "check OWNER, NAME and REVISION"),
        }.get(error.code, ("the hub refuses", "run the same command again later"))  # fmt: skip
        raise UserError(what, where=where, why=f"HTTP {error.code} {error.reason}: {url}", fix=fix) from error
    except (OSError, HTTPException, ValueError) as error:
        raise UserError(
            "the hub cannot be reached", where=url, why=str(error),
            fix="check the network and run the same command again; a commit that is in the cache, hf:OWNER/NAME@COMMIT, needs none",
        ) from error  # fmt: skip
    return response, [*hops.seen, response.headers]


def _stopped(where: str, why: str) -> UserError:
    return UserError("the download stopped", where=where, why=why, fix="run the same command again: it continues there")
