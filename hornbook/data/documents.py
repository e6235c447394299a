"""Readers: a file, a folder or a glob in; a stream of `Document`s out, and an `Intake` that counts what was refused.

The one idea: everything streams, and nothing is refused in silence. A file is a stream of unpacked chunks, chunks become lines
(or the items of a JSON list), and those become documents; more than one record is never held, so a file larger than memory, a
line of a hundred megabytes or a decompression bomb costs time and not memory. A bad record is counted under its reason with its
place, and the reader goes on with the next one.
"""

from __future__ import annotations

import difflib
import glob
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hornbook.data.lines import PACKINGS, Rejected, json_items, lines, pieces, unpacked
from hornbook.errors import UserError

Material = TypeVar("Material")

DOCUMENT_BYTES = 8_000  # a text file is cut into documents of at most this many bytes
LINE_BYTES = 16 * 2**20  # a longer line, JSON item or field is refused: no prose looks like that
EXAMPLES = 3  # places kept for each reason

# Why a record or a file can be refused, and what its owner can do about it.
REMEDIES = {
    "bad utf-8": "save the file as UTF-8, for instance: iconv -f LATIN1 -t UTF-8 OLD > NEW",
    "binary": "give text; convert other formats to .txt, .md or .jsonl first",
    "too long": f"break the text into lines or records of less than {LINE_BYTES // 2**20} MB",
    "bad json": 'write one JSON object a line, such as {"text": "..."}',
    "too deep": "flatten the record: only its top-level fields are read",
    "no text": "name the field `text` (or `content`), or give `messages`, or `question` and `answer`",
    "bad messages": 'give `messages` as a list of {"role": "user", "content": "..."}; roles: user, assistant, system, tool',
    "damaged": "fetch or pack the file again: it is cut or corrupt",
    "unreadable": "check that the file exists and that you may read it",
    "empty file": "give a file that holds text",
    "other format": "use .txt .md .py .jsonl .json (each also .gz .zst .bz2) or .parquet",
    "hidden": "rename it, or name it directly: what begins with a dot is left out of a folder",
    "not a file": "give a regular file: pipes, sockets and devices are not read",
    "seen before": "nothing: it is the same file or folder under a second name",
}
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Document:
    """One text and where it came from.

    `source` is `path:line` or `town:story/17`. A document with `messages` is a conversation (dicts with `role` and `content`):
    it is for fine-tuning, and its `text` is empty.
    """

    text: str
    source: str = ""
    messages: tuple[dict[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the text in UTF-8, or of the contents of the messages."""
        parts = [message["content"] for message in self.messages] if self.messages else [self.text]
        return sum(len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass")) for part in parts)


@dataclass
class Intake:
    """What was read and what was refused: reason -> count, and reason -> the first places as `path:line: detail`.

    `bytes` is the size of the documents handed out, not of the files.
    """

    files: int = 0
    documents: int = 0
    bytes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def reject(self, reason: str, place: str, detail: str) -> None:
        assert reason in REMEDIES, reason
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{place}: {detail}")

    def take(self, make: Callable[[Material, str], Document], material: Material, place: str) -> Iterator[Document]:
        """The document `make(material, place)`, counted; nothing where `make` refuses, which is counted too."""
        try:
            document = make(material, place)
        except Rejected as refusal:
            self.reject(refusal.reason, refusal.place or place, refusal.detail)
            return
        self.documents += 1
        self.bytes += document.size
        yield document


def read(source: str, intake: Intake, line_bytes: int = LINE_BYTES) -> Iterator[Document]:
    """The documents of a file, a folder (recursively) or a glob, in an order that depends on the names alone.

    A text file is cut by `pieces`; a row of .jsonl, .json or .parquet becomes a document by `document_of`. Text is handed out
    as it stands (a byte order mark is removed, line ends are kept). Raises `UserError` at once if nothing has that name, and at
    the end if no document came.
    """
    return _read_all(source, roots(source), intake, line_bytes)


def _read_all(source: str, paths: list[str], intake: Intake, line_bytes: int) -> Iterator[Document]:
    for path in files(paths, intake):
        yield from read_file(path, intake, line_bytes)
    require_documents(intake, source)


def require_documents(intake: Intake, source: str) -> None:
    """Raise `UserError` if nothing good came out of `source`, with the first reason and its place."""
    if intake.documents:
        return
    if not intake.rejected:
        raise UserError(f"no text in {source!r}", why="the folder or file is empty", fix=REMEDIES["empty file"])
    reason, count = next(iter(intake.rejected.items()))
    total = sum(intake.rejected.values())
    why = f"{reason} ({count} of {total} refused)"
    raise UserError(f"no usable document in {source!r}", where=intake.examples[reason][0], why=why, fix=REMEDIES[reason])


# --- names to files ---------------------------------------------------------------------------------------------------


def roots(source: str) -> list[str]:
    """The path itself if it exists, else what the glob matches, sorted; `UserError` with the near names if that is nothing."""
    if os.path.lexists(source):
        return [source]
    if glob.has_magic(source):
        if found := sorted(glob.glob(source, recursive=True)):
            return found
        raise UserError(f"no file matches {source!r}", fix="check the pattern, and quote it so that the shell passes it on")
    parent = os.path.dirname(os.path.abspath(source))
    name = os.path.basename(source.rstrip("/"))
    if not os.path.isdir(parent):
        raise UserError(f"no such file or folder: {source!r}", why=f"there is no folder {parent!r}", fix="check the path")
    names = sorted(os.listdir(parent)) if os.access(parent, os.R_OK) else []
    close = difflib.get_close_matches(name, names, n=1)
    fix = f"did you mean {os.path.join(os.path.dirname(source), close[0])!r}?" if close else "check the path"
    holds = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise UserError(f"no such file or folder: {source!r}", why=f"{parent} holds: {holds or 'nothing'}", fix=fix)


def files(paths: list[str], intake: Intake) -> Iterator[str]:
    """The regular files of a known format under `paths`, depth first in the order of their names.

    Links are followed; a file or folder that was met before under another name, as in a loop of links, is counted and not
    entered again. Pipes and devices are never opened, since opening one can wait for ever.
    """
    waiting = paths[::-1]
    seen: set[tuple[int, int]] = set()
    while waiting:
        path = waiting.pop()
        try:
            status = os.stat(path)
            inside = sorted(os.listdir(path)) if stat.S_ISDIR(status.st_mode) else []
        except OSError as error:
            intake.reject("unreadable", shown(path), error.strerror or str(error))
            continue
        if (status.st_dev, status.st_ino) in seen:
            intake.reject("seen before", shown(path), "met already under another name")
            continue
        seen.add((status.st_dev, status.st_ino))
        if stat.S_ISDIR(status.st_mode):
            for name in inside:
                if name.startswith("."):
                    intake.reject("hidden", shown(os.path.join(path, name)), "begins with a dot")
            waiting += [os.path.join(path, name) for name in reversed(inside) if not name.startswith(".")]
        elif not stat.S_ISREG(status.st_mode):
            intake.reject("not a file", shown(path), "a pipe, a socket or a device")
        elif reader_of(path) is None:
            intake.reject("other format", shown(path), "its ending is not one that is read")
        else:
            yield path


def shown(path: str) -> str:
    """A path fit for messages and JSON: bytes of a name that are not UTF-8 become question marks."""
    return os.fsencode(path).decode("utf-8", "replace")


# --- files to documents -----------------------------------------------------------------------------------------------

Reader = Callable[[str, Intake, int], Iterator[Document]]


def read_file(path: str, intake: Intake, line_bytes: int = LINE_BYTES) -> Iterator[Document]:
    """The documents of one file by the reader of its ending; a cut or corrupt file gives what comes before the damage."""
    reader = reader_of(path)
    assert reader is not None, f"files() lets only known formats through: {path}"
    intake.files += 1
    try:
        yield from reader(path, intake, line_bytes)
    except Rejected as damage:
        intake.reject(damage.reason, shown(path), damage.detail)


def reader_of(path: str) -> Reader | None:
    """The reader for a file's ending, looking through .gz, .zst and .bz2; None for a format that is not read."""
    stem, ending = os.path.splitext(path.lower())
    if ending in PACKINGS:
        ending = os.path.splitext(stem)[1]
        return None if ending == ".parquet" else READERS.get(ending)  # parquet needs to seek, and is packed inside
    return READERS.get(ending)


def read_text(path: str, intake: Intake, line_bytes: int) -> Iterator[Document]:
    """A text file, cut into documents at blank lines."""
    whole = _within(lines(unpacked(path), line_bytes), path, intake, line_bytes)
    for number, piece in pieces(whole, DOCUMENT_BYTES):
        yield from intake.take(text_document, piece, f"{shown(path)}:{number}")


def read_jsonl(path: str, intake: Intake, line_bytes: int) -> Iterator[Document]:
    """A file with one JSON value a line; blank lines are no records."""
    yield from _read_json(lines(unpacked(path), line_bytes), path, intake, line_bytes)


def read_json(path: str, intake: Intake, line_bytes: int) -> Iterator[Document]:
    """A JSON file: one object, a list of records, or objects one after another."""
    yield from _read_json(json_items(unpacked(path), line_bytes), path, intake, line_bytes)


def _read_json(records: Iterable[tuple[int, bytes | None]], path: str, intake: Intake, limit: int) -> Iterator[Document]:
    for number, raw in _within(records, path, intake, limit):
        if raw.strip():
            yield from intake.take(json_document, raw, f"{shown(path)}:{number}")


def _within(records: Iterable[tuple[int, bytes | None]], path: str, intake: Intake, limit: int) -> Iterator[tuple[int, bytes]]:
    """The records that are within the limit; the others are counted."""
    for number, raw in records:
        if raw is None:
            intake.reject("too long", f"{shown(path)}:{number}", f"more than {limit:,} bytes")
        else:
            yield number, raw


def read_parquet(path: str, intake: Intake, line_bytes: int) -> Iterator[Document]:
    """A parquet file, a few rows at a time; the place of a row is its number from 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("reading .parquet needs pyarrow", where=shown(path), fix="pip install 'hornbook[data]'") from error

    def row_document(row: Any, place: str) -> Document:
        try:
            return document_of({name: value.as_py() for name, value in row.items()}, place, line_bytes)
        except UnicodeDecodeError as error:
            raise Rejected("bad utf-8", f"byte {error.object[error.start]:#04x} at byte {error.start} of the field") from error

    number = 0
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            wanted = [name for name in names if name in FIELDS]
            if not wanted:
                raise Rejected("no text", f"columns: {', '.join(names)}")
            for batch in table.iter_batches(batch_size=64, columns=wanted):
                for row in range(batch.num_rows):
                    number += 1
                    values = {name: batch.column(name)[row] for name in batch.schema.names}
                    yield from intake.take(row_document, values, f"{shown(path)}:{number}")
    except (OSError, pa.ArrowException) as error:
        raise Rejected("damaged", f"after row {number}: {str(error).splitlines()[0]}") from error


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".py": read_text,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}


# --- records to documents ---------------------------------------------------------------------------------------------

FIELDS = ("text", "content", "messages", "question", "answer")


def text_document(raw: bytes, place: str) -> Document:
    """A piece of a text file; the place of a bad byte is the line it stands in."""
    return Document(_decoded(raw, place), place)


def json_document(raw: bytes, place: str) -> Document:
    """A JSON value of a file; see `document_of`."""
    text = _decoded(raw, place)
    try:
        row = json.loads(text)
    except RecursionError as error:
        raise Rejected("too deep", "brackets in brackets beyond what can be read") from error
    except ValueError as error:
        raise Rejected("bad json", str(error)) from error
    return document_of(row, place)


def _decoded(raw: bytes, place: str) -> str:
    if (at := raw.find(b"\0")) >= 0:
        raise Rejected("binary", f"NUL at byte {at} of the record", _line_of(raw, at, place))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"{raw[error.start]:#04x} at byte {error.start} of the record, {error.reason}"
        raise Rejected("bad utf-8", detail, _line_of(raw, error.start, place)) from error


def _line_of(raw: bytes, at: int, place: str) -> str:
    path, _, first = place.rpartition(":")
    line_ends = raw.count(b"\n", 0, at)
    return f"{path}:{int(first) + line_ends}"


def document_of(row: Any, place: str, limit: int = LINE_BYTES) -> Document:
    """A record as a document, from the first of these that it has: `text`, `content`, `messages`, `question` and `answer`.

    A text may be a list of strings, its lines; a bare string is a text. `messages` is a list of dicts with `role` and
    `content`; question and answer become a user's and an assistant's message. Raises `Rejected`.
    """
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, dict):
        raise Rejected("no text", f"the record is of type {type(row).__name__}, not an object")
    text = ""
    messages: tuple[dict[str, str], ...] = ()
    if (body := row["text"] if row.get("text") is not None else row.get("content")) is not None:
        text = _text(body)
    elif row.get("messages") is not None:
        messages = _messages(row["messages"])
    elif row.get("question") is not None and row.get("answer") is not None:
        roles = ("user", "question"), ("assistant", "answer")
        messages = _messages([{"role": role, "content": row[name]} for role, name in roles])
    else:
        raise Rejected("no text", f"the record has the fields: {', '.join(map(str, row)) or 'none'}"[:200])
    for part in [text, *(message["content"] for message in messages)]:
        _check_text(part, limit)
    return Document(text, place, messages)


def _text(body: Any) -> str:
    if isinstance(body, list) and all(isinstance(line, str) for line in body):
        return "\n".join(body)
    if not isinstance(body, str):
        raise Rejected("no text", f"the text is of type {type(body).__name__}")
    return body


def _messages(turns: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(turns, list) or not turns:
        raise Rejected("bad messages", "not a list with at least one message")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise Rejected("bad messages", "a message without a text as its content")
        if turn.get("role") not in ROLES:
            raise Rejected("bad messages", f"role {str(turn.get('role'))[:40]!r}; known: {', '.join(ROLES)}")
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _check_text(text: str, limit: int) -> None:
    if len(text) > limit:
        raise Rejected("too long", f"a text of {len(text):,} characters")
    if "\0" in text:
        raise Rejected("binary", "NUL in the text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Rejected("bad utf-8", f"half of a surrogate pair at character {error.start}") from error
